// Shared by the drivers of Winograd's inner product: pixels as rows (fip.cpp) and as columns (fip_planes.cpp).
#pragma once

#include <cmath>

#include "cpu/gemm/gemm.h"

namespace fastconv {

inline const FipUkernel& fip_of(const Plan& plan) {
  return *static_cast<const FipUkernel*>(plan.ukernel);
}

// Where the values of a row or column go (FipUkernel): step and run of value k, of `depth` in all.
struct FipOrder {
  explicit FipOrder(int64_t depth)
      : whole(depth / kBlock * kBlock), rest(div_up(depth - whole, kFipRuns)), steps(whole / kFipRuns + rest) {}
  int64_t step(int64_t k) const { return k < whole ? k / kBlock * kFipRun + k % kFipRun : whole / kFipRuns + (k - whole) % rest; }
  int64_t run(int64_t k) const { return k < whole ? k % kBlock / kFipRun : (k - whole) / rest; }
  static constexpr int64_t kBlock = int64_t{kFipRun} * kFipRuns;
  const int64_t whole, rest, steps;
};

// A panel of columns, and a register tile of rows in blocks or with the rows last, in values.
inline int64_t fip_panel(int64_t steps, int64_t nr) {
  return (2 + kFipRuns * steps) * nr;
}
inline int64_t fip_blocks(int64_t steps, int64_t mr) {
  return odd_lines(kFipHead + round_up(steps, kFipRun) * kFipRuns * mr);
}
inline int64_t fip_tile(int64_t steps, int64_t mr) {
  return odd_lines(kFipHead + steps * kFipRuns * mr);
}

// `count` output channels from `first` on, scaled and in order: value k of channel j at out[at(step, run) + j], run 1 of odd steps negated; what is added
// to their sums before and their scales at head[j] and scales[j].
template <class At>
void pack_fip_weights(const Problem& p, const float* wei, int64_t first, int64_t count, float* out, const At& at,
                      float* head, float* scales) {
  const FipOrder order(p.ic);
  const int64_t channel = p.weight_layout == WeightLayout::hwio ? 1 : p.ic;
  const int64_t value = p.weight_layout == WeightLayout::hwio ? p.oc : 1;
  for (int64_t j = 0; j < count; ++j) {
    const float* w = wei + (first + j) * channel;
    double square = 0;
    bool finite = true;
    for (int64_t k = 0; k < p.ic; ++k) square += static_cast<double>(w[k * value]) * w[k * value];
    finite = std::isfinite(square);
    // The power of two next to the root mean square.
    const int power = finite && square > 0
                          ? std::clamp(static_cast<int>(std::lround(0.5 * std::log2(square / static_cast<double>(p.ic)))), -126, 126)
                          : 0;
    const float inverse = finite && square == 0 ? 0.0f : std::ldexp(1.0f, -power);
    scales[j] = finite && square == 0 ? 0.0f : std::ldexp(1.0f, power);
    for (int64_t k = 0; k < p.ic; ++k) {
      const int64_t step = order.step(k), run = order.run(k);
      const float x = w[k * value] * inverse;
      out[at(step, run) + j] = run == 1 && step % kFipRun % 2 ? -x : x;
    }
    double taken = 0;
    for (int64_t s = 0; s < order.steps; ++s)
      taken += static_cast<double>(out[at(s, 0) + j]) * static_cast<double>(out[at(s, 1) + j]);
    head[j] = static_cast<float>(-taken);
  }
}

}  // namespace fastconv
