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

void gather_rows(const float* src, int64_t src_ld, int64_t step, float* dst, int64_t dst_ld, int64_t rows, int64_t cols,
                 int64_t lo, int64_t hi) {
  for (int64_t i = 0; i < rows; ++i, src += src_ld, dst += dst_ld) {
    for (int64_t j = 0; j < lo; ++j) dst[j] = 0.0f;
    if (step == 1) {
      int64_t j = lo;
      for (; j + kL <= hi; j += kL) simd::store(dst + j, simd::load(src + j - lo));
      if (j < hi) {
        const simd::Mask m = simd::first(hi - j);
        simd::store(dst + j, simd::load(src + j - lo, m), m);
      }
    } else {
      const float* from = src;
      for (int64_t j = lo; j < hi; ++j, from += step) dst[j] = *from;
    }
    for (int64_t j = hi; j < cols; ++j) dst[j] = 0.0f;
  }
}

}  // namespace
}  // namespace fastconv
