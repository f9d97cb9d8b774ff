// v[position][tile][channel] = B' d B of t x t input pixels (4, 6; with stride 2: 5, 9), one vector of channels at a time.
// Operands: WinogradInput (ukernel.h).
// Pixels [y][x][c] are read in place. Planes [c][y][x] go through a patch in the L1: kL channels by kL pixels of a row are
// transposed in registers; of tiles one below the other each image row is transposed once.
// A strip of tiles side by side is transformed down its columns into a buffer in the L1, [column][t] vectors, where
// neighbouring tiles share columns; then each tile along its rows.
// Registers: t inputs, t results and the points.
// Borders: rows outside the image are zero vectors, columns outside are zeros in the buffer; no memory outside is read.
// Tails: the last channels by masks; v gets whole vectors, with zeros past the channels.
// Measured: winograd.cpp has whole convolutions. Half of the time is waiting for the L2, from which pixels come and to which v
// goes.
// Tried: with stride 2, where tiles share one column, pixels in strips of 7 tiles, 20 to 40 % slower than tile by tile.
#pragma once

#include "cpu/conv/winograd_body.h"

namespace fastconv {
namespace {

template <class W>
struct InputTransform {
  static constexpr int kIn = W::kIn, kStep = W::kStep, kTiles = W::kTiles, kPixelTiles = W::kPixelTiles;
  static constexpr int kWidth = (kTiles - 1) * kStep + kIn;  // input columns of a strip
  static constexpr int kPatch = (kWidth + kL) * kL;          // a patch row; transposing writes whole blocks
  static constexpr int kColumn = kIn * kL;                   // a column in the buffer

  // Columns lo..hi-1 of a strip from rows of pixels `step` apart; null: a row of zeros. The other columns become zero.
  // `ahead`: how far from here the values lie that are wanted next; they are asked for meanwhile. 0: none.
  template <bool Masked, bool AllRows>
  static FASTCONV_INLINE void down(const float* const row[kIn], int64_t step, int64_t lo, int64_t hi, int64_t width,
                                   Mask m, int64_t ahead, float* buffer) {
    for (int64_t x = 0; x < lo; ++x)
      for (int i = 0; i < kIn; ++i) simd::store(buffer + x * kColumn + i * kL, simd::zero());
    for (int64_t x = lo; x < hi; ++x) {
      F d[kIn], y[kIn];
#pragma GCC unroll 9
      for (int i = 0; i < kIn; ++i) {
        if (!AllRows && row[i] == nullptr) {
          d[i] = simd::zero();
        } else if constexpr (Masked) {
          d[i] = simd::load(row[i] + x * step, m);
        } else {
          d[i] = simd::load(row[i] + x * step);
        }
        if (AllRows && !Masked) prefetch(row[i] + x * step + ahead);
      }
      W::input(d, y);
#pragma GCC unroll 9
      for (int i = 0; i < kIn; ++i) simd::store(buffer + x * kColumn + i * kL, y[i]);
    }
    for (int64_t x = hi; x < width; ++x)
      for (int i = 0; i < kIn; ++i) simd::store(buffer + x * kColumn + i * kL, simd::zero());
  }

  static FASTCONV_INLINE void along(const float* buffer, int64_t tiles, float* v, int64_t v_position, int64_t v_tile) {
    for (int64_t t = 0; t < tiles; ++t) {
      const float* from = buffer + t * kStep * kColumn;
      float* to = v + t * v_tile;
#pragma GCC unroll 1
      for (int i = 0; i < kIn; ++i) {
        F d[kIn], y[kIn];
#pragma GCC unroll 9
        for (int x = 0; x < kIn; ++x) d[x] = simd::load(from + i * kL + x * kColumn);
        W::input(d, y);
#pragma GCC unroll 9
        for (int x = 0; x < kIn; ++x, to += v_position) simd::store(to, y[x]);
      }
    }
  }

  // The strip's image columns: lo..hi-1 of `width` exist, the first is image column x0.
  struct Strip {
    int64_t tiles, width, x0, lo, hi;
  };
  static FASTCONV_INLINE Strip strip(const WinogradInput& p, int64_t first, int64_t tiles) {
    Strip s;
    s.tiles = least(tiles, p.columns - first);
    s.width = (s.tiles - 1) * kStep + kIn;
    s.x0 = (p.column + first) * kStep - p.pl;
    s.lo = clamp(-s.x0, 0, s.width);
    s.hi = clamp(p.x_end - s.x0, s.lo, s.width);
    return s;
  }

  template <bool Masked>
  static FASTCONV_INLINE void transform(const WinogradInput& p, const Strip& s, const float* const row[kIn], bool all,
                                        int64_t step, Mask m, int64_t ahead, float* v) {
    alignas(64) float buffer[kWidth * kColumn];
    if (all) {
      down<Masked, true>(row, step, s.lo, s.hi, s.width, m, ahead, buffer);
    } else {
      down<Masked, false>(row, step, s.lo, s.hi, s.width, m, ahead, buffer);
    }
    along(buffer, s.tiles, v, p.v_position, p.v_tile);
  }

  static void pixels(const WinogradInput* part) {
    const WinogradInput& p = *part;
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t y0 = (p.row + r) * kStep - p.pt;
      const bool all = y0 >= 0 && y0 + kIn <= p.y_end;
      for (int64_t first = 0; first < p.columns; first += kPixelTiles) {
        const Strip s = strip(p, first, kPixelTiles);
        float* v = p.v + (r * p.columns + first) * p.v_tile;
        for (int64_t c = 0; c < p.channels; c += kL) {
          const float* row[kIn];
#pragma GCC unroll 9
          for (int i = 0; i < kIn; ++i)
            row[i] =
                y0 + i >= 0 && y0 + i < p.y_end ? p.src + ((y0 + i) * p.iw + s.x0) * p.ic + p.channel + c : nullptr;
          if (p.channels - c >= kL) {
            // The same pixels' next channels, or the first channels of the strip to the right.
            const int64_t ahead = p.channels - c >= 2 * kL ? kL : kPixelTiles * kStep * p.ic - c;
            transform<false>(p, s, row, all, p.ic, simd::first(kL), ahead, v + c);
          } else {
            transform<true>(p, s, row, all, p.ic, simd::first(p.channels - c), 0, v + c);
          }
        }
      }
    }
  }

  // Columns lo..hi-1 of one image row of `channels` planes to patch[column][kL]. src: column 0 of the first plane.
  static FASTCONV_INLINE void transpose_row(const float* src, int64_t plane, int64_t channels, int64_t lo, int64_t hi,
                                            float* patch) {
    for (int64_t x = lo; x < hi; x += kL) {
      F r[kL], t[kL];
      if (channels >= kL && hi - x >= kL) {
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) r[i] = simd::load(src + i * plane + x);
      } else {
        const Mask m = simd::first(hi - x);
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) r[i] = i < channels ? simd::load(src + i * plane + x, m) : simd::zero();
      }
      simd::transpose(r, t);
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) simd::store(patch + (x + i) * kL, t[i]);
    }
  }

  static void planes(const WinogradInput* part) {
    const WinogradInput& p = *part;
    const int64_t plane = p.ih * p.iw;
    alignas(64) float patch[kIn * kPatch];
    for (int64_t first = 0; first < p.columns; first += kTiles) {
      const Strip s = strip(p, first, kTiles);
      for (int64_t c = 0; c < p.channels; c += kL) {
        const float* src = p.src + (p.channel + c) * plane + s.x0;
        int64_t ready = p.row * kStep - p.pt;  // image rows before this one are in the patch, row y in slot y % kIn
        for (int64_t r = 0; r < p.rows; ++r) {
          const int64_t y0 = (p.row + r) * kStep - p.pt;
          const float* row[kIn];
          for (int i = 0; i < kIn; ++i) {
            const int64_t y = y0 + i;
            row[i] = nullptr;
            if (y < 0 || y >= p.y_end) continue;
            float* slot = patch + y % kIn * kPatch;
            if (y >= ready) transpose_row(src + y * p.iw, plane, p.channels - c, s.lo, s.hi, slot);
            row[i] = slot;
          }
          ready = y0 + kIn;
          transform<false>(p, s, row, y0 >= 0 && y0 + kIn <= p.y_end, kL, simd::first(kL), 0,
                           p.v + (r * p.columns + first) * p.v_tile + c);
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastconv
