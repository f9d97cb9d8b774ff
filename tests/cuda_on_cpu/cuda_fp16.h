#pragma once

#include "small_floats.h"

using __half = shim::SmallFloat<shim::half_bits, shim::half_value>;
using half = __half;
using __half2 = shim::Pair<__half>;
using half2 = __half2;

inline float __half2float(__half h) {
  return h;
}
inline __half __float2half(float f) {
  return f;
}
inline __half __float2half_rn(float f) {
  return f;
}
inline float2 __half22float2(__half2 h) {
  return {h.x, h.y};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {x, y};
}
inline __half2 __float22half2_rn(float2 v) {
  return {v.x, v.y};
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline float __low2float(__half2 h) {
  return h.x;
}
inline float __high2float(__half2 h) {
  return h.y;
}
inline unsigned short __half_as_ushort(__half h) {
  return h.bits;
}
inline __half __ushort_as_half(unsigned short bits) {
  return __half::of_bits(bits);
}
// The larger; NaN when either is.
inline __half __hmax_nan(__half a, __half b) {
  const float x = a, y = b;
  return x != x || y != y ? __half::of_bits(0x7FFF) : x < y ? b : a;
}
inline __half2 __hmax2_nan(__half2 a, __half2 b) {
  return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)};
}
