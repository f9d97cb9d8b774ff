// The leaves of Strassen's products, written once over simd/: sums of input quarters, sums of weights, and the register tile.
//
// A register tile makes all seven products of MR pairs of pixels by NV vectors of either half of the channels, one after the
// other in the same accumulators, so that what products share never leaves the L1 (u, w below):
//     u = P0                          even, left  = P0 + P1
//     u = P0 + P2      w = u + P3     odd,  left  = w + P4
//     P5                              odd,  right = w + P5
//                                     even, right = u + P5 + P6
// Products and the order of their sums are those of StrassenUkernel (ukernel.h).
#pragma once

#include "cpu/gemm/gemm_body.h"

namespace fastconv {
namespace {

using simd::Mask;

template <int kMr, int kNv>
struct Strassen {
  using Tile = Gemm<kMr, kNv>;
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

  template <int MR>
  static inline __attribute__((always_inline)) void put(float* to, const F (&acc)[MR][kNv]) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) simd::store(to + i * kNr + v * kL, acc[i][v]);
  }
  template <int MR>
  static inline __attribute__((always_inline)) void plus(float* to, const F (&acc)[MR][kNv]) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) {
        float* const at = to + i * kNr + v * kL;
        simd::store(at, simd::add(simd::load(at), acc[i][v]));
      }
  }
  template <int MR>
  static inline __attribute__((always_inline)) void get(const float* from, F (&acc)[MR][kNv]) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) acc[i][v] = simd::load(from + i * kNr + v * kL);
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
  };

  template <int MR>
  static inline __attribute__((always_inline)) void finish(const Quarter& q, int64_t pair, const F (&acc)[MR][kNv]) {
    if (q.n < kNr) {
      alignas(64) float sums[MR * kNr];
      put<MR>(sums, acc);
      finish_masked(q, pair, MR, sums);
      return;
    }
    float* const c = q.c + pair * q.c_pair;
    const float* const r = q.r + pair * q.r_pair;
    const int64_t c_pair = q.c_pair, r_pair = q.r_pair;
    const F least = q.least;
    F bias[kNv];
#pragma GCC unroll 4
    for (int v = 0; v < kNv; ++v) bias[v] = simd::load(q.bias + v * kL);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) {
        const F y = simd::add(simd::add(acc[i][v], bias[v]), simd::load(r + i * r_pair + v * kL));
        simd::store(c + i * c_pair + v * kL, simd::max(least, y));
      }
    }
  }
  static __attribute__((noinline)) void finish_masked(const Quarter& q, int64_t pair, int pairs, const float* sums) {
    for (int i = 0; i < pairs; ++i) {
      for (int64_t j = 0; j < q.n; j += kL) {
        const Mask m = simd::first(q.n - j);
        const F y = simd::add(simd::load(sums + i * kNr + j), simd::load(q.bias + j, m));
        const F r = simd::load(q.r + (pair + i) * q.r_pair + j, m);
        simd::store(q.c + (pair + i) * q.c_pair + j, simd::max(q.least, simd::add(y, r)), m);
      }
    }
  }

  // As Gemm::ask_for_results.
  template <int MR>
  static inline __attribute__((always_inline)) void ask_for_rows(const float* row, int64_t distance) {
    for (int i = 0; i < MR; ++i, row += distance)
      for (int v = 0; v < kNv; ++v) __builtin_prefetch(row + v * kL, 0, 2);
  }

  template <int MR>
  static void tile(const StrassenPanel& p, const Quarter (&quarter)[2][2], int64_t pair, const float* fetch,
                   int64_t fetch_step) {
    constexpr int kHalf = (MR + 1) / 2;
    alignas(64) float u[MR * kNr];
    alignas(64) float w[MR * kNr];
    const float *a0 = p.a + pair * p.a_pair, *a1 = a0 + kHalf * p.a_pair, *b = p.b;
    const int64_t row = p.a_pair, half = p.half, product = p.a_product;
    F acc[MR][kNv];
    const auto multiply = [&]() __attribute__((always_inline)) {
      Tile::template multiply<MR, kNv>(acc, a0, a1, row, 1, b, half, fetch, fetch_step);
      a0 += product, a1 += product, b += half * kNr;
    };
    const auto clear = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kNv; ++v) acc[i][v] = simd::zero();
    };
    const auto expect = [&](const Quarter& q) __attribute__((always_inline)) {
      if (!p.expect) return;
      const float *const c = q.c + pair * q.c_pair, *const r = q.r + pair * q.r_pair;
      ask_for_rows<MR>(c, q.c_pair);
      if (q.r_pair && r != c) ask_for_rows<MR>(r, q.r_pair);
    };
    clear();
    multiply();
    put<MR>(u, acc);
    expect(quarter[0][0]);
    multiply();
    finish<MR>(quarter[0][0], pair, acc);
    get<MR>(u, acc);
    multiply();
    put<MR>(u, acc);
    multiply();
    put<MR>(w, acc);
    expect(quarter[1][0]);
    multiply();
    finish<MR>(quarter[1][0], pair, acc);
    clear();
    expect(quarter[1][1]);
    multiply();
    plus<MR>(u, acc);
    plus<MR>(w, acc);
    get<MR>(w, acc);
    finish<MR>(quarter[1][1], pair, acc);
    get<MR>(u, acc);
    expect(quarter[0][1]);
    multiply();
    finish<MR>(quarter[0][1], pair, acc);
  }

  using TileFn = void (*)(const StrassenPanel&, const Quarter (&)[2][2], int64_t, const float*, int64_t);
  template <int... I>
  struct Table {
    static constexpr TileFn fn[kMr] = {&tile<I + 1>...};
  };
  template <int N, int... I>
  struct Count : Count<N - 1, N - 1, I...> {};
  template <int... I>
  struct Count<0, I...> {
    using type = Table<I...>;
  };

  static void panel(const StrassenPanel* part) {
    const StrassenPanel& p = *part;
    alignas(64) static constexpr float kZeros[kNr] = {};
    Quarter quarter[2][2];
    for (int odd = 0; odd < 2; ++odd) {
      for (int right = 0; right < 2; ++right) {
        const int64_t at = odd * p.dst_odd + right * p.dst_right;
        quarter[odd][right] = {p.dst + at,
                               p.dst_pair,
                               p.residual ? p.residual + at : kZeros,
                               p.residual ? p.dst_pair : 0,
                               p.bias ? p.bias + right * p.dst_right : kZeros,
                               simd::set1(p.relu ? 0.0f : -__builtin_inff()),
                               p.n};
      }
    }
    // Tiles of nearly equal height.
    const int64_t tiles = (p.pairs + kMr - 1) / kMr, base = p.pairs / tiles, extra = p.pairs % tiles;
    for (int64_t t = 0, pair = 0; t < tiles; ++t) {
      const int64_t m = base + (t < extra ? 1 : 0);
      const bool fetch = t < p.fetches;
      Count<kMr>::type::fn[m - 1](p, quarter, pair, fetch ? p.fetch[t].at : p.b, fetch ? p.fetch[t].step : 0);
      pair += m;
    }
  }

  static void weights(const float* const w[4], float* b, int64_t b_product, int64_t count) {
    // Vectors of the compiler's own: eight weights in float64.
    typedef double D __attribute__((vector_size(64)));
    typedef float S __attribute__((vector_size(32)));
    for (int64_t j = 0; j < count; j += 8) {
      D q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        S narrow;
        __builtin_memcpy(&narrow, w[i] + j, sizeof narrow);
        q[i] = __builtin_convertvector(narrow, D);
      }
      const D last = q[3] - q[1], all = last + q[0];
      const D factors[kStrassenProducts] = {q[0], q[2], all, last, q[2] - all, q[1] - q[0], q[3]};
#pragma GCC unroll 7
      for (int i = 0; i < kStrassenProducts; ++i) {
        const S narrow = __builtin_convertvector(factors[i], S);
        __builtin_memcpy(b + i * b_product + j, &narrow, sizeof narrow);
      }
    }
  }

  static constexpr StrassenUkernel leaf(const char* name) {
    return {name, FASTCONV_SIMD_ISA, kMr, kNr, &input, &panel, &weights};
  }
};

}  // namespace
}  // namespace fastconv
