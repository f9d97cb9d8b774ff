// Vector vocabulary of the AVX-512 level: 16 floats, tails by mask registers. Included only by *_avx512.cpp files;
// every simd_*.h offers the same names, so that a body is written once and instantiated per ISA.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define FASTCONV_SIMD_ISA kIsaAvx512
#define FASTCONV_SIMD_NAME(stem) stem##_avx512

namespace {
namespace simd {

using F = __m512;
using Mask = __mmask16;
constexpr int kLanes = 16;

inline Mask first(int64_t n) {
  return static_cast<Mask>(n >= 16 ? 0xffffu : (1u << n) - 1u);
}
// Lanes lo..hi-1, 0 <= lo <= hi <= kLanes.
inline Mask range(int64_t lo, int64_t hi) {
  return static_cast<Mask>(first(hi) & ~first(lo));
}

inline F zero() {
  return _mm512_setzero_ps();
}
inline F set1(float x) {
  return _mm512_set1_ps(x);
}
inline F load(const float* p) {
  return _mm512_loadu_ps(p);
}
// Lanes outside the mask are zero and their memory is not touched.
inline F load(const float* p, Mask m) {
  return _mm512_maskz_loadu_ps(m, p);
}
inline void store(float* p, F v) {
  _mm512_storeu_ps(p, v);
}
inline void store(float* p, F v, Mask m) {
  _mm512_mask_storeu_ps(p, m, v);
}
// Past the caches, for results that are not read again before they would have left them; p is aligned to a vector. Other
// threads may see what came before stream_end in any order.
inline void stream(float* p, F v) {
  _mm512_stream_ps(p, v);
}
inline void stream_end() {
  _mm_sfence();
}

inline F add(F a, F b) {
  return _mm512_add_ps(a, b);
}
inline F sub(F a, F b) {
  return _mm512_sub_ps(a, b);
}
inline F mul(F a, F b) {
  return _mm512_mul_ps(a, b);
}
inline F div(F a, F b) {
  return _mm512_div_ps(a, b);
}
inline F fma(F a, F b, F c) {
  return _mm512_fmadd_ps(a, b, c);
}  // a * b + c
inline F nfma(F a, F b, F c) {
  return _mm512_fnmadd_ps(a, b, c);
}  // c - a * b
// Under a sanitizer reads are left to the compiler, which has them checked.
#if defined(__SANITIZE_ADDRESS__)
#define FASTCONV_WATCHED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASTCONV_WATCHED 1
#endif
#endif

// With *p in all lanes as an operand in memory. Of a value that is used twice the compiler would make a register, by a VBROADCASTSS that on a Zen 4
// takes a place among the additions.
inline F add_each(F a, const float* p) {  // a + *p
#if defined(__GNUC__) && !defined(FASTCONV_WATCHED)
  F r;
  asm("vaddps %2%{1to16%}, %1, %0" : "=v"(r) : "v"(a), "m"(*p));
  return r;
#else
  return add(a, set1(*p));
#endif
}
inline F fma_each(F a, const float* p, F c) {  // a * *p + c
#if defined(__GNUC__) && !defined(FASTCONV_WATCHED)
  asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(a), "m"(*p));
  return c;
#else
  return fma(a, set1(*p), c);
#endif
}
// Keeps NaN: MAXPS returns its second operand when either is NaN.
inline F relu(F x) {
  return _mm512_max_ps(_mm512_setzero_ps(), x);
}
inline Mask is_nan(F x) {
  return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
}
inline Mask greater(F a, F b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}
inline F select(Mask m, F yes, F no) {
  return _mm512_mask_blend_ps(m, no, yes);
}
// Leaves v in a register: of a vector that is used twice the compiler may otherwise load it twice.
inline void keep(F& v) {
#if defined(__GNUC__)
  asm("" : "+v"(v));
#endif
}
// Maximum in which a NaN of either side sticks; of equals x.
inline F max_nan(F m, F x) {
  return _mm512_mask_mov_ps(_mm512_max_ps(m, x), is_nan(m), m);
}
inline float sum(F v) {
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_f32x4(0xffff, v, v, 0x4e));
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_f32x4(0xffff, v, v, 0xb1));
  v = _mm512_add_ps(v, _mm512_maskz_permute_ps(0xffff, v, 0x4e));
  return _mm512_cvtss_f32(_mm512_add_ps(v, _mm512_maskz_permute_ps(0xffff, v, 0xb1)));
}

// The sums of four vectors to out[0..3], each in the same order.
inline void sums4(F a, F b, F c, F d, float* out) {
  const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const F all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// Elements 0, 2, 4, ... and 1, 3, 5, ... of the run a, b.
inline F even(F a, F b) {
  const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(a, at, b);
}
inline F odd(F a, F b) {
  const __m512i at = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutex2var_ps(a, at, b);
}
// The same, cheaper, in an order of the lanes that `in_order` undoes.
inline F even_mixed(F a, F b) {
  return _mm512_maskz_shuffle_ps(0xffff, a, b, 0x88);
}
inline F odd_mixed(F a, F b) {
  return _mm512_maskz_shuffle_ps(0xffff, a, b, 0xdd);
}
// shift_up of lanes in that order.
inline F shift_up_mixed(F below, F v) {
  const __m512i from = _mm512_setr_epi32(0, 0, 13, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14);
  return _mm512_mask_permutexvar_ps(below, 0xfffe, from, v);
}
inline F in_order(F v) {
  const __m512i at = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi64(0xff, at, _mm512_castps_si512(v)));
}
// Lane i of the result is lane from[i] of v; the index is made once and used often.
using Index = __m512i;
inline Index index(const int32_t from[16]) {
  return _mm512_loadu_si512(from);
}
inline F permute(F v, Index from) {
  return _mm512_permutexvar_ps(from, v);
}
// Two runs of kLanes / 2 floats, a in the low half of the vector and b in the high half; the low half of the mask holds
// for both.
inline F load_pair(const float* a, const float* b, Mask m) {
  const __mmask8 k = static_cast<__mmask8>(m);
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_maskz_loadu_ps(k, a)), _mm256_maskz_loadu_ps(k, b), 1);
}
// v one lane further up; below it what `below` holds in all lanes.
inline F shift_up(F below, F v) {
  return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(v), _mm512_castps_si512(below), 15));
}
// v one lane further down; above it what lane 0 of `above` holds.
inline F shift_down(F v, F above) {
  return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(above), _mm512_castps_si512(v), 1));
}
// p[0 .. kLanes / 2 - 1] in both halves.
inline F load_half_twice(const float* p) {
  return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
}
inline void store_pair(float* a, float* b, F v, Mask m) {
  const __mmask8 k = static_cast<__mmask8>(m);
  __m256 high = _mm512_extractf32x8_ps(v, 1);
#if defined(__GNUC__)
  // Keeps the compiler from joining both steps into VEXTRACTF32X8 to memory under a mask: unlike VMOVUPS that
  // instruction faults on bytes that its mask excludes (class E6NF, Intel SDM volume 2, section 2.8).
  asm("" : "+v"(high));
#endif
  _mm256_mask_storeu_ps(a, k, _mm512_castps512_ps256(v));
  _mm256_mask_storeu_ps(b, k, high);
}

// Vectors of rows r, which it uses up, to vectors of columns.
inline void transpose(F r[16], F out[16]) {
  F t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
    out[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
    out[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
    out[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// 16 rows of 16 floats from src (row stride ld) to 16 vectors of columns.
inline void transpose_block(const float* src, int64_t ld, F out[16]) {
  F r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = load(src + i * ld);
  transpose(r, out);
}

// --- for pooling, softmax and layout conversion

// The lanes whose bits are set; more bits than lanes are passed over.
inline Mask lanes(uint64_t bits) {
  return static_cast<Mask>(bits);
}
// v kBy lanes further up, below it the topmost of `below`; and further down, above it the lowest of `above`.
template <int kBy>
inline F slide_up(F below, F v) {
  return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(v), _mm512_castps_si512(below), 16 - kBy));
}
template <int kBy>
inline F slide_down(F v, F above) {
  return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(above), _mm512_castps_si512(v), kBy));
}
// Lane i of the result is lane from[i] of a, or from[i] - kLanes of b.
inline F pick(F a, F b, Index from) {
  return _mm512_permutex2var_ps(a, from, b);
}

inline F max(F a, F b) {
  return _mm512_max_ps(a, b);
}  // b where either is NaN
inline float max_across(F v) {  // of lanes without NaN
  v = _mm512_max_ps(v, _mm512_maskz_shuffle_f32x4(0xffff, v, v, 0x4e));
  v = _mm512_max_ps(v, _mm512_maskz_shuffle_f32x4(0xffff, v, v, 0xb1));
  v = _mm512_max_ps(v, _mm512_maskz_permute_ps(0xffff, v, 0x4e));
  return _mm512_cvtss_f32(_mm512_max_ps(v, _mm512_maskz_permute_ps(0xffff, v, 0xb1)));
}
inline Mask either(Mask a, Mask b) {
  return static_cast<Mask>(a | b);
}
inline bool any(Mask m) {
  return m != 0;
}
inline Mask without(Mask a, Mask b) {
  return static_cast<Mask>(a & ~b);
}
// x beats m in a search for the maximum in which NaN is above everything: x > m, or x is NaN and m is not.
inline Mask above(F x, F m) {
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(m, m, _CMP_ORD_Q), x, m, _CMP_NLE_UQ);
}
// Lanes p[0], p[2], ..: reads 2 * kLanes floats.
inline F load_even(const float* p) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(load(p), even, load(p + 16));
}
// Lanes p[0], p[step], ..: 0 < step <= 2^26.
inline F load_step(const float* p, int64_t step, Mask m) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_mask_i32gather_ps(zero(), m, _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(step))), p, 4);
}
// x * 2^k with one rounding, also into the subnormals; k integral, -250 <= k <= 127, 0.5 <= |x| <= 2.
inline F scale2(F x, F k) {
  return _mm512_scalef_ps(x, k);
}
// Three vectors of one channel each to 3 * kLanes floats of pixels at p, and back.
inline void store_pixels3(float* p, F a, F b, F c) {
  const __m512i ab0 = _mm512_setr_epi32(0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  const __m512i ab1 = _mm512_setr_epi32(21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  const __m512i ab2 = _mm512_setr_epi32(0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  const __m512i c0 = _mm512_setr_epi32(0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
  const __m512i c1 = _mm512_setr_epi32(0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
  const __m512i c2 = _mm512_setr_epi32(26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
  store(p, _mm512_permutex2var_ps(_mm512_permutex2var_ps(a, ab0, b), c0, c));
  store(p + 16, _mm512_permutex2var_ps(_mm512_permutex2var_ps(a, ab1, b), c1, c));
  store(p + 32, _mm512_permutex2var_ps(_mm512_permutex2var_ps(a, ab2, b), c2, c));
}
inline void load_pixels3(const float* p, F out[3]) {
  const F u = load(p), v = load(p + 16), w = load(p + 32);
  const __m512i a0 = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0);
  const __m512i a1 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
  const __m512i b0 = _mm512_setr_epi32(1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0);
  const __m512i b1 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
  const __m512i c0 = _mm512_setr_epi32(2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0);
  const __m512i c1 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
  out[0] = _mm512_permutex2var_ps(_mm512_permutex2var_ps(u, a0, v), a1, w);
  out[1] = _mm512_permutex2var_ps(_mm512_permutex2var_ps(u, b0, v), b1, w);
  out[2] = _mm512_permutex2var_ps(_mm512_permutex2var_ps(u, c0, v), c1, w);
}
// The same for four. Each 128 bits are a pixel once their four by four floats are turned; then the four by four of them are.
inline void turn_quads(const F in[4], F out[4]) {
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(in[0], in[1]));
  const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(in[0], in[1]));
  const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(in[2], in[3]));
  const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(in[2], in[3]));
  out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
  out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
  out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
  out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
}
inline void turn_lanes(const F in[4], F out[4]) {
  const F a = _mm512_shuffle_f32x4(in[0], in[1], 0x44), b = _mm512_shuffle_f32x4(in[0], in[1], 0xee);
  const F c = _mm512_shuffle_f32x4(in[2], in[3], 0x44), d = _mm512_shuffle_f32x4(in[2], in[3], 0xee);
  out[0] = _mm512_shuffle_f32x4(a, c, 0x88);
  out[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
  out[2] = _mm512_shuffle_f32x4(b, d, 0x88);
  out[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}
inline void store_pixels4(float* p, F a, F b, F c, F d) {
  const F in[4] = {a, b, c, d};
  F quads[4], out[4];
  turn_quads(in, quads);
  turn_lanes(quads, out);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) store(p + 16 * i, out[i]);
}
inline void load_pixels4(const float* p, F out[4]) {
  const F in[4] = {load(p), load(p + 16), load(p + 32), load(p + 48)};
  F quads[4];
  turn_lanes(in, quads);
  turn_quads(quads, out);
}
// Four columns of kLanes rows, which lie ld apart, and back.
inline void load_quads(const float* p, int64_t ld, F out[4]) {
  F rows[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    F v = _mm512_castps128_ps512(_mm_loadu_ps(p + i * ld));
    v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(p + (4 + i) * ld));
    v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(p + (8 + i) * ld));
    rows[i] = _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(p + (12 + i) * ld));
  }
  turn_quads(rows, out);
}
inline void store_quads(float* p, int64_t ld, const F in[4]) {
  F rows[4];
  turn_quads(in, rows);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_ps(p + i * ld, _mm512_castps512_ps128(rows[i]));
    _mm_storeu_ps(p + (4 + i) * ld, _mm512_extractf32x4_ps(rows[i], 1));
    _mm_storeu_ps(p + (8 + i) * ld, _mm512_extractf32x4_ps(rows[i], 2));
    _mm_storeu_ps(p + (12 + i) * ld, _mm512_extractf32x4_ps(rows[i], 3));
  }
}

}  // namespace simd
}  // namespace
