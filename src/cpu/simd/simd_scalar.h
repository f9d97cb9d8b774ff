// Vector vocabulary of the baseline: 4 floats in plain C++, which a compiler may or may not turn into vector
// instructions. Any machine runs it. There is no fused multiply-add here: products are rounded before they are added.
// See simd_avx512.h.
#pragma once

#include <stdint.h>

#define FASTCONV_SIMD_ISA kIsaScalar
#define FASTCONV_SIMD_NAME(stem) stem##_scalar

namespace {
namespace simd {

constexpr int kLanes = 4;
struct F {
  float v[kLanes];
};
struct Mask {
  bool v[kLanes];
};

template <class Fn>
inline F each(Fn fn) {
  F r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = fn(i);
  return r;
}

// Lanes lo..hi-1, 0 <= lo <= hi <= kLanes.
inline Mask range(int64_t lo, int64_t hi) {
  Mask m;
  for (int i = 0; i < kLanes; ++i) m.v[i] = i >= lo && i < hi;
  return m;
}
inline Mask first(int64_t n) {
  return range(0, n);
}

inline F set1(float x) {
  return each([&](int) { return x; });
}
inline F zero() {
  return set1(0.0f);
}
inline F load(const float* p) {
  return each([&](int i) { return p[i]; });
}
// Lanes outside the mask are zero and their memory is not touched.
inline F load(const float* p, Mask m) {
  return each([&](int i) { return m.v[i] ? p[i] : 0.0f; });
}
inline void store(float* p, F v) {
  for (int i = 0; i < kLanes; ++i) p[i] = v.v[i];
}
inline void store(float* p, F v, Mask m) {
  for (int i = 0; i < kLanes; ++i)
    if (m.v[i]) p[i] = v.v[i];
}
// Without instructions for it: a plain store.
inline void stream(float* p, F v) {
  store(p, v);
}
inline void stream_end() {}

inline F add(F a, F b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline F sub(F a, F b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline F mul(F a, F b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline F div(F a, F b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
inline F fma(F a, F b, F c) {
  return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline F nfma(F a, F b, F c) {
  return each([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
}  // c - a * b
inline F add_each(F a, const float* p) {
  return add(a, set1(*p));
}  // a + *p
inline F fma_each(F a, const float* p, F c) {
  return fma(a, set1(*p), c);
}  // a * *p + c
inline F relu(F x) {  // keeps NaN
  return each([&](int i) { return x.v[i] < 0.0f ? 0.0f : x.v[i]; });
}
inline Mask is_nan(F x) {
  Mask m;
  for (int i = 0; i < kLanes; ++i) m.v[i] = x.v[i] != x.v[i];
  return m;
}
inline Mask greater(F a, F b) {
  Mask m;
  for (int i = 0; i < kLanes; ++i) m.v[i] = a.v[i] > b.v[i];
  return m;
}
inline F select(Mask m, F yes, F no) {
  return each([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
}
// What the others do to leave v in a register.
inline void keep(F&) {}
// Maximum in which a NaN of either side sticks; of equals x.
inline F max_nan(F m, F x) {
  return each([&](int i) { return (x.v[i] >= m.v[i] || x.v[i] != x.v[i]) && m.v[i] == m.v[i] ? x.v[i] : m.v[i]; });
}
inline float sum(F v) {
  return (v.v[0] + v.v[1]) + (v.v[2] + v.v[3]);
}
// The sums of four vectors to out[0..3], each in the same order.
inline void sums4(F a, F b, F c, F d, float* out) {
  out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
}

// Elements 0, 2, 4, ... and 1, 3, 5, ... of the run a, b.
inline F even(F a, F b) {
  return {{a.v[0], a.v[2], b.v[0], b.v[2]}};
}
inline F odd(F a, F b) {
  return {{a.v[1], a.v[3], b.v[1], b.v[3]}};
}
// The same, in an order of the lanes that `in_order` undoes.
inline F even_mixed(F a, F b) {
  return even(a, b);
}
inline F odd_mixed(F a, F b) {
  return odd(a, b);
}
// Lane i of the result is lane from[i] of v; the index is made once and used often.
struct Index {
  int32_t v[kLanes];
};
inline Index index(const int32_t from[4]) {
  return {{from[0], from[1], from[2], from[3]}};
}
inline F permute(F v, Index from) {
  return each([&](int i) { return v.v[from.v[i]]; });
}
// Two runs of kLanes / 2 floats, a in the low half of the vector and b in the high half; the low half of the mask holds
// for both.
inline F load_pair(const float* a, const float* b, Mask m) {
  return {{m.v[0] ? a[0] : 0.0f, m.v[1] ? a[1] : 0.0f, m.v[0] ? b[0] : 0.0f, m.v[1] ? b[1] : 0.0f}};
}
// v one lane further up; below it what `below` holds in all lanes.
inline F shift_up(F below, F v) {
  return each([&](int i) { return i == 0 ? below.v[0] : v.v[i - 1]; });
}
// The same for the order of even_mixed and odd_mixed, and back to that of memory.
inline F shift_up_mixed(F below, F v) {
  return shift_up(below, v);
}
inline F in_order(F v) {
  return v;
}
// v one lane further down; above it what lane 0 of `above` holds.
inline F shift_down(F v, F above) {
  return each([&](int i) { return i + 1 == kLanes ? above.v[0] : v.v[i + 1]; });
}
// p[0 .. kLanes / 2 - 1] in both halves.
inline F load_half_twice(const float* p) {
  return each([&](int i) { return p[i % (kLanes / 2)]; });
}
inline void store_pair(float* a, float* b, F v, Mask m) {
  for (int i = 0; i < kLanes / 2; ++i) {
    if (m.v[i]) a[i] = v.v[i];
    if (m.v[i]) b[i] = v.v[kLanes / 2 + i];
  }
}

// Vectors of rows r, which it uses up, to vectors of columns.
inline void transpose(F r[4], F out[4]) {
  for (int j = 0; j < kLanes; ++j) out[j] = each([&](int i) { return r[i].v[j]; });
}
// 4 rows of 4 floats from src (row stride ld) to 4 vectors of columns.
inline void transpose_block(const float* src, int64_t ld, F out[4]) {
  for (int j = 0; j < kLanes; ++j) out[j] = each([&](int i) { return src[i * ld + j]; });
}

// --- for pooling, softmax and layout conversion

// The lanes whose bits are set; more bits than lanes are passed over.
inline Mask lanes(uint64_t bits) {
  Mask m;
  for (int i = 0; i < kLanes; ++i) m.v[i] = bits >> i & 1;
  return m;
}
// v kBy lanes further up, below it the topmost of `below`; and further down, above it the lowest of `above`.
template <int kBy>
inline F slide_up(F below, F v) {
  return each([&](int i) { return i < kBy ? below.v[kLanes - kBy + i] : v.v[i - kBy]; });
}
template <int kBy>
inline F slide_down(F v, F above) {
  return each([&](int i) { return i + kBy < kLanes ? v.v[i + kBy] : above.v[i + kBy - kLanes]; });
}
// Lane i of the result is lane from[i] of a, or from[i] - kLanes of b.
inline F pick(F a, F b, Index from) {
  return each([&](int i) { return from.v[i] < kLanes ? a.v[from.v[i]] : b.v[from.v[i] - kLanes]; });
}

inline F max(F a, F b) {  // b where either is NaN
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline float max_across(F v) {  // of lanes without NaN
  float m = v.v[0];
  for (int i = 1; i < kLanes; ++i) m = v.v[i] > m ? v.v[i] : m;
  return m;
}
inline Mask either(Mask a, Mask b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = a.v[i] || b.v[i];
  return a;
}
inline bool any(Mask m) {
  bool some = false;
  for (int i = 0; i < kLanes; ++i) some = some || m.v[i];
  return some;
}
inline Mask without(Mask a, Mask b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = a.v[i] && !b.v[i];
  return a;
}
// x beats m in a search for the maximum in which NaN is above everything: x > m, or x is NaN and m is not.
inline Mask above(F x, F m) {
  Mask r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = !(x.v[i] <= m.v[i]) && m.v[i] == m.v[i];
  return r;
}
// Lanes p[0], p[2], ..: reads 2 * kLanes floats.
inline F load_even(const float* p) {
  return each([&](int i) { return p[2 * i]; });
}
// Lanes p[0], p[step], ..: 0 < step <= 2^26.
inline F load_step(const float* p, int64_t step, Mask m) {
  return each([&](int i) { return m.v[i] ? p[i * step] : 0.0f; });
}
// x * 2^k with one rounding, also into the subnormals; k integral, -250 <= k <= 127, 0.5 <= |x| <= 2.
inline F scale2(F x, F k) {
  return each([&](int i) {
    const int32_t e =
        k.v[i] >= -250.0f && k.v[i] <= 127.0f ? static_cast<int32_t>(k.v[i]) : 0;  // a NaN must not be cast
    const int32_t half = e >> 1;
    return x.v[i] * __builtin_bit_cast(float, (half + 127) << 23) * __builtin_bit_cast(float, (e - half + 127) << 23);
  });
}
// Three vectors of one channel each to 3 * kLanes floats of pixels at p, and back.
inline void store_pixels3(float* p, F a, F b, F c) {
  for (int i = 0; i < kLanes; ++i) p[3 * i] = a.v[i], p[3 * i + 1] = b.v[i], p[3 * i + 2] = c.v[i];
}
inline void load_pixels3(const float* p, F out[3]) {
  for (int k = 0; k < 3; ++k) out[k] = each([&](int i) { return p[3 * i + k]; });
}
// The same for four.
inline void store_pixels4(float* p, F a, F b, F c, F d) {
  for (int i = 0; i < kLanes; ++i)
    p[4 * i] = a.v[i], p[4 * i + 1] = b.v[i], p[4 * i + 2] = c.v[i], p[4 * i + 3] = d.v[i];
}
inline void load_pixels4(const float* p, F out[4]) {
  for (int k = 0; k < 4; ++k) out[k] = each([&](int i) { return p[4 * i + k]; });
}
// Four columns of kLanes rows, which lie ld apart, and back.
inline void load_quads(const float* p, int64_t ld, F out[4]) {
  for (int k = 0; k < 4; ++k) out[k] = each([&](int i) { return p[i * ld + k]; });
}
inline void store_quads(float* p, int64_t ld, const F in[4]) {
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < 4; ++k) p[i * ld + k] = in[k].v[i];
}

}  // namespace simd
}  // namespace
