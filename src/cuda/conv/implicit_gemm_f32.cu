// Implicit GEMM in float32 on the CUDA cores: M = output pixels, N = output channels of a group, K = taps and input channels;
// the patch matrix exists a step at a time, in shared memory.
// Operands, threads, shared memory, tails, numerics: gemm_f32.cuh. Packed weights: gemm_f32.cu.
// Preconditions: an image and its padding below 2^30 elements, kernels up to 16x16; batches are cut so that a launch stays below
//   2^30 elements.
// Fill::vector where 4 channels (NHWC) or, for 1x1 kernels with stride 1, 4 pixels (NCHW) lie in one aligned run; else one value at
//   a time.
// Split-K: where the tiles alone do not fill the device, parts of the reduction go to the workspace and are added in order.
// Measured: not measured.
// Tried: the taps of a step worked out by each thread for itself: 4 pixels a thread to share that work in NCHW, and spilled
//   registers.
#include <algorithm>

#include "cuda/conv/gemm_f32.h"
#include "cuda/conv/tiles.h"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

const char* refuses(const Task& task, const DeviceLimits&) {
  if (task.then_max_pool) return "no fused max-pool";
  if (task.dtype != Dtype::f32) return "float32 only";
  if (task.problem.groups > 65535) return "more than 65535 groups";
  return gather_refuses(task.problem);
}

void configure(Plan& plan) {
  const Problem& p = plan.task.problem;
  const int64_t images = images_per_launch(p);
  plan.tile = choose_tile_f32(gemm_extent(p, images), plan.device);
  plan.ukernel_name = "gemm_f32";
  configure_packing_f32(plan);
  if (plan.tile.split_k > 1) plan.workspace_bytes = plan.tile.split_k * images * p.oc * p.oh * p.ow * 4;
}

bool fills_vectors(const Problem& p, const float* src) {
  if (!is_aligned(src, 16)) return false;
  if (p.layout == Layout::nhwc) return p.icg() % 4 == 0;
  return reads_every_pixel(p) && p.oh * p.ow % 4 == 0;
}

void run(const Plan& plan, const Operands& args, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const int64_t at_once = images_per_launch(p);
  for (int64_t first = 0; first < p.n; first += at_once) {
    const int64_t images = std::min(at_once, p.n - first);
    GemmF32 g = gemm_f32_of(plan, args, first, images, static_cast<float*>(args.workspace));
    g.a = gather_of(p, images);
    g.src = static_cast<const float*>(args.src) + first * p.ic * p.ih * p.iw;
    g.fill = fills_vectors(p, g.src) ? Fill::vector : Fill::scalar;
    launch_gemm_f32(g, p.layout, Dtype::f32, plan.tile, stream);
    if (g.partial) launch_sum_parts(g, p.layout, Dtype::f32, plan.tile.split_k, stream);
  }
}

}  // namespace

extern const Algorithm conv_implicit_gemm_f32 = {
    Op::conv2d, "implicit_gemm", "conv_implicit_gemm_f32", refuses, configure, pack_f32, run};

}  // namespace fastconv::cuda
