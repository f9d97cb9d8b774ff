// Winograd convolution of phases, written over simd/: rows of cells, the input transform, and the products with the output transform.
//
// F(4,4) evaluates at six points and at infinity (winograd_body.h has the formulas): {+-1/2, +-1, +-2}, whose powers are exact and whose
// error is 2 to 3 times that of F(4,3); pairs of points share what is even and what is odd.
// Products: row i of U and of V at a time, all 7 positions of kTiles tiles by two vectors of channels in registers, one step a value. The sums go
// along the row (7 to 4 columns) before they leave the registers, so that M is never stored: only 4/7 of it, until all seven rows of kGroup
// tiles are there. A row of U stays in the L1 for the tiles of a group.
// Registers, AVX-512: 28 sums, two vectors of weights, one value: a step is 28 products and 28 loads.
// Borders: cells outside the image are zeros; outputs outside are computed and not stored. Tails: channels by masks.
// Numerics: a tile's sequence of operations is the same wherever it lies; one sequential sum over the 4 ic values a position.
// Measured (Zen 5, AVX-512, 3 channels, cycles a tile): input 147; products and output transform of 32 channels 885 (588 are the products at the
// FMA peak), planes 1000. An output transform down a column took 19 cycles a vector before its values were kept in registers, now 12.
// Tried: groups of 2, 4, 8 and 28 tiles 1.55, 1.2, 1.05 and 1.0 times as long; steps unrolled by 3, 6 and 12, by 4 with a variable count: nothing,
// 5 % slower.
#pragma once

#include "cpu/conv/winograd_body.h"

namespace fastconv {
namespace {

struct F44 {
  static constexpr int kOut = 4, kIn = kPhasesSide, kProducts = kPhasesSide, kStep = 4;

  // 20 operations; products at 1/2, -1/2, 1, -1, 2, -2, infinity.
  template <class Load>
  static FASTCONV_INLINE void input(const Load& d, F y[]) {
    const F d0 = d(0), d1 = d(1), d2 = d(2), d3 = d(3), d4 = d(4), d5 = d(5);
    const F quarter = simd::set1(0.25f), half = simd::set1(0.5f), two = simd::set1(2.0f), four = simd::set1(4.0f);
    const F s1 = simd::set1(2.25f), s = simd::set1(5.25f);
    const F a = simd::sub(d0, d2), b = simd::sub(d4, d2), f = simd::sub(d1, d3), g = simd::sub(d5, d3);
    const F even0 = simd::fma(four, a, b), odd0 = simd::fma(four, f, g);
    y[0] = simd::fma(half, even0, odd0);
    y[1] = simd::nfma(half, even0, odd0);
    const F even1 = simd::nfma(s1, d2, simd::add(a, b)), odd1 = simd::nfma(s1, d3, simd::add(f, g));
    y[2] = simd::add(odd1, even1);
    y[3] = simd::sub(odd1, even1);
    const F even2 = simd::fma(quarter, a, b), odd2 = simd::fma(quarter, f, g);
    y[4] = simd::fma(two, even2, odd2);
    y[5] = simd::nfma(two, even2, odd2);
    y[6] = simd::nfma(s, b, simd::sub(d(6), d0));
  }
  // 15 operations.
  template <class Load>
  static FASTCONV_INLINE void output(const Load& m, F y[]) {
    const F m0 = m(0), m1 = m(1), m2 = m(2), m3 = m(3), m4 = m(4), m5 = m(5);
    const F even0 = simd::add(m0, m1), odd0 = simd::sub(m0, m1), even1 = simd::add(m2, m3), odd1 = simd::sub(m2, m3);
    const F even2 = simd::add(m4, m5), odd2 = simd::sub(m4, m5);
    y[0] = simd::add(simd::add(even0, even1), even2);
    y[1] = simd::fma(simd::set1(2.0f), odd2, simd::fma(simd::set1(0.5f), odd0, odd1));
    y[2] = simd::fma(simd::set1(4.0f), even2, simd::fma(simd::set1(0.25f), even0, even1));
    y[3] = simd::add(m(6), simd::fma(simd::set1(8.0f), odd2, simd::fma(simd::set1(0.125f), odd0, odd1)));
  }
};

constexpr int kSide = kPhasesSide, kRun = kPhasesRun;
constexpr int kTileRun = kSide * kRun;          // from tile to tile of v
constexpr int kPhasesTiles = kL == 16 ? 2 : 1;  // of a register tile: 32 registers have room for two
constexpr int kGroup = 14;  // tiles that a row of u stays in the L1 for: 4 and 8 take 1.2 and 1.05 times as long

void phases_cells(const PhasesCells* operands) {
  const PhasesCells p = *operands;
  const int64_t pixels = 2 * p.ic;  // values of one image row in a cell
  // A row that is not there is never read; it takes the other's address, since none may be made of a null pointer.
  const float* const rows[2] = {p.row[0] ? p.row[0] : p.row[1], p.row[1] ? p.row[1] : p.row[0]};
  if (!rows[0]) {
    for (int64_t j = 0; j < p.count * p.cell; j += kL) simd::store(p.cells + j, simd::zero());
    return;
  }
  // Values begin .. end - 1 of either row are in the image.
  const auto cells = [&](int64_t x, int64_t last, int64_t begin, int64_t end) FASTCONV_LAMBDA {
    const int64_t at = (p.first + 2 * x) * p.ic, step = 2 * p.ic;
    const float *above = rows[0] + at, *below = rows[1] + at;
    float* cell = p.cells + x * p.cell;
    if (2 * pixels <= kL) {
      const Mask low = simd::range(begin, p.row[0] ? end : begin);
      const Mask high = simd::range(pixels + begin, pixels + (p.row[1] ? end : begin));
      for (; x < last; ++x, cell += p.cell, above += step, below += step) {
        simd::store(cell, simd::select(high, simd::load(below - pixels, high), simd::load(above, low)));
        for (int64_t j = kL; j < p.cell; j += kL) simd::store(cell + j, simd::zero());
      }
      return;
    }
    for (; x < last; ++x, cell += p.cell, above += step, below += step) {
      for (int64_t j = 0; j < p.cell; j += kL) simd::store(cell + j, simd::zero());
      for (int b = 0; b < 2; ++b) {
        if (!p.row[b]) continue;
        for (int64_t j = begin; j < end; j += kL) {
          const Mask m = simd::first(end - j);
          simd::store(cell + b * pixels + j, simd::load((b ? below : above) + j, m), m);
        }
      }
    }
  };
  // Whole cells from `lo` on to `hi`; before and behind them one may be cut.
  const int64_t lo = clamp((1 - p.first) / 2, 0, p.count), hi = clamp((p.columns - p.first) / 2, lo, p.count);
  const auto part = [&](int64_t x) {
    const int64_t column = p.first + 2 * x, begin = clamp(-column, 0, 2);
    cells(x, x + 1, begin * p.ic, clamp(p.columns - column, begin, 2) * p.ic);
  };
  for (int64_t x = 0; x < lo; ++x) part(x);
  cells(lo, hi, 0, pixels);
  for (int64_t x = hi; x < p.count; ++x) part(x);
}

// Down the columns of cells, four new ones a tile, then along the rows. Columns stay in a buffer of eight, where those of the next tile begin
// four further on: `kOdd` tiles begin in its middle.
template <bool kOdd>
FASTCONV_INLINE void phases_tile(const PhasesInput& p, int64_t at, int from, float* down, Mask row_there,
                                 Mask column_there, float* v) {
  constexpr int kSlots = 8;
  const auto slot = [](int x) FASTCONV_LAMBDA { return (x + (kOdd ? 4 : 0)) % kSlots; };
  for (int x = from; x < kSide; ++x) {
    F y[kSide];
    const int64_t offset = at + x * p.cell;
    F44::input(
        [&](int i) FASTCONV_LAMBDA {
          return i == kSide - 1 ? simd::load(p.row[i] + offset, row_there) : simd::load(p.row[i] + offset);
        },
        y);
    float* to = down + slot(x) * kL;
#pragma GCC unroll 7
    for (int i = 0; i < kSide; ++i) simd::store(to + i * kSlots * kL, y[i]);
  }
  for (int i = 0; i < kSide; ++i, down += kSlots * kL, v += p.v_row) {
    F y[kSide];
    F44::input(
        [&](int x) FASTCONV_LAMBDA {
          const float* from_slot = down + slot(x) * kL;
          return x == kSide - 1 ? simd::load(from_slot, column_there) : simd::load(from_slot);
        },
        y);
#pragma GCC unroll 7
    for (int j = 0; j < kSide; ++j) simd::store(v + j * kRun, y[j]);
  }
}

void phases_input(const PhasesInput* operands) {
  const PhasesInput p = *operands;
  alignas(64) float down[kSide * 8 * kL];
  for (int64_t c = 0; c < p.cell; c += kL) {
    const Mask row_there = simd::greater(simd::load(p.last_row + c), simd::zero());
    const Mask column_there = simd::greater(simd::load(p.last_column + c), simd::zero());
    float* v = p.v + c / kRun * p.v_run + c % kRun;
    for (int64_t t = 0; t < p.tiles; ++t, v += kTileRun) {
      const int from = t == 0 ? 0 : kSide - F44::kStep;
      const int64_t at = t * F44::kStep * p.cell + c;
      if (t % 2) {
        phases_tile<true>(p, at, from, down, row_there, column_there, v);
      } else {
        phases_tile<false>(p, at, from, down, row_there, column_there, v);
      }
    }
  }
}

// Row i of kTiles tiles: h[tile][4][kNr].
template <int kTiles>
FASTCONV_INLINE void phases_products(const float* v, int64_t v_run, int64_t values, const float* u, float* h) {
  F acc[kSide][kTiles][2];
#pragma GCC unroll 7
  for (int j = 0; j < kSide; ++j)
#pragma GCC unroll 2
    for (int t = 0; t < kTiles; ++t) acc[j][t][0] = acc[j][t][1] = simd::zero();
  const auto step = [&](const float* a, const float* w) FASTCONV_LAMBDA {
#pragma GCC unroll 7
    for (int j = 0; j < kSide; ++j) {
      F w0 = simd::load(w + j * kNr), w1 = simd::load(w + j * kNr + kL);
      if constexpr (kTiles > 1) simd::keep(w0), simd::keep(w1);  // the compiler would load them once a tile
#pragma GCC unroll 2
      for (int t = 0; t < kTiles; ++t) {
        const F x = simd::set1(a[t * kTileRun + j * kRun]);
        acc[j][t][0] = simd::fma(x, w0, acc[j][t][0]);
        acc[j][t][1] = simd::fma(x, w1, acc[j][t][1]);
      }
    }
  };
  for (int64_t done = 0; done < values; done += kRun, v += v_run) {
    const int64_t steps = smaller(kRun, values - done);
    for (int64_t s = 0; s < steps; ++s, u += kSide * kNr) step(v + s, u);
  }
#pragma GCC unroll 2
  for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 2
    for (int w = 0; w < 2; ++w) {
      F y[F44::kOut];
      F44::output([&](int j) FASTCONV_LAMBDA { return acc[j][t][w]; }, y);
#pragma GCC unroll 4
      for (int x = 0; x < F44::kOut; ++x) simd::store(h + (t * F44::kOut + x) * kNr + w * kL, y[x]);
    }
  }
}

FASTCONV_INLINE void towards_l2(const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#else
  (void)p;
#endif
}

constexpr int kColumn = kNr, kRowOfH = kGroup * F44::kOut * kNr;  // of h

// All rows of a group's products to h[i][tile][4][kNr]. ask(y, tile): before products of each of four rows.
template <class Ask>
FASTCONV_INLINE void phases_group(const PhasesOutput& p, const float* v, int64_t tiles, float* h, const Ask& ask) {
  const float* u = p.u;
  for (int i = 0; i < kSide; ++i, v += p.v_row, u += p.values * kSide * kNr, h += kRowOfH) {
    int64_t t = 0;
    for (; t + kPhasesTiles <= tiles; t += kPhasesTiles) {
      if (p.expect && i < F44::kOut) ask(i, t);
      phases_products<kPhasesTiles>(v + t * kTileRun, p.v_run, p.values, u, h + t * F44::kOut * kNr);
    }
    for (; t < tiles; ++t) phases_products<1>(v + t * kTileRun, p.v_run, p.values, u, h + t * F44::kOut * kNr);
  }
}

// Down column x of a group's tiles: four pixels one below the other.
FASTCONV_INLINE void phases_down(const float* h, int64_t x, F y[F44::kOut]) {
  const float* at = opaque(h + x * kColumn);
  F44::output(
      [&](int i) FASTCONV_LAMBDA {
        F m = simd::load(at + i * kRowOfH);
        simd::keep(m);
        return m;
      },
      y);
}

void phases_output_pixels(const PhasesOutput* operands) {
  const PhasesOutput p = *operands;
  const WinogradOutput& o = p.out;
  float* const h = p.sums;
  const F least = simd::set1(o.relu ? 0.0f : -__builtin_inff());  // max(least, y) is y, also where y is NaN
  const int64_t y0 = o.row * F44::kOut, rows = smaller(F44::kOut, o.oh - y0), below = o.ow * o.oc;
  for (int64_t first = 0; first < o.columns; first += kGroup) {
    const int64_t tiles = smaller(kGroup, o.columns - first), x0 = (o.column + first) * F44::kOut;
    const float* const begin = o.dst + (y0 * o.ow + x0) * o.oc + o.channel;
    phases_group(p, p.v + first * kTileRun, tiles, h, [&](int64_t y, int64_t tile) FASTCONV_LAMBDA {
      const float* pixel = begin + y * below + tile * F44::kOut * o.oc;
#pragma GCC unroll 8
      for (int x = 0; x < kPhasesTiles * F44::kOut; ++x, pixel += o.oc) {
        towards_l2(pixel);
        towards_l2(pixel + kNr - 1);
      }
    });
    const int64_t columns = smaller(tiles * F44::kOut, o.ow - x0);
    for (int64_t c = 0; c < o.channels; c += kL) {
      const Mask mask = simd::first(o.channels - c);
      const F bias = o.bias ? simd::load(o.bias + o.channel + c, mask) : simd::zero();
      float* to = o.dst + (y0 * o.ow + x0) * o.oc + o.channel + c;
      if (rows == F44::kOut && o.channels - c >= kL && !o.residual) {
        for (int64_t x = 0; x < columns; ++x, to += o.oc) {
          F y[F44::kOut];
          phases_down(h + c, x, y);
          float* const lower = to + 2 * below;
          simd::store(to, simd::max(least, simd::add(y[0], bias)));
          simd::store(to + below, simd::max(least, simd::add(y[1], bias)));
          simd::store(lower, simd::max(least, simd::add(y[2], bias)));
          simd::store(lower + below, simd::max(least, simd::add(y[3], bias)));
        }
        continue;
      }
      const float* residual = o.residual ? o.residual + (to - o.dst) : nullptr;
      for (int64_t x = 0; x < columns; ++x, to += o.oc) {
        F y[F44::kOut];
        phases_down(h + c, x, y);
        for (int64_t i = 0; i < rows; ++i) {
          F value = simd::add(y[i], bias);
          if (residual) value = simd::add(value, simd::load(residual + x * o.oc + i * below, mask));
          simd::store(to + i * below, simd::max(least, value), mask);
        }
      }
    }
  }
}

void phases_output_planes(const PhasesOutput* operands) {
  constexpr int kPatch = (kGroup * F44::kOut + kL) * kL;  // a patch row; transposing reads whole blocks
  const PhasesOutput p = *operands;
  const WinogradOutput& o = p.out;
  float* const h = p.sums;
  alignas(64) float patch[F44::kOut * kPatch];
  // What blocks hold past the columns is transposed along and never stored, but should not be an accident.
  for (int i = 0; i < F44::kOut * kPatch; i += kL) simd::store(patch + i, simd::zero());
  const int64_t y0 = o.row * F44::kOut, rows = smaller(F44::kOut, o.oh - y0);
  for (int64_t first = 0; first < o.columns; first += kGroup) {
    const int64_t tiles = smaller(kGroup, o.columns - first), x0 = (o.column + first) * F44::kOut;
    const int64_t columns = smaller(tiles * F44::kOut, o.ow - x0);
    // Each tile asks for some channels' rows of the group.
    phases_group(p, p.v + first * kTileRun, tiles, h, [&](int64_t y, int64_t tile) FASTCONV_LAMBDA {
      const float* const begin = o.dst + (o.channel * o.oh + y0 + y) * o.ow + x0;
      const int64_t end = smaller(o.channels, (tile + kPhasesTiles) * kNr / tiles);
      for (int64_t c = tile * kNr / tiles; c < end; ++c) {
        const float* const row = begin + c * o.oh * o.ow;
        for (int64_t x = 0; x < columns; x += kLine) towards_l2(row + x);
        towards_l2(row + columns - 1);
      }
    });
    for (int64_t c = 0; c < o.channels; c += kL) {
      for (int64_t x = 0; x < columns; ++x) {
        F y[F44::kOut];
        phases_down(h + c, x, y);
#pragma GCC unroll 4
        for (int i = 0; i < F44::kOut; ++i) simd::store(patch + i * kPatch + x * kL, y[i]);
      }
      const int64_t channel = o.channel + c;
      for (int64_t i = 0; i < rows; ++i)
        store_row(o, patch + i * kPatch, columns, channel, smaller(kL, o.channels - c),
                  (channel * o.oh + y0 + i) * o.ow + x0);
    }
  }
}

constexpr PhasesUkernel phases_leaf(const char* name) {
  return {name,
          FASTCONV_SIMD_ISA,
          kNr,
          kPhasesTiles,
          kGroup,
          &phases_cells,
          &phases_input,
          &phases_output_pixels,
          &phases_output_planes};
}

}  // namespace
}  // namespace fastconv
