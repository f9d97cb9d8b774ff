// copy: dst[i] = src[i], 16 bytes a thread and step, grid-strided. fma_loop: x = a * x + b on registers alone, eight chains a thread.
// Threads: 256 a block, no shared memory; the loop runs eight blocks on each multiprocessor, so that 64 warps hide its latency.
// Measured: not measured; they are the yardsticks themselves.
#include "cuda/peak.h"

#include <algorithm>

#include "cuda/launch.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256, kChains = 8, kRounds = 2048, kBlocksPerSm = 8;

struct alignas(16) Quad {
  unsigned word[4];
};

__global__ void copy_kernel(const Quad* src, Quad* dst, int64_t quads) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < quads; i += stride) dst[i] = src[i];
}

__global__ void fma_kernel(float* sink, float a, float b, int rounds) {
  float x[kChains];
  for (int i = 0; i < kChains; ++i) x[i] = static_cast<float>(threadIdx.x + i);
#pragma unroll 4
  for (int r = 0; r < rounds; ++r)
    for (int i = 0; i < kChains; ++i) x[i] = fmaf(x[i], a, b);
  float sum = 0;
  for (int i = 0; i < kChains; ++i) sum += x[i];
  if (sum == -1.0f) sink[threadIdx.x] = sum;  // never so, but the compiler cannot know
}

}  // namespace

void copy(const void* src, void* dst, int64_t bytes, cudaStream_t stream) {
  const int64_t quads = bytes / 16;
  if (quads == 0) return;
  // As many threads as quads: blocks that end early make room for the next, and a large copy has no tail of its own.
  const int64_t blocks = std::min<int64_t>((quads + kThreads - 1) / kThreads, int64_t{1} << 30);
  launch(copy_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, static_cast<const Quad*>(src),
         static_cast<Quad*>(dst), quads);
}

double fma_loop(const DeviceLimits& device, float* sink, cudaStream_t stream) {
  const int blocks = device.sm_count * kBlocksPerSm;
  launch(fma_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, sink, 0.5f, 1.0f, kRounds);
  return 2.0 * blocks * kThreads * kChains * kRounds;
}

}  // namespace fastconv::cuda
