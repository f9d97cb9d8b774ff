// dst[i] = src[i] in another dtype, to nearest even; NaN and infinity stay, what float16 cannot hold becomes infinity.
// Operands: two arrays of n elements. Threads: 256 a block, four elements at a time (16 bytes of float32) and grid-strided, no shared memory.
// Preconditions: elements aligned to themselves. Tails: arrays not aligned to four elements, and the last n mod 4, go one by one.
// Numerics: float16 and bfloat16 to each other through float32. Measured: not measured; bound by bandwidth, at 6 bytes an element.
#include "cuda/cast.h"

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 8192;

template <class From, class To>
__global__ void cast_kernel(const From* src, To* dst, int64_t fours, int64_t elements) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = first; i < fours; i += stride) {
    const Vector<From, 4> in = reinterpret_cast<const Vector<From, 4>*>(src)[i];
    Vector<To, 4> out;
    for (int j = 0; j < 4; ++j) out.value[j] = from_float<To>(to_float(in.value[j]));
    reinterpret_cast<Vector<To, 4>*>(dst)[i] = out;
  }
  for (int64_t i = 4 * fours + first; i < elements; i += stride) dst[i] = from_float<To>(to_float(src[i]));
}

template <class From, class To>
void run(const void* src, void* dst, int64_t elements, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(src) % alignof(Vector<From, 4>) == 0 &&
                       reinterpret_cast<uintptr_t>(dst) % alignof(Vector<To, 4>) == 0;
  const int64_t fours = aligned ? elements / 4 : 0;
  const int64_t items = aligned ? std::max<int64_t>(fours, elements % 4) : elements;
  const int64_t blocks = std::min((items + kThreads - 1) / kThreads, kMaxBlocks);
  launch(cast_kernel<From, To>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
         static_cast<const From*>(src), static_cast<To*>(dst), fours, elements);
}

template <class From>
void run_from(const void* src, void* dst, Dtype to, int64_t elements, cudaStream_t stream) {
  switch (to) {
    case Dtype::f32:
      return run<From, float>(src, dst, elements, stream);
    case Dtype::f16:
      return run<From, __half>(src, dst, elements, stream);
    case Dtype::bf16:
      return run<From, __nv_bfloat16>(src, dst, elements, stream);
  }
}

}  // namespace

void cast(const void* src, Dtype from, void* dst, Dtype to, int64_t elements, cudaStream_t stream) {
  if (elements == 0) return;
  switch (from) {
    case Dtype::f32:
      return run_from<float>(src, dst, to, elements, stream);
    case Dtype::f16:
      return run_from<__half>(src, dst, to, elements, stream);
    case Dtype::bf16:
      return run_from<__nv_bfloat16>(src, dst, to, elements, stream);
  }
}

}  // namespace fastconv::cuda
