// The border to Python: devices, kernels, and the plans that calls would take.
#include <algorithm>

#include "cuda/device.h"
#include "cuda_bindings.h"

using namespace py::literals;

namespace fastconv::cuda::bindings {

py::dict describe(const Plan& plan) {
  const Problem& p = plan.task.problem;
  py::dict refused;
  for (const auto& [name, reason] : plan.refused) refused[py::str(name)] = reason;
  return py::dict("op"_a = fc::to_string(p.op), "device"_a = "cuda", "layout"_a = fc::to_string(p.layout),
                  "dtype"_a = cu::to_string(plan.task.dtype), "compute"_a = cu::to_string(plan.task.compute),
                  "problem"_a = fc::to_string(p), "algorithm"_a = plan.algorithm->name,
                  "kernel"_a = plan.algorithm->kernel, "ukernel"_a = plan.ukernel_name,
                  "isa"_a = "sm_" + std::to_string(plan.device.sm), "blocking"_a = cu::to_string(plan.tile),
                  "macs"_a = py::int_(py::float_(p.macs())), "packed_bytes"_a = plan.packed_bytes,
                  "workspace_bytes"_a = plan.workspace_bytes, "conversions"_a = py::list(), "refused"_a = refused,
                  "output_shape"_a = tuple_of(result_shape(plan.task)));
}

namespace {

constexpr Op kLastOp = Op::convert_layout;

// Problems that between them every algorithm is there for one of: what `kernels` asks them about.
std::vector<Problem> samples(Op op) {
  std::vector<Problem> all;
  for (const Layout layout : {Layout::nhwc, Layout::nchw}) {
    const bool nchw = layout == Layout::nchw;
    const auto image = [nchw](int64_t c, int64_t hw) { return nchw ? Shape{2, c, hw, hw} : Shape{2, hw, hw, c}; };
    const auto conv = [&](int64_t ic, int64_t oc, int64_t k, int64_t s, int64_t groups) {
      const WeightLayout wl = nchw ? WeightLayout::oihw : WeightLayout::ohwi;
      const int64_t c = ic / groups, pad = k / 2;
      const Shape weight = nchw ? Shape{oc, c, k, k} : Shape{oc, k, k, c};
      all.push_back(conv2d_problem(image(ic, 28), weight, oc, false, {s, s}, {pad, pad, pad, pad}, {1, 1}, groups,
                                   layout, wl, Activation::relu));
    };
    switch (op) {
      case Op::conv2d:
        conv(64, 64, 3, 1, 1), conv(64, 128, 1, 1, 1), conv(3, 64, 7, 2, 1), conv(32, 32, 3, 1, 32),
            conv(8, 8, 3, 1, 2);
        break;
      case Op::max_pool2d:
        all.push_back(max_pool2d_problem(image(64, 28), {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}, false, layout));
        break;
      case Op::avg_pool2d:
        all.push_back(avg_pool2d_problem(image(64, 28), {2, 2}, {2, 2}, {0, 0, 0, 0}, false, true, 0, layout));
        break;
      case Op::adaptive_avg_pool2d:
        all.push_back(adaptive_avg_pool2d_problem(image(64, 7), {1, 1}, layout));
        break;
      case Op::relu:
        all.push_back(relu_problem({4096}));
        break;
      case Op::softmax:
        all.push_back(softmax_problem({64, 1000}, 1));
        all.push_back(softmax_problem({8, 16, 64}, 1));
        break;
      case Op::batch_norm:
        all.push_back(batch_norm_problem(image(64, 28), 64, 64, layout));
        break;
      case Op::convert_layout:
        all.push_back(convert_layout_problem(image(64, 28), layout, nchw ? Layout::nhwc : Layout::nchw));
        break;
    }
  }
  return all;
}

// The reason why the algorithm does none of the samples in this dtype, or null.
const char* refuses_all(const Algorithm& a, Dtype dtype, Compute compute, const DeviceLimits& device) {
  const char* reason = nullptr;
  for (const Problem& p : samples(a.op)) {
    for (const bool pool : {false, true}) {
      if (pool && (a.op != Op::conv2d || p.kh != 7)) continue;
      Task task;
      task.problem = p, task.dtype = dtype, task.compute = compute, task.then_max_pool = pool;
      reason = a.refuses(task, device);
      if (!reason) return nullptr;
    }
  }
  return reason;
}

// The oldest architecture that it runs on, as its name says; sm_80 where it says nothing.
int oldest_sm(const Algorithm& a) {
  const std::string name = a.kernel;
  const size_t at = name.rfind("_sm");
  return at == std::string::npos ? 80 : std::atoi(name.c_str() + at + 3);
}

// One row for each kernel, dtype and way of computing that some device could run. `unavailable`: why no device can be used here, or "".
py::list kernels(const std::optional<std::string>& op) {
  py::list rows;
  const std::string unavailable = why_unavailable();
  const DeviceLimits best = assumed_limits();
  std::optional<DeviceLimits> here;
  if (unavailable.empty()) here = device_limits(current_device());
  for (int i = 0; i <= static_cast<int>(kLastOp); ++i) {
    const Op each = static_cast<Op>(i);
    if (op && *op != fc::to_string(each)) continue;
    for (const Algorithm* a : algorithms(each)) {
      for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
        for (const Compute compute : {Compute::f32, Compute::tf32, Compute::tf32x3}) {
          if (compute != Compute::f32 && (dtype != Dtype::f32 || each != Op::conv2d)) continue;
          if (refuses_all(*a, dtype, compute, best) && (!here || refuses_all(*a, dtype, compute, *here))) continue;
          std::string reason = unavailable;
          if (here)
            if (const char* r = refuses_all(*a, dtype, compute, *here)) reason = r;
          std::string leaf = cu::to_string(dtype);
          if (compute != Compute::f32) leaf += std::string("/") + cu::to_string(compute);
          rows.append(py::dict("op"_a = fc::to_string(each), "name"_a = std::string(a->kernel) + ":" + leaf,
                               "device"_a = "cuda", "algorithm"_a = a->name, "driver"_a = a->kernel, "ukernel"_a = leaf,
                               "dtype"_a = cu::to_string(dtype), "compute"_a = cu::to_string(compute),
                               "isa"_a = "sm_" + std::to_string(oldest_sm(*a)), "supported"_a = reason.empty(),
                               "reason"_a = reason));
        }
      }
    }
  }
  return rows;
}

// What FASTCONV_KERNEL may say for the sake of CUDA. Asked at import: no driver is started for it.
py::set kernel_names() {
  py::set names;
  for (int i = 0; i <= static_cast<int>(kLastOp); ++i)
    for (const Algorithm* a : algorithms(static_cast<Op>(i))) names.add(a->name), names.add(a->kernel);
  return names;
}

// Of the device asked for; without one, of the current device, or of an H200 where there is none.
DeviceLimits limits_for(std::optional<int> device) {
  if (device) return device_limits(*device);
  return why_unavailable().empty() ? device_limits(current_device()) : assumed_limits();
}

py::dict explained(const Task& task, const Preference& algorithms, std::optional<int> device) {
  py::dict plan = describe(*make_plan(task, algorithms, limits_for(device)));
  if (!device && !why_unavailable().empty()) plan["assumed_device"] = "H200: " + why_unavailable();
  return plan;
}

py::dict explain_conv2d(const Shape& input, const Shape& weight, bool bias, bool residual, Pair stride, Pads padding,
                        Pair dilation, int64_t groups, const std::string& layout, const std::string& weight_layout,
                        const Preference& algorithms, const std::optional<std::string>& activation,
                        const std::string& dtype, const std::string& compute, std::optional<int> device,
                        bool then_max_pool) {
  const WeightLayout wl = parse_weight_layout(weight_layout);
  const int64_t oc = weight.size() == 4 ? weight[wl == WeightLayout::hwio ? 3 : 0] : -1;
  Task task;
  task.problem = conv2d_problem(input, weight, bias ? oc : -1, residual, stride, padding, dilation, groups,
                                parse_layout(layout, "layout"), wl, activation_of(activation));
  task.dtype = parse_dtype(dtype);
  task.compute = parse_compute(compute);
  task.then_max_pool = then_max_pool;
  return explained(task, algorithms, device);
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

Problem problem_of(const std::string& op, const Shape& input, const py::dict& options) {
  const auto layout = [&](const char* name) { return parse_layout(option<std::string>(options, name, "NCHW"), name); };
  const auto pair = [&](const char* name) { return option<Pair>(options, name, {1, 1}); };
  const Pads pads = option<Pads>(options, "padding", {0, 0, 0, 0});
  const bool ceil_mode = option(options, "ceil_mode", false);
  if (op == "max_pool2d") {
    Problem p =
        max_pool2d_problem(input, pair("kernel"), pair("stride"), pads, pair("dilation"), ceil_mode, layout("layout"));
    p.with_indices = option(options, "return_indices", false);
    return p;
  }
  if (op == "avg_pool2d")
    return avg_pool2d_problem(input, pair("kernel"), pair("stride"), pads, ceil_mode,
                              option(options, "count_include_pad", true),
                              option<int64_t>(options, "divisor_override", 0), layout("layout"));
  if (op == "adaptive_avg_pool2d") return adaptive_avg_pool2d_problem(input, pair("output_size"), layout("layout"));
  if (op == "relu") return relu_problem(input);
  if (op == "softmax") return softmax_problem(input, option<int64_t>(options, "dim", -1));
  if (op == "batch_norm") {
    const Layout l = layout("layout");
    const int64_t channels = input.size() == 4 ? input[l == Layout::nchw ? 1 : 3] : 0;
    return batch_norm_problem(input, channels, channels, l);
  }
  if (op == "convert_layout") return convert_layout_problem(input, layout("source"), layout("target"));
  bad("op must be one of max_pool2d, avg_pool2d, adaptive_avg_pool2d, relu, softmax, batch_norm, convert_layout; got "
      "\"" +
      op + "\"");
}

py::dict explain_op(const std::string& op, const Shape& input, const py::dict& options, const std::string& dtype,
                    std::optional<int> device) {
  Task task;
  task.problem = problem_of(op, input, options);
  task.dtype = parse_dtype(dtype);
  return explained(task, {"auto"}, device);
}

py::list devices() {
  py::list rows;
  for (int i = 0; i < device_count(); ++i) {
    const DeviceLimits& limits = device_limits(i);
    rows.append(py::dict("name"_a = device_name(i), "isa"_a = "sm_" + std::to_string(limits.sm),
                         "multiprocessors"_a = limits.sm_count, "l2_bytes"_a = limits.l2_bytes,
                         "shared_bytes_per_block"_a = limits.shared_bytes_per_block));
  }
  return rows;
}

}  // namespace

void add_introspection(py::module_& m) {
  m.def("why_unavailable", why_unavailable);
  m.def("device_count", device_count);
  m.def("current_device", current_device);
  m.def("devices", devices);
  m.def("kernel_names", kernel_names);
  m.def("kernels", kernels, "op"_a = py::none());
  m.def("explain_conv2d", explain_conv2d, "input_shape"_a, "weight_shape"_a, "bias"_a, "residual"_a, "stride"_a,
        "padding"_a, "dilation"_a, "groups"_a, "layout"_a, "weight_layout"_a, "algorithms"_a, "activation"_a, "dtype"_a,
        "compute"_a, "device"_a = py::none(), "then_max_pool"_a = false);
  m.def("explain_op", explain_op, "op"_a, "input_shape"_a, "options"_a, "dtype"_a, "device"_a = py::none());
}

}  // namespace fastconv::cuda::bindings
