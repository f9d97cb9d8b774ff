// The border to Python: the ops on device arrays. Nothing here waits for the device.
#include "cuda_bindings.h"

using namespace py::literals;

namespace fastconv::cuda::bindings {
namespace {

// The 3x3 max-pool with stride 2 and padding 1 behind a convolution is part of the task.
const char* conv2d(const View& input, const View& weight, const View* bias, const View* residual, const View& out,
                   Pair stride, Pads padding, Pair dilation, int64_t groups, const std::string& layout,
                   const std::string& weight_layout, const Preference& algorithms,
                   const std::optional<std::string>& activation, const std::string& compute, uintptr_t cuda_stream,
                   bool then_max_pool) {
  if (bias && bias->shape.size() != 1) bad("bias must have 1 dimension, got shape " + fc::to_string(bias->shape));
  Call call;
  call.task.problem = conv2d_problem(input.shape, weight.shape, bias ? bias->shape[0] : -1, residual != nullptr, stride,
                                     padding, dilation, groups, parse_layout(layout, "layout"),
                                     parse_weight_layout(weight_layout), activation_of(activation));
  call.task.dtype = dtype_of(input, "input");
  call.task.compute = parse_compute(compute);
  call.task.then_max_pool = then_max_pool;
  const Shape result = result_shape(call.task);
  if (residual) require_shape(*residual, result, "residual");
  require_shape(out, result, "out");
  require_writable(out, "out");
  call.preference = algorithms;
  call.src = &input, call.weight = &weight, call.bias = bias, call.residual = residual, call.dst = &out;
  const py::gil_scoped_release unlocked;
  return execute(call, stream_of(cuda_stream))->algorithm->name;
}

void run_plain(const Problem& problem, const View& input, const View& out, uintptr_t cuda_stream,
               const View* indices = nullptr, const View* scale = nullptr, const View* shift = nullptr) {
  Call call;
  call.task.problem = problem;
  call.task.dtype = dtype_of(input, "input");
  call.src = &input, call.dst = &out, call.indices = indices, call.scale = scale, call.bias = shift;
  require_writable(out, "out");
  const py::gil_scoped_release unlocked;
  execute(call, stream_of(cuda_stream));
}

void max_pool2d(const View& input, const View& out, const View* indices, Pair kernel, Pair stride, Pads padding,
                Pair dilation, bool ceil_mode, const std::string& layout, uintptr_t cuda_stream) {
  Problem p =
      max_pool2d_problem(input.shape, kernel, stride, padding, dilation, ceil_mode, parse_layout(layout, "layout"));
  p.with_indices = indices != nullptr;
  require_shape(out, output_shape(p), "out");
  if (indices) {
    require_shape(*indices, output_shape(p), "indices");
    if (!indices->contiguous()) bad("indices must be contiguous here");
  }
  run_plain(p, input, out, cuda_stream, indices);
}

void avg_pool2d(const View& input, const View& out, Pair kernel, Pair stride, Pads padding, bool ceil_mode,
                bool count_include_pad, int64_t divisor_override, const std::string& layout, uintptr_t cuda_stream) {
  const Problem p = avg_pool2d_problem(input.shape, kernel, stride, padding, ceil_mode, count_include_pad,
                                       divisor_override, parse_layout(layout, "layout"));
  require_shape(out, output_shape(p), "out");
  run_plain(p, input, out, cuda_stream);
}

void adaptive_avg_pool2d(const View& input, const View& out, Pair output_size, const std::string& layout,
                         uintptr_t cuda_stream) {
  const Problem p = adaptive_avg_pool2d_problem(input.shape, output_size, parse_layout(layout, "layout"));
  require_shape(out, output_shape(p), "out");
  run_plain(p, input, out, cuda_stream);
}

void relu(const View& input, const View& out, uintptr_t cuda_stream) {
  require_shape(out, input.shape, "out");
  run_plain(relu_problem(input.shape), input, out, cuda_stream);
}

void softmax(const View& input, const View& out, int64_t dim, uintptr_t cuda_stream) {
  require_shape(out, input.shape, "out");
  run_plain(softmax_problem(input.shape, dim), input, out, cuda_stream);
}

void batch_norm(const View& input, const View& scale, const View& shift, const View& out, const std::string& layout,
                uintptr_t cuda_stream) {
  const auto size = [](const View& v) { return v.shape.size() == 1 ? v.shape[0] : int64_t{-1}; };
  const Problem p = batch_norm_problem(input.shape, size(scale), size(shift), parse_layout(layout, "layout"));
  require_shape(out, input.shape, "out");
  run_plain(p, input, out, cuda_stream, nullptr, &scale, &shift);
}

void convert_layout(const View& input, const View& out, const std::string& source, const std::string& target,
                    uintptr_t cuda_stream) {
  const Problem p = convert_layout_problem(input.shape, parse_layout(source, "source"), parse_layout(target, "target"));
  require_shape(out, output_shape(p), "out");
  run_plain(p, input, out, cuda_stream);
}

}  // namespace

void add_ops(py::module_& m) {
  m.def("conv2d", conv2d, "input"_a, "weight"_a, "bias"_a.none(true), "residual"_a.none(true), "out"_a, "stride"_a,
        "padding"_a, "dilation"_a, "groups"_a, "layout"_a, "weight_layout"_a, "algorithms"_a, "activation"_a,
        "compute"_a, "cuda_stream"_a, "then_max_pool"_a = false);
  m.def("max_pool2d", max_pool2d, "input"_a, "out"_a, "indices"_a.none(true), "kernel"_a, "stride"_a, "padding"_a,
        "dilation"_a, "ceil_mode"_a, "layout"_a, "cuda_stream"_a);
  m.def("avg_pool2d", avg_pool2d, "input"_a, "out"_a, "kernel"_a, "stride"_a, "padding"_a, "ceil_mode"_a,
        "count_include_pad"_a, "divisor_override"_a, "layout"_a, "cuda_stream"_a);
  m.def("adaptive_avg_pool2d", adaptive_avg_pool2d, "input"_a, "out"_a, "output_size"_a, "layout"_a, "cuda_stream"_a);
  m.def("relu", relu, "input"_a, "out"_a, "cuda_stream"_a);
  m.def("softmax", softmax, "input"_a, "out"_a, "dim"_a, "cuda_stream"_a);
  m.def("batch_norm", batch_norm, "input"_a, "scale"_a, "shift"_a, "out"_a, "layout"_a, "cuda_stream"_a);
  m.def("convert_layout", convert_layout, "input"_a, "out"_a, "source"_a, "target"_a, "cuda_stream"_a);
}

}  // namespace fastconv::cuda::bindings
