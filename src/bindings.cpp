// The border to Python: arrays in, Problem and pointers out, the GIL released while threads compute.
// Plans, packed weights and buffers are taken under short locks that never wait for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <optional>

#include "common/log.h"
#include "common/plan.h"
#include "common/program.h"
#include "common/validate.h"
#include "common/weights.h"
#include "cpu/machine.h"
#include "cpu/parallel.h"
#include "cpu/registry.h"

namespace py = pybind11;
namespace fc = fastconv;
using namespace py::literals;

namespace {

using F32 = py::array_t<float, py::array::c_style>;

[[noreturn]] void bad(const std::string& message) {
  throw std::invalid_argument(message);
}

fc::Shape shape_of(const py::array& a) {
  return fc::Shape(a.shape(), a.shape() + a.ndim());
}

// The Python layer hands over C-contiguous, aligned float32 arrays. These checks keep a caller who reaches past it from
// a crash.
template <class T>
void require_plain(const py::array& a, const char* name) {
  if (!py::dtype::of<T>().is(a.dtype()) && !a.dtype().equal(py::dtype::of<T>()))
    throw py::type_error(std::string(name) + " must be an array of " + std::string(py::str(py::dtype::of<T>())) +
                         ", got " + std::string(py::str(a.dtype())));
  if (!(a.flags() & py::array::c_style)) bad(std::string(name) + " must be C-contiguous here");
  if (reinterpret_cast<uintptr_t>(a.data()) % alignof(T)) bad(std::string(name) + " must be aligned here");
}

const float* in(const py::array& a, const char* name) {
  require_plain<float>(a, name);
  return static_cast<const float*>(a.data());
}

template <class T = float>
T* out(py::array& a, const fc::Shape& shape, const char* name) {
  require_plain<T>(a, name);
  if (!a.writeable()) bad(std::string(name) + " is read-only");
  if (shape_of(a) != shape)
    bad(std::string(name) + " must have shape " + fc::to_string(shape) + ", got " + fc::to_string(shape_of(a)));
  return static_cast<T*>(a.mutable_data());
}

void require_size(const py::array& a, int64_t size, const char* name) {
  if (a.ndim() != 1 || a.size() != size)
    bad(std::string(name) + " must have shape (" + std::to_string(size) + ",), got " + fc::to_string(shape_of(a)));
}

fc::Activation activation_of(const std::optional<std::string>& text) {
  return text ? fc::parse_activation(*text) : fc::Activation::none;
}

py::tuple tuple_of(const fc::Shape& shape) {
  py::tuple t(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) t[i] = shape[i];
  return t;
}

py::dict describe(const fc::Plan& plan) {
  const fc::Problem& p = plan.problem;
  py::dict refused;
  for (const auto& [name, reason] : plan.refused) refused[py::str(name)] = reason;
  py::list conversions;
  return py::dict(
      "op"_a = fc::to_string(p.op), "device"_a = plan.algorithm->device, "layout"_a = fc::to_string(p.layout),
      "dtype"_a = "float32", "problem"_a = fc::to_string(p), "algorithm"_a = plan.algorithm->name,
      "kernel"_a = plan.algorithm->kernel, "ukernel"_a = plan.ukernel_name, "isa"_a = fc::to_string(plan.isa),
      "blocking"_a = fc::to_string(plan.blocking), "macs"_a = py::int_(py::float_(p.macs())),
      "packed_bytes"_a = plan.packed_bytes, "workspace_bytes"_a = plan.scratch_bytes, "conversions"_a = conversions,
      "refused"_a = refused, "output_shape"_a = tuple_of(fc::output_shape(p)));
}

// --- lone ops ---------------------------------------------------------------------------------------------------------

// Returns the name of the algorithm that ran.
const char* conv2d(const py::array& input, const py::array& weight, const std::optional<py::array>& bias,
                   const std::optional<py::array>& residual, py::array dst, fc::Pair stride, fc::Pads padding,
                   fc::Pair dilation, int64_t groups, const std::string& layout, const std::string& weight_layout,
                   const fc::Preference& algorithms, const std::optional<std::string>& activation) {
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
  const fc::PlanPtr plan = fc::make_plan(p, algorithms);
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

void relu(const py::array& input, py::array dst) {
  run_plain(fc::relu_problem(shape_of(input)), input, out(dst, shape_of(input), "out"));
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

py::dict explain_conv2d(const fc::Shape& input, const fc::Shape& weight, bool bias, bool residual, fc::Pair stride,
                        fc::Pads padding, fc::Pair dilation, int64_t groups, const std::string& layout,
                        const std::string& weight_layout, const fc::Preference& algorithms,
                        const std::optional<std::string>& activation) {
  const fc::WeightLayout wl = fc::parse_weight_layout(weight_layout);
  const int64_t oc = weight.size() == 4 ? weight[wl == fc::WeightLayout::hwio ? 3 : 0] : -1;
  return describe(
      *fc::make_plan(fc::conv2d_problem(input, weight, bias ? oc : -1, residual, stride, padding, dilation, groups,
                                        fc::parse_layout(layout, "layout"), wl, activation_of(activation)),
                     algorithms));
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

// --- introspection and measurement ------------------------------------------------------------------------------------

py::list kernels(const std::optional<std::string>& op) {
  py::list rows;
  const fc::Isa isa = fc::current_isa();
  bool known = false;
  for (int i = 0; i <= static_cast<int>(fc::Op::convert_layout); ++i) {
    const fc::Op each = static_cast<fc::Op>(i);
    if (op && *op != fc::to_string(each)) continue;
    known = true;
    for (const fc::Algorithm* a : fc::cpu_algorithms(each)) {
      for (const auto& [level, leaf] : a->leaves()) {
        std::string reason;
        if (level > fc::machine_info().isa_found) {
          reason = std::string("this processor has no ") + fc::to_string(level);
        } else if (level > isa) {
          reason = std::string("capped to ") + fc::to_string(isa) + " (FASTCONV_MAX_ISA)";
        }
        rows.append(py::dict("op"_a = fc::to_string(each), "name"_a = std::string(a->kernel) + ":" + leaf,
                             "device"_a = a->device, "algorithm"_a = a->name, "driver"_a = a->kernel,
                             "ukernel"_a = leaf, "dtype"_a = "float32", "isa"_a = fc::to_string(level),
                             "supported"_a = reason.empty(), "reason"_a = reason));
      }
    }
  }
  if (!known) {
    std::string names;
    for (int i = 0; i <= static_cast<int>(fc::Op::convert_layout); ++i)
      names += std::string(i ? ", " : "") + fc::to_string(static_cast<fc::Op>(i));
    bad("op must be one of " + names + "; got \"" + *op + "\"");
  }
  return rows;
}

py::dict machine() {
  const fc::MachineInfo& m = fc::machine_info();
  return py::dict("isa"_a = fc::to_string(fc::current_isa()), "isa_found"_a = fc::to_string(m.isa_found),
                  "cpu"_a = m.cpu, "l1d_bytes"_a = m.l1d_bytes, "l2_bytes"_a = m.l2_bytes, "l3_bytes"_a = m.l3_bytes,
                  "cpus_affinity"_a = m.cpus_affinity,
                  "cpu_quota"_a = m.cpu_quota > 0 ? py::object(py::float_(m.cpu_quota)) : py::object(py::none()),
                  "num_threads"_a = fc::num_threads());
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

const fc::PeakUkernel& peak_of(const std::string& level) {
  for (const fc::PeakUkernel* k : fc::ukernels<fc::PeakUkernel>()) {
    if (level != fc::to_string(static_cast<fc::Isa>(k->isa))) continue;
    if (k->isa > static_cast<int>(fc::machine_info().isa_found))
      bad("isa \"" + level + "\" is not available on this machine");
    return *k;
  }
  bad("isa must be one of scalar, avx2, avx512; got \"" + level + "\"");
}

void require_threads(int threads, const char* name = "threads") {
  if (threads < 1 || threads > 4096) bad(std::string(name) + " must be from 1 to 4096, got " + std::to_string(threads));
}

double measure_fma_peak(const std::string& isa, int threads, int milliseconds) {
  require_threads(threads);
  const fc::PeakUkernel& k = peak_of(isa);
  const py::gil_scoped_release unlocked;
  std::vector<double> rates(threads, 0.0);
  fc::parallel(threads, [&](int tid, int, fc::Barrier& barrier) {
    volatile float sink = k.fma_loop(1 << 16);
    // Rounds that take about the time asked for, the same on every thread, all started together.
    double t = seconds_now();
    sink = k.fma_loop(1 << 18);
    const int64_t rounds = std::max<int64_t>(
        1 << 16, static_cast<int64_t>((1 << 18) * (milliseconds * 1e-3 / std::max(seconds_now() - t, 1e-9))));
    barrier.wait();
    t = seconds_now();
    sink = k.fma_loop(rounds);
    rates[tid] = static_cast<double>(rounds) * static_cast<double>(k.flops_per_round) / (seconds_now() - t);
    (void)sink;
  });
  double total = 0;
  for (const double r : rates) total += r;
  return total;
}

template <class Body>
double best_bandwidth(int threads, int repeats, double bytes, Body body) {
  double best = 0;
  fc::parallel(threads, [&](int tid, int nthr, fc::Barrier& barrier) {
    for (int i = 0; i < repeats; ++i) {
      barrier.wait();
      const double t = seconds_now();
      body(tid, nthr);
      barrier.wait();
      if (tid == 0) best = std::max(best, bytes / (seconds_now() - t));
    }
  });
  return best;
}

constexpr int64_t kBandwidthUnit = 256;  // values; what the loops ask of a thread's share

double measure_read_bandwidth(const py::array& array, int threads, int repeats) {
  require_threads(threads);
  const float* data = in(array, "array");
  const int64_t units = array.size() / kBandwidthUnit;
  const fc::PeakUkernel& k = peak_of(fc::to_string(fc::current_isa()));
  const py::gil_scoped_release unlocked;
  return best_bandwidth(threads, repeats, static_cast<double>(units * kBandwidthUnit * 4), [&](int tid, int nthr) {
    const fc::Range mine = fc::share(units, tid, nthr);
    volatile float sink = k.read(data + mine.begin * kBandwidthUnit, (mine.end - mine.begin) * kBandwidthUnit);
    (void)sink;
  });
}

double measure_copy_bandwidth(const py::array& source, py::array target, int threads, int repeats) {
  require_threads(threads);
  const float* from = in(source, "source");
  float* to = out(target, shape_of(source), "out");
  const int64_t units = source.size() / kBandwidthUnit;
  const fc::PeakUkernel& k = peak_of(fc::to_string(fc::current_isa()));
  const py::gil_scoped_release unlocked;
  return best_bandwidth(threads, repeats, static_cast<double>(units * kBandwidthUnit * 8), [&](int tid, int nthr) {
    const fc::Range mine = fc::share(units, tid, nthr);
    k.copy(from + mine.begin * kBandwidthUnit, to + mine.begin * kBandwidthUnit,
           (mine.end - mine.begin) * kBandwidthUnit);
  });
}

// A product by one GEMM leaf, its sum cut into `parts`: c[p, j] = sum_k a[p, k] * b[k, j]. For tests of the leaf itself: no algorithm
// cuts its sums yet.
py::array gemm_by_leaf(const std::string& name, const py::array& a, const py::array& b, int64_t parts) {
  const float* left = in(a, "a");
  const float* right = in(b, "b");
  if (a.ndim() != 2 || b.ndim() != 2 || a.shape(1) != b.shape(0) || a.size() == 0 || b.size() == 0)
    bad("a (m, k) and b (k, n) must fit and not be empty");
  const int64_t m = a.shape(0), k = a.shape(1), n = b.shape(1);
  if (parts < 1 || k % parts) bad("parts must divide k = " + std::to_string(k) + ", got " + std::to_string(parts));
  for (const fc::GemmUkernel* leaf : fc::ukernels<fc::GemmUkernel>()) {
    if (name != leaf->name) continue;
    if (leaf->isa > static_cast<int>(fc::machine_info().isa_found))
      bad("ukernel " + name + " cannot run on this machine");
    const int64_t nr = leaf->nr;
    py::array_t<float> c({m, n});
    std::vector<float> panel(k * nr), partial(m * nr);
    const int64_t zero = 0;
    for (int64_t j = 0; j < n; j += nr) {
      const int64_t cols = std::min(nr, n - j);
      for (int64_t i = 0; i < k; ++i)
        for (int64_t t = 0; t < nr; ++t) panel[i * nr + t] = t < cols ? right[i * n + j + t] : 0.0f;
      for (int64_t part = 0; part < parts; ++part) {
        fc::GemmPanel g{};
        g.a = left + part * (k / parts);
        g.a_row = k, g.a_k = 1, g.a_seg = &zero, g.segs = 1, g.seg_k = k / parts;
        g.b = panel.data() + part * (k / parts) * nr;
        g.c = c.mutable_data() + j, g.c_row = n, g.c_col = 1;
        g.partial = partial.data();
        g.outer = 1, g.inner = m, g.n = cols;
        g.first = part == 0, g.last = part + 1 == parts;
        leaf->panel(&g);
      }
    }
    return c;
  }
  bad("ukernel must be a GEMM leaf's name, got \"" + name + "\"");
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

std::vector<float> floats(const py::array& a, const char* name) {
  const float* data = in(a, name);
  return std::vector<float>(data, data + a.size());
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
  fc::forced_kernel();
  fc::verbose_level();
  fc::prepare_threads();

  m.def("machine", machine);
  m.def("isa", [] { return fc::to_string(fc::current_isa()); });
  m.def("set_max_isa", [](const std::optional<std::string>& level) { fc::set_max_isa(level.value_or("")); }, "level"_a);
  m.def("get_num_threads", fc::num_threads);
  m.def(
      "set_num_threads",
      [](int n) {
        require_threads(n, "n");
        fc::set_num_threads(n);
      },
      "n"_a);
  m.def(
      "set_thread_override",
      [](int n) {
        if (n != 0) require_threads(n, "n");
        return fc::set_thread_override(n);
      },
      "n"_a);
  m.def("set_verbose", fc::set_verbose, "level"_a);
  m.def("kernels", kernels, "op"_a = py::none());
  m.def("gemm_by_leaf", gemm_by_leaf, "ukernel"_a, "a"_a, "b"_a, "parts"_a);
  m.def("measure_fma_peak", measure_fma_peak, "isa"_a, "threads"_a, "milliseconds"_a);
  m.def("measure_read_bandwidth", measure_read_bandwidth, "array"_a, "threads"_a, "repeats"_a);
  m.def("measure_copy_bandwidth", measure_copy_bandwidth, "source"_a, "out"_a, "threads"_a, "repeats"_a);

  m.def("conv2d", conv2d, "input"_a, "weight"_a, "bias"_a, "residual"_a, "out"_a, "stride"_a, "padding"_a, "dilation"_a,
        "groups"_a, "layout"_a, "weight_layout"_a, "algorithms"_a, "activation"_a);
  m.def("max_pool2d", max_pool2d, "input"_a, "out"_a, "indices"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a,
        "ceil_mode"_a, "layout"_a);
  m.def("avg_pool2d", avg_pool2d, "input"_a, "out"_a, "kernel"_a, "stride"_a, "padding"_a, "ceil_mode"_a,
        "count_include_pad"_a, "divisor_override"_a, "layout"_a);
  m.def("adaptive_avg_pool2d", adaptive_avg_pool2d, "input"_a, "out"_a, "output_size"_a, "layout"_a);
  m.def("relu", relu, "input"_a, "out"_a);
  m.def("softmax", softmax, "input"_a, "out"_a, "dim"_a);
  m.def("batch_norm", batch_norm, "input"_a, "scale"_a, "shift"_a, "out"_a, "layout"_a);
  m.def("convert_layout", convert_layout, "input"_a, "out"_a, "source"_a, "target"_a);
  m.def("explain_conv2d", explain_conv2d, "input_shape"_a, "weight_shape"_a, "bias"_a, "residual"_a, "stride"_a,
        "padding"_a, "dilation"_a, "groups"_a, "layout"_a, "weight_layout"_a, "algorithms"_a, "activation"_a);
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
             const std::optional<std::string>& activation, int residual) {
            return self.conv2d(x, std::move(weights), stride, padding, dilation, fc::parse_layout(layout, "layout"),
                               algorithms, activation_of(activation), residual);
          },
          "x"_a, py::arg("weights").none(false), "stride"_a, "padding"_a, "dilation"_a, "layout"_a, "algorithms"_a,
          "activation"_a = py::none(), "residual"_a = -1)
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
      .def("finalize", &Program::finalize, py::call_guard<py::gil_scoped_release>())
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
      .def_property_readonly("arena_bytes", &Program::arena_bytes)
      .def_property_readonly("workspace_bytes", &Program::scratch_bytes);
}
