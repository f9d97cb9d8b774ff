// Pooling by its definition, in any layout, for any problem. Sums in double, rounded once. For correctness, not for
// speed.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/algorithm.h"

namespace fastconv {
namespace {

const char* accepts(const Problem&, const Machine&) {
  return nullptr;
}

void configure(Plan& plan, const Machine&) {
  plan.ukernel_name = "pool_reference_scalar";
}

std::vector<std::pair<Isa, const char*>> leaves() {
  return {{Isa::scalar, "pool_reference_scalar"}};
}

// The taps t of 0..count-1 for which start + t * step lies in 0..size-1.
Range taps_inside(int64_t start, int64_t step, int64_t count, int64_t size) {
  const int64_t begin = start < 0 ? std::min((-start + step - 1) / step, count) : 0;
  const int64_t end = start < size ? std::min((size - 1 - start) / step + 1, count) : 0;
  return {begin, std::max(begin, end)};
}

// Where the values of one plane (n, c) lie.
struct Plane {
  int64_t src, dst, step;
};
Plane plane_of(const Problem& p, int64_t unit) {
  const int64_t in = p.ih * p.iw, out = p.oh * p.ow;
  if (p.layout == Layout::nchw) return {unit * in, unit * out, 1};
  const int64_t image = unit / p.ic, c = unit % p.ic;
  return {image * in * p.ic + c, image * out * p.ic + c, p.ic};
}

void run_max(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Range mine = share(p.n * p.ic, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const Plane at = plane_of(p, unit);
    for (int64_t y = 0; y < p.oh; ++y)
      for (int64_t x = 0; x < p.ow; ++x) {
        const int64_t h0 = y * p.sh - p.pt, w0 = x * p.sw - p.pl;
        const Range rows = taps_inside(h0, p.dh, p.kh, p.ih), columns = taps_inside(w0, p.dw, p.kw, p.iw);
        float best = -std::numeric_limits<float>::infinity();
        int64_t chosen = -1;
        for (int64_t r = rows.begin; r < rows.end; ++r)
          for (int64_t s = columns.begin; s < columns.end; ++s) {
            const int64_t flat = (h0 + r * p.dh) * p.iw + w0 + s * p.dw;
            const float v = args.src[at.src + flat * at.step];
            if (chosen >= 0 && !(v > best) && !(std::isnan(v) && !std::isnan(best))) continue;
            best = v;
            chosen = flat;
          }
        const int64_t to = at.dst + (y * p.ow + x) * at.step;
        args.dst[to] = best;
        if (args.indices) args.indices[to] = chosen;
      }
  }
}

// Mean over rows h and columns w of one plane.
float mean(const Problem& p, const float* src, Range h, Range w, int64_t step, int64_t divisor) {
  double sum = 0;
  for (int64_t y = h.begin; y < h.end; ++y)
    for (int64_t x = w.begin; x < w.end; ++x) sum += static_cast<double>(src[(y * p.iw + x) * step]);
  return static_cast<float>(sum / static_cast<double>(divisor));
}

void run_average(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Range mine = share(p.n * p.ic, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const Plane at = plane_of(p, unit);
    for (int64_t y = 0; y < p.oh; ++y)
      for (int64_t x = 0; x < p.ow; ++x) {
        const int64_t h0 = y * p.sh - p.pt, w0 = x * p.sw - p.pl;
        const Range h = {std::max<int64_t>(h0, 0), std::min(h0 + p.kh, p.ih)},
                    w = {std::max<int64_t>(w0, 0), std::min(w0 + p.kw, p.iw)};
        int64_t divisor = p.divisor_override;
        if (divisor == 0 && p.count_include_pad)
          divisor = (std::min(h0 + p.kh, p.ih + p.pb) - h0) * (std::min(w0 + p.kw, p.iw + p.pr) - w0);
        else if (divisor == 0)
          divisor = std::max<int64_t>(std::max<int64_t>(h.end - h.begin, 0) * std::max<int64_t>(w.end - w.begin, 0), 1);
        args.dst[at.dst + (y * p.ow + x) * at.step] = mean(p, args.src + at.src, h, w, at.step, divisor);
      }
  }
}

void run_adaptive(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Range mine = share(p.n * p.ic, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const Plane at = plane_of(p, unit);
    for (int64_t y = 0; y < p.oh; ++y)
      for (int64_t x = 0; x < p.ow; ++x) {
        const Range h = {y * p.ih / p.oh, ((y + 1) * p.ih + p.oh - 1) / p.oh},
                    w = {x * p.iw / p.ow, ((x + 1) * p.iw + p.ow - 1) / p.ow};
        args.dst[at.dst + (y * p.ow + x) * at.step] =
            mean(p, args.src + at.src, h, w, at.step, (h.end - h.begin) * (w.end - w.begin));
      }
  }
}

}  // namespace

extern const Algorithm max_pool_reference = {
    Op::max_pool2d, "reference", "max_pool_reference", "cpu", accepts, configure, nullptr, run_max, leaves};
extern const Algorithm avg_pool_reference = {Op::avg_pool2d, "reference", "avg_pool_reference", "cpu", accepts,
                                             configure,      nullptr,     run_average,          leaves};
extern const Algorithm adaptive_avg_pool_reference = {Op::adaptive_avg_pool2d,
                                                      "reference",
                                                      "adaptive_avg_pool_reference",
                                                      "cpu",
                                                      accepts,
                                                      configure,
                                                      nullptr,
                                                      run_adaptive,
                                                      leaves};

}  // namespace fastconv
