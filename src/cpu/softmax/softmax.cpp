// Softmax along one axis of an array seen as [outer][axis][inner]. Drivers over softmax_f32_*. inner == 1: workers
// take whole rows; one row is never divided, so its sum has one order. Otherwise vectors span the inner elements, and
// workers take groups of 16 of them.
// Blocking: mc columns together, so many that they stay in half of the L2.
#include <algorithm>
#include <cmath>

#include "cpu/registry.h"

namespace fastconv {
namespace {

constexpr int64_t kGroup = 16;
constexpr int64_t kMaxColumns = 512;

const char* accepts(const Problem&, const Machine&) {
  return nullptr;
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  take_leaf<SoftmaxUkernel>(plan, machine);
  if (p.ow == 1) return;
  const int64_t room = machine.l2_bytes / 2 / 4 / (2 * std::max<int64_t>(p.ic, 1)) / kGroup * kGroup;
  plan.blocking.mc = std::clamp(room, kGroup, kMaxColumns);
  plan.scratch_bytes = 3 * 4 * plan.blocking.mc;
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const auto& leaf = *static_cast<const SoftmaxUkernel*>(plan.ukernel);
  const int64_t len = p.ic, inner = p.ow;
  if (len == 0) return;  // the axis may be an empty batch
  if (inner == 1) {
    const Range mine = share(p.n, worker.tid, worker.nthr);
    leaf.rows(args.src + mine.begin * len, args.dst + mine.begin * len, mine.end - mine.begin, len);
    return;
  }
  const int64_t groups = (inner + kGroup - 1) / kGroup, most = plan.blocking.mc / kGroup;
  const Range mine = share(p.n * groups, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end;) {
    const int64_t first = unit % groups, count = std::min({most, groups - first, mine.end - unit});
    const int64_t begin = first * kGroup, end = std::min(inner, begin + count * kGroup),
                  at = unit / groups * len * inner + begin;
    leaf.columns(args.src + at, args.dst + at, len, inner, end - begin, reinterpret_cast<float*>(worker.scratch));
    unit += count;
  }
}

// --- by the definition, in double -------------------------------------------------------------------------------------

void configure_reference(Plan& plan, const Machine&) {
  plan.ukernel_name = "softmax_reference_scalar";
}

std::vector<std::pair<Isa, const char*>> reference_leaves() {
  return {{Isa::scalar, "softmax_reference_scalar"}};
}

void run_reference(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const int64_t len = p.ic, inner = p.ow;
  if (len == 0) return;
  const Range mine = share(p.n * inner, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const int64_t at = unit / inner * len * inner + unit % inner;
    const float* src = args.src + at;
    float* dst = args.dst + at;
    double top = static_cast<double>(src[0]), total = 0;
    for (int64_t a = 1; a < len; ++a) top = std::max(top, static_cast<double>(src[a * inner]));
    for (int64_t a = 0; a < len; ++a) total += std::exp(static_cast<double>(src[a * inner]) - top);
    for (int64_t a = 0; a < len; ++a)
      dst[a * inner] = static_cast<float>(std::exp(static_cast<double>(src[a * inner]) - top) / total);
  }
}

}  // namespace

extern const Algorithm softmax_direct = {Op::softmax, "direct", "softmax_direct",         "cpu", accepts, configure,
                                         nullptr,     run,      leaves_of<SoftmaxUkernel>};
extern const Algorithm softmax_reference = {Op::softmax, "reference",   "softmax_reference",
                                            "cpu",       accepts,       configure_reference,
                                            nullptr,     run_reference, reference_leaves};

}  // namespace fastconv
