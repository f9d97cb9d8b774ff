// Planes to pixels (NCHW -> NHWC) and back, written once over simd/: see LayoutUkernel in ukernel.h.
// Both are the transpose of a matrix, in blocks of kLanes x kLanes. Rests go through a block on the stack, with masked
// loads and stores. Three channels, the pictures, have shuffles of their own.
#pragma once

#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;
constexpr int64_t kStrip = 4 * kL;  // pixels whose planes are read, or written, in one go

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// dst[j * dst_ld + i] = src[i * src_ld + j], i < rows, j < cols; rows and cols at most kL.
inline void transpose_part(const float* src, int64_t src_ld, float* dst, int64_t dst_ld, int64_t rows, int64_t cols) {
  F block[kL];
  if (rows == kL && cols == kL) {
    simd::transpose_block(src, src_ld, block);
#pragma GCC unroll 16
    for (int t = 0; t < kL; ++t) simd::store(dst + t * dst_ld, block[t]);
    return;
  }
  float copy[kL * kL];
  const Mask read = simd::first(cols), write = simd::first(rows);
  for (int64_t i = 0; i < rows; ++i) simd::store(copy + i * kL, simd::load(src + i * src_ld, read));
  for (int64_t i = rows; i < kL; ++i) simd::store(copy + i * kL, simd::zero());
  simd::transpose_block(copy, kL, block);
  for (int64_t t = 0; t < cols; ++t) simd::store(dst + t * dst_ld, block[t], write);
}

void to_pixels(const float* planes, int64_t plane, float* pixels, int64_t c, int64_t count) {
  int64_t p = 0;
  if (c == 3)
    for (; p + kL <= count; p += kL)
      simd::store_pixels3(pixels + 3 * p, simd::load(planes + p), simd::load(planes + plane + p),
                          simd::load(planes + 2 * plane + p));
  for (; p < count; p += kStrip) {
    const int64_t end = smaller(count, p + kStrip);
    for (int64_t k = 0; k < c; k += kL)
      for (int64_t q = p; q < end; q += kL)
        transpose_part(planes + k * plane + q, plane, pixels + q * c + k, c, smaller(kL, c - k), smaller(kL, end - q));
  }
}

void to_planes(const float* pixels, float* planes, int64_t plane, int64_t c, int64_t count) {
  int64_t p = 0;
  if (c == 3)
    for (; p + kL <= count; p += kL) {
      F channel[3];
      simd::load_pixels3(pixels + 3 * p, channel);
      for (int k = 0; k < 3; ++k) simd::store(planes + k * plane + p, channel[k]);
    }
  for (; p < count; p += kStrip) {
    const int64_t end = smaller(count, p + kStrip);
    for (int64_t k = 0; k < c; k += kL)
      for (int64_t q = p; q < end; q += kL)
        transpose_part(pixels + q * c + k, c, planes + k * plane + q, plane, smaller(kL, end - q), smaller(kL, c - k));
  }
}

}  // namespace
}  // namespace fastconv
