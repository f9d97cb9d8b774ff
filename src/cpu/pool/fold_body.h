// What all pooling bodies share, written once over simd/: maxima and sums as policies, windows that lie partly outside, divisions.
#pragma once

#include <math.h>

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;
// The baseline neither stores past the caches nor fetches ahead: what differs in that alone is not compiled for it.
constexpr bool kMinds = kL > 4;
constexpr int64_t kBlock = 32;                  // terms of a sum before it is added to the total
constexpr int64_t kMaxStep = int64_t{1} << 26;  // of simd::load_step

// Floats: how far ahead images are fetched that are read in order, but several rows at a time in short pieces, which the processor does not foresee.
constexpr int64_t kAhead = 1024;

// Divides a sum: never multiplied by a rounded inverse; the inverse of a power of two is exact.
struct Divisor {
  F by;
  bool exact;
  F operator()(F v) const { return exact ? simd::mul(v, by) : simd::div(v, by); }
};
inline Divisor divisor_of(int64_t count) {
  const float divisor = static_cast<float>(count);
  const int64_t size = count < 0 ? -count : count;
  const bool exact = size < (int64_t{1} << 24) && (size & (size - 1)) == 0;
  return {simd::set1(exact ? 1.0f / divisor : divisor), exact};
}

// Of equal values the later one stays, in any grouping, so that rows may be shared and halves folded first without changing a bit.
struct Max {
  static constexpr float kIdentity = -INFINITY;
  static constexpr bool kWatch = false, kShare = true, kSums = false;
  static F step(F m, F x) { return simd::max_nan(m, x); }
  static F finish(F v, const Divisor&) { return v; }
};
// Right where no element is NaN. Elements are added up besides, as products with one: Zen multiplies beside its maxima, but adds in their
// place. The sum is NaN where an element was (or infinities met), and then Max has the last word.
struct Watched {
  static constexpr float kIdentity = -INFINITY;
  static constexpr bool kWatch = true, kShare = true, kSums = false;
  static F step(F m, F x) { return simd::max(m, x); }
  static F finish(F v, const Divisor&) { return v; }
};
struct Sum {
  static constexpr float kIdentity = -0.0f;  // which changes no sum, not even one of zeros
  static constexpr bool kWatch = false, kShare = false, kSums = true;
  static F step(F m, F x) { return simd::add(m, x); }
  static F finish(F v, const Divisor& d) { return d(v); }
};

// a + b of what is watched.
template <class R>
inline F seen_with(F a, F b) {
  if constexpr (R::kWatch) return simd::fma(a, simd::set1(1.0f), b);
  return b;
}
inline bool met_nan(F seen) {
  return simd::any(simd::is_nan(seen));
}

struct Span {
  int64_t begin, end;
};
// The taps t of 0..count-1 for which start + t * step lies in 0..size-1.
inline Span taps_inside(int64_t start, int64_t step, int64_t count, int64_t size) {
  const auto steps = [&](int64_t distance) { return step == 1 ? distance : (distance + step - 1) / step; };
  const int64_t begin = start < 0 ? smaller(steps(-start), count) : 0;
  const int64_t end = start < size ? smaller(steps(size - start), count) : 0;
  return {begin, larger(begin, end)};
}

// load(0), load(1), .. in order; kCount is their number where it is known, or 0. Long sums go in blocks, for accuracy.
template <class R, int kCount, class Load>
inline F fold(int64_t count, Load load) {
  if constexpr (kCount > 0) {
    F m = load(0);
#pragma GCC unroll 4
    for (int t = 1; t < kCount; ++t) m = R::step(m, load(t));
    return m;
  } else {
    F total = simd::set1(R::kIdentity);
    for (int64_t t = 0; t < count;) {
      const int64_t end = smaller(count, t + kBlock);
      F m = load(t);
      for (++t; t < end; ++t) m = R::step(m, load(t));
      total = R::step(total, m);
    }
    return total;
  }
}

inline void fill(float* out, int64_t n, float value) {
  const F v = simd::set1(value);
  int64_t j = 0;
  for (; j + kL <= n; j += kL) simd::store(out + j, v);
  if (j < n) simd::store(out + j, v, simd::first(n - j));
}

inline void divide(float* v, int64_t n, int64_t count) {
  const Divisor by = divisor_of(count);
  int64_t j = 0;
  for (; j + kL <= n; j += kL) simd::store(v + j, by(simd::load(v + j)));
  if (j < n) {
    const Mask m = simd::first(n - j);
    simd::store(v + j, by(simd::load(v + j, m)), m);
  }
}

// Elements that a window starting at `start` counts along one axis.
inline int64_t counted(int64_t start, int64_t kernel, int64_t size, int64_t pad_end, bool include_pad) {
  if (include_pad) return smaller(start + kernel, size + pad_end) - start;
  return larger(smaller(start + kernel, size) - larger(start, 0), 0);
}

// What the sum of output (y, x) is divided by. A window without any element has the sum 0, which stays.
inline int64_t divisor_at(const PoolCall& g, int64_t y, int64_t x) {
  if (g.divisor != 0) return g.divisor;
  const bool pad = g.count_include_pad != 0;
  return larger(counted(y * g.sh - g.pt, g.kh, g.ih, g.pb, pad) * counted(x * g.sw - g.pl, g.kw, g.iw, g.pr, pad), 1);
}

// All windows of an output row count equally many elements.
inline bool even_row(const PoolCall& g) {
  if (g.divisor != 0) return true;
  const bool pad = g.count_include_pad != 0;
  return counted(-g.pl, g.kw, g.iw, g.pr, pad) == g.kw &&
         counted((g.ow - 1) * g.sw - g.pl, g.kw, g.iw, g.pr, pad) == g.kw;
}

// body(g) for every image of the call.
template <class Body>
void each_image(const PoolCall* call, Body body) {
  PoolCall g = *call;
  for (int64_t i = 0; i < call->images; ++i) {
    body(g);
    g.src += g.src_image, g.dst += g.dst_image;
    if (g.indices) g.indices += g.dst_image;
  }
}

}  // namespace
}  // namespace fastconv
