// Depthwise convolution along rows (see depthwise_rows_body.h), 3x3 with a padding of 1: rows are walked downwards and each input row is read
// once, for the three sums under way.
// Strips: up to kStrips vectors of outputs side by side, so that an input row is read in one go, a strip's neighbours are in registers, and as
// many chains of products are under way.
// Registers: 2 sums a strip, 9 taps, the bias, 3 vectors of input and 2 of neighbours (AVX-512).
// Shuffles leave the multipliers alone (VPERMT2PS takes turns with them). Narrow maps: two planes in one vector.
// Numerics: the order of depthwise_body.h.
// Tried: a sum a kernel row, added up at the end (no gain).
#pragma once

#include "cpu/conv/depthwise_body.h"

namespace fastconv {
namespace {

constexpr int kHalf = kLanes / 2;
constexpr int kStrips = kLanes == 16 ? 4 : 1;  // 16 registers hold the sums of one

// What the three taps of a kernel row read of one input row, for N vectors of outputs. With stride 1 the taps beside are the middle one
// shifted; Left, Right: whether the strips have neighbours there, or the image ends. The last strip's lanes past `out` are outside.
template <int N, bool Left, bool Right>
struct StripTaps {
  static constexpr int kStride = 1, kCount = N;
  const float* x;  // pixel of tap 1 of lane 0, input row 0
  int64_t step;    // from an input row to the next
  float* dst;
  Mask out;

  template <class Use>
  FASTCONV_INLINE void read(int64_t row, Use use) const {
    const float* const at = x + row * step;
    const auto strip = [&](int k) __attribute__((always_inline)) {
      return k + 1 < N ? simd::load(at + k * kLanes) : simd::load(at + k * kLanes, out);
    };
    F before = Left ? simd::set1(at[-1]) : simd::zero(), v[3];
    v[1] = strip(0);
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) {
      const F after = k + 1 < N ? strip(k + 1) : Right ? simd::set1(at[N * kLanes]) : simd::zero();
      v[0] = k == 0 ? simd::shift_up(before, v[1]) : simd::slide_up<1>(before, v[1]);
      v[2] = simd::shift_down(v[1], after);
      use(k, v);
      before = v[1], v[1] = after;
    }
  }
  FASTCONV_INLINE void write(int64_t at, int k, F y) const {
    if (k + 1 < N) {
      simd::store(dst + at + k * kLanes, y);
    } else {
      simd::store(dst + at + k * kLanes, y, out);
    }
  }
};

// Stride 2: even and odd pixels of two vectors; tap 0 is tap 2 shifted. Lanes keep the order of the cheap shuffles up to the store: those that
// put them in order take turns with the products.
template <int N, bool Left>
struct StripTaps2 {
  static constexpr int kStride = 2, kCount = N;
  const float* x;
  int64_t step;
  Mask in[2];  // of the last strip
  float* dst;
  Mask out;

  template <class Use>
  FASTCONV_INLINE void read(int64_t row, Use use) const {
    const float* const at = x + row * step;
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) {
      const float* const p = at + 2 * k * kLanes;
      const F a = k + 1 < N ? simd::load(p) : simd::load(p, in[0]);
      const F b = k + 1 < N ? simd::load(p + kLanes) : simd::load(p + kLanes, in[1]);
      F v[3];
      v[1] = simd::even_mixed(a, b);
      v[2] = simd::odd_mixed(a, b);
      v[0] = simd::shift_up_mixed(Left || k > 0 ? simd::set1(p[-1]) : simd::zero(), v[2]);
      use(k, v);
    }
  }
  FASTCONV_INLINE void write(int64_t at, int k, F y) const {
    if (k + 1 < N) {
      simd::store(dst + at + k * kLanes, simd::in_order(y));
    } else {
      simd::store(dst + at + k * kLanes, simd::in_order(y), out);
    }
  }
};

// The same for two planes of fewer columns than half a vector: what lies between them is a lane of zeros, the padding of both.
struct PairTaps {
  static constexpr int kStride = 1, kCount = 1;
  const float* x[2];
  int64_t step;
  float* dst[2];
  Mask out;

  template <class Use>
  FASTCONV_INLINE void read(int64_t row, Use use) const {
    F v[3];
    v[1] = simd::load_pair(x[0] + row * step, x[1] + row * step, out);
    v[0] = simd::shift_up(simd::zero(), v[1]);
    v[2] = simd::shift_down(v[1], simd::zero());
    use(0, v);
  }
  FASTCONV_INLINE void write(int64_t at, int, F y) const { simd::store_pair(dst[0] + at, dst[1] + at, y, out); }
};

struct PairTaps2 {
  static constexpr int kStride = 2, kCount = 1;
  const float* x[2];
  int64_t step;
  Mask in;
  float* dst[2];
  Mask out;

  template <class Use>
  FASTCONV_INLINE void read(int64_t row, Use use) const {
    const float *at = x[0] + row * step, *beside = x[1] + row * step;
    const F a = simd::load(at, in), b = simd::load(beside, in);
    F v[3];
    v[1] = simd::even_mixed(a, b);
    v[2] = simd::odd_mixed(a, b);
    v[0] = simd::shift_up_mixed(simd::zero(), v[2]);
    use(0, v);
  }
  FASTCONV_INLINE void write(int64_t at, int, F y) const {
    simd::store_pair(dst[0] + at, dst[1] + at, simd::in_order(y), out);
  }
};

// Output rows first .. end - 1, downwards: each input row gives a kernel row to each of the sums that are under way.
template <class Row>
FASTCONV_INLINE void walk_rows(const DepthwisePart& d, const Row& r, int64_t first, int64_t end, const F* w, F bias) {
  constexpr int S = Row::kStride, N = Row::kCount;
  const F least = simd::set1(d.relu ? 0.0f : -__builtin_inff());  // max(least, y) is y, also where y is NaN or -0
  const auto add = [&](F acc, const F* taps, const F* v) __attribute__((always_inline)) {
    return simd::fma(v[2], taps[2], simd::fma(v[1], taps[1], simd::fma(v[0], taps[0], acc)));
  };
  const auto inside = [&](int64_t row) { return row >= 0 && row < d.ih; };
  int64_t row = first * S - d.pt;  // what comes next
  F acc[N], next[N];
#pragma GCC unroll 4
  for (int k = 0; k < N; ++k) acc[k] = next[k] = bias;
  if (inside(row)) r.read(row, [&](int k, const F* v) __attribute__((always_inline)) { acc[k] = add(acc[k], w, v); });
  ++row;
  if constexpr (S == 1) {
    if (inside(row))
      r.read(row, [&](int k, const F* v)
                      __attribute__((always_inline)) { acc[k] = add(acc[k], w + 3, v), next[k] = add(next[k], w, v); });
    ++row;
  }
  for (int64_t y = first; y < end; ++y) {
    F sum[N];
    if constexpr (S == 1) {
      if (inside(row)) {
        r.read(row, [&](int k, const F* v) __attribute__((always_inline)) {
          sum[k] = add(acc[k], w + 6, v);
          acc[k] = add(next[k], w + 3, v);
          next[k] = add(bias, w, v);
        });
      } else {
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) sum[k] = acc[k], acc[k] = next[k], next[k] = bias;
      }
      ++row;
    } else {
      if (inside(row))
        r.read(row, [&](int k, const F* v) __attribute__((always_inline)) { acc[k] = add(acc[k], w + 3, v); });
      if (inside(row + 1)) {
        r.read(row + 1, [&](int k, const F* v) __attribute__((always_inline)) {
          sum[k] = add(acc[k], w + 6, v), acc[k] = add(bias, w, v);
        });
      } else {
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) sum[k] = acc[k], acc[k] = bias;
      }
      row += 2;
    }
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) r.write(y * d.ow, k, simd::max(least, sum[k]));
  }
}

// Whether walk_rows serves a problem.
FASTCONV_INLINE bool walked(const DepthwisePart& d) {
  return d.kh == 3 && d.pl == 1 && d.iw <= d.ow * d.sw && d.iw + d.sw > d.ow * d.sw && !d.residual;
}

// Output rows first .. end - 1 of N strips from output column ox on.
template <int S, int N>
void walk_strips(const DepthwisePart& d, const float* x, float* out, int64_t ox, int64_t first, int64_t end, const F* w,
                 F bias) {
  const int64_t last = ox + (N - 1) * kLanes;  // column of the last strip
  const Mask o = simd::first(d.ow - last);
  const bool left = ox > 0, right = last + kLanes < d.ow;
  x += ox * S, out += ox;
  if constexpr (S == 2) {
    const int64_t in = d.iw - 2 * last;
    const Mask a = simd::first(in), b = simd::first(in < kLanes ? 0 : in - kLanes);
    if (left) {
      walk_rows(d, StripTaps2<N, true>{x, d.iw, {a, b}, out, o}, first, end, w, bias);
    } else {
      walk_rows(d, StripTaps2<N, false>{x, d.iw, {a, b}, out, o}, first, end, w, bias);
    }
  } else if (right) {
    if constexpr (N == kStrips) {
      if (left) {
        walk_rows(d, StripTaps<N, true, true>{x, d.iw, out, o}, first, end, w, bias);
      } else {
        walk_rows(d, StripTaps<N, false, true>{x, d.iw, out, o}, first, end, w, bias);
      }
    }
  } else if (left) {
    walk_rows(d, StripTaps<N, true, false>{x, d.iw, out, o}, first, end, w, bias);
  } else {
    walk_rows(d, StripTaps<N, false, false>{x, d.iw, out, o}, first, end, w, bias);
  }
}

template <int S>
void walk_planes(const DepthwisePart& d) {
  constexpr int64_t kBlock = 14;  // rows of several groups of strips, so that memory is walked nearly in order
  const int64_t end = d.channel + d.channels, strips = (d.ow + kLanes - 1) / kLanes;
  const int64_t block = strips > kStrips ? kBlock : d.rows;
  int64_t c = d.channel;
  if (d.ow < kHalf) {
    // A value for each of two planes, where the lanes of their outputs are.
    const auto both = [](float a, float b) {
      return S == 2 ? simd::even_mixed(simd::set1(a), simd::set1(b))
                    : simd::select(simd::range(kHalf, kLanes), simd::set1(b), simd::set1(a));
    };
    for (; c + 2 <= end; c += 2) {
      F w[9];
#pragma GCC unroll 16
      for (int t = 0; t < 9; ++t) w[t] = both(d.w[c * 9 + t], d.w[c * 9 + 9 + t]);
      const F bias = d.bias ? both(d.bias[c], d.bias[c + 1]) : simd::zero();
      const float *a = d.src + c / d.multiplier * d.src_plane, *b = d.src + (c + 1) / d.multiplier * d.src_plane;
      float *const y = d.dst + c * d.dst_plane, *const z = y + d.dst_plane;
      if constexpr (S == 1) {
        walk_rows(d, PairTaps{{a, b}, d.iw, {y, z}, simd::first(d.ow)}, d.row, d.row + d.rows, w, bias);
      } else {
        const PairTaps2 pair{{a, b}, d.iw, simd::first(d.iw), {y, z}, simd::first(d.ow)};
        walk_rows(d, pair, d.row, d.row + d.rows, w, bias);
      }
    }
  }
  for (; c < end; ++c) {
    F w[9];
#pragma GCC unroll 16
    for (int t = 0; t < 9; ++t) w[t] = simd::set1(d.w[c * 9 + t]);
    const F bias = simd::set1(d.bias ? d.bias[c] : 0.0f);
    const float* const x = d.src + c / d.multiplier * d.src_plane;
    float* const out = d.dst + c * d.dst_plane;
    for (int64_t y = d.row; y < d.row + d.rows; y += block) {
      const int64_t stop = smaller(y + block, d.row + d.rows);
      int64_t done = 0;
      for (; done + kStrips <= strips; done += kStrips)
        walk_strips<S, kStrips>(d, x, out, done * kLanes, y, stop, w, bias);
      const int64_t left = strips - done, ox = done * kLanes;
      if constexpr (kStrips > 1) {
        if (left == 1) walk_strips<S, 1>(d, x, out, ox, y, stop, w, bias);
        if (left == 2) walk_strips<S, 2>(d, x, out, ox, y, stop, w, bias);
        if (left == 3) walk_strips<S, 3>(d, x, out, ox, y, stop, w, bias);
      }
    }
  }
}

}  // namespace
}  // namespace fastconv
