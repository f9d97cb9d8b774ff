// The register tile of Winograd's inner product (1968), written once over simd/.
// Formula, order and forms of the operands: FipUkernel (ukernel.h).
//
// A step takes three values of k of each row and column: (a1 + b2) (a2 + b1), and a3 b3. For MR x NV vectors that are 2 MR NV multiplications and as
// many additions, for the 3 MR NV of a plain product. a's values are operands in memory; in registers are the sums, six vectors of b and two that are
// being made.
// The sums begin with what rows and columns subtract, and end with two powers of two, which round nothing.
#pragma once

#include "cpu/conv/fip_operands_body.h"

namespace fastconv {
namespace {

template <int kMr, int kNv>
struct Fip {
  using Operands = FipOperands<kMr, kNv>;
  static constexpr int kL = simd::kLanes, kNr = kNv * kL;
  static constexpr int64_t kBlock = Operands::kBlock;

  // Rows of a apart, or register tiles whose rows are the last index; what becomes of the sums.
  enum Kind { kRows, kTurned, kPlanes, kSums };

  // `steps` steps. Of row i value (step, run) lies at a + i row + run kApart + step kStep. The address of a row that is not the next value is made of
  // the row's before: the compiler would otherwise keep one for each run of each row, on the stack.
  // Of each step of `fetch` kLines places are asked for, evenly apart.
  template <int MR, int V, int kLines, int64_t kApart, int64_t kStep, class Row>
  static inline __attribute__((always_inline)) void multiply(F (&acc)[MR][V], const float*& a, Row row, const float*& b,
                                                             int64_t steps, const float*& fetch, int64_t fetch_step) {
    const int64_t part = fetch_step / kLines;
    for (int64_t s = steps; s > 0; --s) {
#pragma GCC unroll 6
      for (int i = 0; i < kLines; ++i) __builtin_prefetch(fetch + i * part, 0, 2);
      fetch += fetch_step;
      F b1[V], b2[V], b3[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        b1[v] = simd::load(b + v * kL), b2[v] = simd::load(b + kNr + v * kL), b3[v] = simd::load(b + 2 * kNr + v * kL);
        simd::keep(b1[v]), simd::keep(b2[v]), simd::keep(b3[v]);
      }
      b += kFipRuns * kNr;
      const float* at = a;
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i, at = row(at)) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const F x = simd::add_each(b2[v], at), y = simd::add_each(b1[v], at + kApart);
          acc[i][v] = simd::fma_each(b3[v], at + 2 * kApart, acc[i][v]);
          acc[i][v] = simd::fma(x, y, acc[i][v]);
        }
      }
      a += kStep;
    }
  }

  template <Kind kKind, int MR, int V>
  static void tile(const FipPanel& p, const float* a, int64_t row, const float* fetch, int64_t fetch_step) {
    static_assert(kKind != kTurned || kMr <= kL, "rows of a tile that ends turned are one vector");
    constexpr bool kRowsApart = kKind == kRows || kKind == kSums;
    constexpr int kLines = kKind == kSums ? 6 : kKind == kPlanes ? 1 : 2;
    const float* b = p.b;
    if ((kKind == kRows || kKind == kPlanes) && p.expect) {
      ask_for_rows<MR>(p.c + row * p.c_row, p.c_row);
      if (p.residual && p.residual != p.c) ask_for_rows<MR>(p.residual + row * p.c_row, p.c_row);
    }
    if (kKind == kTurned && p.expect) {
      const float* line = (p.residual ? p.residual : p.c) + row + MR - 1;
      for (int64_t j = 0; j < p.n; ++j, line += p.c_col) __builtin_prefetch(line, 0, 2);
    }
    const float* const heads = kRowsApart ? p.heads + row : a;
    const float* const scales = kRowsApart ? p.scales + row : a + kFipRun;
    F acc[MR][V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const F column = simd::load(p.columns + v * kL);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) acc[i][v] = simd::add_each(column, heads + i);
    }
    if constexpr (kRowsApart) {
      const int64_t a_row = p.a_row, segs = kKind == kSums ? p.segs : 1;
      const auto next = [a_row](const float* at) __attribute__((always_inline)) { return opaque(at + a_row); };
      const float* const first = a + row * a_row;
      for (int64_t s = 0; s < segs; ++s) {
        a = first, b = p.b;
        if constexpr (kKind == kSums) a += p.a_seg[s], b += p.b_seg[s];
        int64_t steps = p.steps;
        for (; steps >= kFipRun; steps -= kFipRun, a += kBlock - kFipRun)
          multiply<MR, V, kLines, kFipRun, 1>(acc, a, next, b, kFipRun, fetch, fetch_step);
        if (steps) multiply<MR, V, kLines, kFipRun, 1>(acc, a, next, b, steps, fetch, fetch_step);
      }
    } else {
      const auto next = [](const float* at) __attribute__((always_inline)) { return at + 1; };
      a += kFipHead;
      multiply<MR, V, kLines, kMr, kFipRuns * kMr>(acc, a, next, b, p.steps, fetch, fetch_step);
    }
    F column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = simd::load(p.columns + kNr + v * kL);
    if constexpr (kKind == kSums || kKind == kTurned)
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::mul(simd::mul(acc[i][v], column[v]), simd::set1(scales[i]));
    if constexpr (kKind == kSums) {
      float* const c = p.c + row * p.c_row;
      const int64_t c_row = p.c_row;
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) simd::store(c + i * c_row + v * kL, acc[i][v]);
    } else if constexpr (kKind == kTurned) {
      alignas(64) float sums[kL * kNr];
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          simd::store(sums + i * kNr + v * kL, i < MR ? acc[i < MR ? i : 0][v] : simd::zero());
      finish_turned(p, row, MR, sums);
    } else if (p.n < V * kL) {
      finish_rows<kKind, MR, V, true>(p, row, acc, column, scales);
    } else {
      finish_rows<kKind, MR, V, false>(p, row, acc, column, scales);
    }
  }

  template <int MR>
  static inline __attribute__((always_inline)) void ask_for_rows(const float* row, int64_t distance) {
    for (int i = 0; i < MR; ++i, row += distance)
      for (int v = 0; v < kNv; ++v) __builtin_prefetch(row + v * kL, 0, 2);
  }

  // The scales are powers of two: only the sum with the bias rounds.
  template <Kind kKind, int MR, int V, bool kMasked>
  static inline __attribute__((always_inline)) void finish_rows(const FipPanel& p, int64_t row, const F (&acc)[MR][V],
                                                                const F (&column)[V], const float* scales) {
    const F least = simd::set1(p.relu ? 0.0f : -__builtin_inff());  // max(least, y) is y, also where y is NaN or -0
    const int64_t c_row = p.c_row;
    float* const c = p.c + row * c_row;
    const float* const r = p.residual ? p.residual + row * c_row : nullptr;
    const float* const biases = p.bias;
    Mask mask[V];
    F bias[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t left = p.n - v * kL;
      mask[v] = simd::first(left > 0 ? left : 0);
      bias[v] = !biases || kKind == kPlanes ? simd::zero() : simd::load(biases + v * kL, mask[v]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const F scale = simd::set1(scales[i]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        if (kKind == kPlanes) bias[v] = biases ? simd::set1(biases[row + i]) : simd::zero();
        F y = simd::fma(simd::mul(acc[i][v], column[v]), scale, bias[v]);
        if (r)
          y = simd::add(y, kMasked ? simd::load(r + i * c_row + v * kL, mask[v]) : simd::load(r + i * c_row + v * kL));
        y = simd::max(least, y);
        if (kMasked) {
          simd::store(c + i * c_row + v * kL, y, mask[v]);
        } else {
          simd::store(c + i * c_row + v * kL, y);
        }
      }
    }
  }

  // sums: kL rows of pixels, those past `rows` zero, to rows of pixels a channel.
  static __attribute__((noinline)) void finish_turned(const FipPanel& p, int64_t row, int rows, const float* sums) {
    const Mask m = simd::first(rows);
    const F least = simd::set1(p.relu ? 0.0f : -__builtin_inff());
    const float *bias = p.bias, *r = p.residual ? p.residual + row : nullptr;
    float* c = p.c + row;
    const int64_t n = p.n, column = p.c_col;
    for (int64_t j = 0; j < n; j += kL) {
      F turned[kL];
      simd::transpose_block(sums + j, kNr, turned);
#pragma GCC unroll 16
      for (int t = 0; t < kL; ++t, c += column) {
        if (j + t >= n) break;
        F y = simd::add(turned[t], bias ? simd::set1(bias[j + t]) : simd::zero());
        if (r) y = simd::add(y, simd::load(r, m)), r += column;
        simd::store(c, simd::max(least, y), m);
      }
    }
  }

  using TileFn = void (*)(const FipPanel&, const float*, int64_t, const float*, int64_t);
  template <int... I>
  struct Table {
    static constexpr TileFn rows[2][kMr] = {{&tile<kRows, I + 1, 1>...}, {&tile<kRows, I + 1, kNv>...}};
    static constexpr TileFn turned[2][kMr] = {{&tile<kTurned, I + 1, 1>...}, {&tile<kTurned, I + 1, kNv>...}};
    static constexpr TileFn sums[kMr] = {&tile<kSums, I + 1, kNv>...};
    static constexpr TileFn planes[2][kMr] = {{&tile<kPlanes, I + 1, 1>...}, {&tile<kPlanes, I + 1, kNv>...}};
  };
  template <int N, int... I>
  struct Count : Count<N - 1, N - 1, I...> {};
  template <int... I>
  struct Count<0, I...> {
    using type = Table<I...>;
  };
  using Tiles = typename Count<kMr>::type;

  // a_tile: from register tile to register tile; 0: rows apart.
  static inline void walk(const FipPanel& p, int64_t a_tile, const TileFn* fn) {
    const int64_t tiles = (p.count + kMr - 1) / kMr, base = p.count / tiles, extra = p.count % tiles;
    const int64_t last = smaller(p.last, tiles);
    for (int64_t t = p.first; t < last; ++t) {
      const int64_t row = t * base + smaller(t, extra), done = t - p.first;
      const bool fetch = done < p.fetches;
      fn[base + (t < extra ? 1 : 0) - 1](p, p.a + t * a_tile, row, fetch ? p.fetch[done].at : p.b,
                                         fetch ? p.fetch[done].step : 0);
    }
  }
  static void rows(const FipPanel* p) { walk(*p, 0, Tiles::rows[p->n > kL]); }
  static void turned(const FipPanel* p) { walk(*p, p->a_tile, Tiles::turned[p->n > kL]); }
  static void planes(const FipPanel* p) { walk(*p, p->a_tile, Tiles::planes[p->n > kL]); }
  static void sums(const FipPanel* p) { walk(*p, 0, Tiles::sums); }

  static constexpr FipUkernel leaf(const char* name) {
    return {
        name,  FASTCONV_SIMD_ISA, kMr,     kNr,  &Operands::order_rows, &Operands::order_tile, &Operands::order_panel,
        &rows, &turned,           &planes, &sums};
  }
};

}  // namespace
}  // namespace fastconv
