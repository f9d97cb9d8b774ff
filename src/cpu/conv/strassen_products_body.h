// One product of a register tile of Strassen's, in planes: rows of pixels or of channels lie in tiles [k][row].
//
// The sums of the input are made by the tile that is first to multiply them, product by product: its loads, additions and stores hide
// behind its products.
#pragma once

#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;

template <int kMr, int kNv>
struct StrassenProducts {
  static constexpr int kNr = kNv * simd::kLanes, kL = simd::kLanes;

  static constexpr int64_t kFar = 2048;  // floats that weights are asked for ahead, where they may come from memory
  // One product of a tile [k][pair]; asks for `also` besides.
  template <int MR, int V>
  static inline __attribute__((always_inline)) void multiply_tiled(F (&acc)[MR][V], const float* a0, const float* a1,
                                                                   const float* b, int64_t k, const float*& fetch,
                                                                   int64_t fetch_step, const float* also,
                                                                   int64_t also_step) {
    constexpr int kHalf = (MR + 1) / 2;
    for (; k > 0; --k) {
      __builtin_prefetch(fetch, 0, 2);
      __builtin_prefetch(also, 0, 2);
      fetch += fetch_step, also += also_step;
      F w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = simd::load(b + v * simd::kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const F x = simd::set1(i < kHalf ? a0[i] : a1[i - kHalf]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::fma(x, w[v], acc[i][v]);
      }
      a0 += kMr, a1 += kMr, b += kNr;
    }
  }

  // Product I of a tile whose columns are made on the way: `from`, pixels of planes.
  template <int MR, int V, int I>
  static inline __attribute__((always_inline)) void multiply_columns(F (&acc)[MR][V], const float* a0, const float* a1,
                                                                     const float* from, const StrassenPanel& p,
                                                                     const float*& fetch, int64_t fetch_step) {
    constexpr int kHalf = (MR + 1) / 2, kReach = 16;  // steps that pixels are asked for before they are read
    const int64_t product = p.half * kNr, plane = p.b_from_k, ahead = kReach * plane;
    const float *x11 = from, *x12 = from + p.b_right, *x21 = from + p.b_lower, *x22 = x12 + p.b_lower;
    float* b = p.b_made;
    Mask used[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t left = p.n - v * kL;
      used[v] = simd::first(left > 0 ? left : 0);
    }
    for (int64_t k = p.half; k > 0; --k) {
      __builtin_prefetch(fetch, 0, 2);
      __builtin_prefetch(a0 + kFar, 0, 2);
      fetch += fetch_step;
      const auto ask = [&](const float* x) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v <= V; ++v) __builtin_prefetch(x + ahead + (v < V ? v * kL : V * kL - 1));
      };
      if (I == 0) ask(x11);
      if (I == 1) ask(x21);
      if (I == 2) ask(x12), ask(x22);
      F w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int at = v * kL;
        const Mask m = used[v];
        if constexpr (I == 0) w[v] = simd::load(x11 + at, m);
        if constexpr (I == 1) w[v] = simd::load(x21 + at, m);
        if constexpr (I == 2 || I == 3) w[v] = simd::sub(simd::load(x22 + at, m), simd::load(x12 + at, m));
        if constexpr (I == 2) w[v] = simd::add(w[v], simd::load(x11 + at, m));
        if constexpr (I == 4) w[v] = simd::sub(simd::load(b + product + at), simd::load(b + 2 * product + at));
        if constexpr (I == 5) w[v] = simd::sub(simd::load(x12 + at, m), simd::load(x11 + at, m));
        if constexpr (I == 6) w[v] = simd::load(x22 + at, m);
        simd::store(b + I * product + at, w[v]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const F x = simd::set1(i < kHalf ? a0[i] : a1[i - kHalf]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::fma(x, w[v], acc[i][v]);
      }
      a0 += kMr, a1 += kMr, b += kNr;
      x11 += plane, x12 += plane, x21 += plane, x22 += plane;
    }
  }

  // Product I of a tile whose pixels are summed on the way, to a: some steps before they are multiplied, so that broadcasts find them in the
  // L1, and asked for before that by the products that are first to read them.
  template <int MR, int V, int I, int kStep>
  static inline __attribute__((always_inline)) void multiply_pixels(F (&acc)[MR][V], float* a, const float* from,
                                                                    const StrassenPanel& p, const float* b,
                                                                    const float*& fetch, int64_t fetch_step) {
    static_assert(kMr <= kL);
    constexpr int kEarly = 16, kReach = 24;  // steps
    const int64_t product = p.half * kMr, plane = p.a_from_k, ahead = kReach * plane;
    const float *x11 = from, *x12 = from + p.half * plane, *x21 = from + p.a_from_odd, *x22 = x12 + p.a_from_odd;
    const Mask used = simd::first(MR);
    float* made = a;
    int64_t left = p.half;
    const auto get = [&](const float* x) __attribute__((always_inline)) {
      if (I <= 2) {
        __builtin_prefetch(x + ahead);
        if (kStep > 1) __builtin_prefetch(x + ahead + (MR - 1) * kStep / 2);
        __builtin_prefetch(x + ahead + (MR - 1) * kStep);
      }
      constexpr int reach = (MR - 1) * kStep + 1;
      const F low = simd::load(x, simd::first(reach < kL ? reach : kL));
      if constexpr (kStep == 1) return low;
      return simd::even(low, reach > kL ? simd::load(x + kL, simd::first(reach - kL)) : simd::zero());
    };
    const auto make = [&]() __attribute__((always_inline)) {
      if (left-- <= 0) return;
      F s;
      if constexpr (I == 0) s = get(x11);
      if constexpr (I == 1) s = get(x12);
      if constexpr (I == 2 || I == 5) s = simd::add(get(x21), get(x22));
      if constexpr (I == 2) s = simd::sub(s, get(x11));
      if constexpr (I == 3) s = simd::sub(get(x11), get(x21));
      if constexpr (I == 4) s = get(x22);
      if constexpr (I == 6) s = simd::sub(simd::load(made + product, used), simd::load(made + 2 * product, used));
      simd::store(made + I * product, s, used);
      x11 += plane, x12 += plane, x21 += plane, x22 += plane, made += kMr;
    };
    for (int k = 0; k < kEarly; ++k) make();
    a += I * product;
    for (int64_t k = p.half; k > 0; --k) {
      make();
      __builtin_prefetch(fetch, 0, 2);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) __builtin_prefetch(b + kFar + v * kL, 0, 2);
      fetch += fetch_step;
      F w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = simd::load(b + v * kL);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const F x = simd::set1(a[i]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::fma(x, w[v], acc[i][v]);
      }
      a += kMr;
      b += kNr;
    }
  }
};

}  // namespace
}  // namespace fastconv
