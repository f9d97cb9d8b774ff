// Depthwise convolution along rows: planes [c][y][x] (see depthwise_body.h).
// Operands: w [oc][kh * kw].
// Registers: kRows accumulators, output rows x one vector of pixels, and the taps as broadcasts. An input row is loaded
// once per tap column for all the output rows that read it. Stride 2 loads pairs of vectors and splits them into even
// and odd pixels. 3 taps: loads that would differ in one pixel are made of one, which with a padding of 1 crosses no cache line where
// planes and rows begin with one: a load that does takes two turns.
// 3x3 with a padding of 1: depthwise_walk_body.h.
// Rows of tiles outside, strips inside: memory is walked more nearly in order (strips outside: 10 to 20 % slower at 56x56 and 112x112).
// Tails: masked loads and stores; maps of at most half a vector take two planes per vector.
// Tried: tap 0 of stride 2 by two loads more instead of a shuffle (1.2 to 1.4 of the time);
// half the lanes idle on 7-pixel rows (35 % slower than two planes per vector); 256-bit vectors there (no gain).
#pragma once

#include "cpu/conv/depthwise_body.h"
#include "cpu/conv/depthwise_walk_body.h"

namespace fastconv {
namespace {

// One vector of output pixels: which lanes exist, and for each load of a tile which lanes lie in the input row.
template <int Loads>
struct Strip {
  Mask out;
  Mask in[Loads];
  bool whole;        // every lane of every load lies in the row
  bool first, last;  // so does the pixel that tap 0 of lane 0 reads
};

// The same for two planes side by side in one vector; the masks hold for both.
template <int K>
struct Pair {
  Mask out, in[K];
};

// Loads of a tile from one input row: a vector a tap, or two vectors (even and odd pixels of both) per pair of taps.
// 3 taps with stride 2: one pair, from tap 1 on, and the pixel before it.
template <int K, int S>
constexpr bool kShifted = K == 3 && S == 2;
template <int K, int S>
constexpr int kLoads = S == 1 ? K : K / 2 * 2 + (kShifted<K, S> ? 0 : 2);
template <int K, int S>
FASTCONV_INLINE int64_t load_offset(int i) {
  return S == 1 ? i : i / 2 * 2 + i % 2 * kLanes + (kShifted<K, S> ? 1 : 0);
}

template <int K, int S>
inline Strip<kLoads<K, S>> strip_at(const DepthwisePart& d, int64_t ox) {
  Strip<kLoads<K, S>> t;
  t.out = simd::first(d.ow - ox);
  t.whole = d.ow - ox >= kLanes;
  t.first = ox * S >= d.pl && ox * S - d.pl < d.iw;
  t.last = ox * S - d.pl + kLanes + 1 >= 0 && ox * S - d.pl + kLanes + 1 < d.iw;
  for (int i = 0; i < kLoads<K, S>; ++i) {
    const int64_t ix = ox * S - d.pl + load_offset<K, S>(i);
    const int64_t lo = clamp(-ix, 0, kLanes), hi = clamp(d.iw - ix, 0, kLanes);
    t.in[i] = simd::range(lo, hi);
    t.whole = t.whole && lo == 0 && hi == kLanes;
  }
  return t;
}

// x: where tap (0, 0) of the first row lies, perhaps outside the plane. Input rows iy, counted from x, are wanted.
template <int K, int S, bool Masked>
FASTCONV_INLINE void row_tile(const DepthwisePart& d, const float* x, Taps iy, int64_t rows, const F* w, F bias,
                              const Strip<kLoads<K, S>>& t, int64_t at) {
  F acc[kRows];
#pragma GCC unroll 16
  for (int o = 0; o < kRows; ++o) acc[o] = bias;
#pragma GCC unroll 32
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    if (i < iy.begin || i >= iy.end) continue;
    const float* row = x + i * d.iw;
    F v[K + 1];
    if constexpr (S == 1) {
      if constexpr (K == 3) {
        v[1] = load<Masked>(row + 1, t.in[1]);
        v[0] = simd::shift_up(t.first ? simd::set1(row[0]) : simd::zero(), v[1]);
        v[2] = simd::shift_down(v[1], t.last ? simd::set1(row[kLanes + 1]) : simd::zero());
      } else {
#pragma GCC unroll 8
        for (int s = 0; s < K; ++s) v[s] = load<Masked>(row + s, t.in[s]);
      }
    } else if constexpr (kShifted<K, S>) {
      const F a = load<Masked>(row + 1, t.in[0]), b = load<Masked>(row + 1 + kLanes, t.in[1]);
      v[1] = simd::even(a, b);
      v[2] = simd::odd(a, b);
      v[0] = simd::shift_up(t.first ? simd::set1(row[0]) : simd::zero(), v[2]);
    } else {
#pragma GCC unroll 8
      for (int s = 0; s < K; s += 2) {
        const F a = load<Masked>(row + s, t.in[s]), b = load<Masked>(row + s + kLanes, t.in[s + 1]);
        v[s] = simd::even(a, b);
        v[s + 1] = simd::odd(a, b);
      }
    }
#pragma GCC unroll 8
    for (int s = 0; s < K; ++s) {
#pragma GCC unroll 16
      for (int o = 0; o < kRows; ++o) {
        const int r = i - o * S;
        if (r >= 0 && r < K) acc[o] = simd::fma(v[s], w[r * K + s], acc[o]);
      }
    }
  }
  finish<kRows, Masked, true>(d, at, d.ow, acc, rows, t.out);
}

// Two planes of at most kLanes / 2 output columns in one vector: plane a in the low half, plane b in the high half, so
// that narrow maps fill the lanes. x[0], x[1] and at[0], at[1] belong to the planes.
template <int K, int S>
FASTCONV_INLINE void row_pair_tile(const DepthwisePart& d, const float* const x[2], Taps iy, int64_t rows, const F* w,
                                   F bias, const Pair<K>& t, const int64_t at[2]) {
  F acc[kRows];
#pragma GCC unroll 16
  for (int o = 0; o < kRows; ++o) acc[o] = bias;
#pragma GCC unroll 32
  for (int i = 0; i < (kRows - 1) * S + K; ++i) {
    if (i < iy.begin || i >= iy.end) continue;
    const float *a = x[0] + i * d.iw, *b = x[1] + i * d.iw;
    F v[K + 1];
#pragma GCC unroll 8
    for (int s = 0; s < K; s += S) {
      if constexpr (S == 1) {
        v[s] = simd::load_pair(a + s, b + s, t.in[s]);
      } else {
        const F p = simd::load(a + s, t.in[s]), q = simd::load(b + s, t.in[s]);
        v[s] = simd::even(p, q);
        v[s + 1] = simd::odd(p, q);
      }
    }
#pragma GCC unroll 8
    for (int s = 0; s < K; ++s) {
#pragma GCC unroll 16
      for (int o = 0; o < kRows; ++o) {
        const int r = i - o * S;
        if (r >= 0 && r < K) acc[o] = simd::fma(v[s], w[r * K + s], acc[o]);
      }
    }
  }
#pragma GCC unroll 16
  for (int o = 0; o < kRows; ++o) {
    if (o >= rows) break;
    const int64_t a = at[0] + o * d.ow, b = at[1] + o * d.ow;
    if (d.residual) acc[o] = simd::add(acc[o], simd::load_pair(d.residual + a, d.residual + b, t.out));
    if (d.relu) acc[o] = simd::relu(acc[o]);
    simd::store_pair(d.dst + a, d.dst + b, acc[o], t.out);
  }
}

// Whole pairs of the planes c .. end - 1; returns the first plane left.
template <int K, int S>
int64_t row_pairs(const DepthwisePart& d, int64_t c, int64_t end) {
  const Mask high = simd::range(kHalf, kLanes);
  Pair<K> t;
  t.out = simd::first(d.ow);
  for (int s = 0; s < K; ++s) {
    const int64_t lo = clamp(d.pl - s, 0, kHalf * S);
    t.in[s] = simd::range(lo, clamp(d.iw + d.pl - s, lo, kHalf * S));
  }
  for (; c + 2 <= end; c += 2) {
    F w[K * K];
#pragma GCC unroll 64
    for (int i = 0; i < K * K; ++i)
      w[i] = simd::select(high, simd::set1(d.w[(c + 1) * (K * K) + i]), simd::set1(d.w[c * (K * K) + i]));
    const F bias = d.bias ? simd::select(high, simd::set1(d.bias[c + 1]), simd::set1(d.bias[c])) : simd::zero();
    for (int64_t y = d.row; y < d.row + d.rows; y += kRows) {
      const int64_t rows = smaller(kRows, d.row + d.rows - y), iy = y * S - d.pt;
      const Taps wanted = {-iy, smaller(d.ih - iy, (rows - 1) * S + K)};
      const float* x[2] = {d.src + c / d.multiplier * d.src_plane + iy * d.iw - d.pl,
                           d.src + (c + 1) / d.multiplier * d.src_plane + iy * d.iw - d.pl};
      const int64_t at[2] = {c * d.dst_plane + y * d.ow, (c + 1) * d.dst_plane + y * d.ow};
      row_pair_tile<K, S>(d, x, wanted, rows, w, bias, t, at);
    }
  }
  return c;
}

template <int K, int S>
void row_planes(const DepthwisePart& d) {
  if constexpr (K == 3)
    if (walked(d)) return walk_planes<S>(d);
  const int64_t last = (d.ow - 1) / kLanes * kLanes, end = d.channel + d.channels;
  const Strip<kLoads<K, S>> left = strip_at<K, S>(d, 0), right = strip_at<K, S>(d, last);
  int64_t c = d.channel;
  if constexpr (K < 7)
    if (d.ow <= kHalf) c = row_pairs<K, S>(d, c, end);
  for (; c < end; ++c) {
    F w[K * K];
#pragma GCC unroll 64
    for (int t = 0; t < K * K; ++t) w[t] = simd::set1(d.w[c * (K * K) + t]);
    const F bias = simd::set1(d.bias ? d.bias[c] : 0.0f);
    const float* plane = d.src + c / d.multiplier * d.src_plane - d.pl;
    for (int64_t y = d.row; y < d.row + d.rows; y += kRows) {
      const int64_t rows = smaller(kRows, d.row + d.rows - y), iy = y * S - d.pt;
      const Taps wanted = {-iy, smaller(d.ih - iy, (rows - 1) * S + K)};
      for (int64_t ox = 0; ox <= last; ox += kLanes) {
        const Strip<kLoads<K, S>> t = ox == 0 ? left : (ox == last ? right : strip_at<K, S>(d, ox));
        const float* x = plane + iy * d.iw + ox * S;
        const int64_t at = c * d.dst_plane + y * d.ow + ox;
        if (kFreeMasks || !t.whole) {
          row_tile<K, S, true>(d, x, wanted, rows, w, bias, t, at);
        } else {
          row_tile<K, S, false>(d, x, wanted, rows, w, bias, t, at);
        }
      }
    }
  }
}

// What the lanes l of one tap read, p[l * stride], 0 where the input column column + l * stride lies outside the row.
template <int S, bool Masked>
FASTCONV_INLINE F load_strided(const float* p, int64_t stride, int64_t column, int64_t iw, Mask a, Mask b) {
  if constexpr (S == 1) {
    return load<Masked>(p, a);
  } else if constexpr (S == 2) {
    return simd::even(simd::load(p, a), simd::load(p + kLanes, b));
  } else {
    float lane[kLanes];
    for (int l = 0; l < kLanes; ++l)
      lane[l] = column + l * stride >= 0 && column + l * stride < iw ? p[l * stride] : 0.0f;
    return simd::load(lane);
  }
}
FASTCONV_INLINE Mask columns_inside(int64_t first, int64_t iw) {
  const int64_t lo = clamp(-first, 0, kLanes);
  return simd::range(lo, clamp(iw - first, lo, kLanes));
}

// Any kernel, stride, dilation: one vector of kAnyRows output rows. S: the stride, 0: any. iy, ix: input row and column
// of tap (0, 0).
constexpr int kAnyRows = 4;
template <int S, bool Masked>
FASTCONV_INLINE void row_taps(const DepthwisePart& d, const float* plane, int64_t iy, int64_t ix, int64_t rows,
                              const float* w, F bias, Mask m, int64_t at) {
  F acc[kAnyRows];
#pragma GCC unroll 4
  for (int o = 0; o < kAnyRows; ++o) acc[o] = bias;
  for (int64_t r = 0; r < d.kh; ++r) {
    const int64_t y = iy + r * d.dh;
    bool inside[kAnyRows];
#pragma GCC unroll 4
    for (int o = 0; o < kAnyRows; ++o) inside[o] = o < rows && y + o * d.sh >= 0 && y + o * d.sh < d.ih;
    for (int64_t s = 0; s < d.kw; ++s) {
      const F tap = simd::set1(w[r * d.kw + s]);
      const int64_t column = ix + s * d.dw;
      const Mask a = Masked && S != 0 ? columns_inside(column, d.iw) : m;
      const Mask b = S == 2 ? columns_inside(column + kLanes, d.iw) : m;
      const float* x = plane + y * d.iw + column;
#pragma GCC unroll 4
      for (int o = 0; o < kAnyRows; ++o)
        if (inside[o])
          acc[o] = simd::fma(load_strided<S, Masked>(x + o * d.sh * d.iw, d.sw, column, d.iw, a, b), tap, acc[o]);
    }
  }
  finish<kAnyRows, Masked, true>(d, at, d.ow, acc, rows, m);
}

void row_planes_any(const DepthwisePart& d) {
  const Taps whole = whole_windows(d.ow, d.sw, d.pl, d.dw * (d.kw - 1) + 1, d.iw);
  for (int64_t c = d.channel; c < d.channel + d.channels; ++c) {
    const float* w = d.w + c * d.kh * d.kw;
    const float* plane = d.src + c / d.multiplier * d.src_plane;
    const F bias = simd::set1(d.bias ? d.bias[c] : 0.0f);
    for (int64_t y = d.row; y < d.row + d.rows; y += kAnyRows) {
      const int64_t rows = smaller(kAnyRows, d.row + d.rows - y), iy = y * d.sh - d.pt;
      for (int64_t ox = 0; ox < d.ow; ox += kLanes) {
        const int64_t ix = ox * d.sw - d.pl, at = c * d.dst_plane + y * d.ow + ox;
        const Mask m = simd::first(d.ow - ox);
        if (d.sw == 1 && ox >= whole.begin && ox + kLanes <= whole.end) {
          row_taps<1, false>(d, plane, iy, ix, rows, w, bias, m, at);
        } else if (d.sw == 1) {
          row_taps<1, true>(d, plane, iy, ix, rows, w, bias, m, at);
        } else if (d.sw == 2) {
          row_taps<2, true>(d, plane, iy, ix, rows, w, bias, m, at);
        } else {
          row_taps<0, true>(d, plane, iy, ix, rows, w, bias, m, at);
        }
      }
    }
  }
}

void along_row(const DepthwisePart* part) {
  const DepthwisePart& d = *part;
  if constexpr (kTemplates) {
    switch (template_of(d)) {
      case 31:
        return row_planes<3, 1>(d);
      case 32:
        return row_planes<3, 2>(d);
      case 51:
        return row_planes<5, 1>(d);
      case 52:
        return row_planes<5, 2>(d);
      case 71:
        return row_planes<7, 1>(d);
      default:
        break;
    }
  }
  row_planes_any(d);
}

}  // namespace
}  // namespace fastconv
