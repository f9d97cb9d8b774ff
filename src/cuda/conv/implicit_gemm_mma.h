// What the tensor core implicit GEMM's parts know of each other: implicit_gemm_mma.cu plans and calls, implicit_gemm_mma_<dtype>.cu hold
// the kernels, tiles_mma.cpp chooses among them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "cuda/algorithm.h"
#include "cuda/conv/gather.cuh"

namespace fastconv::cuda::mma {

constexpr int kStepBytes = 64;  // of k, one step of the reduction

// One launch.
struct Args {
  Gather g;
  const void* src = nullptr;
  const void* wei = nullptr;  // packed: [oc][k_row], k = (r * kw + s) * ic + c, zeros past the last k
  const float* bias = nullptr;
  const void* residual = nullptr;
  void* dst = nullptr;
  float* partial =
      nullptr;  // split K: each part's sums in dst's order, part after part; then bias, residual and relu are the reduction's
  int64_t part_elements = 0;
  int k_row = 0;
  int steps = 0, steps_per_part = 0;  // of 64 bytes of k
  int channel_tiles = 0;
  bool relu = false;
  bool wide = false;  // stores of 16 bytes are aligned, and whole in every row
};

// An instantiation.
struct Kernel {
  Layout layout;
  int pixels, channels;  // of a block
  int warps, stages;
  int load_bytes;  // of src at once
  int blocks_per_sm;
  int64_t shared_bytes;
  void (*start)(const Args&, int64_t blocks, int parts, cudaStream_t);
};

const std::vector<Kernel>& kernels_f16();
const std::vector<Kernel>& kernels_bf16();
const std::vector<Kernel>& kernels_tf32();
const std::vector<Kernel>& kernels_tf32x3();

}  // namespace fastconv::cuda::mma
