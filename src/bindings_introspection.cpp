// The border to Python: kernels, machine, settings, measurement.
#include <chrono>

#include "bindings.h"
#include "common/log.h"
#include "common/tuned.h"
#include "cpu/caches.h"
#include "cpu/machine.h"
#include "cpu/parallel.h"
#include "cpu/registry.h"

using namespace py::literals;

namespace fastconv::bindings {
namespace {

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
                  "adds_beside"_a = fc::current_machine().adds_beside, "cpus_affinity"_a = m.cpus_affinity,
                  "cpu_quota"_a = m.cpu_quota > 0 ? py::object(py::float_(m.cpu_quota)) : py::object(py::none()),
                  "num_threads"_a = fc::num_threads());
}

// For tests: what is read from such a folder of the kernel's.
py::tuple listed_caches(const std::string& folder, int cpu) {
  const fc::CacheSizes found = fc::listed_caches(folder, cpu);
  return py::make_tuple(found.l1d_bytes, found.l2_bytes, found.l3_bytes);
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

// Reads all of the source and writes all of `out`, each thread a contiguous share: what an op that moves so many bytes is
// measured against.
void copy_bytes(const py::array& source, py::array target, int threads, bool streaming) {
  require_threads(threads);
  const float* from = in(source, "source");
  float* to = out(target, shape_of(target), "out");
  const int64_t reads = source.size(), writes = target.size();
  const fc::PeakUkernel& k = peak_of(fc::to_string(fc::current_isa()));
  const py::gil_scoped_release unlocked;
  fc::parallel(threads, [&](int tid, int nthr, fc::Barrier&) {
    const auto part = [&](int64_t total) {
      const fc::Range units = fc::share(total / kBandwidthUnit, tid, nthr);
      return fc::Range{units.begin * kBandwidthUnit, tid + 1 == nthr ? total : units.end * kBandwidthUnit};
    };
    const fc::Range mine = part(reads), ours = part(writes);
    k.move(from + mine.begin, mine.end - mine.begin, to + ours.begin, ours.end - ours.begin, streaming);
  });
}

// A product by one GEMM leaf, its sum cut into `parts`: c[p, j] = sum_k a[p, k] * b[k, j]. For tests of the leaf itself: no algorithm
// cuts its sums yet. sums: by the leaf's function of that name, parts are segments.
py::array gemm_by_leaf(const std::string& name, const py::array& a, const py::array& b, int64_t parts, bool sums) {
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
    std::vector<int64_t> segments(parts);
    for (int64_t part = 0; part < parts; ++part) segments[part] = part * (k / parts);
    const int64_t zero = 0;
    for (int64_t j = 0; j < n; j += nr) {
      const int64_t cols = std::min(nr, n - j);
      for (int64_t i = 0; i < k; ++i)
        for (int64_t t = 0; t < nr; ++t) panel[i * nr + t] = t < cols ? right[i * n + j + t] : 0.0f;
      if (sums) {
        fc::GemmPanel g{};
        g.a = left;
        g.a_row = k, g.a_k = 1, g.a_seg = segments.data(), g.segs = parts, g.seg_k = k / parts;
        g.b = panel.data();
        g.c = partial.data(), g.c_row = nr, g.c_col = 1;
        g.outer = 1, g.inner = m, g.n = nr, g.first = g.last = 1;
        leaf->sums(&g);
        for (int64_t i = 0; i < m; ++i) std::copy_n(partial.data() + i * nr, cols, c.mutable_data() + i * n + j);
        continue;
      }
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

}  // namespace

void add_introspection(py::module_& m) {
  m.def("machine", machine);
  m.def("listed_caches", listed_caches, "folder"_a, "cpu"_a);
  m.def("isa", [] { return fc::to_string(fc::current_isa()); });
  m.def("set_max_isa", [](const std::optional<std::string>& level) { fc::set_max_isa(level.value_or("")); }, "level"_a);
  m.def(
      "set_adds_beside",
      [](const std::optional<bool>& answer) { fc::set_adds_beside(answer ? static_cast<int>(*answer) : -1); },
      "answer"_a);
  m.def(
      "set_stream_bytes",
      [](const std::optional<int64_t>& bytes) {
        if (bytes && *bytes < 1) bad("bytes must be at least 1, got " + std::to_string(*bytes));
        fc::set_stream_bytes(bytes.value_or(0));
      },
      "bytes"_a);
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
  m.def(
      "set_tuned",
      [](const std::vector<std::tuple<std::string, std::string, std::string, std::string>>& choices) {
        std::vector<fc::TunedChoice> table;
        for (const auto& [isa, layout, problem, kernel] : choices) table.push_back({isa, layout, problem, kernel});
        fc::set_tuned(table);
      },
      "choices"_a);
  m.def(
      "set_tuned_source",
      [](const py::function& source) {
        auto* const kept = new py::function(source);  // as long as the process: threads may plan until it ends
        fc::set_tuned_source([kept] {
          const py::gil_scoped_acquire locked;
          (*kept)();
        });
      },
      "source"_a);
  m.def("plan_epoch", &fc::plan_epoch);
  m.def("set_verbose", fc::set_verbose, "level"_a);
  m.def("kernels", kernels, "op"_a = py::none());
  m.def("gemm_by_leaf", gemm_by_leaf, "ukernel"_a, "a"_a, "b"_a, "parts"_a, "sums"_a = false);
  m.def("measure_fma_peak", measure_fma_peak, "isa"_a, "threads"_a, "milliseconds"_a);
  m.def("measure_read_bandwidth", measure_read_bandwidth, "array"_a, "threads"_a, "repeats"_a);
  m.def("copy_bytes", copy_bytes, "source"_a, "out"_a, "threads"_a, "streaming"_a = false);
}

}  // namespace fastconv::bindings
