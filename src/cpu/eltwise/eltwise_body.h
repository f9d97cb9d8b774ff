// ReLU and the affine map of batch normalisation, written once over simd/: see EltwiseUkernel in ukernel.h.
#pragma once

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;

void relu(const float* src, float* dst, int64_t count, int32_t streaming) {
  const auto most = [](F x) { return simd::relu(x); };
  if (streaming) {
    map_run<true>(src, dst, count, most);
    simd::stream_end();
  } else {
    map_run<false>(src, dst, count, most);
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
