// ReLU and the affine map of batch normalisation, written once over simd/: see EltwiseUkernel in ukernel.h.
#pragma once

#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;

template <bool kStream>
void relu_by(const float* src, float* dst, int64_t count) {
  int64_t j = 0;
  if constexpr (kStream) {
    const int64_t head = -(reinterpret_cast<intptr_t>(dst) / 4) & (kL - 1), n = head < count ? head : count;
    const Mask m = simd::first(n);
    simd::store(dst, simd::relu(simd::load(src, m)), m);
    j = n;
  }
  for (; j + 4 * kL <= count; j += 4 * kL)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const F v = simd::relu(simd::load(src + j + k * kL));
      kStream ? simd::stream(dst + j + k * kL, v) : simd::store(dst + j + k * kL, v);
    }
  for (; j < count; j += kL) {
    const Mask m = simd::first(count - j);
    simd::store(dst + j, simd::relu(simd::load(src + j, m)), m);
  }
  if (kStream) simd::stream_end();
}

void relu(const float* src, float* dst, int64_t count, int32_t streaming) {
  streaming ? relu_by<true>(src, dst, count) : relu_by<false>(src, dst, count);
}

void affine_rows(const float* src, float* dst, const float* scale, const float* shift, int64_t rows, int64_t len) {
  for (int64_t i = 0; i < rows; ++i, src += len, dst += len) {
    const F a = simd::set1(scale[i]), b = simd::set1(shift[i]);
    int64_t j = 0;
    for (; j + kL <= len; j += kL) simd::store(dst + j, simd::fma(simd::load(src + j), a, b));
    if (j < len) {
      const Mask m = simd::first(len - j);
      simd::store(dst + j, simd::fma(simd::load(src + j, m), a, b), m);
    }
  }
}

void affine_columns(const float* src, float* dst, const float* scale, const float* shift, int64_t rows, int64_t len) {
  for (int64_t i = 0; i < rows; ++i, src += len, dst += len) {
    int64_t j = 0;
    for (; j + kL <= len; j += kL)
      simd::store(dst + j, simd::fma(simd::load(src + j), simd::load(scale + j), simd::load(shift + j)));
    if (j < len) {
      const Mask m = simd::first(len - j);
      simd::store(dst + j, simd::fma(simd::load(src + j, m), simd::load(scale + j, m), simd::load(shift + j, m)), m);
    }
  }
}

}  // namespace
}  // namespace fastconv
