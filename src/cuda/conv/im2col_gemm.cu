// Convolution by a patch matrix: im2col writes the patches of a slab of pixels to the workspace, the GEMM of gemm_f32.cuh
// multiplies them, slab after slab.
// Operands: NHWC: matrix [pixel][group][r, s, c up to a multiple of 4]; NCHW: matrix [group][c, r, s][pixel]. float32 whatever the
//   storage of the image; zeros for taps outside it. Packed weights: gemm_f32.cu, the same as implicit GEMM's.
// Threads: one a matrix element, 256 a block, neighbours side by side in the matrix and mostly in the image. The matrix is what a
//   1x1 convolution reads, so the GEMM always fills by vectors.
// Workspace: at most 64 MiB of matrix, whatever the image and the batch, and the parts of split-K.
// Preconditions: an image and its padding below 2^30 elements; kernels of any size.
// Tails: the last slab is shorter.
// Numerics: as implicit GEMM, bit for bit where the tiles agree.
// Measured: not measured.
#include <algorithm>

#include "cuda/conv/gemm_f32.h"
#include "cuda/conv/tiles.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int64_t kMatrixBytes = int64_t{64} << 20;
constexpr int64_t kSlabStep = 128;  // pixels of the largest tile

int64_t round_up(int64_t v, int64_t step) {
  return (v + step - 1) / step * step;
}

// Floats that one pixel takes in the matrix.
int64_t matrix_width(const Problem& p) {
  const int64_t k = p.icg() * p.kh * p.kw;
  return p.groups * (p.layout == Layout::nhwc ? round_up(k, 4) : k);
}
int64_t slab_pixels(const Problem& p) {
  const int64_t fit = kMatrixBytes / 4 / matrix_width(p) / kSlabStep * kSlabStep;
  return std::min(std::max(fit, kSlabStep), round_up(images_per_launch(p) * p.oh * p.ow, 4));
}

// Both orders: i counts the matrix; a pixel's place and a k's place in it follow from the layout.
template <bool kNhwc, class T>
__global__ void im2col(const __grid_constant__ Gather g, const T* src, float* matrix, int first_pixel, int pixels,
                       int pitch, Divisor by_inner, Divisor by_group) {
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  const int group_k = static_cast<int>(by_group.divisor), total = g.groups * group_k * pitch;
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < total; i += step) {
    int inner, k;
    const int outer = by_inner.split(i, inner);
    const int pixel = kNhwc ? outer : inner, group = by_group.split(kNhwc ? inner : outer, k);
    float v = 0;
    if (k < g.reduction && pixel < pixels) {
      const Origin o = origin_of(g, first_pixel + pixel);
      const Tap tap = kNhwc ? tap_nhwc(g, k) : tap_nchw(g, k);
      const int y = o.y + tap.r * g.dh, x = o.x + tap.s * g.dw;
      if (static_cast<unsigned>(y) < static_cast<unsigned>(g.ih) &&
          static_cast<unsigned>(x) < static_cast<unsigned>(g.iw))
        v = to_float(src[origin_offset(g, o) + tap.offset + group * g.icg * g.channel_stride]);
    }
    matrix[i] = v;
  }
}

const char* refuses(const Task& task, const DeviceLimits&) {
  if (task.then_max_pool) return "no fused max-pool";
  if (task.problem.groups > 65535) return "more than 65535 groups";
  if (const char* reason = index_refuses(task.problem)) return reason;
  return matrix_width(task.problem) > (int64_t{1} << 30) / kSlabStep ? "a patch matrix of more than 2^23 values a pixel"
                                                                     : nullptr;
}

void configure(Plan& plan) {
  const Problem& p = plan.task.problem;
  GemmExtent extent = gemm_extent(p, 1);
  extent.m = slab_pixels(p);
  const int64_t result_bytes = images_per_launch(p) * p.oc * p.oh * p.ow * 4;
  plan.tile = choose_tile_f32(extent, plan.device, result_bytes);
  if (plan.task.dtype != Dtype::f32 && plan.tile.split_k == 1) {
    // The one tile that stores 16-bit results.
    const TileShape& t = tiles_f32()[kTile16Bit];
    plan.tile.m = t.m, plan.tile.n = t.n, plan.tile.k = t.k, plan.tile.warps = t.warps, plan.tile.variant = kTile16Bit;
  }
  plan.ukernel_name = "gemm_f32";
  configure_packing_f32(plan);
  plan.workspace_bytes = round_up(slab_pixels(p) * matrix_width(p) * 4, 256);
  if (plan.tile.split_k > 1) plan.workspace_bytes += plan.tile.split_k * result_bytes;
}

template <class T>
void launch_im2col(const Problem& p, const Gather& g, const T* src, float* matrix, int first_pixel, int pixels,
                   int pitch, cudaStream_t stream) {
  const int64_t width = matrix_width(p), total = width * pitch;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>((total + 255) / 256, 1 << 16)));
  const bool nhwc = p.layout == Layout::nhwc;
  const Divisor by_inner(nhwc ? width : pitch), by_group(width / p.groups);
  launch(nhwc ? im2col<true, T> : im2col<false, T>, grid, dim3(256), 0, stream, g, src, matrix, first_pixel, pixels,
         pitch, by_inner, by_group);
}

// The matrix as the image of a 1x1 convolution.
Gather matrix_gather(const Problem& p, int64_t pixels, int64_t pitch) {
  Problem q;
  q.layout = p.layout;
  q.groups = p.groups;
  q.ic = matrix_width(p), q.oc = p.oc;
  q.ih = q.oh = 1;
  q.iw = pitch, q.ow = pixels;
  return gather_of(q, 1);
}

void run(const Plan& plan, const Operands& args, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const int64_t at_once = images_per_launch(p), slab = slab_pixels(p), width = matrix_width(p);
  float* const matrix = static_cast<float*>(args.workspace);
  float* const partial = matrix + round_up(slab * width * 4, 256) / 4;
  for (int64_t first = 0; first < p.n; first += at_once) {
    const int64_t images = std::min(at_once, p.n - first), total = images * p.oh * p.ow;
    const Gather image = gather_of(p, images);
    const char* const src =
        static_cast<const char*>(args.src) + first * p.ic * p.ih * p.iw * element_bytes(plan.task.dtype);
    GemmF32 g = gemm_f32_of(plan, args, first, images, partial);
    g.src = matrix;
    g.fill = Fill::vector;
    for (int64_t at = 0; at < total; at += slab) {
      const int pixels = static_cast<int>(std::min(slab, total - at)), from = static_cast<int>(at);
      const int pitch = p.layout == Layout::nhwc ? pixels : static_cast<int>(round_up(pixels, 4));
      with_type(plan.task.dtype, [&](auto type) {
        launch_im2col(p, image, reinterpret_cast<const decltype(type)*>(src), matrix, from, pixels, pitch, stream);
      });
      g.a = matrix_gather(p, pixels, pitch);
      g.first_pixel = from;
      launch_gemm_f32(g, p.layout, plan.task.dtype, plan.tile, stream);
    }
    if (g.partial) launch_sum_parts(g, p.layout, plan.task.dtype, plan.tile.split_k, stream);
  }
}

}  // namespace

extern const Algorithm conv_im2col_gemm_f32 = {Op::conv2d, "im2col", "conv_im2col_gemm_f32", refuses, configure,
                                               pack_f32,   run};

}  // namespace fastconv::cuda
