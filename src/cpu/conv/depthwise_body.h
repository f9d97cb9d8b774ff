// dst[c,y,x] = act(bias[c] + sum_{r,s} src[c/m, y*sh-pt+r*dh, x*sw-pl+s*dw] * w[c,r,s] + residual[c,y,x]):
// what the two bodies of a depthwise leaf share, written over simd/. m = output channels per input channel.
// Operands: DepthwisePart (ukernel.h).
// Templates: square kernels of 3 and 5 with stride 1 and 2, of 7 with stride 1, without dilation (along channels also
// m = 1). The rest walks its taps in a loop. So does the scalar level, where unrolled tiles are large and gain nothing.
// Borders: rows and pixels outside the image are skipped by comparing tap numbers; within a vector of pixels they are
// masked loads, which touch no memory outside the row and yield zeros.
// Numerics: one sequential sum per output: bias, taps in the order (r, s), residual. Every tile and loop keeps this
// order, so an output does not depend on the tile or the share that it falls into.
// Tried: prefetching input rows (no gain, the hardware does it); prefetching the next tile's outputs (10 % at 112x112
// along channels, kept).
#pragma once

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::kLanes;
using simd::Mask;

#if defined(__GNUC__)
#define FASTCONV_INLINE inline __attribute__((always_inline))
#else
#define FASTCONV_INLINE inline
#endif

constexpr int kPixels = kLanes == 4 ? 4 : 7;  // widths of 7, 14, 28, 56, 112 are what networks have
constexpr int kRows = kLanes == 16 ? 7 : 4;
constexpr bool kTemplates = kLanes > 4;  // plain C++ vectors make these far too large for what they gain

FASTCONV_INLINE int64_t clamp(int64_t x, int64_t lo, int64_t hi) {
  return x < lo ? lo : (x > hi ? hi : x);
}
FASTCONV_INLINE int64_t div_up(int64_t a, int64_t b) {
  return a <= 0 ? 0 : (a + b - 1) / b;
}

// Taps begin..end-1 of one axis whose input index first + tap * dilation lies in the image.
struct Taps {
  int64_t begin, end;
};
FASTCONV_INLINE Taps taps_inside(int64_t first, int64_t dilation, int64_t taps, int64_t extent) {
  const int64_t begin = smaller(div_up(-first, dilation), taps);
  return {begin, clamp(div_up(extent - first, dilation), begin, taps)};
}

// Output indices begin..end-1 of one axis whose every tap lies in the image.
FASTCONV_INLINE Taps whole_windows(int64_t out, int64_t stride, int64_t pad, int64_t reach, int64_t extent) {
  const int64_t begin = smaller(div_up(pad, stride), out);
  return {begin, clamp(div_up(extent - reach + pad + 1, stride), begin, out)};
}

// AVX-512 masks loads and stores for nothing; elsewhere whole vectors have code of their own.
constexpr bool kFreeMasks = kLanes == 16;

template <bool Masked>
FASTCONV_INLINE F load(const float* p, Mask m) {
  if constexpr (Masked) {
    return simd::load(p, m);
  } else {
    return simd::load(p);
  }
}

// Stores the first `count` vectors of a tile, `step` elements apart.
template <int N, bool Masked, bool Partial>
FASTCONV_INLINE void finish(const DepthwisePart& d, int64_t at, int64_t step, F acc[N], int64_t count, Mask m) {
  if (d.residual) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (Partial && i >= count) break;
      acc[i] = simd::add(acc[i], load<Masked>(d.residual + at + i * step, m));
    }
  }
  if (d.relu) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) acc[i] = simd::relu(acc[i]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    if (Partial && i >= count) break;
    if constexpr (Masked) {
      simd::store(d.dst + at + i * step, acc[i], m);
    } else {
      simd::store(d.dst + at + i * step, acc[i]);
    }
  }
}

// The next tile's outputs: the first write to a line waits for it to arrive otherwise. A prefetch past the array does
// no harm.
template <int N>
FASTCONV_INLINE void prefetch_next(const float* dst, int64_t step) {
#if defined(__GNUC__)
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) __builtin_prefetch(dst + i * step, 1);
#else
  (void)dst, (void)step;
#endif
}

}  // namespace
}  // namespace fastconv
