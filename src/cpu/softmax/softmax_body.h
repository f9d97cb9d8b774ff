// Softmax of rows and of columns, written once over simd/: see SoftmaxUkernel in ukernel.h.
//
// exp(x - m), m the maximum: d = x - m is kept with its rounding error e (two-sum), because exp turns an absolute error
// of d into a relative one: at |x|, |m| near 50 the error alone would be some 30 units in the last place. Then k =
// round(d / ln 2), r = (d - k * hi) + (e - k * lo) with hi + lo = ln 2 and hi of 9 bits, so that d - k * hi is exact;
// exp(r) = 1 + r + r^2 q(r), q of degree 4 fitted for least relative error on |r| <= ln 2 / 2 (3.2e-9); and the scaling
// by 2^k rounds once, so results are correct into the subnormals. Values under 2^-150 become 0.
//
// Special rows need no branch: with NaN or +inf in a row, or with -inf alone, some x - m is NaN, hence the sum, hence
// all.
#pragma once

#include <math.h>

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;
constexpr int64_t kBlock = 8;  // vectors of a row that are summed before they join the total

// exp(x - m), x <= m or NaN.
inline F exp_below(F x, F m) {
  const F rounded = simd::sub(x, m), back = simd::sub(rounded, x);
  const F error = simd::sub(simd::sub(x, simd::sub(rounded, back)), simd::add(m, back));
  const F least = simd::set1(-105.0f);
  const Mask gone = simd::greater(least, rounded);  // also -inf, whose error is NaN
  const F d = simd::select(gone, least, rounded), e = simd::select(gone, simd::zero(), error);

  const F magic = simd::set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F k = simd::sub(simd::fma(d, simd::set1(1.44269504f), magic), magic);
  const F r = simd::add(simd::fma(k, simd::set1(-0.693359375f), d), simd::fma(k, simd::set1(2.12194440e-4f), e));
  F q = simd::set1(0x1.6a504ap-10f);
  q = simd::fma(q, r, simd::set1(0x1.123976p-7f));
  q = simd::fma(q, r, simd::set1(0x1.5558acp-5f));
  q = simd::fma(q, r, simd::set1(0x1.555492p-3f));
  q = simd::fma(q, r, simd::set1(0x1.fffffcp-2f));
  return simd::scale2(simd::add(simd::set1(1.0f), simd::fma(q, simd::mul(r, r), r)), k);
}

void rows(const float* src, float* dst, int64_t count, int64_t len) {
  const int64_t whole = len / kL * kL;
  const Mask rest = simd::first(len - whole);
  for (int64_t i = 0; i < count; ++i, src += len, dst += len) {
    F top[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) top[v] = simd::set1(-INFINITY);
    int64_t j = 0;
    for (; j + 4 * kL <= whole; j += 4 * kL)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) top[v] = simd::max(top[v], simd::load(src + j + v * kL));
    for (; j < whole; j += kL) top[0] = simd::max(top[0], simd::load(src + j));
    if (whole < len) top[1] = simd::max(top[1], simd::select(rest, simd::load(src + whole, rest), top[1]));
    const F m = simd::set1(simd::max_across(simd::max(simd::max(top[0], top[1]), simd::max(top[2], top[3]))));

    double total = 0;
    for (j = 0; j < whole;) {
      const int64_t end = smaller(whole, j + kBlock * kL);
      F sum = simd::zero();
      for (; j < end; j += kL) {
        const F y = exp_below(simd::load(src + j), m);
        simd::store(dst + j, y);
        sum = simd::add(sum, y);
      }
      total += static_cast<double>(simd::sum(sum));
    }
    if (whole < len) {
      const F y = simd::select(rest, exp_below(simd::load(src + whole, rest), m), simd::zero());
      simd::store(dst + whole, y, rest);
      total += static_cast<double>(simd::sum(y));
    }

    // The inverse in two floats: the product has one rounding that counts.
    const double inverse = 1.0 / total;
    const float lead = static_cast<float>(inverse);
    const F high = simd::set1(lead), low = simd::set1(static_cast<float>(inverse - static_cast<double>(lead)));
    const auto scaled = [&](F y) { return simd::fma(y, high, simd::mul(y, low)); };
    for (j = 0; j < whole; j += kL) simd::store(dst + j, scaled(simd::load(dst + j)));
    if (whole < len) simd::store(dst + whole, scaled(simd::load(dst + whole, rest)), rest);
  }
}

// fn(j, mask) over n columns; every vector but the last has all lanes.
template <class Fn>
inline void each_vector(int64_t n, Fn fn) {
  const Mask all = simd::first(kL);
  int64_t j = 0;
  for (; j + kL <= n; j += kL) fn(j, all);
  if (j < n) fn(j, simd::first(n - j));
}

void columns(const float* src, float* dst, int64_t len, int64_t ld, int64_t n, float* work) {
  float *top = work, *total = work + n, *lost = work + 2 * n;
  each_vector(n, [&](int64_t j, Mask m) { simd::store(top + j, simd::load(src + j, m), m); });
  for (int64_t a = 1; a < len; ++a)
    each_vector(n, [&](int64_t j, Mask m) {
      simd::store(top + j, simd::max(simd::load(top + j, m), simd::load(src + a * ld + j, m)), m);
    });

  // Kahan's sum: a column may be very long, and its lanes meet no tree of partial sums.
  each_vector(2 * n, [&](int64_t j, Mask m) { simd::store(total + j, simd::zero(), m); });
  for (int64_t a = 0; a < len; ++a)
    each_vector(n, [&](int64_t j, Mask m) {
      const F y = exp_below(simd::load(src + a * ld + j, m), simd::load(top + j, m));
      simd::store(dst + a * ld + j, y, m);
      const F before = simd::load(total + j, m), term = simd::sub(y, simd::load(lost + j, m)),
              after = simd::add(before, term);
      simd::store(lost + j, simd::sub(simd::sub(after, before), term), m);
      simd::store(total + j, after, m);
    });

  each_vector(
      n, [&](int64_t j, Mask m) { simd::store(total + j, simd::div(simd::set1(1.0f), simd::load(total + j, m)), m); });
  for (int64_t a = 0; a < len; ++a)
    each_vector(n, [&](int64_t j, Mask m) {
      simd::store(dst + a * ld + j, simd::mul(simd::load(dst + a * ld + j, m), simd::load(total + j, m)), m);
    });
}

}  // namespace
}  // namespace fastconv
