// What kernels share: elements to float and back, vectors of 16 bytes, reductions of a warp and a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/algorithm.h"

namespace fastconv::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ inline float to_float(float v) {
  return v;
}
__device__ inline float to_float(__half v) {
  return __half2float(v);
}
__device__ inline float to_float(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

// To the nearest, ties to even.
template <class T>
__device__ inline T from_float(float v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

// `count` neighbours that are loaded and stored at once; the address must be a multiple of their size.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  static_assert((count & (count - 1)) == 0 && sizeof(T) * count <= 16);
  T value[count];
};
// As many as 16 bytes hold.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <int count, class T>
__device__ inline Vector<T, count> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T, count>*>(p);
}
template <int count, class T>
__device__ inline void store_vector(T* p, const Vector<T, count>& v) {
  *reinterpret_cast<Vector<T, count>*>(p) = v;
}

// The same with elements as floats; more than 16 bytes go in several pieces.
template <int count, class T>
__device__ inline void load_floats(float (&v)[count], const T* p) {
  constexpr int piece = count < kVector<T> ? count : kVector<T>;
#pragma unroll
  for (int i = 0; i < count; i += piece) {
    const Vector<T, piece> in = load_vector<piece>(p + i);
#pragma unroll
    for (int j = 0; j < piece; ++j) v[i + j] = to_float(in.value[j]);
  }
}
template <int count, class T>
__device__ inline void store_floats(T* p, const float (&v)[count]) {
  constexpr int piece = count < kVector<T> ? count : kVector<T>;
#pragma unroll
  for (int i = 0; i < count; i += piece) {
    Vector<T, piece> out;
#pragma unroll
    for (int j = 0; j < piece; ++j) out.value[j] = from_float<T>(v[i + j]);
    store_vector<piece>(p + i, out);
  }
}
template <class T>
__device__ inline float4 load_floats4(const T* p) {
  float v[4];
  load_floats<4>(v, p);
  return make_float4(v[0], v[1], v[2], v[3]);
}
template <class T>
__device__ inline void store_floats4(T* p, float4 f) {
  const float v[4] = {f.x, f.y, f.z, f.w};
  store_floats<4>(p, v);
}

// A NaN beats every number; of two NaNs either.
__device__ inline float max_keeping_nan(float a, float b) {
  return a > b || a != a ? a : b;
}
__device__ inline float relu_keeping_nan(float v) {
  return v < 0.0f ? 0.0f : v;
}

// Element by element, NaN kept; 16-bit ones two at a time.
template <class T, int count>
__device__ inline Vector<T, count> max_of(const Vector<T, count>& a, const Vector<T, count>& b) {
  Vector<T, count> m;
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int i = 0; i < count; ++i) m.value[i] = max_keeping_nan(a.value[i], b.value[i]);
  } else if constexpr (count == 1) {
    m.value[0] = __hmax_nan(a.value[0], b.value[0]);
  } else {
    using Two = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
#pragma unroll
    for (int i = 0; i < count; i += 2)
      *reinterpret_cast<Two*>(m.value + i) =
          __hmax2_nan(*reinterpret_cast<const Two*>(a.value + i), *reinterpret_cast<const Two*>(b.value + i));
  }
  return m;
}

// Over the warp, in every lane the same bits. All lanes must come.
__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(kAllLanes, v, distance);
  return v;
}
__device__ inline float warp_max(float v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v = max_keeping_nan(v, __shfl_xor_sync(kAllLanes, v, distance));
  return v;
}

// This thread's place among all of the grid's, and how many those are: for loops over arrays of any size.
__device__ inline int64_t grid_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t grid_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// Elements that one launch takes where numbers have 31 bits; the rest goes into further launches. Few on the host, so that tests of small
// arrays split them.
#ifdef FASTCONV_CUDA_ON_CPU
constexpr int64_t kLaunchElements = 2000;
#else
constexpr int64_t kLaunchElements = int64_t{1} << 30;
#endif

// Calls f with a value of the type that stores `dtype`.
template <class F>
void with_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::f16:
      return f(__half{});
    case Dtype::bf16:
      return f(__nv_bfloat16{});
  }
}

inline bool is_aligned(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

}  // namespace fastconv::cuda
