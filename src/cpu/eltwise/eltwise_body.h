// ReLU and the affine map of batch normalisation, written once over simd/: see EltwiseUkernel in ukernel.h.
#pragma once

#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;

void relu(const float* src, float* dst, int64_t count) {
  int64_t j = 0;
  for (; j + 4 * kL <= count; j += 4 * kL)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) simd::store(dst + j + k * kL, simd::relu(simd::load(src + j + k * kL)));
  for (; j < count; j += kL) {
    const Mask m = simd::first(count - j);
    simd::store(dst + j, simd::relu(simd::load(src + j, m)), m);
  }
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
