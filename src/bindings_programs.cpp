// The border to Python: prepared weights and programs.
#include "bindings.h"
#include "common/program.h"
#include "common/weights.h"

using namespace py::literals;

namespace fastconv::bindings {
namespace {

py::list ranges_of(const std::vector<fc::Together>& found) {
  py::list rows;
  for (const fc::Together& t : found) rows.append(py::make_tuple(t.first, t.last));
  return rows;
}

// --- programs ---------------------------------------------------------------------------------------------------------

std::shared_ptr<fc::ConvWeights> make_weights(const py::array& weight, const std::optional<py::array>& bias,
                                              const std::string& layout, int64_t groups) {
  if (weight.ndim() != 4) bad("weight must have 4 dimensions, got " + std::to_string(weight.ndim()));
  if (bias) require_size(*bias, bias->size(), "bias");
  // The arrays live as long as the weights; released with the GIL held, from whatever thread drops the last program.
  auto* kept = new std::pair<py::object, py::object>(weight, bias ? py::object(*bias) : py::none());
  std::shared_ptr<void> owner(kept, [](void* p) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire locked;
    delete static_cast<std::pair<py::object, py::object>*>(p);
  });
  return std::make_shared<fc::ConvWeights>(in(weight, "weight"), shape_of(weight), fc::parse_weight_layout(layout),
                                           groups, bias ? in(*bias, "bias") : nullptr, bias ? bias->size() : -1,
                                           std::move(owner));
}

struct Pointers {
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
};

Pointers pointers(const fc::Program& program, const std::vector<py::array>& inputs, std::vector<py::array>& outputs) {
  if (inputs.size() != program.input_count())
    bad("inputs must have " + std::to_string(program.input_count()) + " arrays, got " + std::to_string(inputs.size()));
  if (outputs.size() != program.output_count())
    bad("outputs must have " + std::to_string(program.output_count()) + " arrays, got " +
        std::to_string(outputs.size()));
  Pointers p;
  for (size_t i = 0; i < inputs.size(); ++i) {
    p.inputs.push_back(in(inputs[i], "input"));
    if (shape_of(inputs[i]) != program.input_shape(i))
      bad("input must have shape " + fc::to_string(program.input_shape(i)) + ", got " +
          fc::to_string(shape_of(inputs[i])));
  }
  for (size_t i = 0; i < outputs.size(); ++i) p.outputs.push_back(out(outputs[i], program.output_shape(i), "out"));
  return p;
}

// A whole call at once, where nothing has to be judged: a network has evicted the interpreter's code and data from the caches, and what
// it takes to get here and back is then some 100 ns for each piece of either.
py::object answer(fc::Program& self, const py::handle& x) {
  if (!is_plain(x) || self.stale() || self.input_count() != 1 || self.output_count() != 1) return py::none();
  const auto a = py::reinterpret_borrow<py::array>(x);
  if (!has_shape(a, self.input_shape(0))) return py::none();
  py::array_t<float> y(self.output_shape(0));
  const std::vector<const float*> inputs = {static_cast<const float*>(a.data())};
  const std::vector<float*> outputs = {y.mutable_data()};
  {
    const py::gil_scoped_release unlocked;
    self.run(inputs, outputs);
  }
  return y;
}

// The same into `out`; false, and nothing is done, where that is no such array of the output's shape, or shares memory with x.
bool answer_into(fc::Program& self, const py::handle& x, const py::handle& out) {
  if (!plain_and_apart(x, out) || self.stale() || self.input_count() != 1 || self.output_count() != 1) return false;
  const auto a = py::reinterpret_borrow<py::array>(x);
  auto y = py::reinterpret_borrow<py::array>(out);
  if (!has_shape(a, self.input_shape(0)) || !has_shape(y, self.output_shape(0))) return false;
  const std::vector<const float*> inputs = {static_cast<const float*>(a.data())};
  const std::vector<float*> outputs = {static_cast<float*>(y.mutable_data())};
  const py::gil_scoped_release unlocked;
  self.run(inputs, outputs);
  return true;
}

std::vector<float> floats(const py::array& a, const char* name) {
  const float* data = in(a, name);
  return std::vector<float>(data, data + a.size());
}

}  // namespace

void add_programs(py::module_& m) {
  py::class_<fc::ConvWeights, std::shared_ptr<fc::ConvWeights>>(m, "ConvWeights")
      .def(py::init(&make_weights), "weight"_a, "bias"_a, "weight_layout"_a, "groups"_a)
      .def_property_readonly("packed_bytes", &fc::ConvWeights::packed_bytes)
      .def_property_readonly("shape", [](const fc::ConvWeights& w) { return tuple_of(w.shape()); });

  using fc::Program;
  py::class_<Program, std::shared_ptr<Program>>(m, "Program")
      .def(py::init<>())
      .def("input", &Program::input, "shape"_a)
      .def(
          "conv2d",
          [](Program& self, int x, std::shared_ptr<fc::ConvWeights> weights, fc::Pair stride, fc::Pads padding,
             fc::Pair dilation, const std::string& layout, const fc::Preference& algorithms,
             const std::optional<std::string>& activation, int residual, bool winograd) {
            return self.conv2d(x, std::move(weights), stride, padding, dilation, fc::parse_layout(layout, "layout"),
                               algorithms, winograd, activation_of(activation), residual);
          },
          "x"_a, py::arg("weights").none(false), "stride"_a, "padding"_a, "dilation"_a, "layout"_a, "algorithms"_a,
          "activation"_a = py::none(), "residual"_a = -1, "winograd"_a = true)
      .def(
          "linear",
          [](Program& self, int x, std::shared_ptr<fc::ConvWeights> weights,
             const std::optional<std::string>& activation) {
            return self.linear(x, std::move(weights), activation_of(activation));
          },
          "x"_a, py::arg("weights").none(false), "activation"_a = py::none())
      .def(
          "max_pool2d",
          [](Program& self, int x, fc::Pair kernel, fc::Pair stride, fc::Pads padding, fc::Pair dilation,
             bool ceil_mode, const std::string& layout) {
            const fc::Problem p = fc::max_pool2d_problem(self.shape(x), kernel, stride, padding, dilation, ceil_mode,
                                                         fc::parse_layout(layout, "layout"));
            return self.step(p, x, {"auto"}, fc::output_shape(p));
          },
          "x"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "ceil_mode"_a, "layout"_a)
      .def(
          "avg_pool2d",
          [](Program& self, int x, fc::Pair kernel, fc::Pair stride, fc::Pads padding, bool ceil_mode,
             bool count_include_pad, int64_t divisor_override, const std::string& layout) {
            const fc::Problem p =
                fc::avg_pool2d_problem(self.shape(x), kernel, stride, padding, ceil_mode, count_include_pad,
                                       divisor_override, fc::parse_layout(layout, "layout"));
            return self.step(p, x, {"auto"}, fc::output_shape(p));
          },
          "x"_a, "kernel"_a, "stride"_a, "padding"_a, "ceil_mode"_a, "count_include_pad"_a, "divisor_override"_a,
          "layout"_a)
      .def(
          "adaptive_avg_pool2d",
          [](Program& self, int x, fc::Pair output_size, const std::string& layout) {
            const fc::Problem p =
                fc::adaptive_avg_pool2d_problem(self.shape(x), output_size, fc::parse_layout(layout, "layout"));
            return self.step(p, x, {"auto"}, fc::output_shape(p));
          },
          "x"_a, "output_size"_a, "layout"_a)
      .def(
          "relu",
          [](Program& self, int x) { return self.step(fc::relu_problem(self.shape(x)), x, {"auto"}, self.shape(x)); },
          "x"_a)
      .def(
          "softmax",
          [](Program& self, int x, int64_t dim) {
            return self.step(fc::softmax_problem(self.shape(x), dim), x, {"auto"}, self.shape(x));
          },
          "x"_a, "dim"_a)
      .def(
          "batch_norm",
          [](Program& self, int x, const py::array& scale, const py::array& shift, const std::string& layout) {
            return self.batch_norm(x, floats(scale, "scale"), floats(shift, "shift"),
                                   fc::parse_layout(layout, "layout"));
          },
          "x"_a, "scale"_a, "shift"_a, "layout"_a)
      .def(
          "convert_layout",
          [](Program& self, int x, const std::string& source, const std::string& target) {
            const fc::Problem p = fc::convert_layout_problem(self.shape(x), fc::parse_layout(source, "source"),
                                                             fc::parse_layout(target, "target"));
            return self.step(p, x, {"auto"}, fc::output_shape(p));
          },
          "x"_a, "source"_a, "target"_a)
      .def("output", &Program::output, "x"_a)
      .def("finalize", &Program::finalize, "l2_bytes"_a = 0, "l3_bytes"_a = 0, py::call_guard<py::gil_scoped_release>())
      .def(
          "shape", [](const Program& self, int x) { return tuple_of(self.shape(x)); }, "x"_a)
      .def(
          "run",
          [](Program& self, const std::vector<py::array>& inputs, std::vector<py::array> outputs) {
            const Pointers p = pointers(self, inputs, outputs);
            const py::gil_scoped_release unlocked;
            self.run(p.inputs, p.outputs);
          },
          "inputs"_a, "outputs"_a)
      .def("answer", &answer, "x"_a)
      .def("answer_into", &answer_into, "x"_a, "out"_a)
      .def(
          "run_profiled",
          [](Program& self, const std::vector<py::array>& inputs, std::vector<py::array> outputs) {
            const Pointers p = pointers(self, inputs, outputs);
            std::vector<double> seconds;
            {
              const py::gil_scoped_release unlocked;
              self.run(p.inputs, p.outputs, &seconds);
            }
            return seconds;
          },
          "inputs"_a, "outputs"_a)
      .def("steps",
           [](const Program& self) {
             py::list rows;
             for (const Program::Step& s : self.steps()) {
               py::dict row = describe(*s.plan);
               row["input_shape"] = tuple_of(self.tensors()[s.src].shape);
               row["output_shape"] = tuple_of(self.tensors()[s.dst].shape);
               rows.append(row);
             }
             return rows;
           })
      .def("chains", [](const Program& self) { return ranges_of(self.chains()); })
      .def("image_groups", [](const Program& self) { return ranges_of(self.image_groups()); })
      .def_property_readonly("arena_bytes", &Program::arena_bytes)
      .def_property_readonly("workspace_bytes", &Program::scratch_bytes);
}

}  // namespace fastconv::bindings
