// Depthwise convolution along channels: planes interleaved, pixels [y][x][c] (see depthwise_body.h).
// Operands: w [oc / lanes rounded up][kh * kw][lanes].
// Registers: kPixels accumulators, pixels of one row x one vector of channels; the taps of the vector stay in registers
// (3x3 with 32 of them) or in L1. An input vector is loaded once for all the taps of the tile that read it.
// 3x3 with a padding of 1 on widths of whole tiles (channel_block): edges are known when compiled, addresses advance by one register, and with
// AVX-512 and stride 1 two output rows go together. Stride 2 is then bound by what moves between L1 and L2.
// Tails: AVX-512 masks every load; elsewhere a partial vector of channels goes through the loop over taps. The last
// tile of a row and those that touch the border compare each input column.
// Tried: a sum a kernel row, added up at the end; unmasked loads; tap by tap with stride 2 (no gain).
#pragma once

#include "cpu/conv/depthwise_body.h"

namespace fastconv {
namespace {

// x: where tap (0, 0) of the first pixel lies, perhaps outside the image. Rows ty and, at an edge, columns cx (input
// columns counted from x) lie inside; `pixels` of the tile exist.
template <int K, int S, bool Edge, bool Masked>
FASTCONV_INLINE void channel_tile(const DepthwisePart& d, const float* x, Taps ty, Taps cx, int64_t pixels, const F* w,
                                  F bias, Mask m, int64_t at) {
  constexpr int kColumns = (kPixels - 1) * S + K;
  F acc[kPixels];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) acc[p] = bias;
  prefetch_next<kPixels>(d.dst + at + kPixels * d.oc, d.oc);
#pragma GCC unroll 16
  for (int r = 0; r < K; ++r) {
    if (r < ty.begin || r >= ty.end) continue;
    const float* row = x + r * d.iw * d.ic;
#pragma GCC unroll 32
    for (int c = 0; c < kColumns; ++c) {
      if (Edge && (c < cx.begin || c >= cx.end)) continue;
      const F v = load<Masked>(row + c * d.ic, m);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const int s = c - p * S;
        if (s >= 0 && s < K) acc[p] = simd::fma(v, w[r * K + s], acc[p]);
      }
    }
  }
  finish<kPixels, Masked, Edge>(d, at, d.oc, acc, pixels, m);
}

// 3x3 with a padding of 1 on rows of whole tiles: which columns are missing follows from where a row begins and ends (First, Last), so that
// nothing is compared; Rows output rows at once have more sums in flight than one, and load rows that both read once.
template <int S, int Rows, bool First, bool Last, bool Masked>
FASTCONV_INLINE void channel_block(const DepthwisePart& d, const float* x, Taps iy, const F* w, F bias, Mask m,
                                   int64_t at) {
  constexpr int kColumns = (kPixels - 1) * S + 3;
  const int64_t pixel = d.ic, row = d.iw * d.ic;
  F acc[Rows][kPixels];
#pragma GCC unroll 2
  for (int o = 0; o < Rows; ++o)
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) acc[o][p] = bias;
#pragma GCC unroll 8
  for (int i = 0; i < (Rows - 1) * S + 3; ++i) {
    if (i < iy.begin || i >= iy.end) continue;
    const float* v_at = x + i * row + (First ? pixel : 0);
#pragma GCC unroll 32
    for (int c = First; c < kColumns - Last; ++c) {
      const F v = load<Masked>(v_at, m);
      v_at = opaque(v_at + pixel);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const int s = c - p * S;
#pragma GCC unroll 2
        for (int o = 0; o < Rows; ++o) {
          const int r = i - o * S;
          if (s >= 0 && s < 3 && r >= 0 && r < 3) acc[o][p] = simd::fma(v, w[r * 3 + s], acc[o][p]);
        }
      }
    }
  }
  const F least = simd::set1(d.relu ? 0.0f : -__builtin_inff());  // max(least, y) is y, also where y is NaN or -0
  float* const dst = d.dst + at;
  const int64_t out = d.oc, out_row = d.ow * d.oc;
#pragma GCC unroll 2
  for (int o = 0; o < Rows; ++o) {
    float* y_at = dst + o * out_row;
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
      const F y = simd::max(least, acc[o][p]);
      if constexpr (Masked) {
        simd::store(y_at, y, m);
      } else {
        simd::store(y_at, y);
      }
      y_at = opaque(y_at + out);
    }
  }
}

template <int S, int Rows, bool Masked>
FASTCONV_INLINE void channel_block_rows(const DepthwisePart& d, int64_t y, int64_t channel, const F* w, F bias,
                                        Mask m) {
  const int64_t iy = y * S - d.pt;
  const Taps ty = taps_inside(iy, 1, (Rows - 1) * S + 3, d.ih);
  const float* x = d.src + (iy * d.iw - 1) * d.ic + channel;
  int64_t at = y * d.ow * d.oc + channel;
  constexpr bool kLast = S == 1;  // with stride 2 the last tap of a row is its last pixel
  if (d.ow == kPixels) return channel_block<S, Rows, true, kLast, Masked>(d, x, ty, w, bias, m, at);
  const int64_t step = kPixels * S * d.ic, out_step = kPixels * d.oc;
  channel_block<S, Rows, true, false, Masked>(d, x, ty, w, bias, m, at);
  x += step, at += out_step;
  for (int64_t ox = kPixels; ox < d.ow - kPixels; ox += kPixels, x += step, at += out_step)
    channel_block<S, Rows, false, false, Masked>(d, x, ty, w, bias, m, at);
  channel_block<S, Rows, false, kLast, Masked>(d, x, ty, w, bias, m, at);
}

// Whether channel_block serves a 3x3 problem.
FASTCONV_INLINE bool whole_tiles(const DepthwisePart& d) {
  return d.pl == 1 && d.ow % kPixels == 0 && d.iw == d.ow * d.sw && !d.residual;
}

template <int K, int S, bool Masked>
void channel_rows(const DepthwisePart& d, int64_t channel, Mask m) {
  const float* packed = d.w + channel * (K * K);
  F w[K * K];
#pragma GCC unroll 64
  for (int t = 0; t < K * K; ++t) w[t] = simd::load(packed + t * kLanes);
  const F bias = d.bias ? load<Masked>(d.bias + channel, m) : simd::zero();
  if constexpr (K == 3) {
    if (whole_tiles(d)) {
      constexpr int kTogether = kLanes == 16 && S == 1 ? 2 : 1;
      int64_t y = d.row;
      for (; y + kTogether <= d.row + d.rows; y += kTogether)
        channel_block_rows<S, kTogether, Masked>(d, y, channel, w, bias, m);
      for (; y < d.row + d.rows; ++y) channel_block_rows<S, 1, Masked>(d, y, channel, w, bias, m);
      return;
    }
  }
  const Taps whole = whole_windows(d.ow, S, d.pl, K, d.iw);
  for (int64_t y = d.row; y < d.row + d.rows; ++y) {
    const int64_t iy = y * S - d.pt;
    const Taps ty = taps_inside(iy, 1, K, d.ih);
    const float* x0 = d.src + (iy * d.iw - d.pl) * d.ic + channel;
    const int64_t at = y * d.ow * d.oc + channel;
    for (int64_t ox = 0; ox < d.ow; ox += kPixels) {
      const float* x = x0 + ox * S * d.ic;
      if (ox >= whole.begin && ox + kPixels <= whole.end) {
        channel_tile<K, S, false, Masked>(d, x, ty, {}, kPixels, w, bias, m, at + ox * d.oc);
      } else {
        const int64_t pixels = smaller(kPixels, d.ow - ox), ix = ox * S - d.pl;
        const Taps cx = {-ix, smaller(d.iw - ix, (pixels - 1) * S + K)};
        channel_tile<K, S, true, Masked>(d, x, ty, cx, pixels, w, bias, m, at + ox * d.oc);
      }
    }
  }
}

// Any kernel, stride, dilation: P pixels of one row with the same taps. Spread: lane i reads input channel from[i] of
// x.
template <int P, bool Spread>
FASTCONV_INLINE void channel_taps(const DepthwisePart& d, const float* x, Taps ty, Taps tx, const float* w, F bias,
                                  Mask m, Mask mx, simd::Index from, int64_t at) {
  F acc[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) acc[p] = bias;
  for (int64_t r = ty.begin; r < ty.end; ++r) {
    for (int64_t s = tx.begin; s < tx.end; ++s) {
      const float* xs = x + (r * d.dh * d.iw + s * d.dw) * d.ic;
      const F tap = simd::load(w + (r * d.kw + s) * kLanes);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        F v = simd::load(xs + p * d.sw * d.ic, mx);
        if constexpr (Spread) v = simd::permute(v, from);
        acc[p] = simd::fma(v, tap, acc[p]);
      }
    }
  }
  finish<P, true, false>(d, at, d.oc, acc, P, m);
}

template <bool Spread>
void channel_rows_any(const DepthwisePart& d, int64_t channel, Mask m, int64_t lanes) {
  const float* w = d.w + channel * d.kh * d.kw;
  const F bias = d.bias ? simd::load(d.bias + channel, m) : simd::zero();
  const int64_t in = channel / d.multiplier;
  int32_t lane[kLanes] = {};
  if (Spread)
    for (int64_t i = 0; i < lanes; ++i) lane[i] = static_cast<int32_t>((channel + i) / d.multiplier - in);
  const simd::Index from = simd::index(lane);
  const Mask mx = Spread ? simd::first(lane[lanes - 1] + 1) : m;
  const Taps whole = whole_windows(d.ow, d.sw, d.pl, d.dw * (d.kw - 1) + 1, d.iw);
  for (int64_t y = d.row; y < d.row + d.rows; ++y) {
    const int64_t iy = y * d.sh - d.pt;
    const Taps ty = taps_inside(iy, d.dh, d.kh, d.ih);
    const float* x0 = d.src + (iy * d.iw - d.pl) * d.ic + in;
    const int64_t at = y * d.ow * d.oc + channel;
    for (int64_t ox = 0; ox < d.ow;) {
      const float* x = x0 + ox * d.sw * d.ic;
      if (ox >= whole.begin && ox + kPixels <= whole.end) {
        channel_taps<kPixels, Spread>(d, x, ty, {0, d.kw}, w, bias, m, mx, from, at + ox * d.oc);
        ox += kPixels;
      } else {
        const Taps tx = taps_inside(ox * d.sw - d.pl, d.dw, d.kw, d.iw);
        channel_taps<1, Spread>(d, x, ty, tx, w, bias, m, mx, from, at + ox * d.oc);
        ox += 1;
      }
    }
  }
}

// Kernel and stride of a problem that a template serves, as 10 * K + S; 0: none.
FASTCONV_INLINE int64_t template_of(const DepthwisePart& d) {
  const bool fits = d.kh == d.kw && d.sh == d.sw && d.dh == 1 && d.dw == 1 && d.kh <= 7 && d.sh <= 2;
  return fits ? 10 * d.kh + d.sh : 0;
}

// False where no template serves the problem.
FASTCONV_INLINE bool channel_rows_of(const DepthwisePart& d, int64_t channel, Mask m) {
  switch (template_of(d)) {
    case 31:
      channel_rows<3, 1, kFreeMasks>(d, channel, m);
      return true;
    case 32:
      channel_rows<3, 2, kFreeMasks>(d, channel, m);
      return true;
    case 51:
      channel_rows<5, 1, kFreeMasks>(d, channel, m);
      return true;
    case 52:
      channel_rows<5, 2, kFreeMasks>(d, channel, m);
      return true;
    case 71:
      channel_rows<7, 1, kFreeMasks>(d, channel, m);
      return true;
    default:
      return false;
  }
}

void along_channels(const DepthwisePart* part) {
  const DepthwisePart& d = *part;
  for (int64_t c = d.channel; c < d.channel + d.channels; c += kLanes) {
    const int64_t lanes = smaller(kLanes, d.channel + d.channels - c);
    const Mask m = simd::first(lanes);
    if (d.multiplier != 1) {
      channel_rows_any<true>(d, c, m, lanes);
      continue;
    }
    if constexpr (kTemplates)
      if ((kFreeMasks || lanes == kLanes) && channel_rows_of(d, c, m)) continue;
    channel_rows_any<false>(d, c, m, lanes);
  }
}

}  // namespace
}  // namespace fastconv
