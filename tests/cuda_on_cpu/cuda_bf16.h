#pragma once

#include "small_floats.h"

using __nv_bfloat16 = shim::SmallFloat<shim::bfloat_bits, shim::bfloat_value>;
using __nv_bfloat162 = shim::Pair<__nv_bfloat16>;

inline float __bfloat162float(__nv_bfloat16 h) {
  return h;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
  return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  return f;
}
inline float2 __bfloat1622float2(__nv_bfloat162 h) {
  return {h.x, h.y};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {x, y};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
  return {v.x, v.y};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
inline float __low2float(__nv_bfloat162 h) {
  return h.x;
}
inline float __high2float(__nv_bfloat162 h) {
  return h.y;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) {
  return h.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return __nv_bfloat16::of_bits(bits);
}
// The larger; NaN when either is.
inline __nv_bfloat16 __hmax_nan(__nv_bfloat16 a, __nv_bfloat16 b) {
  const float x = a, y = b;
  return x != x || y != y ? __nv_bfloat16::of_bits(0x7FFF) : x < y ? b : a;
}
inline __nv_bfloat162 __hmax2_nan(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)};
}
