// dst[i] = src[i] for every index i, strides of any kind on both sides, rounded to nearest even where dtypes differ.
// Operands: two arrays of equal shape, up to eight axes after neighbours that walk memory alike were joined. Threads: 256 a block, one
// element each and grid-strided, along dst's order, no shared memory: reads of a transposed src are scattered. Preconditions: elements
// aligned to themselves; int64 to int64 only. Tails: none. Numerics: 16-bit dtypes to each other through float32; NaN and infinity stay.
// Measured: not measured. Reference: the definition.
#include "cuda/copy.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/launch.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65536;
constexpr int kMaxAxes = 8;

struct Walk {
  int rank = 0;
  int64_t extent[kMaxAxes] = {};
  int64_t src[kMaxAxes] = {}, dst[kMaxAxes] = {};
};

// The axes that are left when those of one element are dropped and neighbours that walk on alike in both arrays are joined.
Walk walk_of(const View& src, const View& dst) {
  Walk w;
  for (size_t i = 0; i < src.shape.size(); ++i) {
    if (src.shape[i] == 1) continue;
    const int last = w.rank - 1;
    if (w.rank > 0 && w.src[last] == src.strides[i] * src.shape[i] && w.dst[last] == dst.strides[i] * src.shape[i]) {
      w.extent[last] *= src.shape[i];
      w.src[last] = src.strides[i];
      w.dst[last] = dst.strides[i];
      continue;
    }
    if (w.rank == kMaxAxes)
      throw std::invalid_argument("arrays of more than " + std::to_string(kMaxAxes) +
                                  " axes must be contiguous on a CUDA device");
    w.extent[w.rank] = src.shape[i], w.src[w.rank] = src.strides[i], w.dst[w.rank] = dst.strides[i];
    ++w.rank;
  }
  return w;
}

__device__ inline float value(float x) {
  return x;
}
__device__ inline float value(__half x) {
  return __half2float(x);
}
__device__ inline float value(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ inline int64_t value(int64_t x) {
  return x;
}
__device__ inline void store(float* at, float x) {
  *at = x;
}
__device__ inline void store(__half* at, float x) {
  *at = __float2half_rn(x);
}
__device__ inline void store(__nv_bfloat16* at, float x) {
  *at = __float2bfloat16_rn(x);
}
__device__ inline void store(int64_t* at, int64_t x) {
  *at = x;
}

template <class From, class To>
__global__ void copy_strided(const From* src, To* dst, Walk walk, int64_t elements) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < elements; i += step) {
    int64_t rest = i, from = 0, to = 0;
    for (int axis = walk.rank - 1; axis >= 0; --axis) {
      const int64_t at = rest % walk.extent[axis];
      rest /= walk.extent[axis];
      from += at * walk.src[axis];
      to += at * walk.dst[axis];
    }
    store(dst + to, value(src[from]));
  }
}

template <class From, class To>
void run(const View& src, const View& dst, cudaStream_t stream) {
  const int64_t elements = src.elements();
  const int64_t blocks = std::min((elements + kThreads - 1) / kThreads, kMaxBlocks);
  launch(copy_strided<From, To>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
         static_cast<const From*>(src.data), static_cast<To*>(dst.data), walk_of(src, dst), elements);
}

template <class From>
void run_from(const View& src, const View& dst, cudaStream_t stream) {
  switch (dst.element) {
    case Element::f32:
      return run<From, float>(src, dst, stream);
    case Element::f16:
      return run<From, __half>(src, dst, stream);
    case Element::bf16:
      return run<From, __nv_bfloat16>(src, dst, stream);
    case Element::i64:
      break;
  }
  throw std::invalid_argument(std::string("no copy from ") + to_string(src.element) + " to " + to_string(dst.element));
}

}  // namespace

void copy(const View& src, const View& dst, cudaStream_t stream) {
  if (src.elements() == 0) return;
  switch (src.element) {
    case Element::f32:
      return run_from<float>(src, dst, stream);
    case Element::f16:
      return run_from<__half>(src, dst, stream);
    case Element::bf16:
      return run_from<__nv_bfloat16>(src, dst, stream);
    case Element::i64:
      if (dst.element != Element::i64)
        throw std::invalid_argument(std::string("no copy from int64 to ") + to_string(dst.element));
      return run<int64_t, int64_t>(src, dst, stream);
  }
}

}  // namespace fastconv::cuda
