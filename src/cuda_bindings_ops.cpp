// The border to Python: the ops on device arrays. Nothing here waits for the device.
#include "cuda/device.h"
#include "cuda/weights.h"
#include "cuda_bindings.h"

using namespace py::literals;

namespace fastconv::cuda::bindings {
namespace {

// Shapes are given beside the arrays: an image without its batch axis, or rows of a linear layer, are the same elements.
Task conv2d_task(const Shape& shape, const Shape& weight_shape, int64_t bias_size, bool residual, Pair stride,
                 Pads padding, Pair dilation, int64_t groups, const std::string& layout, WeightLayout weight_layout,
                 const std::optional<std::string>& activation, const std::string& compute, bool then_max_pool,
                 const View& input) {
  Task task;
  task.problem = conv2d_problem(shape, weight_shape, bias_size, residual, stride, padding, dilation, groups,
                                parse_layout(layout, "layout"), weight_layout, activation_of(activation));
  task.dtype = dtype_of(input, "input");
  task.compute = parse_compute(compute);
  task.then_max_pool = then_max_pool;
  return task;
}

// The 3x3 max-pool with stride 2 and padding 1 behind a convolution is part of the task.
const char* conv2d(const Shape& shape, const Shape& weight_shape, const View& input, const View& weight,
                   const View* bias, const View* residual, const View& out, Pair stride, Pads padding, Pair dilation,
                   int64_t groups, const std::string& layout, const std::string& weight_layout,
                   const Preference& algorithms, const std::optional<std::string>& activation,
                   const std::string& compute, uintptr_t cuda_stream, bool then_max_pool) {
  Call call;
  call.task =
      conv2d_task(shape, weight_shape, bias ? bias->elements() : -1, residual != nullptr, stride, padding, dilation,
                  groups, layout, parse_weight_layout(weight_layout), activation, compute, then_max_pool, input);
  require_writable(out, "out");
  call.preference = algorithms;
  call.src = &input, call.weight = &weight, call.bias = bias, call.residual = residual, call.dst = &out;
  const py::gil_scoped_release unlocked;
  return execute(call, stream_of(cuda_stream))->algorithm->name;
}

// By weights that are kept packed on the device. The first call of a plan packs them and waits for that.
const char* conv2d_prepared(const Shape& shape, ConvWeights& weights, const View& input, const View* residual,
                            const View& out, Pair stride, Pads padding, Pair dilation, const std::string& layout,
                            const Preference& algorithms, const std::optional<std::string>& activation,
                            const std::string& compute, uintptr_t cuda_stream, bool then_max_pool) {
  Call call;
  call.task = conv2d_task(shape, weights.shape(), weights.bias_size(), residual != nullptr, stride, padding, dilation,
                          weights.groups(), layout, weights.layout(), activation, compute, then_max_pool, input);
  require_writable(out, "out");
  call.src = &input, call.residual = residual, call.dst = &out;
  const py::gil_scoped_release unlocked;
  const PlanPtr plan = make_plan(call.task, algorithms, device_limits(input.device));
  const auto packed = weights.packed(*plan);
  const auto bias = weights.bias(input.device);
  call.packed = packed->data();
  call.packed_bias = bias ? reinterpret_cast<const float*>(bias->data()) : nullptr;
  execute(*plan, call, stream_of(cuda_stream));
  return plan->algorithm->name;
}

void run_plain(const Problem& problem, const View& input, const View& out, uintptr_t cuda_stream,
               const View* indices = nullptr) {
  Call call;
  call.task.problem = problem;
  call.task.dtype = dtype_of(input, "input");
  call.src = &input, call.dst = &out, call.indices = indices;
  require_writable(out, "out");
  const py::gil_scoped_release unlocked;
  execute(call, stream_of(cuda_stream));
}

void max_pool2d(const Shape& shape, const View& input, const View& out, const View* indices, Pair kernel, Pair stride,
                Pads padding, Pair dilation, bool ceil_mode, const std::string& layout, uintptr_t cuda_stream) {
  Problem p = max_pool2d_problem(shape, kernel, stride, padding, dilation, ceil_mode, parse_layout(layout, "layout"));
  p.with_indices = indices != nullptr;
  run_plain(p, input, out, cuda_stream, indices);
}

void avg_pool2d(const Shape& shape, const View& input, const View& out, Pair kernel, Pair stride, Pads padding,
                bool ceil_mode, bool count_include_pad, int64_t divisor_override, const std::string& layout,
                uintptr_t cuda_stream) {
  run_plain(avg_pool2d_problem(shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override,
                               parse_layout(layout, "layout")),
            input, out, cuda_stream);
}

void adaptive_avg_pool2d(const Shape& shape, const View& input, const View& out, Pair output_size,
                         const std::string& layout, uintptr_t cuda_stream) {
  run_plain(adaptive_avg_pool2d_problem(shape, output_size, parse_layout(layout, "layout")), input, out, cuda_stream);
}

// max(input + residual, 0); no public op has the residual yet.
void relu(const View& input, const View& out, uintptr_t cuda_stream, const View* residual) {
  Call call;
  call.task.problem = relu_problem(input.shape);
  call.task.problem.residual = residual != nullptr;
  call.task.dtype = dtype_of(input, "input");
  call.src = &input, call.dst = &out, call.residual = residual;
  if (residual) require_shape(*residual, input.shape, "residual");
  require_writable(out, "out");
  const py::gil_scoped_release unlocked;
  execute(call, stream_of(cuda_stream));
}

void softmax(const View& input, const View& out, int64_t dim, uintptr_t cuda_stream) {
  run_plain(softmax_problem(input.shape, dim), input, out, cuda_stream);
}

void batch_norm(const Shape& shape, const View& input, const View& mean, const View& var, const View* weight,
                const View* bias, double eps, const View& out, const std::string& layout, uintptr_t cuda_stream) {
  Call call;
  call.task.problem = batch_norm_problem(shape, var.elements(), mean.elements(), parse_layout(layout, "layout"));
  call.task.dtype = dtype_of(input, "input");
  call.src = &input, call.dst = &out, call.mean = &mean, call.var = &var, call.gamma = weight, call.beta = bias;
  call.eps = eps;
  require_writable(out, "out");
  const py::gil_scoped_release unlocked;
  execute(call, stream_of(cuda_stream));
}

void convert_layout(const Shape& shape, const View& input, const View& out, const std::string& source,
                    const std::string& target, uintptr_t cuda_stream) {
  run_plain(convert_layout_problem(shape, parse_layout(source, "source"), parse_layout(target, "target")), input, out,
            cuda_stream);
}

}  // namespace

void add_ops(py::module_& m) {
  m.def("conv2d", conv2d, "shape"_a, "weight_shape"_a, "input"_a, "weight"_a, "bias"_a.none(true),
        "residual"_a.none(true), "out"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "layout"_a,
        "weight_layout"_a, "algorithms"_a, "activation"_a, "compute"_a, "cuda_stream"_a, "then_max_pool"_a = false);
  m.def("conv2d_prepared", conv2d_prepared, "shape"_a, "weights"_a, "input"_a, "residual"_a.none(true), "out"_a,
        "stride"_a, "padding"_a, "dilation"_a, "layout"_a, "algorithms"_a, "activation"_a, "compute"_a, "cuda_stream"_a,
        "then_max_pool"_a = false);
  m.def("max_pool2d", max_pool2d, "shape"_a, "input"_a, "out"_a, "indices"_a.none(true), "kernel"_a, "stride"_a,
        "padding"_a, "dilation"_a, "ceil_mode"_a, "layout"_a, "cuda_stream"_a);
  m.def("avg_pool2d", avg_pool2d, "shape"_a, "input"_a, "out"_a, "kernel"_a, "stride"_a, "padding"_a, "ceil_mode"_a,
        "count_include_pad"_a, "divisor_override"_a, "layout"_a, "cuda_stream"_a);
  m.def("adaptive_avg_pool2d", adaptive_avg_pool2d, "shape"_a, "input"_a, "out"_a, "output_size"_a, "layout"_a,
        "cuda_stream"_a);
  m.def("relu", relu, "input"_a, "out"_a, "cuda_stream"_a, "residual"_a.none(true) = py::none());
  m.def("softmax", softmax, "input"_a, "out"_a, "dim"_a, "cuda_stream"_a);
  m.def("batch_norm", batch_norm, "shape"_a, "input"_a, "running_mean"_a, "running_var"_a, "weight"_a.none(true),
        "bias"_a.none(true), "eps"_a, "out"_a, "layout"_a, "cuda_stream"_a);
  m.def("convert_layout", convert_layout, "shape"_a, "input"_a, "out"_a, "source"_a, "target"_a, "cuda_stream"_a);
}

}  // namespace fastconv::cuda::bindings
