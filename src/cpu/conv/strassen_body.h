// The leaves of Strassen's products, written once over simd/: sums of input quarters, sums of weights, and the register tile.
//
// A register tile makes all seven products of MR pairs of pixels by NV vectors of either half of the channels, one after the
// other in the same accumulators, so that what products share never leaves the L1 (u, w below):
//     u = P0                          even, left  = P0 + P1
//     u = P0 + P2      w = u + P3     odd,  left  = w + P4
//     P5                              odd,  right = w + P5
//                                     even, right = u + P5 + P6
// Products and the order of their sums are those of StrassenUkernel (ukernel.h).
//
// In planes either matrix may be the pixels: rows, whose tiles end turned, or columns, with channels as the rows. Their products:
// strassen_products_body.h.
#pragma once

#include "cpu/conv/strassen_products_body.h"
#include "cpu/gemm/gemm_body.h"

namespace fastconv {
namespace {

template <int kMr, int kNv>
struct Strassen {
  using Tile = Gemm<kMr, kNv>;
  using Products = StrassenProducts<kMr, kNv>;
  static constexpr int kNr = kNv * simd::kLanes, kL = simd::kLanes;

  // One vector of each quarter to one of each factor.
  static inline __attribute__((always_inline)) void sums(F a11, F a12, F a21, F a22, F s[kStrassenProducts]) {
    const F odd = simd::add(a21, a22), without = simd::sub(odd, a11);
    s[0] = a11;
    s[1] = a12;
    s[2] = without;
    s[3] = simd::sub(a11, a21);
    s[4] = a22;
    s[5] = odd;
    s[6] = simd::sub(a12, without);
  }

  static void input(const StrassenInput* part) {
    const StrassenInput p = *part;
    const int64_t whole = p.half / kL * kL;
    const Mask tail = simd::first(p.half - whole);
    for (int64_t i = 0; i < p.pairs; ++i) {
      const float *even = p.src + i * p.src_pair, *odd = even + p.src_odd;
      float* a = p.a + i * p.a_pair;
      F s[kStrassenProducts];
      for (int64_t k = 0; k < whole; k += kL) {
        sums(simd::load(even + k), simd::load(even + p.half + k), simd::load(odd + k), simd::load(odd + p.half + k), s);
#pragma GCC unroll 7
        for (int j = 0; j < kStrassenProducts; ++j) simd::store(a + j * p.a_product + k, s[j]);
      }
      if (whole < p.half) {
        sums(simd::load(even + whole, tail), simd::load(even + p.half + whole, tail), simd::load(odd + whole, tail),
             simd::load(odd + p.half + whole, tail), s);
#pragma GCC unroll 7
        for (int j = 0; j < kStrassenProducts; ++j) simd::store(a + j * p.a_product + whole, s[j], tail);
      }
    }
  }

  // Rows of pairs cut into tiles of nearly equal height: run(tile, row, first pair, pairs).
  template <class Run>
  static inline __attribute__((always_inline)) void cut(int64_t outer, int64_t inner, Run run) {
    const int64_t tiles = (inner + kMr - 1) / kMr, base = inner / tiles, extra = inner % tiles;
    for (int64_t o = 0, done = 0; o < outer; ++o)
      for (int64_t t = 0, i = 0; t < tiles; ++t, ++done) {
        const int64_t m = base + (t < extra ? 1 : 0);
        run(done, o, i, m);
        i += m;
      }
  }

  template <int MR, int V>
  static inline __attribute__((always_inline)) void put(float* to, const F (&acc)[MR][V]) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) simd::store(to + i * kNr + v * kL, acc[i][v]);
  }
  template <int MR, int V>
  static inline __attribute__((always_inline)) void plus(float* to, const F (&acc)[MR][V]) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        float* const at = to + i * kNr + v * kL;
        simd::store(at, simd::add(simd::load(at), acc[i][v]));
      }
  }
  template <int MR, int V>
  static inline __attribute__((always_inline)) void get(const float* from, F (&acc)[MR][V]) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[i][v] = simd::load(from + i * kNr + v * kL);
  }

  // A quarter of the panel: where it goes and what is added to it. Where nothing is, r and bias are zeros, r_pair is 0.
  struct Quarter {
    float* c;
    int64_t c_pair;
    const float* r;
    int64_t r_pair;
    const float* bias;
    F least;  // of the activation; max(least, y) is y, also where y is NaN or -0
    int64_t n;
    int64_t c_column, r_column;  // kTurned: from channel to channel
    int64_t bias_pair;           // kPlanes: 1, or 0 where bias is zeros
  };

  // How a lies, and where results go: pairs by themselves and rows of channels; tiles of pixels and rows of pixels; or, where channels are the
  // pairs, tiles of channels and rows of pixels.
  enum Kind { kRows, kTurned, kPlanes };

  template <Kind kKind, int MR, int V>
  static inline __attribute__((always_inline)) void finish(const Quarter& q, int64_t pair, const F (&acc)[MR][V]) {
    if constexpr (kKind == kTurned) {
      alignas(64) float sums[kL * kNr];
      put(sums, acc);
#pragma GCC unroll 16
      for (int i = MR * kNv; i < kL * kNv; ++i) simd::store(sums + i * kL, simd::zero());
      finish_turned(q, pair, MR, sums);
      return;
    }
    if (q.n < V * kL) {
      alignas(64) float sums[MR * kNr];
      put(sums, acc);
      finish_masked<kKind>(q, pair, MR, sums);
      return;
    }
    float* const c = q.c + pair * q.c_pair;
    const float* const r = q.r + pair * q.r_pair;
    const float* const row_bias = q.bias + pair * q.bias_pair;
    const int64_t c_pair = q.c_pair, r_pair = q.r_pair, bias_pair = q.bias_pair;
    const F least = q.least;
    F bias[V];
    if constexpr (kKind == kRows)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) bias[v] = simd::load(q.bias + v * kL);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      if constexpr (kKind == kPlanes)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) bias[v] = simd::set1(row_bias[i * bias_pair]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const F y = simd::add(simd::add(acc[i][v], bias[v]), simd::load(r + i * r_pair + v * kL));
        simd::store(c + i * c_pair + v * kL, simd::max(least, y));
      }
    }
  }
  template <Kind kKind>
  static __attribute__((noinline)) void finish_masked(const Quarter& q, int64_t pair, int pairs, const float* sums) {
    for (int i = 0; i < pairs; ++i) {
      for (int64_t j = 0; j < q.n; j += kL) {
        const Mask m = simd::first(q.n - j);
        const F bias = kKind == kPlanes ? simd::set1(q.bias[(pair + i) * q.bias_pair]) : simd::load(q.bias + j, m);
        const F y = simd::add(simd::load(sums + i * kNr + j), bias);
        const F r = simd::load(q.r + (pair + i) * q.r_pair + j, m);
        simd::store(q.c + (pair + i) * q.c_pair + j, simd::max(q.least, simd::add(y, r)), m);
      }
    }
  }

  // Rows of kL pixels, those past `pairs` zero, to rows of pixels a channel.
  static __attribute__((noinline)) void finish_turned(const Quarter& q, int64_t pair, int pairs, const float* sums) {
    const Mask m = simd::first(pairs);
    const F least = q.least;
    const float *bias = q.bias, *r = q.r + (q.r_column ? pair : 0);
    float* c = q.c + pair;
    const int64_t n = q.n, c_column = q.c_column, r_column = q.r_column;
    for (int64_t j = 0; j < n; j += kL) {
      F col[kL];
      simd::transpose_block(sums + j, kNr, col);
#pragma GCC unroll 16
      for (int t = 0; t < kL; ++t, c += c_column, r += r_column) {
        if (j + t >= n) break;
        const F y = simd::add(simd::add(col[t], simd::set1(bias[j + t])), simd::load(r, m));
        simd::store(c, simd::max(least, y), m);
      }
    }
  }

  // As Gemm::ask_for_results.
  template <int MR>
  static inline __attribute__((always_inline)) void ask_for_rows(const float* row, int64_t distance) {
    for (int i = 0; i < MR; ++i, row += distance)
      for (int v = 0; v < kNv; ++v) __builtin_prefetch(row + v * kL, 0, 2);
  }

  // kMakes: the sums of the input are made while they are first multiplied, of pixels kMakes apart.
  template <Kind kKind, int MR, int V, int kMakes = 0>
  static void tile(const StrassenPanel& p, const Quarter (&quarter)[2][2], const float* a, int64_t pair,
                   const float* from, const GemmFetch* runs) {
    constexpr int kHalf = (MR + 1) / 2;
    constexpr bool kTiled = kKind != kRows;
    const float* fetch = runs->at;
    int64_t fetch_step = runs->step;
    alignas(64) float u[MR * kNr];
    alignas(64) float w[MR * kNr];
    const int64_t row = kTiled ? 1 : p.a_pair, half = p.half, product = kTiled ? half * kMr : p.a_product;
    const float *a0 = a, *a1 = a0 + kHalf * row, *b = p.b;
    F acc[MR][V];
    const auto multiply = [&](auto index) __attribute__((always_inline)) {
      if constexpr (kKind == kPlanes) fetch = runs[index.value].at, fetch_step = runs[index.value].step;
      if constexpr (kMakes && kKind == kPlanes) {
        Products::template multiply_columns<MR, V, decltype(index)::value>(acc, a0, a1, from, p, fetch, fetch_step);
      } else if constexpr (kMakes) {
        Products::template multiply_pixels<MR, V, decltype(index)::value, kMakes>(acc, p.a_made + (a - p.a), from, p, b,
                                                                                  fetch, fetch_step);
      } else if constexpr (kKind == kPlanes) {
        Products::template multiply_tiled<MR, V>(acc, a0, a1, b, half, fetch, fetch_step, a0 + Products::kFar, kMr);
      } else if constexpr (kKind == kTurned) {
        constexpr int I = decltype(index)::value;
        constexpr bool kAsks = I == 0 || I == 2 || I == 3 || I == 5;
        const Quarter& q = quarter[I == 2 || I == 3][I == 3 || I == 5];
        const float* line = (q.r_column ? q.r : q.c) + pair + MR - 1;
        Products::template multiply_tiled<MR, V>(acc, a0, a1, b, half, fetch, fetch_step, kAsks ? line : b,
                                                 kAsks ? q.c_column : 0);
      } else {
        Tile::template multiply<MR, V>(acc, a0, a1, row, kTiled ? kMr : 1, b, half, fetch, fetch_step);
      }
      a0 += product, a1 += product, b += half * kNr;
    };
    const auto clear = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::zero();
    };
    const auto expect = [&](const Quarter& q) __attribute__((always_inline)) {
      if (kKind != kRows || !p.expect) return;
      const float *const c = q.c + pair * q.c_pair, *const r = q.r + pair * q.r_pair;
      ask_for_rows<MR>(c, q.c_pair);
      if (q.r_pair && r != c) ask_for_rows<MR>(r, q.r_pair);
    };
    clear();
    multiply(Index<0>());
    put(u, acc);
    expect(quarter[0][0]);
    multiply(Index<1>());
    finish<kKind>(quarter[0][0], pair, acc);
    get(u, acc);
    multiply(Index<2>());
    put(u, acc);
    multiply(Index<3>());
    put(w, acc);
    expect(quarter[1][0]);
    multiply(Index<4>());
    finish<kKind>(quarter[1][0], pair, acc);
    clear();
    expect(quarter[1][1]);
    multiply(Index<5>());
    plus(u, acc);
    plus(w, acc);
    get(w, acc);
    finish<kKind>(quarter[1][1], pair, acc);
    get(u, acc);
    expect(quarter[0][1]);
    multiply(Index<6>());
    finish<kKind>(quarter[0][1], pair, acc);
  }

  template <int I>
  struct Index {
    static constexpr int value = I;
  };

  using TileFn = void (*)(const StrassenPanel&, const Quarter (&)[2][2], const float*, int64_t, const float*,
                          const GemmFetch*);
  template <int... I>
  struct Table {
    static constexpr TileFn rows[kMr] = {&tile<kRows, I + 1, kNv>...};
    static constexpr TileFn turned[3][kMr] = {
        {&tile<kTurned, I + 1, kNv>...}, {&tile<kTurned, I + 1, kNv, 1>...}, {&tile<kTurned, I + 1, kNv, 2>...}};
    static constexpr TileFn planes[2][kMr] = {{&tile<kPlanes, I + 1, 1>...}, {&tile<kPlanes, I + 1, kNv>...}};
    static constexpr TileFn columns[kMr] = {&tile<kPlanes, I + 1, kNv, 1>...};  // also where one vector would do
  };
  template <int N, int... I>
  struct Count : Count<N - 1, N - 1, I...> {};
  template <int... I>
  struct Count<0, I...> {
    using type = Table<I...>;
  };

  static void panel(const StrassenPanel* part) {
    using Tiles = typename Count<kMr>::type;
    const StrassenPanel& p = *part;
    const TileFn* const fn = !p.a_tile ? Tiles::rows : Tiles::turned[p.a_from ? p.a_from_pair : 0];
    const GemmFetch none{p.b, 0};
    Quarter quarter[2][2];
    set_quarters(p, quarter);
    cut(p.outer, p.inner, [&](int64_t done, int64_t o, int64_t i, int64_t m) {
      fn[m - 1](p, quarter, p.a + (p.a_tile ? done * p.a_tile : i * p.a_pair), o * p.dst_outer + i,
                p.a_from ? p.a_from + o * p.a_from_outer + i * p.a_from_pair : nullptr,
                done < p.fetches ? p.fetch + done : &none);
    });
  }

  static void panel_planes(const StrassenPanel* part) {
    using Tiles = typename Count<kMr>::type;
    const StrassenPanel& p = *part;
    const auto& fn = Tiles::planes[p.n > kL];
    GemmFetch none[kStrassenProducts];
    for (GemmFetch& run : none) run = {p.b, 0};
    Quarter quarter[2][2];
    set_quarters(p, quarter);
    int64_t done = 0;
    cut(1, p.inner, [&](int64_t tile, int64_t, int64_t i, int64_t m) {
      if (tile < p.first || tile >= p.last) return;
      const int64_t at = done * kStrassenProducts;
      (p.b_from && done == 0 ? Tiles::columns : fn)[m - 1](p, quarter, p.a + tile * p.a_tile, i, p.b_from,
                                                           at + kStrassenProducts <= p.fetches ? p.fetch + at : none);
      ++done;
    });
  }

  static void set_quarters(const StrassenPanel& p, Quarter (&quarter)[2][2]) {
    alignas(64) static constexpr float kZeros[kNr] = {};
    for (int odd = 0; odd < 2; ++odd) {
      for (int right = 0; right < 2; ++right) {
        const int64_t at = odd * p.dst_odd + right * p.dst_right;
        quarter[odd][right] = {p.dst + at,
                               p.dst_pair,
                               p.residual ? p.residual + at : kZeros,
                               p.residual ? p.dst_pair : 0,
                               p.bias ? p.bias + right * p.bias_right + odd * p.bias_odd : kZeros,
                               simd::set1(p.relu ? 0.0f : -__builtin_inff()),
                               p.n,
                               p.dst_column,
                               p.residual ? p.dst_column : 0,
                               p.bias ? 1 : 0};
      }
    }
  }

  // Seven factors, each once rounded, of four quarters: sum(quarters, factors) in float64.
  template <class Sum>
  static void weights_by(const float* const w[4], float* out, int64_t product, int64_t count, Sum sum) {
    // Vectors of the compiler's own: eight weights in float64.
    typedef double D __attribute__((vector_size(64)));
    typedef float S __attribute__((vector_size(32)));
    for (int64_t j = 0; j < count; j += 8) {
      D q[4], factors[kStrassenProducts];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        S narrow;
        __builtin_memcpy(&narrow, w[i] + j, sizeof narrow);
        q[i] = __builtin_convertvector(narrow, D);
      }
      sum(q, factors);
#pragma GCC unroll 7
      for (int i = 0; i < kStrassenProducts; ++i) {
        const S narrow = __builtin_convertvector(factors[i], S);
        __builtin_memcpy(out + i * product + j, &narrow, sizeof narrow);
      }
    }
  }
  static void weights(const float* const w[4], float* b, int64_t b_product, int64_t count) {
    weights_by(w, b, b_product, count, [](const auto& q, auto& f) {
      f[3] = q[3] - q[1], f[2] = f[3] + q[0];
      f[0] = q[0], f[1] = q[2], f[4] = q[2] - f[2], f[5] = q[1] - q[0], f[6] = q[3];
    });
  }
  static void weights_left(const float* const w[4], float* a, int64_t a_product, int64_t count) {
    weights_by(w, a, a_product, count, [](const auto& q, auto& f) {
      f[5] = q[2] + q[3], f[2] = f[5] - q[0];
      f[0] = q[0], f[1] = q[1], f[3] = q[0] - q[2], f[4] = q[3], f[6] = q[1] - f[2];
    });
  }

  static constexpr StrassenUkernel leaf(const char* name) {
    return {name, FASTCONV_SIMD_ISA, kMr, kNr, &input, &panel, &panel_planes, &weights, &weights_left};
  }
};

}  // namespace
}  // namespace fastconv
