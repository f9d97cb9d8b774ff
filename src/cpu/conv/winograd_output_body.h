// dst[tile] = act(A' m A + bias + residual) of 2x2 (F(2,3)) or 4x4 (F(4,3)) output pixels, of either stride, one vector of
// channels at a time.
// Operands: WinogradOutput (ukernel.h).
// Pixels [y][x][c] are written in place. For planes [c][y][x] a strip of kColumns output columns is put into a patch in the
// L1, [row][column] vectors of channels; blocks of kL pixels by kL channels are transposed in registers and stored as rows of
// pixels.
// Down the columns a part of the rows at a time (winograd_body.h), then along those rows from registers.
// Registers: two rows of t columns, o results and the points.
// Borders: pixels outside the image are computed and not stored. Tails: the last channels by masks.
// Numerics: bias, then residual are added to the finished sum, in this order, in both layouts.
// Measured (Zen 5, cycles a vector of m; 2.1 is what F(4,3)'s operations need, 1.5 with additions on ports of their own): winograd.cpp has
// whole convolutions. F(4,3) 1.6 from and to the L1, 2.2 from and to the L2, 2.8 to 3 in place. With a buffer between the two
// one-dimensional transforms: 2.1, 2.9, 4.2.
// Planes: a block's lines are asked for while the one before it is transformed (batch 16: 2 to 5 % of a convolution). Asked for while it is
// transformed itself: nothing.
// Tried: a pixel's lines asked for one to three tiles ahead, nothing.
#pragma once

#include "cpu/conv/winograd_body.h"

namespace fastconv {
namespace {

template <class W>
struct OutputTransform {
  using Rest = typename W::Rest;
  static constexpr bool kHasRest = Rest::kOut > 0;
  static constexpr int kOut = W::kOut, kIn = W::kProducts;
  static constexpr int kPosition = kNr;  // from position to position of m
  static constexpr int kTiles = kColumns / kOut;
  static constexpr int kPatch = (kColumns + kL) * kL;  // a patch row; transposing reads whole blocks

  // store(i, y): row i of a tile, C::kOut pixels. R: the transform down the columns, C: along the rows.
  template <class R, class C, int P = 0, class Store>
  static FASTCONV_INLINE void rows_of_tile(const float* m, const Store& store) {
    constexpr int kRows = rows_of(R::kOutputRows[P]);
    F down[kIn][kRows];
#pragma GCC unroll 6
    for (int x = 0; x < kIn; ++x)
      if (C::kSums >> x & 1)
        R::template output<P>([&](int i) FASTCONV_LAMBDA { return simd::load(m + (i * kIn + x) * kPosition); },
                              down[x]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      F y[C::kOut];
      output_all<C>([&](int x) FASTCONV_LAMBDA { return down[x][r]; }, y);
      store(R::kOutputRows[P][r], y);
    }
    if constexpr (P + 1 < R::kOutputParts) rows_of_tile<R, C, P + 1>(m, store);
  }

  // Row r of tiles: whether it is ragged, and where its tiles and the ragged one at its end are.
  struct Sources {
    bool ragged;
    int64_t whole;
    const float *m, *last;
  };
  static FASTCONV_INLINE Sources sources(const WinogradOutput& p, int64_t r) {
    const int64_t whole = clamp(p.whole_columns - p.column, 0, p.columns);
    if (kHasRest && p.row + r >= p.whole_rows) return {true, whole, p.m[2], p.m[3]};
    return {false, whole, p.m[1] + r * whole * p.m_tile, p.m[0] + r * p.m_tile};
  }

  // One tile of pixels, (y0, x0) its first.
  template <class R, class C>
  static FASTCONV_INLINE void tile_of_pixels(const WinogradOutput& p, const float* m, int64_t y0, int64_t x0, F least) {
    const int64_t rows = smaller(R::kOut, p.oh - y0), columns = smaller(C::kOut, p.ow - x0);
    for (int64_t c = 0; c < p.channels; c += kL) {
      const Mask mask = simd::first(smaller(p.channels - c, kL));
      const F bias = p.bias ? simd::load(p.bias + p.channel + c, mask) : simd::zero();
      const int64_t at = (y0 * p.ow + x0) * p.oc + p.channel + c;
      const auto store = [&](int i, const F y[], bool whole) FASTCONV_LAMBDA {
        float* to = opaque(p.dst + at + i * p.ow * p.oc);
        const float* residual = p.residual ? opaque(p.residual + at + i * p.ow * p.oc) : nullptr;
#pragma GCC unroll 4
        for (int x = 0; x < C::kOut; ++x) {
          if (!whole && x >= columns) break;
          F value = simd::add(y[x], bias);
          if (residual)
            value = simd::add(value, whole ? simd::load(residual + x * p.oc) : simd::load(residual + x * p.oc, mask));
          value = simd::max(least, value);
          if (whole) {
            simd::store(to + x * p.oc, value);
          } else {
            simd::store(to + x * p.oc, value, mask);
          }
        }
      };
      if (rows == R::kOut && columns == C::kOut && p.channels - c >= kL) {
        rows_of_tile<R, C>(m + c, [&](int i, const F y[]) FASTCONV_LAMBDA { store(i, y, true); });
      } else {
        rows_of_tile<R, C>(m + c, [&](int i, const F y[]) FASTCONV_LAMBDA {
          if (i < rows) store(i, y, false);
        });
      }
    }
  }

  // The same of a ragged tile. A function apart, for the compiler's sake.
  template <class R, class C>
  static FASTCONV_APART void ragged_pixels(WinogradOutput p, const float* m, int64_t y0, int64_t x0, F least) {
    tile_of_pixels<R, C>(p, m, y0, x0, least);
  }

  static void pixels(const WinogradOutput* operands) {
    const WinogradOutput p = *operands;
    const F least = simd::set1(p.relu ? 0.0f : -__builtin_inff());  // max(least, y) is y, also where y is NaN
    for (int64_t r = 0; r < p.rows; ++r) {
      const Sources from = sources(p, r);
      const int64_t y0 = (p.row + r) * kOut, x0 = p.column * kOut;
      for (int64_t t = 0; t < p.columns; ++t) {
        const float* m = from.m + t * p.m_tile;
        const int64_t x = x0 + t * kOut;
        if constexpr (kHasRest) {
          const bool last = t >= from.whole;
          if (from.ragged || last) {
            if (!last) {
              ragged_pixels<Rest, W>(p, m, y0, x, least);
            } else if (from.ragged) {
              ragged_pixels<Rest, Rest>(p, from.last, y0, x, least);
            } else {
              ragged_pixels<W, Rest>(p, from.last, y0, x, least);
            }
            continue;
          }
        }
        tile_of_pixels<W, W>(p, m, y0, x, least);
      }
    }
  }

  // Where kL channels of a strip of tiles go: in each plane `rows` rows of `columns` pixels, from at on. Whole rows are one.
  struct Block {
    const float* at;
    int64_t rows, columns, planes;
  };
  static FASTCONV_INLINE Block block(const WinogradOutput& p, int64_t row, int64_t first, int64_t c) {
    const int64_t y = (p.row + row) * kOut, x = (p.column + first) * kOut, rows = smaller(kOut, p.oh - y);
    const int64_t columns = smaller(smaller(kTiles, p.columns - first) * kOut, p.ow - x);
    const bool whole = columns == p.ow;
    return {p.dst + ((p.channel + c) * p.oh + y) * p.ow + x, whole ? 1 : rows, whole ? rows * columns : columns,
            smaller(kL, p.channels - c)};
  }
  // Asks for the lines of some of its planes.
  static FASTCONV_INLINE void ask(const WinogradOutput& p, const Block& b, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < smaller(end, b.planes); ++i) {
      for (int64_t y = 0; y < b.rows; ++y) {
        const float* at = b.at + (i * p.oh + y) * p.ow;
        for (int64_t x = 0; x < b.columns; x += kLine) prefetch(at + x);
        prefetch(at + b.columns - 1);
      }
    }
  }

  // One tile to its place in the patch.
  template <class R, class C>
  static FASTCONV_INLINE void tile_of_patch(const float* m, float* to) {
    rows_of_tile<R, C>(m, [&](int i, const F y[]) FASTCONV_LAMBDA {
#pragma GCC unroll 4
      for (int x = 0; x < C::kOut; ++x) simd::store(to + i * kPatch + x * kL, y[x]);
    });
  }
  template <class R, class C>
  static FASTCONV_APART void ragged_patch(const float* m, float* to) {
    tile_of_patch<R, C>(m, to);
  }

  static void planes(const WinogradOutput* operands) {
    const WinogradOutput p = *operands;
    alignas(64) float patch[kOut * kPatch];
    // What blocks hold past the columns is transposed along and never stored, but should not be an accident.
    for (int i = 0; i < kOut * kPatch; i += kL) simd::store(patch + i, simd::zero());
    for (int64_t r = 0; r < p.rows; ++r) {
      const Sources from = sources(p, r);
      const int64_t y0 = (p.row + r) * kOut, rows = smaller(kOut, p.oh - y0);
      for (int64_t first = 0; first < p.columns; first += kTiles) {
        const int64_t tiles = smaller(kTiles, p.columns - first), x0 = (p.column + first) * kOut;
        for (int64_t c = 0; c < p.channels; c += kL) {
          // The lines of the block after this one are asked for between this one's tiles.
          const bool along = c + kL < p.channels, right = along || first + kTiles < p.columns;
          const bool any = right || r + 1 < p.rows;
          const Block next =
              block(p, right ? r : r + 1, along ? first : (right ? first + kTiles : 0), along ? c + kL : 0);
          for (int64_t t = 0; t < tiles; ++t) {
            if (any) ask(p, next, kL * t / tiles, kL * (t + 1) / tiles);
            float* to = patch + t * kOut * kL;
            const float* m = from.m + (first + t) * p.m_tile + c;
            if constexpr (kHasRest) {
              const bool last = first + t >= from.whole;
              if (from.ragged || last) {
                if (!last) {
                  ragged_patch<Rest, W>(m, to);
                } else if (from.ragged) {
                  ragged_patch<Rest, Rest>(from.last + c, to);
                } else {
                  ragged_patch<W, Rest>(from.last + c, to);
                }
                continue;
              }
            }
            tile_of_patch<W, W>(m, to);
          }
          const int64_t columns = smaller(tiles * kOut, p.ow - x0), channel = p.channel + c;
          for (int64_t i = 0; i < rows; ++i)
            store_row(p, patch + i * kPatch, columns, channel, smaller(kL, p.channels - c),
                      (channel * p.oh + y0 + i) * p.ow + x0);
        }
      }
    }
  }
};

template <class W>
constexpr WinogradUkernel::Transforms transforms_of() {
  return {&InputTransform<W>::pixels, &InputTransform<W>::planes, &OutputTransform<W>::pixels,
          &OutputTransform<W>::planes, &transform_weights<W>};
}

}  // namespace
}  // namespace fastconv
