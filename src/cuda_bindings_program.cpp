// The border to Python: weights and programs on a GPU, and what benchmarks measure with.
#include <pybind11/numpy.h>

#include <algorithm>

#include "cuda/peak.h"
#include "cuda/program.h"
#include "cuda_bindings.h"

using namespace py::literals;

namespace fastconv::cuda::bindings {
namespace {

const float* floats(const py::array& a, const char* name) {
  if (!a.dtype().equal(py::dtype::of<float>()) || !(a.flags() & py::array::c_style) ||
      reinterpret_cast<uintptr_t>(a.data()) % alignof(float))
    bad(std::string(name) + " must be a contiguous, aligned float32 array here");
  return static_cast<const float*>(a.data());
}

Shape shape_of(const py::array& a) {
  return Shape(a.shape(), a.shape() + a.ndim());
}

// Dropped without the GIL: freeing device memory waits for the device, and what that waits for may be a host function in Python.
template <class T>
std::shared_ptr<T> dropped_unlocked(T* made) {
  return std::shared_ptr<T>(made, [](T* p) {
    if (!Py_IsInitialized() || !PyGILState_Check()) {
      delete p;
      return;
    }
    const py::gil_scoped_release unlocked;
    delete p;
  });
}

std::shared_ptr<ConvWeights> make_weights(const py::array& weight, const std::optional<py::array>& bias,
                                          const std::string& layout, int64_t groups) {
  if (weight.ndim() != 4) bad("weight must have 4 dimensions, got " + std::to_string(weight.ndim()));
  if (bias && bias->ndim() != 1) bad("bias must have 1 dimension, got " + std::to_string(bias->ndim()));
  // The arrays live as long as the weights; released with the GIL held, from whatever thread drops the last program.
  auto* kept = new std::pair<py::object, py::object>(weight, bias ? py::object(*bias) : py::none());
  std::shared_ptr<void> owner(kept, [](void* p) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire locked;
    delete static_cast<std::pair<py::object, py::object>*>(p);
  });
  return dropped_unlocked(new ConvWeights(floats(weight, "weight"), shape_of(weight), parse_weight_layout(layout),
                                          groups, bias ? floats(*bias, "bias") : nullptr, bias ? bias->size() : -1,
                                          std::move(owner)));
}

// Arrays of one call on the program's device, ordered between streams where they are our own.
class Arguments {
 public:
  Arguments(const Program& program, const std::vector<View>& inputs, const std::vector<View>& outputs, uintptr_t stream)
      : device_(program.ordinal()), stream_(stream_of(stream)) {
    if (inputs.size() != program.input_count() || outputs.size() != program.output_count())
      bad("the program has " + std::to_string(program.input_count()) + " inputs and " +
          std::to_string(program.output_count()) + " outputs, got " + std::to_string(inputs.size()) + " and " +
          std::to_string(outputs.size()));
    for (size_t i = 0; i < inputs.size(); ++i)
      bindings_.inputs.push_back(take(inputs[i], program.input_tensor(i), "input"));
    for (size_t i = 0; i < outputs.size(); ++i) {
      require_writable(outputs[i], "out");
      bindings_.outputs.push_back(take(outputs[i], program.output_tensor(i), "out"));
    }
  }
  const Bindings& bindings() const { return bindings_; }
  cudaStream_t stream() const { return stream_; }

  // Without the GIL. Whatever `work` puts on the stream comes behind what others did to these arrays, and others' work behind it.
  template <class Work>
  auto ordered(const Work& work) {
    const DeviceGuard guard(device_);
    for (const auto& storage : storages_) storage->acquire(stream_);
    auto result = work();
    if (!storages_.empty() && !is_capturing(stream_)) {
      const MarkPtr done = Mark::record(device_, stream_);
      for (const auto& storage : storages_) storage->release(stream_, done);
    }
    return result;
  }

 private:
  void* take(const View& view, const Program::Tensor& tensor, const char* name) {
    if (view.shape != tensor.shape)
      bad(std::string(name) + " must have shape " + fc::to_string(tensor.shape) + ", got " + fc::to_string(view.shape));
    if (view.element != element_of(tensor.dtype))
      throw WrongDtype(std::string(name) + " must be " + to_string(tensor.dtype) + " here, got " +
                       to_string(view.element));
    if (view.device != device_)
      bad(std::string(name) + " lies on CUDA device " + std::to_string(view.device) + ", but the program on device " +
          std::to_string(device_));
    if (!view.contiguous()) bad(std::string(name) + " must be contiguous here");
    if (view.storage) storages_.push_back(view.storage);
    return view.data;
  }

  int device_;
  cudaStream_t stream_;
  Bindings bindings_;
  std::vector<std::shared_ptr<Storage>> storages_;
};

double bytes_moved(const Program& program, const Program::Step& s) {
  const auto bytes = [&](int x) { return x < 0 ? 0.0 : static_cast<double>(program.tensors()[x].bytes); };
  return bytes(s.src) + bytes(s.dst) + bytes(s.residual) + (s.packed ? static_cast<double>(s.packed->bytes()) : 0.0);
}

py::list steps_of(const Program& program) {
  py::list rows;
  for (const Program::Step& s : program.steps()) {
    const Program::Tensor &src = program.tensors()[s.src], &dst = program.tensors()[s.dst];
    py::dict row = s.plan ? describe(*s.plan)
                          : py::dict("op"_a = "cast", "device"_a = "cuda", "algorithm"_a = "cast", "kernel"_a = "cast",
                                     "ukernel"_a = to_string(src.dtype), "dtype"_a = to_string(dst.dtype));
    row["input_shape"] = tuple_of(src.shape);
    row["output_shape"] = tuple_of(dst.shape);
    row["then_max_pool"] = s.plan && s.plan->task.then_max_pool;
    row["flops"] = s.plan ? 2 * s.plan->task.problem.macs() : 0.0;
    row["bytes"] = bytes_moved(program, s);
    rows.append(row);
  }
  return rows;
}

// Milliseconds between events around each of `count` pieces of work that `enqueue` puts on the stream, back to back.
template <class Enqueue>
std::vector<double> timed(int count, cudaStream_t stream, const Enqueue& enqueue) {
  std::vector<UniqueEvent> events;
  for (int i = 0; i <= count; ++i) events.push_back(make_event(true));
  check(cudaEventRecord(events[0].get(), stream), "cudaEventRecord");
  for (int i = 0; i < count; ++i) {
    enqueue();
    check(cudaEventRecord(events[i + 1].get(), stream), "cudaEventRecord");
  }
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  std::vector<double> milliseconds;
  for (int i = 0; i < count; ++i) {
    float value = 0;
    check(cudaEventElapsedTime(&value, events[i].get(), events[i + 1].get()), "cudaEventElapsedTime");
    milliseconds.push_back(value);
  }
  return milliseconds;
}

// What is called on a stream between begin and end, as a graph to be replayed. For benchmarks.
class Recording {
 public:
  explicit Recording(int ordinal) : ordinal_(ordinal) {
    const DeviceGuard guard(ordinal_);
    stream_ = make_stream();
  }
  uintptr_t stream() const { return reinterpret_cast<uintptr_t>(stream_.get()); }
  void begin() {
    const DeviceGuard guard(ordinal_);
    check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  }
  void end() {
    const DeviceGuard guard(ordinal_);
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream_.get(), &graph), "cudaStreamEndCapture");
    graph_ = UniqueGraph(graph);
    cudaGraphExec_t exec = nullptr;
    check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    exec_ = UniqueGraphExec(exec);
  }
  std::vector<double> time(int count) {
    if (!exec_) bad("nothing was recorded");
    const DeviceGuard guard(ordinal_);
    return timed(count, stream_.get(), [&] { check(cudaGraphLaunch(exec_.get(), stream_.get()), "cudaGraphLaunch"); });
  }
  void synchronize() {
    const DeviceGuard guard(ordinal_);
    check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
  }

 private:
  int ordinal_;
  UniqueStream stream_;
  UniqueGraph graph_;
  UniqueGraphExec exec_;
};

// Bytes per second (read and written) of the faster of two copies: by the runtime and by our own kernel.
double copy_bandwidth(int ordinal, int64_t bytes, int count) {
  if (bytes < 16 || count < 1) bad("bytes must be at least 16 and count at least 1");
  bytes = bytes / 16 * 16;
  const DeviceGuard guard(ordinal);
  DeviceBuffer from(bytes), to(bytes);
  const UniqueStream stream = make_stream();
  check(cudaMemsetAsync(from.data(), 1, static_cast<size_t>(bytes), stream.get()), "cudaMemsetAsync");
  double best = 1e30;
  for (const bool own : {false, true}) {
    std::vector<double> ms = timed(count, stream.get(), [&] {
      if (own) {
        copy(from.data(), to.data(), bytes, stream.get());
      } else {
        check(
            cudaMemcpyAsync(to.data(), from.data(), static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream.get()),
            "cudaMemcpyAsync");
      }
    });
    std::sort(ms.begin(), ms.end());
    best = std::min(best, ms[ms.size() / 2]);
  }
  return 2.0 * static_cast<double>(bytes) / (std::max(best, 1e-9) * 1e-3);
}

double fma_peak(int ordinal, int count) {
  const DeviceGuard guard(ordinal);
  DeviceBuffer sink(4096);
  const UniqueStream stream = make_stream();
  double flop = 0;
  std::vector<double> ms = timed(std::max(count, 1), stream.get(), [&] {
    flop = fma_loop(device_limits(ordinal), reinterpret_cast<float*>(sink.data()), stream.get());
  });
  return flop / (std::max(*std::min_element(ms.begin(), ms.end()), 1e-9) * 1e-3);
}

}  // namespace

void add_programs(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<ConvWeights, std::shared_ptr<ConvWeights>>(m, "ConvWeights", py::module_local())
      .def(py::init(&make_weights), "weight"_a, "bias"_a, "weight_layout"_a, "groups"_a)
      .def_property_readonly("packed_bytes", &ConvWeights::packed_bytes)
      .def_property_readonly("shape", [](const ConvWeights& w) { return tuple_of(w.shape()); });

  py::class_<Program, std::shared_ptr<Program>>(m, "Program", py::module_local())
      .def(py::init([](int device, const std::string& compute) {
             return dropped_unlocked(new Program(device, parse_compute(compute)));
           }),
           "device"_a, "compute"_a = "float32")
      .def(
          "input",
          [](Program& self, const Shape& shape, const std::string& dtype) {
            return self.input(shape, parse_dtype(dtype));
          },
          "shape"_a, "dtype"_a)
      .def(
          "conv2d",
          [](Program& self, int x, std::shared_ptr<ConvWeights> weights, Pair stride, Pads padding, Pair dilation,
             const std::string& layout, const Preference& algorithms, const std::optional<std::string>& activation,
             int residual, bool then_max_pool) {
            return self.conv2d(x, std::move(weights), stride, padding, dilation, parse_layout(layout, "layout"),
                               algorithms, activation_of(activation), residual, then_max_pool);
          },
          "x"_a, py::arg("weights").none(false), "stride"_a, "padding"_a, "dilation"_a, "layout"_a, "algorithms"_a,
          "activation"_a = py::none(), "residual"_a = -1, "then_max_pool"_a = false)
      .def(
          "linear",
          [](Program& self, int x, std::shared_ptr<ConvWeights> weights, const std::optional<std::string>& activation) {
            return self.linear(x, std::move(weights), activation_of(activation));
          },
          "x"_a, py::arg("weights").none(false), "activation"_a = py::none())
      .def(
          "cast", [](Program& self, int x, const std::string& dtype) { return self.cast(x, parse_dtype(dtype)); },
          "x"_a, "dtype"_a)
      .def(
          "max_pool2d",
          [](Program& self, int x, Pair kernel, Pair stride, Pads padding, Pair dilation, bool ceil_mode,
             const std::string& layout) {
            const Problem p = max_pool2d_problem(self.shape(x), kernel, stride, padding, dilation, ceil_mode,
                                                 parse_layout(layout, "layout"));
            return self.step(p, x, fastconv::output_shape(p));
          },
          "x"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "ceil_mode"_a, "layout"_a)
      .def(
          "adaptive_avg_pool2d",
          [](Program& self, int x, Pair output_size, const std::string& layout) {
            const Problem p = adaptive_avg_pool2d_problem(self.shape(x), output_size, parse_layout(layout, "layout"));
            return self.step(p, x, fastconv::output_shape(p));
          },
          "x"_a, "output_size"_a, "layout"_a)
      .def("output", &Program::output, "x"_a)
      .def("finalize", &Program::finalize, unlocked)
      .def(
          "shape", [](const Program& self, int x) { return tuple_of(self.shape(x)); }, "x"_a)
      .def(
          "run",
          [](Program& self, const std::vector<View>& inputs, const std::vector<View>& outputs, uintptr_t stream) {
            Arguments args(self, inputs, outputs, stream);
            const py::gil_scoped_release released;
            args.ordered([&] { return self.run(args.bindings(), args.stream()), true; });
          },
          "inputs"_a, "outputs"_a, "stream"_a)
      .def(
          "run_profiled",
          [](Program& self, const std::vector<View>& inputs, const std::vector<View>& outputs, uintptr_t stream) {
            Arguments args(self, inputs, outputs, stream);
            const py::gil_scoped_release released;
            return args.ordered([&] { return self.run_profiled(args.bindings(), args.stream()); });
          },
          "inputs"_a, "outputs"_a, "stream"_a)
      .def(
          "time",
          [](Program& self, const std::vector<View>& inputs, const std::vector<View>& outputs, uintptr_t stream,
             int count) {
            Arguments args(self, inputs, outputs, stream);
            const py::gil_scoped_release released;
            return args.ordered(
                [&] { return timed(count, args.stream(), [&] { self.run(args.bindings(), args.stream()); }); });
          },
          "inputs"_a, "outputs"_a, "stream"_a, "count"_a)
      .def("use_graphs", &Program::use_graphs, "on"_a)
      .def_property_readonly("graph_refusal", &Program::graph_refusal)
      .def("steps", &steps_of)
      .def_property_readonly("device", &Program::ordinal)
      .def_property_readonly("arena_bytes", &Program::arena_bytes)
      .def_property_readonly("workspace_bytes", &Program::workspace_bytes);

  py::class_<Recording>(m, "Recording", py::module_local())
      .def(py::init<int>(), "device"_a)
      .def_property_readonly("stream", &Recording::stream)
      .def("begin", &Recording::begin)
      .def("end", &Recording::end, unlocked)
      .def("time", &Recording::time, "count"_a, unlocked)
      .def("synchronize", &Recording::synchronize, unlocked);
  m.def("copy_bandwidth", &copy_bandwidth, "device"_a, "bytes"_a, "count"_a = 10, unlocked);
  m.def("fma_peak", &fma_peak, "device"_a, "count"_a = 5, unlocked);
}

}  // namespace fastconv::cuda::bindings
