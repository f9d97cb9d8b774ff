// v[position][tile][channel] = B' d B of t x t input pixels (4, 6; with stride 2: 5, 9), one vector of channels at a time.
// Operands: WinogradInput (ukernel.h).
// Pixels [y][x][c] are read in place. Planes [c][y][x] go through a patch in the L1: kL channels by kL pixels of a row are
// transposed in registers; of tiles one below the other each image row is transposed once.
// Down the columns a part of the rows at a time (winograd_body.h), then along those rows from registers. A tile takes over what its
// left neighbour has of the columns that they share, in registers too where a part does a whole strip of tiles side by side. Pixels of a
// strip would leave the L1 between parts (they lie 512 bytes or more apart, so that few sets hold them), so there all parts of
// a tile come one after the other and leave shared columns in the L1.
// Registers: a part's rows of t columns (F(4,3): 12 vectors, with stride 2 18), t results and the points.
// Borders: rows outside the image are read by empty masks, columns outside are zeros; no memory outside is read.
// Tails: the last channels by masks; v gets whole vectors, with zeros past the channels.
// Measured (Zen 5, cycles a vector of v; 1.7 is what F(4,3)'s operations need): winograd.cpp has whole convolutions. F(4,3) 2.3 from and to
// the L1, 3.4 from and to the L2, 4 in place, where the first group's pixels come from the L3. With a buffer between the two
// one-dimensional transforms, each value stored twice: 2.7, 4, 4.5; with stride 2 4.2 for 5.0.
// Planes: the next vector of channels is asked for meanwhile, 2 to 5 % of a convolution at batch 16, nothing at batch 1.
// Tried: with stride 2, where tiles share one column, pixels in strips of 4 or 7 tiles, 5 to 40 % slower than tile by tile.
#pragma once

#include "cpu/conv/winograd_body.h"

namespace fastconv {
namespace {

template <class W>
struct InputTransform {
  using Rest = typename W::Rest;
  static constexpr bool kHasRest = Rest::kOut > 0;
  static constexpr int kIn = W::kIn, kStep = W::kStep, kTiles = W::kTiles, kPixelTiles = W::kPixelTiles;
  static constexpr int kShared = kIn - kStep;                // columns of neighbouring tiles
  static constexpr int kWidth = (kTiles - 1) * kStep + kIn;  // input columns of a strip
  static constexpr int kPatch = (kWidth + kL) * kL;          // a patch row; transposing writes whole blocks

  // The strip's image columns: lo..hi-1 of `width` exist, the first is image column x0.
  struct Strip {
    int64_t tiles, whole, width, x0, lo, hi;
  };
  static FASTCONV_INLINE Strip strip(const WinogradInput& p, int64_t first, int64_t tiles) {
    Strip s;
    s.tiles = smaller(tiles, p.columns - first);
    s.whole = clamp(p.whole_columns - p.column - first, 0, s.tiles);
    s.width = (s.tiles - 1) * kStep + kIn;
    s.x0 = (p.column + first) * kStep - p.pl;
    s.lo = clamp(-s.x0, 0, s.width);
    s.hi = clamp(p.x_end - s.x0, s.lo, s.width);
    return s;
  }

  // Where the rows of a strip's columns lie, `step` from column to column. Masked: what of them there is; a row outside the image has none.
  struct Rows {
    const float* row[kIn];
    Mask mask[kIn];
    int64_t step;
    int64_t ahead;  // how far from here the values lie that are wanted next; with Fetch they are asked for meanwhile
  };

  // One part of tiles begin .. end - 1 of the strip, columns by C: some rows of V's positions. `shared`: what it left of the columns that
  // the next tile has too. R: the transform down the columns.
  template <class R, class C, int P, bool Masked, bool Fetch>
  static FASTCONV_INLINE void part(const WinogradInput& p, const Strip& s, const Rows& rows, int64_t begin, int64_t end,
                                   float* shared, float* v) {
    constexpr int kRows = rows_of(R::kInputRows[P]), kReads = C::kReads;
    F y[kStep + kShared][kRows];
    const int64_t step = rows.step, v_position = p.v_position;
    // Columns x .. x + n - 1 of the strip to y[j] and on.
    const auto columns = [&](int64_t x, int j, int n, bool all_there) FASTCONV_LAMBDA {
      const float* at[R::kReads];
#pragma GCC unroll 9
      for (int i = 0; i < R::kReads; ++i) at[i] = opaque(rows.row[i] + x * step);
#pragma GCC unroll 9
      for (int k = 0; k < n; ++k) {
        if constexpr (Fetch) {
#pragma GCC unroll 9
          for (int i = P; i < R::kReads; i += R::kInputParts) prefetch(at[i] + rows.ahead + k * step);
        }
        if (all_there || (x + k >= s.lo && x + k < s.hi)) {
          R::template input<P>(
              [&](int i) FASTCONV_LAMBDA {
                return Masked ? simd::load(at[i] + k * step, rows.mask[i]) : simd::load(at[i] + k * step);
              },
              y[j + k]);
        } else {
#pragma GCC unroll 5
          for (int r = 0; r < kRows; ++r) y[j + k][r] = simd::zero();
        }
      }
    };
    const auto at_shared = [&](int j, int r) { return shared + (R::kInputRows[P][r] * kShared + j) * kL; };
    if (begin == 0) {
      columns(0, kStep, kShared, false);
    } else {
#pragma GCC unroll 2
      for (int j = 0; j < kShared; ++j)
#pragma GCC unroll 5
        for (int r = 0; r < kRows; ++r) y[kStep + j][r] = simd::load(at_shared(j, r));
    }
    for (int64_t t = begin; t < end; ++t, v += p.v_tile) {
      const int64_t x = t * kStep + kShared;
#pragma GCC unroll 2
      for (int j = 0; j < kShared; ++j)
#pragma GCC unroll 5
        for (int r = 0; r < kRows; ++r) y[j][r] = y[kStep + j][r];
      if (!Masked && x >= s.lo && x + kReads - kShared <= s.hi) {
        columns(x, kShared, kReads - kShared, true);
      } else {
        columns(x, kShared, kReads - kShared, false);
      }
#pragma GCC unroll 5
      for (int r = 0; r < kRows; ++r) {
        F out[kIn];
        input_all<C>([&](int i) FASTCONV_LAMBDA { return y[i][r]; }, out);
        float* to = opaque(v + R::kInputRows[P][r] * kIn * v_position);
#pragma GCC unroll 9
        for (int i = 0; i < kIn; ++i)
          if (C::kValues >> i & 1) simd::store(to + i * v_position, out[i]);
      }
    }
    if (end < s.tiles) {
#pragma GCC unroll 2
      for (int j = 0; j < kShared; ++j)
#pragma GCC unroll 5
        for (int r = 0; r < kRows; ++r) simd::store(at_shared(j, r), y[kStep + j][r]);
    }
  }

  template <class R, class C, bool Masked, bool Fetch, int P = 0>
  static FASTCONV_INLINE void parts(const WinogradInput& p, const Strip& s, const Rows& rows, int64_t begin,
                                    int64_t end, float* shared, float* v) {
    part<R, C, P, Masked, Fetch>(p, s, rows, begin, end, shared, v);
    if constexpr (P + 1 < R::kInputParts) parts<R, C, Masked, Fetch, P + 1>(p, s, rows, begin, end, shared, v);
  }

  // The strip's ragged tile. A function apart, for the compiler's sake: it keeps the addresses of whole tiles in registers then.
  template <class R, bool Masked, bool Fetch>
  static FASTCONV_APART void ragged_tile(WinogradInput p, Strip s, Rows rows, float* shared, float* v) {
    parts<R, Rest, Masked, Fetch>(p, s, rows, s.whole, s.tiles, shared, v);
  }

  // Fetch means pixels: tile by tile (see above). The strip's ragged tile, where it has one, to `last`.
  template <class R, bool Masked, bool Fetch>
  static FASTCONV_INLINE void transform(const WinogradInput& p, const Strip& s, const Rows& rows, float* v,
                                        float* last) {
    alignas(64) float shared[kIn * kShared * kL];
    if constexpr (R::kInputParts == 1 || (!Fetch && kShared > 1)) {
      if (s.whole) parts<R, W, Masked, Fetch>(p, s, rows, 0, s.whole, shared, v);
    } else {
      for (int64_t t = 0; t < s.whole; ++t, v += p.v_tile) parts<R, W, Masked, Fetch>(p, s, rows, t, t + 1, shared, v);
    }
    if constexpr (kHasRest)
      if (s.whole < s.tiles) ragged_tile<R, Masked, Fetch>(p, s, rows, shared, last);
  }

  // Of tiles that are ragged in their rows. Those are the image's last, and hardly ever is all of them there.
  template <bool Fetch>
  static FASTCONV_APART void transform_ragged(WinogradInput p, Strip s, Rows rows, float* v, float* last) {
    transform<Rest, true, Fetch>(p, s, rows, v, last);
  }

  // Row r of tiles: whether it is ragged, and where its tiles and the ragged one at its end go.
  struct Targets {
    bool ragged;
    float *v, *last;
  };
  static FASTCONV_INLINE Targets targets(const WinogradInput& p, int64_t r) {
    if (kHasRest && p.row + r >= p.whole_rows) return {true, p.v[2], p.v[3]};
    const int64_t whole = clamp(p.whole_columns - p.column, 0, p.columns);
    return {false, p.v[1] + r * whole * p.v_tile, p.v[0] + r * p.v_tile};
  }

  // all: every row of the tiles and all kL channels are there.
  template <bool Fetch>
  static FASTCONV_INLINE void transform(const WinogradInput& p, const Strip& s, const Rows& rows, bool all, bool ragged,
                                        float* v, float* last) {
    if constexpr (kHasRest) {
      if (ragged) return transform_ragged<Fetch>(p, s, rows, v, last);
    }
    if (all) {
      transform<W, false, Fetch>(p, s, rows, v, last);
    } else {
      transform<W, true, Fetch>(p, s, rows, v, last);
    }
  }

  static void pixels(const WinogradInput* operands) {
    const WinogradInput p = *operands;
    Rows rows{};
    rows.step = p.ic;
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t y0 = (p.row + r) * kStep - p.pt;
      const bool all = y0 >= 0 && y0 + kIn <= p.y_end;
      const Targets to = targets(p, r);
      for (int64_t first = 0; first < p.columns; first += kPixelTiles) {
        const Strip s = strip(p, first, kPixelTiles);
        float* v = to.v + first * p.v_tile;
        for (int64_t c = 0; c < p.channels; c += kL) {
          const Mask channels = simd::first(smaller(p.channels - c, kL));
          for (int i = 0; i < kIn; ++i) {
            const bool there = y0 + i >= 0 && y0 + i < p.y_end;
            rows.row[i] = p.src + ((there ? y0 + i : 0) * p.iw + s.x0) * p.ic + p.channel + c;
            rows.mask[i] = there ? channels : simd::first(0);
          }
          // The same pixels' next channels, or the first channels of the strip to the right.
          rows.ahead = p.channels - c > kL ? kL : kPixelTiles * kStep * p.ic - c;
          transform<true>(p, s, rows, all && p.channels - c >= kL, to.ragged, v + c, to.last + c);
        }
      }
    }
  }

  // Columns lo..hi-1 of one image row of `channels` planes to patch[column][kL]. src: column 0 of the first plane. Asks for the row of
  // the kL planes after them, where there are any, towards the L2.
  static FASTCONV_INLINE void transpose_row(const float* src, int64_t plane, int64_t channels, int64_t lo, int64_t hi,
                                            float* patch) {
    for (int64_t x = lo; x < hi; x += kL) {
      F r[kL], t[kL];
      if (channels > kL) {
        const float* next = src + kL * plane + (hi - x >= kL ? x : hi - 1);
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) prefetch_l2(next + i * plane);
      }
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

  static void planes(const WinogradInput* operands) {
    const WinogradInput p = *operands;
    const int64_t plane = p.ih * p.iw;
    alignas(64) float patch[kIn * kPatch];
    Rows rows{};
    rows.step = kL;
    for (int64_t first = 0; first < p.columns; first += kTiles) {
      const Strip s = strip(p, first, kTiles);
      for (int64_t c = 0; c < p.channels; c += kL) {
        const float* src = p.src + (p.channel + c) * plane + s.x0;
        int64_t ready = p.row * kStep - p.pt;  // image rows before this one are in the patch, row y in slot y % kIn
        for (int64_t r = 0; r < p.rows; ++r) {
          const int64_t y0 = (p.row + r) * kStep - p.pt;
          for (int i = 0; i < kIn; ++i) {
            const int64_t y = y0 + i;
            const bool there = y >= 0 && y < p.y_end;
            rows.row[i] = patch + (there ? y % kIn * kPatch : 0);
            rows.mask[i] = simd::first(there ? kL : 0);
            if (there && y >= ready)
              transpose_row(src + y * p.iw, plane, p.channels - c, s.lo, s.hi, patch + y % kIn * kPatch);
          }
          ready = y0 + kIn;
          const Targets to = targets(p, r);
          transform<false>(p, s, rows, y0 >= 0 && y0 + kIn <= p.y_end, to.ragged, to.v + first * p.v_tile + c,
                           to.last + c);
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastconv
