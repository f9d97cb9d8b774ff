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

// A panel of columns, a row of a, and a register tile of rows, in values.
inline int64_t fip_panel(int64_t steps, int64_t nr) {
  return (2 + kFipRuns * steps) * nr;
}
inline int64_t fip_row(int64_t depth) {
  return round_up(depth, FipOrder::kBlock);
}
inline int64_t fip_tile(int64_t steps, int64_t mr) {
  return odd_lines(kFipHead + steps * kFipRuns * mr);
}

// Weights [depth][width], in place to [step][run][width] of `width` rows or columns; what is added to their sums before, and their scales.
void order_fip_weights(float* values, int64_t depth, int64_t width, float* heads, float* scales);

}  // namespace fastconv
