// The register tile of the GEMM leaves, written once over simd/ and instantiated per ISA with its tile numbers.
//
// A tile holds MR pixels x NV vectors of channels in registers. Each step of the reduction loads NV vectors of packed
// weights and broadcasts MR input values. The pixels of a tile form two halves with a base pointer each, so that one
// tile may span two rows of a narrow image (7-pixel rows fill a 14-pixel tile) and so that the compiler needs few
// address registers. All tile heights 1..kMr exist: a row of pixels is cut into tiles of nearly equal height and no
// product is wasted.
#pragma once

#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;

template <int kMr, int kNv>
struct Gemm {
  static constexpr int kNr = kNv * simd::kLanes;
  static constexpr int kBlocks = (kMr + simd::kLanes - 1) / simd::kLanes;  // transpose blocks per tile

  // Where the two halves of a tile lie; offsets in elements.
  struct Place {
    int64_t a0, a1;  // first pixel of each half in a
    int64_t c0, c1;  // and in c
    int64_t p0, p1;  // and in partial, counted in pixels
    int64_t f0, f1;  // and in a_from
  };

  // What a tile multiplies: all there; rows of b to copy on the way; pixels to copy on the way, adjacent or every other one.
  enum Operand { kThere, kRowsOfB, kPixels, kEvenPixels };

  // acc += a * b over k steps: pixels at a0 and a1 (the two halves), `row` apart, `step` from step to step. kTwice: half a step of what is
  // fetched is asked for as well.
  template <int MR, int V, bool kTwice = false>
  static inline __attribute__((always_inline)) void multiply(F (&acc)[MR][V], const float* a0, const float* a1,
                                                             int64_t row, int64_t step, const float* b, int64_t k,
                                                             const float*& fetch, int64_t fetch_step) {
    constexpr int kHalf = (MR + 1) / 2;
    [[maybe_unused]] const int64_t half_step = fetch_step / 2;
    for (; k > 0; --k) {
      __builtin_prefetch(fetch, 0, 2);
      if constexpr (kTwice) __builtin_prefetch(fetch + half_step, 0, 2);
      fetch += fetch_step;
      F w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = simd::load(b + v * simd::kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const F x = simd::set1(i < kHalf ? a0[i * row] : a1[(i - kHalf) * row]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::fma(x, w[v], acc[i][v]);
      }
      a0 += step;
      a1 += step;
      b += kNr;
    }
  }

  // What the tile's end will write, and read if there is a residual, towards the L2: rows often lie a multiple of 4 KiB apart, in
  // one set of the L1, where they would put each other out before their turn.
  template <int MR, int V>
  static inline __attribute__((always_inline)) void ask_for_results(const GemmPanel& g, const Place& at) {
    constexpr int kHalf = (MR + 1) / 2;
    const auto ask = [&](const float* c) {
      if (g.c_col == 1) {
        for (int i = 0; i < MR; ++i) {
          const float* const row = c + (i < kHalf ? at.c0 + i * g.c_row : at.c1 + (i - kHalf) * g.c_row);
          for (int v = 0; v < V; ++v) __builtin_prefetch(row + v * simd::kLanes, 0, 2);
        }
      } else {
        for (int64_t j = 0; j < g.n; ++j) {
          __builtin_prefetch(c + at.c0 + j * g.c_col, 0, 2);
          __builtin_prefetch(c + at.c0 + j * g.c_col + MR - 1, 0, 2);
        }
      }
    };
    ask(g.c);
    if (g.residual && g.residual != g.c) ask(g.residual);
  }

  // `fetch` walks through memory that is wanted soon, `fetch_step` floats a step of the reduction (0: stays).
  // V: vectors of channels in use. A last panel of few channels takes one.
  template <int MR, int V, Operand kFrom>
  static void tile(const GemmPanel& g, const Place& at, const float* fetch, int64_t fetch_step) {
    constexpr int kHalf = (MR + 1) / 2;
    F acc[MR][V];
    if (g.first && g.row_bias) {
      // Sums begin with it: what is added at a tile's end holds up the next one's products.
      const float *const b0 = g.row_bias + at.p0, *const b1 = g.row_bias + at.p1;
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::set1(i < kHalf ? b0[i] : b1[i - kHalf]);
    } else if (g.first) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::zero();
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const float* p = g.partial + (i < kHalf ? at.p0 + i : at.p1 + i - kHalf) * kNr;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[i][v] = simd::load(p + v * simd::kLanes);
      }
    }

    if (g.expect) ask_for_results<MR, V>(g, at);
    const int64_t row = g.a_row, step = g.a_k;
    if constexpr (kFrom == kPixels || kFrom == kEvenPixels) {
      // Pixels are copied some steps before they are multiplied, so that broadcasts find them in the L1, and asked for before that.
      const float *f0 = g.a_from + at.f0, *f1 = g.a_from + at.f1;
      float* copy = g.a_copy + at.a0;
      const float *a = copy, *b = g.b;
      int64_t left = g.seg_k;
      const auto copy_step = [&]() __attribute__((always_inline)) {
        if (left-- <= 0) return;
        copy_pixels<kFrom, kHalf>(f0, copy, kReach * g.a_from_k);
        if constexpr (MR > kHalf) copy_pixels<kFrom, MR - kHalf>(f1, copy + kHalf, kReach * g.a_from_k);
        f0 += g.a_from_k, f1 += g.a_from_k, copy += step;
      };
      for (int k = 0; k < kEarly; ++k) copy_step();
      for (int64_t k = g.seg_k; k > 0; --k) {
        copy_step();
        __builtin_prefetch(fetch, 0, 2);
        fetch += fetch_step;
        F w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) w[v] = simd::load(b + v * simd::kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const F x = simd::set1(a[i]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[i][v] = simd::fma(x, w[v], acc[i][v]);
        }
        a += step;
        b += kNr;
      }
    } else {
      const float* from = g.b_from;
      float* copy = g.b_copy;
      simd::Mask used[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64_t left = kFrom == kRowsOfB ? g.n - v * simd::kLanes : 0;
        used[v] = simd::first(left > 0 ? left : 0);
      }
      for (int64_t s = 0; s < g.segs; ++s) {
        const float* a0 = g.a + at.a0 + g.a_seg[s];
        const float* a1 = g.a + at.a1 + g.a_seg[s];
        const float* b = g.b + (g.b_seg ? g.b_seg[s] : s * g.seg_k * kNr);
        if constexpr (kFrom == kThere) {
          multiply<MR, V>(acc, a0, a1, row, step, b, g.seg_k, fetch, fetch_step);
        } else {
          for (int64_t k = g.seg_k; k > 0; --k) {
            __builtin_prefetch(fetch, 0, 2);
            fetch += fetch_step;
            F w[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
              w[v] = simd::load(from + v * simd::kLanes, used[v]);
              simd::store(copy + v * simd::kLanes, w[v]);
            }
            from += g.b_from_k, copy += kNr;
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i) {
              const F x = simd::set1(i < kHalf ? a0[i * row] : a1[(i - kHalf) * row]);
#pragma GCC unroll 4
              for (int v = 0; v < V; ++v) acc[i][v] = simd::fma(x, w[v], acc[i][v]);
            }
            a0 += step;
            a1 += step;
          }
        }
      }
    }

    if (!g.last) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        float* p = g.partial + (i < kHalf ? at.p0 + i : at.p1 + i - kHalf) * kNr;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) simd::store(p + v * simd::kLanes, acc[i][v]);
      }
      return;
    }

    if (g.c_col == 1) {
      if (V == kNv && g.n == kNr && g.row_bias && !g.bias && !g.residual) {
        store_rows<MR, V, false>(g, at, acc, false, true);
      } else if (V < kNv || g.n < kNr || g.row_bias) {
        store_rows<MR, V, true>(g, at, acc, g.residual, g.row_bias && !g.bias);
      } else if (g.residual) {
        store_rows<MR, V, false>(g, at, acc, true, false);
      } else {
        store_rows<MR, V, false>(g, at, acc, false, false);
      }
      return;
    }

    // NCHW: through a small buffer, then rows of pixels per channel. Rows past MR are never stored, but are computed with.
    alignas(64) float buffer[kBlocks * simd::kLanes][kNr];
#pragma GCC unroll 16
    for (int i = 0; i < kBlocks * simd::kLanes; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        simd::store(&buffer[i][v * simd::kLanes], i < MR ? acc[i < MR ? i : 0][v] : simd::zero());
    store_transposed(g, at.c0, &buffer[0][0], MR);
  }

  static constexpr int kEarly = 16, kReach = 16;  // steps

  // N pixels of one channel side by side; those `ahead` of them are asked for.
  template <Operand kFrom, int N>
  static inline __attribute__((always_inline)) void copy_pixels(const float* from, float* to, int64_t ahead) {
    constexpr int kStep = kFrom == kEvenPixels ? 2 : 1, kL = simd::kLanes;
    __builtin_prefetch(from + ahead);
    __builtin_prefetch(from + ahead + (N - 1) * kStep);
#pragma GCC unroll 16
    for (int j = 0; j < N; j += kL) {
      const int count = N - j < kL ? N - j : kL, reach = (count - 1) * kStep + 1;
      F x = simd::load(from + j * kStep, simd::first(reach < kL ? reach : kL));
      if constexpr (kStep == 2)
        x = simd::even(x, reach > kL ? simd::load(from + j * kStep + kL, simd::first(reach - kL)) : simd::zero());
      simd::store(to + j, x, simd::first(count));
    }
  }

  // A last panel that fills at most half of its second vector: two pixels share that one, a half each, three products for four. Whole
  // reductions without row_bias only.
  template <int MR>
  static void paired_tile(const GemmPanel& g, const Place& at, const float* fetch, int64_t fetch_step) {
    constexpr int kHalf = (MR + 1) / 2, kPairs = (MR + 1) / 2;
    const simd::Mask high = simd::range(simd::kLanes / 2, simd::kLanes);
    F acc[MR], pair[kPairs];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) acc[i] = simd::zero();
#pragma GCC unroll 16
    for (int j = 0; j < kPairs; ++j) pair[j] = simd::zero();
    const int64_t row = g.a_row, step = g.a_k;
    for (int64_t s = 0; s < g.segs; ++s) {
      const float* a0 = g.a + at.a0 + g.a_seg[s];
      const float* a1 = g.a + at.a1 + g.a_seg[s];
      const float* b = g.b + (g.b_seg ? g.b_seg[s] : s * g.seg_k * kNr);
      for (int64_t k = g.seg_k; k > 0; --k) {
        __builtin_prefetch(fetch, 0, 2);
        fetch += fetch_step;
        const F w = simd::load(b), halves = simd::load_half_twice(b + simd::kLanes);
        F x[2];
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          x[i % 2] = simd::set1(i < kHalf ? a0[i * row] : a1[(i - kHalf) * row]);
          acc[i] = simd::fma(x[i % 2], w, acc[i]);
          if (i % 2) pair[i / 2] = simd::fma(simd::select(high, x[1], x[0]), halves, pair[i / 2]);
        }
        if (MR % 2) pair[kPairs - 1] = simd::fma(x[0], halves, pair[kPairs - 1]);
        a0 += step;
        a1 += step;
        b += kNr;
      }
    }
    alignas(64) float buffer[kBlocks * simd::kLanes][kNr];
    const simd::Mask half = simd::first(simd::kLanes / 2);
#pragma GCC unroll 16
    for (int j = 0; j < kPairs; ++j)
      simd::store_pair(&buffer[2 * j][simd::kLanes], &buffer[2 * j + 1][simd::kLanes], pair[j], half);
    if (g.c_col == 1) {
      F both[MR][2];
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) both[i][0] = acc[i], both[i][1] = simd::load(&buffer[i][simd::kLanes], half);
      store_rows<MR, 2, true>(g, at, both, g.residual, false);
      return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kBlocks * simd::kLanes; ++i)
      simd::store(&buffer[i][0], i < MR ? acc[i < MR ? i : 0] : simd::zero());
    store_transposed(g, at.c0, &buffer[0][0], MR);
  }

  // The sums of all segments and nothing else.
  template <int MR>
  static void sums_tile(const GemmPanel& g, const float* a, float* c, const float* fetch, int64_t fetch_step) {
    constexpr int kHalf = (MR + 1) / 2;
    F acc[MR][kNv];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) acc[i][v] = simd::zero();
    const int64_t a_row = g.a_row, c_row = g.c_row;
    for (int64_t s = 0; s < g.segs; ++s) {
      const float* a0 = a + g.a_seg[s];
      multiply<MR, kNv, true>(acc, a0, a0 + kHalf * a_row, a_row, 1, g.b + (g.b_seg ? g.b_seg[s] : s * g.seg_k * kNr),
                              g.seg_k, fetch, fetch_step);
    }
    float* const c1 = c + kHalf * c_row;
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v)
        simd::store((i < kHalf ? c + i * c_row : c1 + (i - kHalf) * c_row) + v * simd::kLanes, acc[i][v]);
  }

  // c in rows of channels. What is the same for all rows is read once here: for all the compiler knows, a vector that is stored may
  // overwrite `g`. Constant flags leave their branches out; bare: no bias a column is added.
  template <int MR, int V, bool kMasked>
  static inline __attribute__((always_inline)) void store_rows(const GemmPanel& g, const Place& at,
                                                               const F (&acc)[MR][V], bool residual, bool bare) {
    constexpr int kHalf = (MR + 1) / 2;
    const F least = simd::set1(g.relu ? 0.0f : -__builtin_inff());  // max(least, y) is y, also where y is NaN or -0
    const int64_t row = g.c_row;
    float *const c0 = g.c + at.c0, *const c1 = g.c + at.c1;
    const float* const r0 = residual ? g.residual + at.c0 : nullptr;
    const float* const r1 = residual ? g.residual + at.c1 : nullptr;
    F bias[V];
    simd::Mask mask[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t left = g.n - v * simd::kLanes;
      mask[v] = simd::first(left > 0 ? left : 0);
      bias[v] = !g.bias   ? simd::zero()
                : kMasked ? simd::load(g.bias + v * simd::kLanes, mask[v])
                          : simd::load(g.bias + v * simd::kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const int64_t in_half = i < kHalf ? i : i - kHalf;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64_t at_c = in_half * row + v * simd::kLanes;
        F y = bare ? acc[i][v] : simd::add(acc[i][v], bias[v]);
        if (residual) {
          const float* r = (i < kHalf ? r0 : r1) + at_c;
          y = simd::add(y, kMasked ? simd::load(r, mask[v]) : simd::load(r));
        }
        y = simd::max(least, y);
        float* c = (i < kHalf ? c0 : c1) + at_c;
        if (kMasked) {
          simd::store(c, y, mask[v]);
        } else {
          simd::store(c, y);
        }
      }
    }
  }

  // buffer: [pixels rounded up to kLanes][kNr]. The pixels of a tile lie side by side in each channel's plane, also where its
  // halves are two rows of the image.
  static __attribute__((noinline)) void store_transposed(const GemmPanel& g, int64_t c0, const float* buffer,
                                                         int pixels) {
    const F least = simd::set1(g.relu ? 0.0f : -__builtin_inff());
    const float* const bias = g.bias;
    const float* const residual = g.residual ? g.residual + c0 : nullptr;
    float* const c = g.c + c0;
    const int64_t n = g.n, plane = g.c_col;
    for (int base = 0; base < pixels; base += simd::kLanes) {
      const simd::Mask m = simd::first(pixels - base);
      for (int64_t j = 0; j < n; j += simd::kLanes) {
        F col[simd::kLanes];
        simd::transpose_block(buffer + base * kNr + j, kNr, col);
        const int64_t cols = n - j < simd::kLanes ? n - j : simd::kLanes;
        float* at = c + j * plane + base;
#pragma GCC unroll 16
        for (int t = 0; t < simd::kLanes; ++t, at += plane) {
          if (t >= cols) break;
          F y = col[t];
          if (bias) y = simd::add(y, simd::set1(bias[j + t]));
          if (residual) y = simd::add(y, simd::load(residual + (at - c), m));
          simd::store(at, simd::max(least, y), m);
        }
      }
    }
  }

  // One pixel against P panels at once: the sums of a single one would wait for each other, and one stream of weights for memory.
  template <int P>
  static void pixel_tile(const GemmPanel& g, int64_t column) {
    constexpr int64_t kAhead = 16;  // steps of the reduction that weights are asked for ahead
    const int64_t size = g.segs * g.seg_k * kNr;
    const float* b = g.b + column / kNr * size;
    F acc[P][kNv];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) acc[p][v] = simd::zero();
    for (int64_t s = 0; s < g.segs; ++s) {
      const float* a = g.a + g.a_seg[s];
      for (int64_t k = 0; k < g.seg_k; ++k, b += kNr, a += g.a_k) {
        const F x = simd::set1(*a);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
          for (int v = 0; v < kNv; ++v) {
            const float* w = b + p * size + v * simd::kLanes;
            __builtin_prefetch(w + kAhead * kNr, 0, 3);
            acc[p][v] = simd::fma(x, simd::load(w), acc[p][v]);
          }
        }
      }
    }
    const F least = simd::set1(g.relu ? 0.0f : -__builtin_inff());  // as in store_rows
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kNv; ++v) {
        const int64_t at = column + p * kNr + v * simd::kLanes, left = g.n - at;
        const simd::Mask mask = simd::first(left > 0 ? left : 0);
        F y = simd::add(acc[p][v], g.bias ? simd::load(g.bias + at, mask) : simd::zero());
        if (g.residual) y = simd::add(y, simd::load(g.residual + at, mask));
        simd::store(g.c + at, simd::max(least, y), mask);
      }
    }
  }

  static void pixel(const GemmPanel* g) {
    int64_t column = 0;
    for (; column + 3 * kNr < g->n; column += 4 * kNr) pixel_tile<4>(*g, column);
    for (; column < g->n; column += kNr) pixel_tile<1>(*g, column);
  }

  using TileFn = void (*)(const GemmPanel&, const Place&, const float*, int64_t);
  using SumsFn = void (*)(const GemmPanel&, const float*, float*, const float*, int64_t);

  template <int... I>
  struct Table {
    static constexpr TileFn fn[3][kMr] = {{&tile<I + 1, 1, kThere>...},
                                          {&tile<I + 1, kNv, kThere>...},
                                          {(kNv == 2 ? &paired_tile<I + 1> : &tile<I + 1, kNv, kThere>)...}};
    static constexpr TileFn rows_of_b[kMr] = {&tile<I + 1, kNv, kRowsOfB>...};
    static constexpr TileFn pixels[2][kMr] = {{&tile<I + 1, kNv, kPixels>...}, {&tile<I + 1, kNv, kEvenPixels>...}};
    static constexpr SumsFn sums[kMr] = {&sums_tile<I + 1>...};
  };
  template <int N, int... I>
  struct Count : Count<N - 1, N - 1, I...> {};
  template <int... I>
  struct Count<0, I...> {
    using type = Table<I...>;
  };

  // Tiles as panel() cuts a row of pixels. What panel() spends on the end of a tile, even one without anything to add, is 5 % of
  // a reduction of 64.
  static void sums(const GemmPanel* gp) {
    const GemmPanel& g = *gp;
    using Tiles = typename Count<kMr>::type;
    const int64_t tiles = (g.inner + kMr - 1) / kMr, base = g.inner / tiles, extra = g.inner % tiles;
    const float* a = g.a;
    float* c = g.c;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t m = base + (t < extra ? 1 : 0);
      const bool fetch = t < g.fetches;
      Tiles::sums[m - 1](g, a, c, fetch ? g.fetch[t].at : g.b, fetch ? g.fetch[t].step : 0);
      a += m * g.a_row, c += m * g.c_row;
    }
  }

  static void panel(const GemmPanel* gp) {
    const GemmPanel& g = *gp;
    using Tiles = typename Count<kMr>::type;
    const bool paired = g.n > simd::kLanes && 2 * g.n <= 3 * simd::kLanes && g.first && g.last && !g.row_bias;
    const TileFn* const fn = g.a_from ? Tiles::pixels[g.a_from_row == 2] : Tiles::fn[paired ? 2 : g.n > simd::kLanes];
    int64_t done = 0, o = 0;
    // The first pixel of the tile's halves is pixel i0 of row o0, and pixel i1 of row o1.
    const auto run = [&](int64_t m, int64_t o0, int64_t i0, int64_t o1, int64_t i1) {
      Place at;
      at.a0 = g.a_tile ? done * g.a_tile : o0 * g.a_outer + i0 * g.a_row;
      at.a1 = g.a_tile ? done * g.a_tile + (m + 1) / 2 : o1 * g.a_outer + i1 * g.a_row;
      at.c0 = o0 * g.c_outer + i0 * g.c_row, at.c1 = o1 * g.c_outer + i1 * g.c_row;
      at.p0 = o0 * g.inner + i0, at.p1 = o1 * g.inner + i1;
      at.f0 = o0 * g.a_from_outer + i0 * g.a_from_row, at.f1 = o1 * g.a_from_outer + i1 * g.a_from_row;
      const bool fetch = done < g.fetches;
      (done == 0 && g.b_from ? Tiles::rows_of_b : fn)[m - 1](g, at, fetch ? g.fetch[done].at : g.b,
                                                             fetch ? g.fetch[done].step : 0);
      ++done;
    };
    // Two short rows per tile where both fit.
    if (2 * g.inner <= kMr)
      for (; o + 2 <= g.outer; o += 2) run(2 * g.inner, o, 0, o + 1, 0);
    const int64_t tiles = (g.inner + kMr - 1) / kMr;
    const int64_t base = g.inner / tiles, extra = g.inner % tiles;
    for (; o < g.outer; ++o) {
      int64_t i = 0;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t m = base + (t < extra ? 1 : 0);
        run(m, o, i, o, i + (m + 1) / 2);
        i += m;
      }
    }
  }
};

}  // namespace
}  // namespace fastconv
