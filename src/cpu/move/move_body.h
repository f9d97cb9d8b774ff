// Data movement leaves, written once over simd/: blocked transpose, and the row gather that pads images and builds
// patches.
#pragma once

#include "cpu/ukernel.h"

namespace fastconv {
namespace {

constexpr int kL = simd::kLanes;

void transpose(const float* src, int64_t src_ld, float* dst, int64_t dst_ld, int64_t rows, int64_t cols) {
  int64_t i = 0;
  for (; i + kL <= rows; i += kL) {
    int64_t j = 0;
    for (; j + kL <= cols; j += kL) {
      simd::F block[kL];
      simd::transpose_block(src + i * src_ld + j, src_ld, block);
#pragma GCC unroll 16
      for (int t = 0; t < kL; ++t) simd::store(dst + (j + t) * dst_ld + i, block[t]);
    }
    for (; j < cols; ++j)
      for (int t = 0; t < kL; ++t) dst[j * dst_ld + i + t] = src[(i + t) * src_ld + j];
  }
  for (; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) dst[j * dst_ld + i] = src[i * src_ld + j];
}

template <int kStep>
simd::F gather_vector(const float* src, int64_t step, int64_t count) {
  if constexpr (kStep == 1) return simd::load(src, simd::first(count));
  if constexpr (kStep == 2) {
    const int64_t reach = 2 * count - 1;
    return simd::even(simd::load(src, simd::first(reach)),
                      simd::load(src + kL, simd::first(reach > kL ? reach - kL : 0)));
  }
  return simd::load_step(src, step, simd::first(count));
}

// Rows are often short (7 to 58 values), so what they have in common is worked out once.
template <int kStep>
void gather_rows_by(const float* src, int64_t src_ld, int64_t step, float* dst, int64_t dst_ld, int64_t rows,
                    int64_t cols, int64_t lo, int64_t hi) {
  const int64_t count = hi - lo, whole = count / kL * kL, rest = count - whole;
  const simd::Mask tail = simd::first(rest);
  for (int64_t i = 0; i < rows; ++i, src += src_ld, dst += dst_ld) {
    for (int64_t j = 0; j < lo; ++j) dst[j] = 0.0f;
    float* out = dst + lo;
    for (int64_t j = 0; j < whole; j += kL) simd::store(out + j, gather_vector<kStep>(src + j * step, step, kL));
    if (rest) simd::store(out + whole, gather_vector<kStep>(src + whole * step, step, rest), tail);
    for (int64_t j = hi; j < cols; ++j) dst[j] = 0.0f;
  }
}

void gather_rows(const float* src, int64_t src_ld, int64_t step, float* dst, int64_t dst_ld, int64_t rows, int64_t cols,
                 int64_t lo, int64_t hi) {
  if (step == 1 && lo == 0 && hi == cols && cols <= kL) {
    const simd::Mask m = simd::first(cols);
    for (int64_t i = 0; i < rows; ++i, src += src_ld, dst += dst_ld) simd::store(dst, simd::load(src, m), m);
  } else if (step == 1) {
    gather_rows_by<1>(src, src_ld, 1, dst, dst_ld, rows, cols, lo, hi);
  } else if (step == 2) {
    gather_rows_by<2>(src, src_ld, 2, dst, dst_ld, rows, cols, lo, hi);
  } else {
    gather_rows_by<0>(src, src_ld, step, dst, dst_ld, rows, cols, lo, hi);
  }
}

}  // namespace
}  // namespace fastconv
