// What bodies that walk runs of floats share. For inclusion after a vector vocabulary, which it is written over.
#pragma once

#include <stdint.h>

namespace fastconv {
namespace {

constexpr int64_t kLine = 16;  // floats of a cache line

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Hides how an address was made. Of what is unrolled the compiler would otherwise keep an address for each place, in a register or on the stack.
template <class T>
[[gnu::always_inline]] inline T* opaque(T* p) {
#if defined(__GNUC__)
  asm("" : "+r"(p));
#endif
  return p;
}

// Floats to the next line.
inline int64_t to_line(const float* p) {
  return -(reinterpret_cast<intptr_t>(p) / 4) & (kLine - 1);
}

// kStream: past the caches, dst on a multiple of a vector.
template <bool kStream>
inline void put(float* dst, simd::F v) {
  kStream ? simd::stream(dst, v) : simd::store(dst, v);
}

// dst[j] = map(src[j]), j < count. kStream: all whole vectors past the caches; the caller ends with simd::stream_end.
template <bool kStream, class Map>
inline void map_run(const float* src, float* dst, int64_t count, Map map) {
  constexpr int kL = simd::kLanes;
  const auto part = [&](int64_t j, int64_t lanes) {
    const simd::Mask m = simd::first(lanes);
    simd::store(dst + j, map(simd::load(src + j, m)), m);
  };
  int64_t j = 0;
  if constexpr (kStream) {
    const int64_t head = smaller(to_line(dst), count);
    for (; j < head; j += kL) part(j, head - j);
    j = head;
  }
  for (; j + 4 * kL <= count; j += 4 * kL)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) put<kStream>(dst + j + k * kL, map(simd::load(src + j + k * kL)));
  for (; j < count; j += kL) part(j, count - j);
}

}  // namespace
}  // namespace fastconv
