// Mean of whole planes, for global average pooling, written once over simd/: see PoolUkernel in ukernel.h.
// Sums of a few hundred terms in float, their total and the division in double: a plane of any size keeps float
// accuracy.
#pragma once

#include "cpu/pool/pool_body.h"

namespace fastconv {
namespace {

// Sums by lanes of a run.
inline F lane_sums(const float* src, int64_t begin, int64_t end) {
  F acc[4] = {simd::zero(), simd::zero(), simd::zero(), simd::zero()};
  int64_t j = begin;
  for (; j + 4 * kL <= end; j += 4 * kL)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) acc[k] = simd::add(acc[k], simd::load(src + j + k * kL));
  for (; j + kL <= end; j += kL) acc[0] = simd::add(acc[0], simd::load(src + j));
  if (j < end) acc[1] = simd::add(acc[1], simd::load(src + j, simd::first(end - j)));
  return simd::add(simd::add(acc[0], acc[1]), simd::add(acc[2], acc[3]));
}

// Of a float that is divided by a float, one division in float is that in double, rounded.
inline bool divides_in_float(double divisor) {
  return static_cast<double>(static_cast<float>(divisor)) == divisor;
}

// kL rows at a time: their lanes are added up turned.
void mean_short_rows(const float* src, float* dst, int64_t rows, int64_t len, float divisor) {
  const F by = simd::set1(divisor);
  for (int64_t i = 0; i < rows; i += kL) {
    const int64_t count = smaller(kL, rows - i);
    F row[kL], lane[kL];
    for (int64_t k = 0; k < kL; ++k) row[k] = k < count ? lane_sums(src + (i + k) * len, 0, len) : simd::zero();
    simd::transpose(row, lane);
#pragma GCC unroll 4
    for (int half = kL / 2; half > 0; half /= 2)
#pragma GCC unroll 8
      for (int k = 0; k < half; ++k) lane[k] = simd::add(lane[k], lane[k + half]);
    simd::store(dst + i, simd::div(lane[0], by), simd::first(count));
  }
}

void mean_rows(const float* src, float* dst, int64_t rows, int64_t len, double divisor) {
  constexpr int64_t kPart = 64 * 4 * kL;
  if (len <= kPart && divides_in_float(divisor))
    return mean_short_rows(src, dst, rows, len, static_cast<float>(divisor));
  for (int64_t i = 0; i < rows; ++i, src += len) {
    double total = 0;
    for (int64_t begin = 0; begin < len; begin += kPart)
      total += static_cast<double>(simd::sum(lane_sums(src, begin, smaller(len, begin + kPart))));
    dst[i] = static_cast<float>(total / divisor);
  }
}

// kV vectors of columns, the last one masked. What the next such columns see is fetched towards the L2: rows lie far apart.
template <int kV>
void mean_block(const float* src, int64_t ld, float* dst, int64_t rows, int64_t n, double divisor) {
  constexpr int64_t kPart = 128;
  const Mask last = simd::first(n - (kV - 1) * kL);
  double total[kV * kL] = {};
  for (int64_t begin = 0; begin < rows; begin += kPart) {
    const int64_t end = smaller(rows, begin + kPart);
    F acc[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) acc[v] = simd::zero();
    for (int64_t r = begin; r < end; ++r) {
      const float* p = src + r * ld;
#pragma GCC unroll 8
      for (int v = 0; v < kV; v += kLine / kL) __builtin_prefetch(p + (kV + v) * kL, 0, 2);
#pragma GCC unroll 8
      for (int v = 0; v < kV - 1; ++v) acc[v] = simd::add(acc[v], simd::load(p + v * kL));
      acc[kV - 1] = simd::add(acc[kV - 1], simd::load(p + (kV - 1) * kL, last));
    }
    if (rows <= kPart && divides_in_float(divisor)) {
      const F by = simd::set1(static_cast<float>(divisor));
#pragma GCC unroll 8
      for (int v = 0; v < kV - 1; ++v) simd::store(dst + v * kL, simd::div(acc[v], by));
      return simd::store(dst + (kV - 1) * kL, simd::div(acc[kV - 1], by), last);
    }
    float part[kV * kL];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) simd::store(part + v * kL, acc[v]);
    for (int i = 0; i < kV * kL; ++i) total[i] += static_cast<double>(part[i]);
  }
  for (int64_t j = 0; j < n; ++j) dst[j] = static_cast<float>(total[j] / divisor);
}

// Fewer channels than lanes, rows adjacent: n vectors hold kL whole rows, and lane i of them all belongs to column i %
// n.
void mean_few(const float* src, float* dst, int64_t rows, int64_t n, double divisor) {
  constexpr int64_t kPart = 128;
  float part[kL * kL];
  double total[kL];
  for (int64_t j = 0; j < n; ++j) total[j] = 0;
  const int64_t whole = rows / kL;
  for (int64_t begin = 0; begin < whole; begin += kPart) {
    const int64_t end = smaller(whole, begin + kPart);
    for (int64_t v = 0; v < n; ++v) {
      F acc = simd::zero();
      for (int64_t b = begin; b < end; ++b) acc = simd::add(acc, simd::load(src + (b * n + v) * kL));
      simd::store(part + v * kL, acc);
    }
    for (int64_t r = 0; r < kL; ++r)
      for (int64_t j = 0; j < n; ++j) total[j] += static_cast<double>(part[r * n + j]);
  }
  for (int64_t r = whole * kL; r < rows; ++r)
    for (int64_t j = 0; j < n; ++j) total[j] += static_cast<double>(src[r * n + j]);
  for (int64_t j = 0; j < n; ++j) dst[j] = static_cast<float>(total[j] / divisor);
}

// Columns do not meet, so how they are cut into blocks changes no bit.
void mean_columns(const float* src, int64_t ld, float* dst, int64_t rows, int64_t n, double divisor) {
  if (n == ld && n < kL) return mean_few(src, dst, rows, n, divisor);
  int64_t j = 0;
  for (; j + 8 * kL <= n; j += 8 * kL) mean_block<8>(src + j, ld, dst + j, rows, 8 * kL, divisor);
  for (; j + 2 * kL <= n; j += 2 * kL) mean_block<2>(src + j, ld, dst + j, rows, 2 * kL, divisor);
  for (; j < n; j += kL) mean_block<1>(src + j, ld, dst + j, rows, smaller(kL, n - j), divisor);
}

}  // namespace
}  // namespace fastconv
