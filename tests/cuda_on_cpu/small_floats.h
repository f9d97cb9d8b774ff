// The 16-bit floating point numbers, for the host: conversions round to nearest even, arithmetic is in float32 and rounded back.
#pragma once

#include <cuda_runtime.h>

namespace shim {

inline uint16_t half_bits(float value) {
  const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
  uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFF;                                  // NaN
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and more
  if (magnitude < 0x38800000u) {  // below 2^-14 the unit is 2^-24, as that of float32 from 0.5 on
    const float moved = __uint_as_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__float_as_uint(moved) - 0x3F000000u));
  }
  magnitude += 0xFFFu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | (magnitude - (112u << 23)) >> 13);
}
inline float half_value(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} >> 15 << 31, exponent = bits >> 10 & 31u, fraction = bits & 0x3FFu;
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return __uint_as_float(sign | (exponent + 112u) << 23 | fraction << 13);
  const float value = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -value : value;
}
inline uint16_t bfloat_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
inline float bfloat_value(uint16_t bits) {
  return __uint_as_float(uint32_t{bits} << 16);
}

template <uint16_t (*to_bits)(float), float (*to_value)(uint16_t)>
struct SmallFloat {
  uint16_t bits;

  SmallFloat() = default;
  SmallFloat(float v) : bits(to_bits(v)) {}
  SmallFloat(double v) : bits(to_bits(static_cast<float>(v))) {}
  SmallFloat(int v) : bits(to_bits(static_cast<float>(v))) {}
  operator float() const { return to_value(bits); }

  static SmallFloat of_bits(uint16_t b) {
    SmallFloat f;
    f.bits = b;
    return f;
  }
  friend SmallFloat operator+(SmallFloat a, SmallFloat b) { return static_cast<float>(a) + static_cast<float>(b); }
  friend SmallFloat operator-(SmallFloat a, SmallFloat b) { return static_cast<float>(a) - static_cast<float>(b); }
  friend SmallFloat operator*(SmallFloat a, SmallFloat b) { return static_cast<float>(a) * static_cast<float>(b); }
  friend SmallFloat operator/(SmallFloat a, SmallFloat b) { return static_cast<float>(a) / static_cast<float>(b); }
  friend bool operator==(SmallFloat a, SmallFloat b) { return static_cast<float>(a) == static_cast<float>(b); }
  friend bool operator<(SmallFloat a, SmallFloat b) { return static_cast<float>(a) < static_cast<float>(b); }
  friend bool operator>(SmallFloat a, SmallFloat b) { return static_cast<float>(a) > static_cast<float>(b); }
};

template <class T>
struct alignas(4) Pair {
  T x, y;
};

}  // namespace shim
