// The border to Python: arrays in, Problem and pointers out, the GIL released while threads compute. This file has the ops and the
// module; bindings_programs.cpp the prepared programs, bindings_introspection.cpp what tells about kernels and machine.
#include "bindings.h"

#include "common/environment.h"
#include "common/log.h"
#include "common/program.h"
#include "cpu/machine.h"
#include "cpu/parallel.h"

using namespace py::literals;
using namespace fastconv::bindings;

namespace fastconv::bindings {

py::dict describe(const fc::Plan& plan) {
  const fc::Problem& p = plan.problem;
  py::dict refused;
  for (const auto& [name, reason] : plan.refused) refused[py::str(name)] = reason;
  py::list conversions;
  return py::dict(
      "op"_a = fc::to_string(p.op), "device"_a = plan.algorithm->device, "layout"_a = fc::to_string(p.layout),
      "dtype"_a = "float32", "problem"_a = fc::to_string(p), "algorithm"_a = plan.algorithm->name,
      "kernel"_a = plan.algorithm->kernel, "ukernel"_a = plan.ukernel_name, "isa"_a = fc::to_string(plan.isa),
      "blocking"_a = fc::to_string(plan.blocking), "stores"_a = plan.blocking.streaming ? "streaming" : "regular",
      "macs"_a = py::int_(py::float_(p.macs())), "packed_bytes"_a = plan.packed_bytes,
      "workspace_bytes"_a = plan.scratch_bytes, "conversions"_a = conversions, "refused"_a = refused,
      "tuned"_a = plan.tuned, "output_shape"_a = tuple_of(fc::output_shape(p)));
}

}  // namespace fastconv::bindings

namespace {

// --- lone ops ---------------------------------------------------------------------------------------------------------

// Returns the name of the algorithm that ran.
const char* conv2d(const py::array& input, const py::array& weight, const std::optional<py::array>& bias,
                   const std::optional<py::array>& residual, py::array dst, fc::Pair stride, fc::Pads padding,
                   fc::Pair dilation, int64_t groups, const std::string& layout, const std::string& weight_layout,
                   const fc::Preference& algorithms, const std::optional<std::string>& activation, bool winograd) {
  if (bias) require_size(*bias, bias->size(), "bias");
  const fc::Problem p = fc::conv2d_problem(
      shape_of(input), shape_of(weight), bias ? bias->size() : -1, residual.has_value(), stride, padding, dilation,
      groups, fc::parse_layout(layout, "layout"), fc::parse_weight_layout(weight_layout), activation_of(activation));
  fc::Operands args;
  args.src = in(input, "input");
  const float* wei = in(weight, "weight");
  args.bias = bias ? in(*bias, "bias") : nullptr;
  if (residual) {
    if (shape_of(*residual) != fc::output_shape(p))
      bad("residual must have the output's shape " + fc::to_string(fc::output_shape(p)) + ", got " +
          fc::to_string(shape_of(*residual)));
    args.residual = in(*residual, "residual");
  }
  args.dst = out(dst, fc::output_shape(p), "out");
  const fc::PlanPtr plan = fc::make_plan(p, algorithms, winograd);
  const py::gil_scoped_release unlocked;
  fc::run_single(*plan, args, wei);
  return plan->algorithm->name;
}

void run_plain(const fc::Problem& p, const py::array& input, float* dst, int64_t* indices = nullptr,
               const float* scale = nullptr, const float* shift = nullptr) {
  fc::Operands args;
  args.src = in(input, "input");
  args.dst = dst;
  args.indices = indices;
  args.scale = scale;
  args.bias = shift;
  const fc::PlanPtr plan = fc::make_plan(p);
  const py::gil_scoped_release unlocked;
  fc::run_single(*plan, args, nullptr);
}

void max_pool2d(const py::array& input, py::array dst, std::optional<py::array> indices, fc::Pair kernel,
                fc::Pair stride, fc::Pads padding, fc::Pair dilation, bool ceil_mode, const std::string& layout) {
  fc::Problem p = fc::max_pool2d_problem(shape_of(input), kernel, stride, padding, dilation, ceil_mode,
                                         fc::parse_layout(layout, "layout"));
  p.with_indices = indices.has_value();
  int64_t* at = indices ? out<int64_t>(*indices, fc::output_shape(p), "indices") : nullptr;
  run_plain(p, input, out(dst, fc::output_shape(p), "out"), at);
}

void avg_pool2d(const py::array& input, py::array dst, fc::Pair kernel, fc::Pair stride, fc::Pads padding,
                bool ceil_mode, bool count_include_pad, int64_t divisor_override, const std::string& layout) {
  const fc::Problem p = fc::avg_pool2d_problem(shape_of(input), kernel, stride, padding, ceil_mode, count_include_pad,
                                               divisor_override, fc::parse_layout(layout, "layout"));
  run_plain(p, input, out(dst, fc::output_shape(p), "out"));
}

void adaptive_avg_pool2d(const py::array& input, py::array dst, fc::Pair output_size, const std::string& layout) {
  const fc::Problem p =
      fc::adaptive_avg_pool2d_problem(shape_of(input), output_size, fc::parse_layout(layout, "layout"));
  run_plain(p, input, out(dst, fc::output_shape(p), "out"));
}

// False, and nothing is done, where these are no plain arrays of images and their results that lie apart.
bool global_average_into(const py::handle& input, const py::handle& dst, bool nhwc) {
  if (!plain_and_apart(input, dst)) return false;
  const auto x = py::reinterpret_borrow<py::array>(input);
  auto y = py::reinterpret_borrow<py::array>(dst);
  if (x.ndim() != 4 || x.size() == 0) return false;
  const fc::Problem p =
      fc::adaptive_avg_pool2d_problem(shape_of(x), {1, 1}, nhwc ? fc::Layout::nhwc : fc::Layout::nchw);
  if (!has_shape(y, fc::output_shape(p))) return false;
  run_plain(p, x, static_cast<float*>(y.mutable_data()));
  return true;
}

void relu(const py::array& input, py::array dst) {
  run_plain(fc::relu_problem(shape_of(input)), input, out(dst, shape_of(input), "out"));
}

// False, and nothing is done, where these are no plain arrays of one shape that lie apart.
bool relu_into(const py::handle& input, const py::handle& dst) {
  if (!plain_and_apart(input, dst)) return false;
  const auto x = py::reinterpret_borrow<py::array>(input);
  auto y = py::reinterpret_borrow<py::array>(dst);
  if (!std::equal(x.shape(), x.shape() + x.ndim(), y.shape(), y.shape() + y.ndim()) || x.size() == 0) return false;
  run_plain(fc::relu_problem({x.size()}), x, static_cast<float*>(y.mutable_data()));
  return true;
}

void softmax(const py::array& input, py::array dst, int64_t dim) {
  run_plain(fc::softmax_problem(shape_of(input), dim), input, out(dst, shape_of(input), "out"));
}

void batch_norm(const py::array& input, const py::array& scale, const py::array& shift, py::array dst,
                const std::string& layout) {
  const fc::Problem p =
      fc::batch_norm_problem(shape_of(input), scale.size(), shift.size(), fc::parse_layout(layout, "layout"));
  run_plain(p, input, out(dst, shape_of(input), "out"), nullptr, in(scale, "scale"), in(shift, "shift"));
}

void convert_layout(const py::array& input, py::array dst, const std::string& source, const std::string& target) {
  const fc::Problem p = fc::convert_layout_problem(shape_of(input), fc::parse_layout(source, "source"),
                                                   fc::parse_layout(target, "target"));
  run_plain(p, input, out(dst, fc::output_shape(p), "out"));
}

// From NCHW to NHWC or back. False, and nothing is done, where these are no plain arrays of such shapes that lie apart.
bool convert_layout_into(const py::handle& input, const py::handle& dst, bool to_nhwc) {
  if (!plain_and_apart(input, dst)) return false;
  const auto x = py::reinterpret_borrow<py::array>(input);
  auto y = py::reinterpret_borrow<py::array>(dst);
  if (x.ndim() != 4 || x.size() == 0) return false;
  const fc::Layout planes = fc::Layout::nchw, pixels = fc::Layout::nhwc;
  const fc::Problem p = fc::convert_layout_problem(shape_of(x), to_nhwc ? planes : pixels, to_nhwc ? pixels : planes);
  if (!has_shape(y, fc::output_shape(p))) return false;
  run_plain(p, x, static_cast<float*>(y.mutable_data()));
  return true;
}

py::dict explain_conv2d(const fc::Shape& input, const fc::Shape& weight, bool bias, bool residual, fc::Pair stride,
                        fc::Pads padding, fc::Pair dilation, int64_t groups, const std::string& layout,
                        const std::string& weight_layout, const fc::Preference& algorithms,
                        const std::optional<std::string>& activation, bool winograd) {
  const fc::WeightLayout wl = fc::parse_weight_layout(weight_layout);
  const int64_t oc = weight.size() == 4 ? weight[wl == fc::WeightLayout::hwio ? 3 : 0] : -1;
  return describe(
      *fc::make_plan(fc::conv2d_problem(input, weight, bias ? oc : -1, residual, stride, padding, dilation, groups,
                                        fc::parse_layout(layout, "layout"), wl, activation_of(activation)),
                     algorithms, winograd));
}

template <class T>
T option(const py::dict& options, const char* name, T otherwise) {
  if (!options.contains(name)) return otherwise;
  try {
    return options[name].cast<T>();
  } catch (const py::cast_error&) {
    throw py::type_error(std::string(name) + " has the wrong type: " + std::string(py::repr(options[name])));
  }
}

py::dict explain_op(const std::string& op, const fc::Shape& input, const py::dict& options) {
  const auto layout = [&](const char* name) {
    return fc::parse_layout(option<std::string>(options, name, "NCHW"), name);
  };
  const auto pair = [&](const char* name) { return option<fc::Pair>(options, name, {1, 1}); };
  const fc::Pads pads = option<fc::Pads>(options, "padding", {0, 0, 0, 0});
  const bool ceil_mode = option(options, "ceil_mode", false);
  fc::Problem p;
  if (op == "max_pool2d") {
    p = fc::max_pool2d_problem(input, pair("kernel"), pair("stride"), pads, pair("dilation"), ceil_mode,
                               layout("layout"));
    p.with_indices = option(options, "return_indices", false);
  } else if (op == "avg_pool2d") {
    p = fc::avg_pool2d_problem(input, pair("kernel"), pair("stride"), pads, ceil_mode,
                               option(options, "count_include_pad", true),
                               option<int64_t>(options, "divisor_override", 0), layout("layout"));
  } else if (op == "adaptive_avg_pool2d") {
    p = fc::adaptive_avg_pool2d_problem(input, pair("output_size"), layout("layout"));
  } else if (op == "relu") {
    p = fc::relu_problem(input);
  } else if (op == "softmax") {
    p = fc::softmax_problem(input, option<int64_t>(options, "dim", -1));
  } else if (op == "batch_norm") {
    const fc::Layout l = layout("layout");
    const int64_t channels = input.size() == 4 ? input[l == fc::Layout::nchw ? 1 : 3] : 0;
    p = fc::batch_norm_problem(input, channels, channels, l);
  } else if (op == "convert_layout") {
    p = fc::convert_layout_problem(input, layout("source"), layout("target"));
  } else {
    bad("op must be one of max_pool2d, avg_pool2d, adaptive_avg_pool2d, relu, softmax, batch_norm, convert_layout; got "
        "\"" +
        op + "\"");
  }
  return describe(*fc::make_plan(p));
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled core of fastconv; see _core.pyi.";
  m.attr("__version__") = FASTCONV_VERSION;
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const fc::Unsupported& e) {
      py::set_error(PyExc_NotImplementedError, e.what());
    } catch (const std::length_error& e) {
      py::set_error(PyExc_MemoryError, e.what());
    }
  });
  fc::default_num_threads();  // a bad environment is an error at import, not in the middle of the work
  fc::current_isa();
  fc::winograd_allowed();
  fc::tuning_allowed();
  fc::verbose_level();
  fc::prepare_threads();

  add_introspection(m);
  add_programs(m);
  m.def("conv2d", conv2d, "input"_a, "weight"_a, "bias"_a, "residual"_a, "out"_a, "stride"_a, "padding"_a, "dilation"_a,
        "groups"_a, "layout"_a, "weight_layout"_a, "algorithms"_a, "activation"_a, "winograd"_a = true);
  m.def("max_pool2d", max_pool2d, "input"_a, "out"_a, "indices"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a,
        "ceil_mode"_a, "layout"_a);
  m.def("avg_pool2d", avg_pool2d, "input"_a, "out"_a, "kernel"_a, "stride"_a, "padding"_a, "ceil_mode"_a,
        "count_include_pad"_a, "divisor_override"_a, "layout"_a);
  m.def("adaptive_avg_pool2d", adaptive_avg_pool2d, "input"_a, "out"_a, "output_size"_a, "layout"_a);
  m.def("global_average_into", global_average_into, "input"_a, "out"_a, "nhwc"_a);
  m.def("relu", relu, "input"_a, "out"_a);
  m.def("relu_into", relu_into, "input"_a, "out"_a);
  m.def("softmax", softmax, "input"_a, "out"_a, "dim"_a);
  m.def("batch_norm", batch_norm, "input"_a, "scale"_a, "shift"_a, "out"_a, "layout"_a);
  m.def("convert_layout_into", convert_layout_into, "input"_a, "out"_a, "to_nhwc"_a);
  m.def("convert_layout", convert_layout, "input"_a, "out"_a, "source"_a, "target"_a);
  m.def("explain_conv2d", explain_conv2d, "input_shape"_a, "weight_shape"_a, "bias"_a, "residual"_a, "stride"_a,
        "padding"_a, "dilation"_a, "groups"_a, "layout"_a, "weight_layout"_a, "algorithms"_a, "activation"_a,
        "winograd"_a = true);
  m.def("explain_op", explain_op, "op"_a, "input_shape"_a, "options"_a);
  m.def(
      "conv2d_output_shape",
      [](const fc::Shape& input, const fc::Shape& weight, int64_t bias_size, fc::Pair stride, fc::Pads padding,
         fc::Pair dilation, int64_t groups, const std::string& layout, const std::string& weight_layout) {
        return tuple_of(fc::output_shape(fc::conv2d_problem(
            input, weight, bias_size, false, stride, padding, dilation, groups, fc::parse_layout(layout, "layout"),
            fc::parse_weight_layout(weight_layout), fc::Activation::none)));
      },
      "input_shape"_a, "weight_shape"_a, "bias_size"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "layout"_a,
      "weight_layout"_a);
  m.def(
      "pool2d_output_shape",
      [](const fc::Shape& input, fc::Pair kernel, fc::Pair stride, fc::Pads padding, fc::Pair dilation, bool ceil_mode,
         const std::string& layout) {
        return tuple_of(fc::output_shape(fc::max_pool2d_problem(input, kernel, stride, padding, dilation, ceil_mode,
                                                                fc::parse_layout(layout, "layout"))));
      },
      "input_shape"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "ceil_mode"_a, "layout"_a);
}
