// The operands of Winograd's inner product brought into order and scaled, written once over simd/ (FipUkernel, ukernel.h): rows of pixels, register
// tiles and panels of planes. A power of two is next to a root mean square where it lies within half a power of it.
#pragma once

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using F = simd::F;
using Mask = simd::Mask;

template <int kMr, int kNv>
struct FipOperands {
  static constexpr int kL = simd::kLanes, kNr = kNv * kL;
  static constexpr int64_t kBlock = kFipBlock;
  static_assert(kMr <= kFipRun && (kFipRun % kL == 0), "a row's head has 16 places");

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
            [&](int run, int j)
                __attribute__((always_inline)) { return simd::load(src + run * o.steps + j * kL, o.mask[run][j]); },
            plain, turned, taken[r]);
    }
    float sums[4];
    simd::sums4(taken[0], taken[R > 1 ? 1 : 0], taken[R > 2 ? 2 : 0], taken[R > 3 ? 3 : 0], sums);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) p.heads[i + r] = sums[r];
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
    for (int64_t r = 0; r < rows; ++r) p.scales[i + r] = scales[r];
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
      if constexpr (V * kL <= kWidth) {  // past `rows` zeros
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
};

}  // namespace
}  // namespace fastconv
