// The float32 GEMM of the CUDA cores as its callers see it: implicit GEMM hands it an image, im2col a matrix.
#pragma once

#include <cuda_runtime.h>

#include "cuda/algorithm.h"
#include "cuda/conv/gather.cuh"

namespace fastconv::cuda {

// How a block reads A; all threads of a launch go the same way.
enum class Fill : int {
  scalar,  // one value at a time, any geometry
  vector,  // NHWC: runs of 4 channels; NCHW: runs of 4 pixels of 1x1 kernels with stride 1
};

// One launch. A is [pixels x reduction] gathered from src; B the packed weights [group][packed_k][packed_n]; the result goes
// to dst in the problem's layout, with bias, residual and activation, or as bare sums to `partial`, one dst-shaped array a part.
struct GemmF32 {
  Gather a;
  Fill fill;
  const float* src;
  const float* wei;
  int packed_k, packed_n;
  // The result: pixel m of this launch is pixel first_pixel + m of dst, an array of `oc` channels and planes of `plane` pixels.
  int first_pixel, plane;
  Divisor by_plane;
  bool vector_out;  // dst, residual and partial take runs of 4 values
  const float* bias;
  const void* residual;
  void* dst;
  float* partial;         // null: the sums are whole
  int64_t part_elements;  // distance of two parts
  int part_k;             // of the reduction, a multiple of the tile's k
  bool relu;
};

// Rows and columns of a group's packed weights are padded; k in the order of gather.cuh, the same for every tile.
constexpr int kPackedStepK = 16, kPackedStepN = 4;
int64_t packed_f32_k(const Problem&);
int64_t packed_f32_n(const Problem&);
void configure_packing_f32(Plan&);
void pack_f32(const Plan&, const float* wei, void* packed, cudaStream_t);

// The weights and the result of images [first, first + images) of a plan's problem; A is the caller's to fill in. `partial`:
// room for tile.split_k results, where it is more than 1.
GemmF32 gemm_f32_of(const Plan&, const Operands&, int64_t first, int64_t images, float* partial);
// Launches the instantiation that tile.variant names (tiles.h), over tiles, groups and parts.
void launch_gemm_f32(const GemmF32&, Layout, Dtype dst, const Tile&, cudaStream_t);
// dst = act(sum of the parts in order + bias + residual), over all images of `gemm_f32_of`.
void launch_sum_parts(const GemmF32&, Layout, Dtype dst, int parts, cudaStream_t);

}  // namespace fastconv::cuda
