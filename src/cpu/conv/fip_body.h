// The leaves of Winograd's inner product (1968), written once over simd/: operands brought into order, and the register tile.
// Formula, order and forms of the operands: FipUkernel (ukernel.h).
//
// A step takes three values of k of each row and column: (a1 + b2) (a2 + b1), and a3 b3. For MR x NV vectors that are 2 MR NV multiplications and as
// many additions, for the 3 MR NV of a plain product. a's values are operands in memory; in registers are the sums, six vectors of b and two that are
// being made.
// The sums begin with what rows and columns subtract, and end with two powers of two, which round nothing.
#pragma once

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using F = simd::F;
using Mask = simd::Mask;

template <int kMr, int kNv>
struct Fip {
  static constexpr int kL = simd::kLanes, kNr = kNv * kL;
  static constexpr int64_t kBlock = int64_t{kFipRun} * kFipRuns;  // values of k of a whole block, 48
  static_assert(kMr <= kFipRun && (kFipRun % kL == 0), "a row's head has 16 places");

  // --- operands

  // The power of two next to a root mean square, and its inverse, from the mean square. False: it has left the range of a float, or there is none.
  static inline __attribute__((always_inline)) bool scale_of(float square, float& scale, float& inverse) {
    uint32_t bits;
    const float twice = square + square;
    __builtin_memcpy(&bits, &twice, 4);
    // 2 square = 2^(e - 127) [1, 2); rounded down, half of the exponent is at most half a power from the root mean square.
    const uint32_t e = ((bits >> 23) + 127) >> 1;
    power(e, scale), power(254 - e, inverse);
    return square > 0x1p-100f && square < 0x1p100f;
  }
  static inline void power(uint32_t biased, float& out) {
    const uint32_t bits = biased << 23;
    __builtin_memcpy(&out, &bits, 4);
  }
  // Then: half of the largest. Nothing but zeros: 0 and 0, so that products with them are nothing. An infinity, or not a number: 1, as it is.
  static __attribute__((noinline)) void far_scale(uint32_t most, float& scale, float& inverse) {
    if (most == 0) {
      scale = inverse = 0.0f;
      return;
    }
    const uint32_t e = most >> 23, half = e == 255 ? 127 : e < 2 ? 1 : e - 1;
    power(half, scale), power(254 - half, inverse);
  }
  // The largest of some values without their signs, as bits.
  static __attribute__((noinline)) uint32_t largest(const float* at, int64_t step, int64_t k) {
    uint32_t most = 0;
    for (int64_t j = 0; j < k; ++j) {
      uint32_t bits;
      __builtin_memcpy(&bits, at + j * step, 4);
      bits &= 0x7fffffffu;
      if (bits > most) most = bits;
    }
    return most;
  }

  // What the part of a run in a block past the whole ones has: steps, and values of run r.
  static inline int64_t rest_of(int64_t rest, int64_t steps, int r) {
    const int64_t left = rest - r * steps;
    return left < 0 ? 0 : smaller(left, steps);
  }

  // The squares of a row, added up lane by lane.
  static inline __attribute__((always_inline)) F squares(const float* src, int64_t k) {
    constexpr int kAtOnce = 4;
    F square[kAtOnce];
#pragma GCC unroll 4
    for (int j = 0; j < kAtOnce; ++j) square[j] = simd::zero();
    int64_t i = 0;
    for (; i + kAtOnce * kL <= k; i += kAtOnce * kL)
#pragma GCC unroll 4
      for (int j = 0; j < kAtOnce; ++j) {
        const F x = simd::load(src + i + j * kL);
        square[j] = simd::fma(x, x, square[j]);
      }
    for (; i < k; i += kL) {
      const F x = simd::load(src + i, simd::first(k - i));
      square[0] = simd::fma(x, x, square[0]);
    }
    return simd::add(simd::add(square[0], square[1]), simd::add(square[2], square[3]));
  }

  struct Order {
    const FipPixels p;
    const int64_t blocks, rest, steps;
    Mask mask[kFipRuns][kFipRun / kL];  // of the last block
    explicit inline Order(const FipPixels& part)
        : p(part), blocks(p.k / kBlock), rest(p.k % kBlock), steps((rest + 2) / 3) {
      for (int r = 0; r < kFipRuns; ++r)
        for (int j = 0; j < kFipRun / kL; ++j) {
          const int64_t left = rest_of(rest, steps, r) - j * kL;
          mask[r][j] = simd::first(left > 0 ? left : 0);
        }
    }
    const float* src(int64_t i) const { return p.src + (p.places ? p.places[i] : i * p.src_row); }
    float* a(int64_t i) const { return p.a + (p.places ? p.places[i] : i * p.a_row); }
  };

  // Rows i .. i + R - 1, divided by their scales.
  template <int R>
  static inline __attribute__((always_inline)) void order_some(const Order& o, int64_t i, const float* inverse) {
    const FipPixels& p = o.p;
    F taken[R];
    const F signs = alternating();
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const float* src = o.src(i + r);
      float* a = o.a(i + r);
      const F plain = simd::set1(inverse[r]), turned = simd::mul(plain, signs);
      taken[r] = simd::zero();
      for (int64_t b = 0; b < o.blocks; ++b, a += kBlock, src += kBlock)
        taken[r] = order_block(
            a, [&](int run, int j) __attribute__((always_inline)) { return simd::load(src + run * kFipRun + j * kL); },
            plain, turned, taken[r]);
      if (o.rest)
        taken[r] = order_block(
            a,
            [&](int run, int j) __attribute__((always_inline)) {
              return simd::load(src + run * o.steps + j * kL, o.mask[run][j]);
            },
            plain, turned, taken[r]);
    }
    float sums[4];
    simd::sums4(taken[0], taken[R > 1 ? 1 : 0], taken[R > 2 ? 2 : 0], taken[R > 3 ? 3 : 0], sums);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) p.heads[(i + r) * p.head_step] = sums[r];
  }

  // Each row of its own scale: those of some rows are made together, since each is a chain of many operations.
  static constexpr int kTogether = 16;
  static inline void own_scales(const Order& o, int64_t i, int64_t rows, float* inverse) {
    const FipPixels& p = o.p;
    float square[kTogether], scales[kTogether];
    for (int64_t r = 0; r < rows; r += 4) {
      const auto at = [&](int64_t j) { return squares(o.src(i + (r + j < rows ? r + j : r)), p.k); };
      simd::sums4(at(0), at(1), at(2), at(3), square + r);
    }
    const float each = 1.0f / static_cast<float>(p.k);
    for (int64_t r = rows; r < kTogether; ++r) square[r] = 1.0f;
    bool near = true;
    for (int r = 0; r < kTogether; ++r) near &= scale_of(square[r] * each, scales[r], inverse[r]);
    for (int64_t r = 0; !near && r < rows; ++r)
      if (!scale_of(square[r] * each, scales[r], inverse[r]))
        far_scale(largest(o.src(i + r), 1, p.k), scales[r], inverse[r]);
    for (int64_t r = 0; r < rows; ++r) p.scales[(i + r) * p.head_step] = scales[r];
  }

  static void order_rows(const FipPixels* part) {
    const Order o(*part);
    const FipPixels& p = o.p;
    float inverse[kTogether];
    if (p.together) {
      F all = simd::zero();
      for (int64_t i = 0; i < p.rows; ++i) all = simd::add(all, squares(o.src(i), p.k));
      const float square = simd::sum(all) / static_cast<float>(p.rows * p.k);
      float of_all;
      if (!scale_of(square, p.scales[0], of_all)) {
        uint32_t most = 0;
        for (int64_t i = 0; i < p.rows; ++i) {
          const uint32_t of_row = largest(o.src(i), 1, p.k);
          if (of_row > most) most = of_row;
        }
        far_scale(most, p.scales[0], of_all);
      }
      for (int r = 0; r < kTogether; ++r) inverse[r] = of_all;
    }
    for (int64_t i = 0; i < p.rows; i += kTogether) {
      const int64_t rows = smaller(kTogether, p.rows - i);
      if (!p.together) own_scales(o, i, rows, inverse);
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4) order_some<4>(o, i + r, inverse + r);
      for (; r < rows; ++r) order_some<1>(o, i + r, inverse + r);
    }
  }
  // All is read before anything is written: it may be the same place.
  template <class Load>
  static inline __attribute__((always_inline)) F order_block(float* a, const Load& load, F plain, F turned, F taken) {
    constexpr int kVectors = kFipRun / kL;
    F x[kFipRuns][kVectors];
#pragma GCC unroll 3
    for (int r = 0; r < kFipRuns; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) x[r][j] = simd::mul(load(r, j), r == 1 ? turned : plain);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) taken = simd::nfma(x[0][j], x[1][j], taken);
#pragma GCC unroll 3
    for (int r = 0; r < kFipRuns; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) simd::store(a + r * kFipRun + j * kL, x[r][j]);
    return taken;
  }

  static inline F alternating() {
    alignas(64) static constexpr float kSigns[16] = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
    return simd::load(kSigns);
  }

  // V vectors of neighbours in planes to [step][run][kWidth]; what they subtract and their scales to `head` and `scales`.
  template <int V, int kWidth>
  static inline __attribute__((always_inline)) void order_planes(const FipPlanes& p, float* head, float* scales,
                                                                 float* out) {
    Mask mask[V];
    F square[V], inverse[V], taken[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t left = p.rows - v * kL;
      mask[v] = simd::first(left > 0 ? left : 0), square[v] = taken[v] = simd::zero();
    }
    const float* at = p.src;
    for (int64_t k = 0; k < p.k; ++k, at += p.src_plane)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const F x = simd::load(at + v * kL, mask[v]);
        square[v] = simd::fma(x, x, square[v]);
      }
    alignas(64) float squares[V * kL], inverses[V * kL] = {};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) simd::store(squares + v * kL, square[v]);
    const float each = 1.0f / static_cast<float>(p.k);
    for (int64_t i = 0; i < p.rows; ++i)
      if (!scale_of(squares[i] * each, scales[i], inverses[i]))
        far_scale(largest(p.src + i, p.src_plane, p.k), scales[i], inverses[i]);
    for (int64_t i = p.rows; i < V * kL && i < kWidth; ++i) scales[i] = 0.0f;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) inverse[v] = simd::load(inverses + v * kL);
    const auto put = [&](float* to, int v, F x) __attribute__((always_inline)) {
      if constexpr (V * kL == kWidth) {
        simd::store(to + v * kL, x);
      } else {
        simd::store(to + v * kL, x, mask[v]);
      }
    };
    int64_t left = p.k;
    for (const float* first = p.src; left > 0; left -= kBlock, first += kBlock * p.src_plane) {
      const int64_t here = smaller(left, kBlock), steps = (here + 2) / 3, run = steps * p.src_plane;
      const int64_t seconds = rest_of(here, steps, 1), thirds = rest_of(here, steps, 2);
      const float* from = first;
      for (int64_t s = 0; s < steps; ++s, from += p.src_plane, out += kFipRuns * kWidth)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const F x = simd::mul(simd::load(from + v * kL, mask[v]), inverse[v]);
          F y = s < seconds ? simd::mul(simd::load(from + run + v * kL, mask[v]), inverse[v]) : simd::zero();
          if (s % 2) y = simd::sub(simd::zero(), y);
          const F z = s < thirds ? simd::mul(simd::load(from + 2 * run + v * kL, mask[v]), inverse[v]) : simd::zero();
          put(out, v, x), put(out + kWidth, v, y), put(out + 2 * kWidth, v, z);
          taken[v] = simd::nfma(x, y, taken[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) put(head, v, taken[v]);
  }
  static void order_tile(const FipPlanes* p) {
    order_planes<(kMr + kL - 1) / kL, kMr>(*p, p->out, p->out + kFipRun, p->out + kFipHead);
  }
  static void order_panel(const FipPlanes* p) {
    if (p->rows <= kL) return order_planes<1, kNr>(*p, p->out, p->out + kNr, p->out + 2 * kNr);
    order_planes<kNv, kNr>(*p, p->out, p->out + kNr, p->out + 2 * kNr);
  }

  // --- the register tile

  // Rows of a apart, or register tiles whose rows are the last index; what becomes of the sums.
  enum Kind { kRows, kTurned, kPlanes, kSums };

  // `steps` steps. Of row i value (step, run) lies at a + i row + run kApart + step kStep. The address of a row that is not the next value is made of
  // the row's before: the compiler would otherwise keep one for each run of each row, on the stack.
  // Of each step of `fetch` kLines places are asked for, evenly apart.
  template <int MR, int V, int kLines, int64_t kApart, int64_t kStep, class Row>
  static inline __attribute__((always_inline)) void multiply(F (&acc)[MR][V], const float*& a, Row row,
                                                             const float*& b, int64_t steps, const float*& fetch,
                                                             int64_t fetch_step) {
    const int64_t part = fetch_step / kLines;
    for (int64_t s = steps; s > 0; --s) {
#pragma GCC unroll 6
      for (int i = 0; i < kLines; ++i, fetch += part) __builtin_prefetch(fetch, 0, 2);
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
    constexpr bool kApart = kKind == kRows || kKind == kSums;
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
    const float* const heads = kApart ? p.heads + row : a;
    const float* const scales = kApart ? p.scales + row : a + kFipRun;
    F acc[MR][V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const F column = simd::load(p.columns + v * kL);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) acc[i][v] = simd::add_each(column, heads + i);
    }
    if constexpr (kApart) {
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
        for (int v = 0; v < V; ++v) simd::store(sums + i * kNr + v * kL, i < MR ? acc[i < MR ? i : 0][v] : simd::zero());
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
        if (r) y = simd::add(y, kMasked ? simd::load(r + i * c_row + v * kL, mask[v]) : simd::load(r + i * c_row + v * kL));
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
    return {name, FASTCONV_SIMD_ISA, kMr, kNr, &order_rows, &order_tile, &order_panel, &rows, &turned, &planes, &sums};
  }
};

}  // namespace
}  // namespace fastconv
