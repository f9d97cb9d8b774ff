// Shared by the drivers of Winograd's inner product: pixels as rows (fip.cpp) and as columns (fip_planes.cpp).
#pragma once

#include "cpu/gemm/gemm.h"

namespace fastconv {

inline const FipUkernel& fip_of(const Plan& plan) {
  return *static_cast<const FipUkernel*>(plan.ukernel);
}

// Where the inner product pays: the leaves of AVX-512 alone have the registers for it.
inline bool adds_beside(const Machine& machine) {
  return machine.adds_beside && machine.isa >= Isa::avx512;
}

// Steps of a reduction: those of whole blocks, and a third of what is left.
inline int64_t fip_steps(int64_t depth) {
  return depth / kFipBlock * kFipRun + div_up(depth % kFipBlock, kFipRuns);
}

// A panel of columns, a row of a, and a register tile of rows, in values.
inline int64_t fip_panel(int64_t steps, int64_t nr) {
  return (2 + kFipRuns * steps) * nr;
}
inline int64_t fip_row(int64_t depth) {
  return round_up(depth, kFipBlock);
}
inline int64_t fip_tile(int64_t steps, int64_t mr) {
  return odd_lines(kFipHead + steps * kFipRuns * mr);
}

// The powers of two next to the root mean squares of `width` rows or columns, from their sums of squares over `count` values. 0 for nothing but zeros,
// 1 where there is none.
void fip_scales(const double* squares, int64_t count, int64_t width, float* scales);
void add_fip_squares(const float* values, int64_t depth, int64_t width, double* squares);

// Weights [depth][width] divided by their scales, in place to [step][run][width]; what they take from the sums is added to `taken`.
void order_fip_weights(float* values, int64_t depth, int64_t width, const float* scales, double* taken);

// All of this for `count` output channels of a 1x1 convolution from `first` on, in `width` places: head[j] gets what is added to channel j's sums
// before, head[apart + j] its scale, and values its weights.
void pack_fip_weights(const Plan& plan, const float* wei, int64_t first, int64_t count, int64_t width, float* head,
                      int64_t apart, float* values);

}  // namespace fastconv
