// dst[tile] = act(A' m A + bias + residual) of 2x2 (F(2,3)) or 4x4 (F(4,3)) output pixels, of either stride, one vector of
// channels at a time.
// Operands: WinogradOutput (ukernel.h).
// Pixels [y][x][c] are written in place. For planes [c][y][x] a strip of kColumns output columns is put into a patch in the
// L1, [row][column] vectors of channels; blocks of kL pixels by kL channels are transposed in registers and stored as rows of
// pixels.
// Registers: t inputs, o results and the points; the columns of a tile lie in a small buffer between the two passes.
// Borders: pixels outside the image are computed and not stored. Tails: the last channels by masks.
// Numerics: bias, then residual are added to the finished sum, in this order, in both layouts.
// Measured: winograd.cpp has whole convolutions.
#pragma once

#include "cpu/conv/winograd_body.h"

namespace fastconv {
namespace {

template <class W>
struct OutputTransform {
  static constexpr int kOut = W::kOut, kIn = W::kProducts;
  static constexpr int kTiles = kColumns / kOut;
  static constexpr int kPatch = (kColumns + kL) * kL;  // a patch row; transposing reads whole blocks

  // Down the columns: m of one tile to buffer[row][column], kOut rows of kIn vectors.
  static FASTCONV_INLINE void down(const float* m, int64_t m_position, float* buffer) {
#pragma GCC unroll 1
    for (int x = 0; x < kIn; ++x, m += m_position) {
      F d[kIn], y[kOut];
#pragma GCC unroll 6
      for (int i = 0; i < kIn; ++i) d[i] = simd::load(m + i * kIn * m_position);
      W::output(d, y);
#pragma GCC unroll 4
      for (int i = 0; i < kOut; ++i) simd::store(buffer + (i * kIn + x) * kL, y[i]);
    }
  }

  static FASTCONV_INLINE void along(const float* buffer, int i, F y[kOut]) {
    F d[kIn];
#pragma GCC unroll 6
    for (int x = 0; x < kIn; ++x) d[x] = simd::load(buffer + (i * kIn + x) * kL);
    W::output(d, y);
  }

  // Rows and columns of the tile that lie in the image, at most kOut.
  template <bool Masked>
  static FASTCONV_INLINE void store_pixels(const WinogradOutput& p, const float* buffer, int64_t at, int64_t rows,
                                           int64_t columns, F bias, Mask m) {
#pragma GCC unroll 1
    for (int i = 0; i < rows; ++i, at += p.ow * p.oc) {
      F y[kOut];
      along(buffer, i, y);
#pragma GCC unroll 4
      for (int x = 0; x < kOut; ++x) {
        if (x >= columns) break;
        F value = simd::add(y[x], bias);
        const int64_t pixel = at + x * p.oc;
        if constexpr (Masked) {
          if (p.residual) value = simd::add(value, simd::load(p.residual + pixel, m));
          if (p.relu) value = simd::relu(value);
          simd::store(p.dst + pixel, value, m);
        } else {
          if (p.residual) value = simd::add(value, simd::load(p.residual + pixel));
          if (p.relu) value = simd::relu(value);
          simd::store(p.dst + pixel, value);
        }
      }
    }
  }

  static void pixels(const WinogradOutput* part) {
    const WinogradOutput& p = *part;
    alignas(64) float buffer[kOut * kIn * kL];
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t y0 = (p.row + r) * kOut, rows = least(kOut, p.oh - y0);
      for (int64_t t = 0; t < p.columns; ++t) {
        const int64_t x0 = (p.column + t) * kOut, columns = least(kOut, p.ow - x0);
        const float* m = p.m + (r * p.columns + t) * p.m_tile;
        for (int64_t c = 0; c < p.channels; c += kL) {
          const Mask mask = simd::first(p.channels - c);
          const F bias = p.bias ? simd::load(p.bias + p.channel + c, mask) : simd::zero();
          const int64_t at = (y0 * p.ow + x0) * p.oc + p.channel + c;
          down(m + c, p.m_position, buffer);
          if (p.channels - c >= kL) {
            store_pixels<false>(p, buffer, at, rows, columns, bias, mask);
          } else {
            store_pixels<true>(p, buffer, at, rows, columns, bias, mask);
          }
        }
      }
    }
  }

  // One row of `columns` pixels of at most kL channels, from patch[column][kL]. at: first pixel, first channel.
  static FASTCONV_INLINE void store_row(const WinogradOutput& p, const float* patch, int64_t columns, int64_t channel,
                                        int64_t channels, int64_t at) {
    const int64_t plane = p.oh * p.ow;
    for (int64_t x = 0; x < columns; x += kL) {
      F t[kL];
      simd::transpose_block(patch + x * kL, kL, t);
      const Mask m = simd::first(columns - x);
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) {
        if (i >= channels) break;
        F value = t[i];
        if (p.bias) value = simd::add(value, simd::set1(p.bias[channel + i]));
        const int64_t pixel = at + i * plane + x;
        if (p.residual) value = simd::add(value, simd::load(p.residual + pixel, m));
        if (p.relu) value = simd::relu(value);
        simd::store(p.dst + pixel, value, m);
      }
    }
  }

  static void planes(const WinogradOutput* part) {
    const WinogradOutput& p = *part;
    alignas(64) float buffer[kOut * kIn * kL];
    alignas(64) float patch[kOut * kPatch];
    // What blocks hold past the columns is transposed along and never stored, but should not be an accident.
    for (int i = 0; i < kOut * kPatch; i += kL) simd::store(patch + i, simd::zero());
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t y0 = (p.row + r) * kOut, rows = least(kOut, p.oh - y0);
      for (int64_t first = 0; first < p.columns; first += kTiles) {
        const int64_t tiles = least(kTiles, p.columns - first), x0 = (p.column + first) * kOut;
        const float* m = p.m + (r * p.columns + first) * p.m_tile;
        for (int64_t c = 0; c < p.channels; c += kL) {
          for (int64_t t = 0; t < tiles; ++t) {
            down(m + t * p.m_tile + c, p.m_position, buffer);
            float* to = patch + t * kOut * kL;
#pragma GCC unroll 1
            for (int i = 0; i < kOut; ++i) {
              F y[kOut];
              along(buffer, i, y);
#pragma GCC unroll 4
              for (int x = 0; x < kOut; ++x) simd::store(to + i * kPatch + x * kL, y[x]);
            }
          }
          const int64_t columns = least(tiles * kOut, p.ow - x0), channel = p.channel + c;
          for (int64_t i = 0; i < rows; ++i)
            store_row(p, patch + i * kPatch, columns, channel, least(kL, p.channels - c),
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
