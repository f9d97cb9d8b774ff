// Vector vocabulary of the AVX2 + FMA level: 8 floats, tails by VMASKMOV. Included only by *_avx2.cpp files; see
// simd_avx512.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define FASTCONV_SIMD_ISA kIsaAvx2
#define FASTCONV_SIMD_NAME(stem) stem##_avx2

namespace {
namespace simd {

using F = __m256;
using Mask = __m256i;
constexpr int kLanes = 8;

inline Mask first(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n > 8 ? 8 : n)), lane);
}
// Lanes lo..hi-1, 0 <= lo <= hi <= kLanes.
inline Mask range(int64_t lo, int64_t hi) {
  return _mm256_andnot_si256(first(lo), first(hi));
}

inline F zero() {
  return _mm256_setzero_ps();
}
inline F set1(float x) {
  return _mm256_set1_ps(x);
}
inline F load(const float* p) {
  return _mm256_loadu_ps(p);
}
// Lanes outside the mask are zero and their memory is not touched.
inline F load(const float* p, Mask m) {
  return _mm256_maskload_ps(p, m);
}
inline void store(float* p, F v) {
  _mm256_storeu_ps(p, v);
}
inline void store(float* p, F v, Mask m) {
  _mm256_maskstore_ps(p, m, v);
}
// Past the caches, for results that are not read again before they would have left them; p is aligned to a vector. Other
// threads may see what came before stream_end in any order.
inline void stream(float* p, F v) {
  _mm256_stream_ps(p, v);
}
inline void stream_end() {
  _mm_sfence();
}

inline F add(F a, F b) {
  return _mm256_add_ps(a, b);
}
inline F sub(F a, F b) {
  return _mm256_sub_ps(a, b);
}
inline F mul(F a, F b) {
  return _mm256_mul_ps(a, b);
}
inline F div(F a, F b) {
  return _mm256_div_ps(a, b);
}
inline F fma(F a, F b, F c) {
  return _mm256_fmadd_ps(a, b, c);
}  // a * b + c
inline F nfma(F a, F b, F c) {
  return _mm256_fnmadd_ps(a, b, c);
}  // c - a * b
inline F add_each(F a, const float* p) {
  return add(a, set1(*p));
}  // a + *p
inline F fma_each(F a, const float* p, F c) {
  return fma(a, set1(*p), c);
}  // a * *p + c
// Keeps NaN: MAXPS returns its second operand when either is NaN.
inline F relu(F x) {
  return _mm256_max_ps(_mm256_setzero_ps(), x);
}
inline Mask is_nan(F x) {
  return _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
inline Mask greater(F a, F b) {
  return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
inline F select(Mask m, F yes, F no) {
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m));
}
// Leaves v in a register: of a vector that is used twice the compiler may otherwise load it twice.
inline void keep(F& v) {
#if defined(__GNUC__)
  asm("" : "+x"(v));
#endif
}
// Maximum in which a NaN of either side sticks; of equals x.
inline F max_nan(F m, F x) {
  return select(is_nan(m), m, _mm256_max_ps(m, x));
}
inline float sum(F v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// The sums of four vectors to out[0..3], each in the same order.
inline void sums4(F a, F b, F c, F d, float* out) {
  const F all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

// Elements 0, 2, 4, ... and 1, 3, 5, ... of the run a, b.
inline F in_order(F v) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
}
inline F even(F a, F b) {
  return in_order(_mm256_shuffle_ps(a, b, 0x88));
}
inline F odd(F a, F b) {
  return in_order(_mm256_shuffle_ps(a, b, 0xdd));
}
// The same, cheaper, in an order of the lanes that `in_order` undoes.
inline F even_mixed(F a, F b) {
  return _mm256_shuffle_ps(a, b, 0x88);
}
inline F odd_mixed(F a, F b) {
  return _mm256_shuffle_ps(a, b, 0xdd);
}
// shift_up of lanes in that order.
inline F shift_up_mixed(F below, F v) {
  return _mm256_blend_ps(_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 5, 2, 1, 4, 3, 6)), below, 1);
}
// Lane i of the result is lane from[i] of v; the index is made once and used often.
using Index = __m256i;
inline Index index(const int32_t from[8]) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline F permute(F v, Index from) {
  return _mm256_permutevar8x32_ps(v, from);
}
// Two runs of kLanes / 2 floats, a in the low half of the vector and b in the high half; the low half of the mask holds
// for both.
inline F load_pair(const float* a, const float* b, Mask m) {
  const __m128i k = _mm256_castsi256_si128(m);
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_maskload_ps(a, k)), _mm_maskload_ps(b, k), 1);
}
// v one lane further up; below it what `below` holds in all lanes.
inline F shift_up(F below, F v) {
  return _mm256_blend_ps(_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6)), below, 1);
}
// v one lane further down; above it what lane 0 of `above` holds.
inline F shift_down(F v, F above) {
  return _mm256_permutevar8x32_ps(_mm256_blend_ps(v, above, 1), _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
}
// p[0 .. kLanes / 2 - 1] in both halves.
inline F load_half_twice(const float* p) {
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
}
inline void store_pair(float* a, float* b, F v, Mask m) {
  const __m128i k = _mm256_castsi256_si128(m);
  _mm_maskstore_ps(a, k, _mm256_castps256_ps128(v));
  _mm_maskstore_ps(b, k, _mm256_extractf128_ps(v, 1));
}

// Vectors of rows r, which it uses up, to vectors of columns.
inline void transpose(F r[8], F out[8]) {
  F t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
    out[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
  }
}

// 8 rows of 8 floats from src (row stride ld) to 8 vectors of columns.
inline void transpose_block(const float* src, int64_t ld, F out[8]) {
  F r[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = load(src + i * ld);
  transpose(r, out);
}

// --- for pooling, softmax and layout conversion

// The lanes whose bits are set; more bits than lanes are passed over.
inline Mask lanes(uint64_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits & 255)), lane), lane);
}
// v kBy lanes further up, below it the topmost of `below`; and further down, above it the lowest of `above`.
template <int kBy>
inline F slide_up(F below, F v) {
  const __m256i from = _mm256_setr_epi32(8 - kBy, 9 - kBy, 10 - kBy, 11 - kBy, 12 - kBy, 13 - kBy, 14 - kBy, 15 - kBy);
  return _mm256_permutevar8x32_ps(_mm256_blend_ps(v, below, 256 - (256 >> kBy)), from);
}
template <int kBy>
inline F slide_down(F v, F above) {
  const __m256i from = _mm256_setr_epi32(kBy, kBy + 1, kBy + 2, kBy + 3, kBy + 4, kBy + 5, kBy + 6, kBy + 7);
  return _mm256_permutevar8x32_ps(_mm256_blend_ps(v, above, (1 << kBy) - 1), from);
}
// Lane i of the result is lane from[i] of a, or from[i] - kLanes of b.
inline F pick(F a, F b, Index from) {
  const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(from, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(a, from), _mm256_permutevar8x32_ps(b, from), second);
}

inline F max(F a, F b) {
  return _mm256_max_ps(a, b);
}  // b where either is NaN
inline float max_across(F v) {  // of lanes without NaN
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline Mask either(Mask a, Mask b) {
  return _mm256_or_si256(a, b);
}
inline bool any(Mask m) {
  return _mm256_movemask_ps(_mm256_castsi256_ps(m)) != 0;
}
inline Mask without(Mask a, Mask b) {
  return _mm256_andnot_si256(b, a);
}
// x beats m in a search for the maximum in which NaN is above everything: x > m, or x is NaN and m is not.
inline Mask above(F x, F m) {
  return _mm256_castps_si256(_mm256_and_ps(_mm256_cmp_ps(x, m, _CMP_NLE_UQ), _mm256_cmp_ps(m, m, _CMP_ORD_Q)));
}
// Lanes p[0], p[2], ..: reads 2 * kLanes floats.
inline F load_even(const float* p) {
  const __m256 pairs = _mm256_shuffle_ps(load(p), load(p + 8), 0x88);  // 0 2 8 10 | 4 6 12 14
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xd8));
}
// Lanes p[0], p[step], ..: 0 < step <= 2^26.
inline F load_step(const float* p, int64_t step, Mask m) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i at = _mm256_mullo_epi32(lane, _mm256_set1_epi32(static_cast<int>(step)));
  return _mm256_mask_i32gather_ps(zero(), p, at, _mm256_castsi256_ps(m), 4);
}
// x * 2^k with one rounding, also into the subnormals; k integral, -250 <= k <= 127, 0.5 <= |x| <= 2.
inline F scale2(F x, F k) {
  const __m256i e = _mm256_cvtps_epi32(k), half = _mm256_srai_epi32(e, 1), bias = _mm256_set1_epi32(127);
  const __m256i lo = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i hi = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(e, half), bias), 23);
  return mul(mul(x, _mm256_castsi256_ps(lo)), _mm256_castsi256_ps(hi));
}
// Three vectors of one channel each to 3 * kLanes floats of pixels at p, and back.
inline void store_pixels3(float* p, F a, F b, F c) {
  // In every result a vector's lanes keep their order, so one permutation a vector serves all three results.
  const F x = _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5));
  const F y = _mm256_permutevar8x32_ps(b, _mm256_setr_epi32(5, 0, 3, 6, 1, 4, 7, 2));
  const F z = _mm256_permutevar8x32_ps(c, _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7));
  store(p, _mm256_blend_ps(_mm256_blend_ps(x, y, 0x92), z, 0x24));
  store(p + 8, _mm256_blend_ps(_mm256_blend_ps(z, x, 0x92), y, 0x24));
  store(p + 16, _mm256_blend_ps(_mm256_blend_ps(y, z, 0x92), x, 0x24));
}
inline void load_pixels3(const float* p, F out[3]) {
  const F u = load(p), v = load(p + 8), w = load(p + 16);
  const F x = _mm256_blend_ps(_mm256_blend_ps(u, v, 0x92), w, 0x24);
  const F y = _mm256_blend_ps(_mm256_blend_ps(w, u, 0x92), v, 0x24);
  const F z = _mm256_blend_ps(_mm256_blend_ps(v, w, 0x92), u, 0x24);
  out[0] = _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5));
  out[1] = _mm256_permutevar8x32_ps(y, _mm256_setr_epi32(1, 4, 7, 2, 5, 0, 3, 6));
  out[2] = _mm256_permutevar8x32_ps(z, _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7));
}
// The same for four.
inline void turn_quads(const F in[4], F out[4]) {
  const F a = _mm256_unpacklo_ps(in[0], in[1]), b = _mm256_unpackhi_ps(in[0], in[1]);
  const F c = _mm256_unpacklo_ps(in[2], in[3]), d = _mm256_unpackhi_ps(in[2], in[3]);
  out[0] = _mm256_shuffle_ps(a, c, 0x44);
  out[1] = _mm256_shuffle_ps(a, c, 0xee);
  out[2] = _mm256_shuffle_ps(b, d, 0x44);
  out[3] = _mm256_shuffle_ps(b, d, 0xee);
}
inline void store_pixels4(float* p, F a, F b, F c, F d) {
  const F in[4] = {a, b, c, d};
  F q[4];  // pixels 0 and 4, 1 and 5, 2 and 6, 3 and 7
  turn_quads(in, q);
  store(p, _mm256_permute2f128_ps(q[0], q[1], 0x20));
  store(p + 8, _mm256_permute2f128_ps(q[2], q[3], 0x20));
  store(p + 16, _mm256_permute2f128_ps(q[0], q[1], 0x31));
  store(p + 24, _mm256_permute2f128_ps(q[2], q[3], 0x31));
}
inline void load_pixels4(const float* p, F out[4]) {
  const F u = load(p), v = load(p + 8), w = load(p + 16), x = load(p + 24);
  const F q[4] = {_mm256_permute2f128_ps(u, w, 0x20), _mm256_permute2f128_ps(u, w, 0x31),
                  _mm256_permute2f128_ps(v, x, 0x20), _mm256_permute2f128_ps(v, x, 0x31)};
  turn_quads(q, out);
}
// Four columns of kLanes rows, which lie ld apart, and back.
inline void load_quads(const float* p, int64_t ld, F out[4]) {
  F rows[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    rows[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + i * ld)), _mm_loadu_ps(p + (4 + i) * ld), 1);
  turn_quads(rows, out);
}
inline void store_quads(float* p, int64_t ld, const F in[4]) {
  F rows[4];
  turn_quads(in, rows);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_ps(p + i * ld, _mm256_castps256_ps128(rows[i]));
    _mm_storeu_ps(p + (4 + i) * ld, _mm256_extractf128_ps(rows[i], 1));
  }
}

}  // namespace simd
}  // namespace
