// relu: dst[i] = src[i] < 0 ? 0 : src[i].
// Operands: arrays in any layout, read and written once. Threads: 256 a block, 16 bytes of src each and grid-strided, four loads under way;
// no shared memory. Preconditions: elements aligned to themselves. Tails: arrays that are not aligned to 16 bytes, and what is left of the
// last 16, go element by element. Numerics: exact; NaN stays NaN.
// Measured: not measured. Reference: the definitions in common/problem.h.
#include <algorithm>

#include "cuda/algorithm.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 20;

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::clamp<int64_t>((threads + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

template <class T, int width>
__global__ void __launch_bounds__(kThreads) relu_kernel(const T* src, T* dst, int64_t elements) {
  const int64_t vectors = elements / width;
  for (int64_t i = grid_thread(); i < vectors; i += grid_threads()) {
    float v[width];
    load_floats<width>(v, src + i * width);
#pragma unroll
    for (int j = 0; j < width; ++j) v[j] = relu_keeping_nan(v[j]);
    store_floats<width>(dst + i * width, v);
  }
  if (width == 1) return;
  const int64_t i = vectors * width + grid_thread();
  if (i < elements) dst[i] = from_float<T>(relu_keeping_nan(to_float(src[i])));
}

const char* accepts_all(const Task&, const DeviceLimits&) {
  return nullptr;
}

void configure_relu(Plan& plan) {
  plan.ukernel_name = plan.algorithm->kernel;
  plan.tile.m = kThreads * 16 / static_cast<int>(element_bytes(plan.task.dtype));
}

void run_relu(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const int64_t elements = plan.task.problem.dst_elements();
  with_type(plan.task.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* src = static_cast<const T*>(o.src);
    T* dst = static_cast<T*>(o.dst);
    if (is_aligned(src, 16) && is_aligned(dst, 16)) {
      const unsigned blocks = blocks_for(elements / kVector<T>);
      launch(relu_kernel<T, kVector<T>>, dim3(blocks), dim3(kThreads), 0, stream, src, dst, elements);
    } else {
      launch(relu_kernel<T, 1>, dim3(blocks_for(elements)), dim3(kThreads), 0, stream, src, dst, elements);
    }
  });
}

}  // namespace

extern const Algorithm relu;
const Algorithm relu = {Op::relu, "direct", "relu", accepts_all, configure_relu, nullptr, run_relu};

}  // namespace fastconv::cuda
