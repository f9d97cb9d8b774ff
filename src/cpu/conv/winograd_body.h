// The one-dimensional transforms of F(2,3) and F(4,3), stride 1 and 2, and those of the weights: what the bodies of a
// Winograd leaf share, written over simd/. A two-dimensional transform is the one-dimensional one down the columns, then along
// the rows. The first is made in parts, some of its rows each, so that what a part leaves for the second stays in registers.
//
// F(o,r) evaluates the product of polynomials at o + r - 2 points and at infinity: Y = A' [(G g) * (B' d)] (Lavin and
// Gray, arXiv:1509.09308). With M(x) the product of (x - p) over the points, row p of B' holds the coefficients of
// M(x) / (x - p), its last row those of M; row p of G is (1, p, p^2) / M'(p); row j of A' is p^j. Points:
//   F(2,3) {0, 1, -1}: every factor is 1, 1/2 or 1/4, so that small integers come out exactly.
//   F(4,3) {0, +-5/8, +-3/2}: half the error of {0, +-1, +-2} and as many operations; powers are exact in float32.
//   Its ragged tiles {0, +-3/2} and infinity: 0.55 of the error of whole ones ({0, +-5/8} 0.65; +-5/8 and +-3/2 0.45 and 3 operations more).
// Stride 2 (winograd_tile.h): F(o,2) on the even inputs, the inverse of o columns of its A' on the odd ones. Points:
//   F(2,3) {0, 1}; columns 0 and infinity, whose inverse is 1. Small integers come out exactly.
//   F(4,3) {0, +-5/4, 1/2}; columns 0, +-5/4 and infinity. 2.5 times the error of a plain sum; {0, +-1, 1/2} has 3 times, and
//   most other choices of columns up to 7 times.
// Numerics: each value is one fixed sequence of operations, wherever its tile lies.
#pragma once

#include "cpu/simd/runs.h"
#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;
using simd::Mask;
constexpr int kL = simd::kLanes;
constexpr int kNr = 2 * kL;   // channels of a panel
constexpr int kColumns = 28;  // output columns that are transformed together: rows of 14, 28 and 56 pixels waste none

#if defined(__GNUC__)
#define FASTCONV_INLINE inline __attribute__((always_inline))
#define FASTCONV_LAMBDA __attribute__((always_inline))
#define FASTCONV_APART __attribute__((noinline))
#else
#define FASTCONV_APART
#define FASTCONV_INLINE inline
#define FASTCONV_LAMBDA
#endif

FASTCONV_INLINE int64_t clamp(int64_t x, int64_t lo, int64_t hi) {
  return x < lo ? lo : (x > hi ? hi : x);
}

// Vectors of the compiler's own, for the transform of weights: eight kernels in float64.
constexpr int kKernels = 8;
typedef double D __attribute__((vector_size(8 * kKernels)));
typedef float S __attribute__((vector_size(4 * kKernels)));

// An address past an array does no harm.
FASTCONV_INLINE void prefetch(const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

FASTCONV_INLINE void prefetch_l2(const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#else
  (void)p;
#endif
}

// Sides of the tiles of output, input and M; kStep: inputs from tile to tile; tiles of a strip of the input transform, of
// planes and of pixels.
// A part P of a transform makes rows kInputRows[P][0], [1], .. (kOutputRows) of the result, -1: none. It is given a function that loads
// a value; parts together load those that several of them need more than once.
// Rest: the transform of a ragged tile of kOut outputs, which reads kReads inputs and makes some of the values and products, those
// whose bit is set in kValues and kSums, for the same weights.
struct NoRest {
  static constexpr int kOut = 0, kReads = 0;
};

// What F(2,3) does for its first output: infinity gives nothing to it.
struct F23Rest {
  static constexpr int kOut = 1, kReads = 3;
  static constexpr unsigned kValues = 0b0111, kSums = 0b0111;
  static constexpr int kInputParts = 1, kOutputParts = 1;
  static constexpr int kInputRows[1][3] = {{0, 1, 2}}, kOutputRows[1][1] = {{0}};

  template <int P, class Load>
  static FASTCONV_INLINE void input(const Load& d, F y[]) {
    const F d1 = d(1), d2 = d(2);
    y[0] = simd::sub(d(0), d2);
    y[1] = simd::add(d1, d2);
    y[2] = simd::sub(d2, d1);
  }
  template <int P, class Load>
  static FASTCONV_INLINE void output(const Load& m, F y[]) {
    y[0] = simd::add(simd::add(m(0), m(1)), m(2));
  }
};

struct F23 {
  using Rest = F23Rest;
  static constexpr int kOut = 2, kIn = 4, kProducts = 4, kStep = 2;
  static constexpr int kReads = kIn;
  static constexpr unsigned kValues = 0b1111, kSums = 0b1111;
  static constexpr int kTiles = kColumns / kOut, kPixelTiles = kTiles;
  static constexpr int kInputParts = 1, kOutputParts = 1;
  static constexpr int kInputRows[1][4] = {{0, 1, 2, 3}}, kOutputRows[1][2] = {{0, 1}};

  // 4 additions.
  template <int P, class Load>
  static FASTCONV_INLINE void input(const Load& d, F y[]) {
    const F d1 = d(1), d2 = d(2);
    y[0] = simd::sub(d(0), d2);
    y[1] = simd::add(d1, d2);
    y[2] = simd::sub(d2, d1);
    y[3] = simd::sub(d1, d(3));
  }
  // 4 additions.
  template <int P, class Load>
  static FASTCONV_INLINE void output(const Load& m, F y[]) {
    const F m1 = m(1), m2 = m(2);
    y[0] = simd::add(simd::add(m(0), m1), m2);
    y[1] = simd::sub(simd::sub(m1, m2), m(3));
  }
  static FASTCONV_INLINE void weights(const D& g0, const D& g1, const D& g2, D u[4]) {
    const D even = g0 + g2;
    u[0] = g0;
    u[1] = 0.5 * (even + g1);
    u[2] = 0.5 * (even - g1);
    u[3] = g2;
  }
};

struct F43Points {
  static constexpr float kP = 0.625f, kQ = 1.5f;  // all powers below are exact in float32
  static constexpr float kP2 = kP * kP, kQ2 = kQ * kQ;
};

// F(2,3) at 0, +-q and infinity.
struct F43Rest : F43Points {
  static constexpr int kOut = 2, kReads = 4;
  static constexpr unsigned kValues = 0b111001, kSums = 0b111001;
  static constexpr int kInputParts = 1, kOutputParts = 1;
  static constexpr int kInputRows[1][4] = {{0, 3, 4, 5}}, kOutputRows[1][2] = {{0, 1}};

  // 5 operations.
  template <int P, class Load>
  static FASTCONV_INLINE void input(const Load& d, F y[]) {
    const F q = simd::set1(kQ), d1 = d(1), d2 = d(2);
    y[0] = simd::nfma(simd::set1(kP2), d2, simd::mul(simd::set1(kP2 * kQ2), d(0)));
    y[1] = simd::fma(q, d1, d2);
    y[2] = simd::nfma(q, d1, d2);
    y[3] = simd::nfma(simd::set1(kQ2), d1, d(3));
  }
  // 4 operations. The weights at +-q are those of F(2,3) by q^2 - p^2.
  template <int P, class Load>
  static FASTCONV_INLINE void output(const Load& m, F y[]) {
    constexpr float kScale = kQ2 - kP2;
    const F m3 = m(3), m4 = m(4);
    y[0] = simd::fma(simd::set1(kScale), simd::add(m3, m4), m(0));
    y[1] = simd::fma(simd::set1(kScale * kQ), simd::sub(m3, m4), m(5));
  }
};

struct F43 : F43Points {
  using Rest = F43Rest;
  static constexpr int kOut = 4, kIn = 6, kProducts = 6, kStep = 4;
  static constexpr int kReads = kIn;
  static constexpr unsigned kValues = 0b111111, kSums = 0b111111;
  static constexpr int kTiles = kColumns / kOut, kPixelTiles = kTiles;

  static constexpr int kInputParts = 3, kOutputParts = 2;
  static constexpr int kInputRows[3][2] = {{0, 5}, {1, 2}, {3, 4}}, kOutputRows[2][2] = {{0, 2}, {1, 3}};

  // 4 operations a part. Even and odd coefficients of M / (x - p) are the sum and the difference for p and -p.
  template <int P, class Load>
  static FASTCONV_INLINE void input(const Load& d, F y[]) {
    if constexpr (P == 0) {
      const F sum = simd::set1(kP2 + kQ2), product = simd::set1(kP2 * kQ2);
      y[0] = simd::fma(product, d(0), simd::nfma(sum, d(2), d(4)));
      y[1] = simd::fma(product, d(1), simd::nfma(sum, d(3), d(5)));
    } else {
      const F at = simd::set1(P == 1 ? kP : kQ), other2 = simd::set1(P == 1 ? kQ2 : kP2);
      const F even = simd::nfma(other2, d(2), d(4)), odd = simd::nfma(other2, d(1), d(3));
      y[0] = simd::fma(at, odd, even);
      y[1] = simd::nfma(at, odd, even);
    }
  }
  // 6 operations a part.
  template <int P, class Load>
  static FASTCONV_INLINE void output(const Load& m, F y[]) {
    if constexpr (P == 0) {
      const F even_p = simd::add(m(1), m(2)), even_q = simd::add(m(3), m(4));
      y[0] = simd::add(simd::add(m(0), even_p), even_q);
      y[1] = simd::fma(simd::set1(kQ2), even_q, simd::mul(simd::set1(kP2), even_p));
    } else {
      const F odd_p = simd::sub(m(1), m(2)), odd_q = simd::sub(m(3), m(4));
      y[0] = simd::fma(simd::set1(kQ), odd_q, simd::mul(simd::set1(kP), odd_p));
      y[1] = simd::fma(simd::set1(kQ2 * kQ), odd_q, simd::fma(simd::set1(kP2 * kP), odd_p, m(5)));
    }
  }
  static FASTCONV_INLINE void weights(const D& g0, const D& g1, const D& g2, D u[6]) {
    constexpr double p = kP, q = kQ, p2 = p * p, q2 = q * q;
    constexpr double at_p = 1 / (2 * p2 * (p2 - q2)), at_q = 1 / (2 * q2 * (q2 - p2));
    const D even_p = at_p * (g0 + p2 * g2), odd_p = (at_p * p) * g1;
    const D even_q = at_q * (g0 + q2 * g2), odd_q = (at_q * q) * g1;
    u[0] = (1 / (p2 * q2)) * g0;
    u[1] = even_p + odd_p;
    u[2] = even_p - odd_p;
    u[3] = even_q + odd_q;
    u[4] = even_q - odd_q;
    u[5] = g2;
  }
};

// What F(2,3) does for its first output.
struct F23Stride2Rest {
  static constexpr int kOut = 1, kReads = 3;
  static constexpr unsigned kValues = 0b01101, kSums = 0b101;
  static constexpr int kInputParts = 1, kOutputParts = 1;
  static constexpr int kInputRows[1][3] = {{0, 2, 3}}, kOutputRows[1][1] = {{0}};

  template <int P, class Load>
  static FASTCONV_INLINE void input(const Load& d, F y[]) {
    y[1] = d(2);
    y[0] = simd::sub(d(0), y[1]);
    y[2] = d(1);
  }
  template <int P, class Load>
  static FASTCONV_INLINE void output(const Load& m, F y[]) {
    y[0] = simd::add(m(0), m(2));
  }
};

struct F23Stride2 {
  using Rest = F23Stride2Rest;
  static constexpr int kOut = 2, kIn = 5, kProducts = 3, kStep = 4;
  static constexpr int kReads = kIn;
  static constexpr unsigned kValues = 0b11111, kSums = 0b111;
  static constexpr int kTiles = 7, kPixelTiles = 1;

  static constexpr int kInputParts = 1, kOutputParts = 1;
  static constexpr int kInputRows[1][5] = {{0, 1, 2, 3, 4}}, kOutputRows[1][2] = {{0, 1}};

  // 2 additions; products at 0, infinity, 1.
  template <int P, class Load>
  static FASTCONV_INLINE void input(const Load& d, F y[]) {
    y[2] = d(2);
    y[0] = simd::sub(d(0), y[2]);
    y[1] = simd::sub(d(4), y[2]);
    y[3] = d(1);
    y[4] = d(3);
  }
  // 2 additions.
  template <int P, class Load>
  static FASTCONV_INLINE void output(const Load& m, F y[]) {
    const F m2 = m(2);
    y[0] = simd::add(m(0), m2);
    y[1] = simd::add(m(1), m2);
  }
  static FASTCONV_INLINE void weights(const D& g0, const D& g1, const D& g2, D u[4]) {
    u[0] = g0;
    u[1] = g2;
    u[2] = g0 + g2;
    u[3] = g1;
  }
};

struct F43Stride2 {
  using Rest = NoRest;
  static constexpr int kOut = 4, kIn = 9, kProducts = 5, kStep = 8;
  static constexpr int kReads = kIn;
  static constexpr unsigned kValues = 0b111111111, kSums = 0b11111;
  static constexpr int kTiles = 4, kPixelTiles = 1;
  static constexpr double kP = 1.25, kQ = 0.5;  // the points

  static constexpr int kInputParts = 5, kOutputParts = 2;
  static constexpr int kInputRows[5][2] = {{0, 4}, {1, 2}, {3, -1}, {5, 8}, {6, 7}},
                       kOutputRows[2][2] = {{0, 2}, {1, 3}};

  // 15 operations; products at 0, p, -p, infinity, q, those at p and -p times 2 p^2. f: the even inputs times (x - q).
  template <int P, class Load>
  static FASTCONV_INLINE void input(const Load& d, F y[]) {
    const F p = simd::set1(kP), q = simd::set1(kQ), p2 = simd::set1(kP * kP), over_p2 = simd::set1(1 / (kP * kP));
    if constexpr (P == 0) {
      const F d2 = d(2), d6 = d(6);
      y[0] = simd::nfma(p2, simd::nfma(q, d(0), d2), simd::nfma(q, d(4), d6));
      y[1] = simd::nfma(p2, d2, d6);
    } else if constexpr (P == 1) {
      const F d4 = d(4), f1 = simd::nfma(q, d(2), d4), f2 = simd::nfma(q, d4, d(6));
      y[0] = simd::fma(p, f1, f2);
      y[1] = simd::nfma(p, f1, f2);
    } else if constexpr (P == 2) {
      y[0] = simd::nfma(p2, simd::nfma(q, d(2), d(4)), simd::nfma(q, d(6), d(8)));
    } else if constexpr (P == 3) {
      y[0] = simd::nfma(over_p2, d(5), d(1));
      y[1] = simd::nfma(p2, d(3), d(7));
    } else {
      const F d3 = d(3), d5 = d(5);
      y[0] = simd::fma(p, d3, d5);
      y[1] = simd::nfma(p, d3, d5);
    }
  }
  // 10 operations.
  template <int P, class Load>
  static FASTCONV_INLINE void output(const Load& m, F y[]) {
    const F m1 = m(1), m2 = m(2), m4 = m(4);
    if constexpr (P == 0) {
      const F even = simd::add(m1, m2);
      y[0] = simd::fma(simd::set1(0.5 / (kP * kP)), even, simd::add(m(0), m4));
      y[1] = simd::fma(simd::set1(0.5), even, simd::mul(simd::set1(kQ * kQ), m4));
    } else {
      const F odd = simd::sub(m1, m2);
      y[0] = simd::fma(simd::set1(0.5 / kP), odd, simd::mul(simd::set1(kQ), m4));
      y[1] = simd::fma(simd::set1(0.5 * kP), odd, simd::fma(simd::set1(kQ * kQ * kQ), m4, m(3)));
    }
  }
  static FASTCONV_INLINE void weights(const D& g0, const D& g1, const D& g2, D u[6]) {
    constexpr double p = kP, q = kQ;
    u[0] = (1 / (p * p * q)) * g0;
    u[1] = (1 / (p - q)) * (g0 + p * g2);
    u[2] = (-1 / (p + q)) * (g0 - p * g2);
    u[3] = g2;
    u[4] = (1 / (q * (q * q - p * p))) * (g0 + q * g2);
    u[5] = g1;
  }
};

// Rows of a part.
template <int N>
constexpr int rows_of(const int (&rows)[N]) {
  return rows[N - 1] < 0 ? N - 1 : N;
}

// All parts of a one-dimensional transform, P the first; of a ragged tile's values those alone that it has.
template <class W, int P = 0, class Load>
FASTCONV_INLINE void input_all(const Load& d, F y[]) {
  constexpr int kRows = rows_of(W::kInputRows[P]);
  F part[kRows];
  W::template input<P>(d, part);
#pragma GCC unroll 9
  for (int i = 0; i < kRows; ++i) y[W::kInputRows[P][i]] = part[i];
  if constexpr (P + 1 < W::kInputParts) input_all<W, P + 1>(d, y);
}
template <class W, int P = 0, class Load>
FASTCONV_INLINE void output_all(const Load& m, F y[]) {
  constexpr int kRows = rows_of(W::kOutputRows[P]);
  F part[kRows];
  W::template output<P>(m, part);
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) y[W::kOutputRows[P][i]] = part[i];
  if constexpr (P + 1 < W::kOutputParts) output_all<W, P + 1>(m, y);
}

template <class W>
void transform_weights(const float* g, int64_t g_tap, float* u, const int64_t* u_at, int64_t count) {
  constexpr int kWeights = W::kOut + 2;
  for (int64_t j = 0; j < count; j += kKernels) {
    D down[3][kWeights];
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
      D tap[3];
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) {
        S narrow;
        __builtin_memcpy(&narrow, g + (3 * r + s) * g_tap + j, sizeof narrow);
        tap[r] = __builtin_convertvector(narrow, D);
      }
      W::weights(tap[0], tap[1], tap[2], down[s]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kWeights; ++i) {
      D along[kWeights];
      W::weights(down[0][i], down[1][i], down[2][i], along);
#pragma GCC unroll 6
      for (int k = 0; k < kWeights; ++k) {
        const S narrow = __builtin_convertvector(along[k], S);
        __builtin_memcpy(u + u_at[i * kWeights + k] + j, &narrow, sizeof narrow);
      }
    }
  }
}

// One row of `columns` pixels of at most kL channels, from patch[column][kL]. at: first pixel, first channel.
FASTCONV_INLINE void store_row(const WinogradOutput& p, const float* patch, int64_t columns, int64_t channel,
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

}  // namespace
}  // namespace fastconv
