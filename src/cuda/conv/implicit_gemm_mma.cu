// Implicit GEMM on tensor cores by mma.sync, sm_80 and later: dst[pixel, oc] = act(bias[oc] + residual + sum_k src(pixel, k) * wei[oc, k]),
// k = (r * kw + s) * ic + c; the patch matrix is gathered, never stored.
// Operands: src and dst in NHWC or NCHW as they lie; weights packed [oc][k] in the task's dtype, zeros up to a multiple of 64 bytes of k,
// one form for both layouts (compute="tf32": rounded to tf32).
// Threads: 4 or 8 warps, sums of 64x64, 64x32 or 32x32 a warp; four buffers of 64 bytes of k in shared memory, filled by cp.async
// (single 16-bit values through registers); 32 to 64 KB and 87 to 217 registers a thread, so 2 to 4 blocks on an SM (8 warps: one).
// Preconditions: groups = 1; kernels up to 16x16; an image up to 2^30 elements.
// Tails: pixels, channels, padding and k past the end are zeros written by cp.async; stores of 16 bytes where rows of dst are whole
// multiples of them, else single ones.
// Split K: each part's blocks write bare sums, which a second kernel adds in order: runs repeat bit for bit.
// Numerics: products exact, summed in float32 by the tensor core, which rounds towards zero. 3xtf32: float32 values as sums of two tf32,
// three products; each step's 16 are summed alone and added on the CUDA cores, else the rounding would cost 4e-5 at K = 4608 (simulated). An
// infinite operand gives NaN there.
// Measured: not measured.
// Reference: PTX ISA (mma.sync, ldmatrix, cp.async); Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022.
#include <limits>

#include "cuda/conv/gemm_f32.h"
#include "cuda/conv/implicit_gemm_mma.h"
#include "cuda/conv/tiles.h"
#include "cuda/conv/tiles_mma.h"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace mma {
namespace {

constexpr int kPackThreads = 256;

const std::vector<Kernel>& kernels(const Task& t) {
  if (t.dtype == Dtype::f16) return kernels_f16();
  if (t.dtype == Dtype::bf16) return kernels_bf16();
  return t.compute == Compute::tf32 ? kernels_tf32() : kernels_tf32x3();
}

int64_t step_elements(const Task& t) {
  return kStepBytes / element_bytes(t.dtype);
}

int64_t packed_row(const Task& t) {
  const int64_t k = t.problem.ic * t.problem.kh * t.problem.kw, step = step_elements(t);
  return (k + step - 1) / step * step;
}

const char* refuses(const Task& t, const DeviceLimits& device) {
  const Problem& p = t.problem;
  if (device.sm < 80) return "the device is older than sm_80";
  if (t.then_max_pool) return "no fused max-pool";
  if (t.dtype == Dtype::f32 && t.compute == Compute::f32)
    return "products of float32 are asked for; tensor cores form them as tf32 or 3xtf32";
  if (p.groups != 1) return "groups other than 1";
  for (const Kernel& k : kernels(t)) {
    if (k.shared_bytes > device.shared_bytes_per_block) return "too little shared memory";
  }
  return gather_refuses(p);
}

void configure(Plan& plan) {
  const Task& t = plan.task;
  plan.tile = choose_tile_mma(t, kernels(t), plan.device);
  plan.ukernel_name = t.dtype == Dtype::f16        ? "mma_m16n8k16_f16"
                      : t.dtype == Dtype::bf16     ? "mma_m16n8k16_bf16"
                      : t.compute == Compute::tf32 ? "mma_m16n8k8_tf32"
                                                   : "mma_m16n8k8_3xtf32";
  plan.packed_bytes = t.problem.oc * packed_row(t) * element_bytes(t.dtype);
  plan.workspace_bytes = plan.tile.split_k > 1 ? plan.tile.split_k * t.problem.dst_elements() * 4 : 0;
  plan.pack_tag = std::string("mma k(r,s,c) ") + (t.dtype == Dtype::f16        ? "f16"
                                                  : t.dtype == Dtype::bf16     ? "bf16"
                                                  : t.compute == Compute::tf32 ? "tf32"
                                                                               : "f32");
}

// Weights in whichever order -> [oc][row], k = (r * kw + s) * ic + c.
struct Packing {
  int64_t elements, row, reduction;
  int64_t oc_stride, r_stride, s_stride, c_stride;
  int ic, kw;
  bool round_to_tf32;
};

template <class T>
__global__ void __launch_bounds__(kPackThreads) pack_weights_mma(const Packing p, const float* wei, T* packed) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPackThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x; i < p.elements; i += step) {
    const int64_t o = i / p.row;
    const int k = static_cast<int>(i - o * p.row);
    float value = 0;
    if (k < p.reduction) {
      const int tap = k / p.ic, c = k - tap * p.ic, r = tap / p.kw, s = tap - r * p.kw;
      value = wei[o * p.oc_stride + r * p.r_stride + s * p.s_stride + c * p.c_stride];
    }
    if (sizeof(T) == 4 && p.round_to_tf32) value = bits_to_float(to_tf32(value));
    store_floats<1>(packed + i, {value});
  }
}

void pack(const Plan& plan, const float* wei, void* packed, cudaStream_t stream) {
  const Task& t = plan.task;
  const Problem& p = t.problem;
  Packing q{};
  q.row = packed_row(t), q.reduction = p.ic * p.kh * p.kw, q.elements = p.oc * q.row;
  q.ic = static_cast<int>(p.ic), q.kw = static_cast<int>(p.kw);
  q.round_to_tf32 = t.dtype == Dtype::f32 && t.compute == Compute::tf32;
  switch (p.weight_layout) {
    case WeightLayout::oihw:
      q.oc_stride = p.ic * p.kh * p.kw, q.c_stride = p.kh * p.kw, q.r_stride = p.kw, q.s_stride = 1;
      break;
    case WeightLayout::ohwi:
      q.oc_stride = p.kh * p.kw * p.ic, q.r_stride = p.kw * p.ic, q.s_stride = p.ic, q.c_stride = 1;
      break;
    case WeightLayout::hwio:
      q.r_stride = p.kw * p.ic * p.oc, q.s_stride = p.ic * p.oc, q.c_stride = p.oc, q.oc_stride = 1;
      break;
  }
  const int64_t wanted = (q.elements + kPackThreads - 1) / kPackThreads;
  const dim3 grid(static_cast<unsigned>(wanted < 4096 ? wanted : 4096)), block(kPackThreads);
  if (t.dtype == Dtype::f16)
    launch(pack_weights_mma<__half>, grid, block, 0, stream, q, wei, static_cast<__half*>(packed));
  else if (t.dtype == Dtype::bf16)
    launch(pack_weights_mma<__nv_bfloat16>, grid, block, 0, stream, q, wei, static_cast<__nv_bfloat16*>(packed));
  else
    launch(pack_weights_mma<float>, grid, block, 0, stream, q, wei, static_cast<float*>(packed));
}

const void* at(const void* base, int64_t bytes) {
  return base == nullptr ? nullptr : static_cast<const unsigned char*>(base) + bytes;
}

void run(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Task& t = plan.task;
  const Problem& p = t.problem;
  const int64_t single = element_bytes(t.dtype);
  const Kernel* kernel = &kernels(t)[static_cast<size_t>(plan.tile.variant)];
  if (!is_aligned(o.src, kernel->load_bytes))
    kernel = &kernels(t)[static_cast<size_t>(kernel_for_single_values(*kernel, kernels(t), single))];
  const int parts = plan.tile.split_k;
  const int64_t images = images_per_launch(p);  // all of them where parts > 1
  for (int64_t first = 0; first < p.n; first += images) {
    Args a;
    a.g = gather_of(p, p.n - first < images ? p.n - first : images);
    const int64_t dst_bytes = first * p.oc * p.oh * p.ow * single;
    a.src = at(o.src, first * p.ic * p.ih * p.iw * single);
    a.wei = o.packed;
    a.k_row = static_cast<int>(packed_row(t));
    a.steps = static_cast<int>(packed_row(t) / step_elements(t));
    a.steps_per_part = (a.steps + parts - 1) / parts;
    const int64_t run = p.layout == Layout::nhwc ? p.oc : p.oh * p.ow;  // values side by side in dst
    const bool wide_dst = run * single % 16 == 0 && is_aligned(o.dst, 16) && is_aligned(o.residual, 16);
    if (parts > 1) {
      a.partial = static_cast<float*>(o.workspace);
      a.part_elements = p.dst_elements();
      a.wide = run % 4 == 0;
    } else {
      a.bias = o.bias;
      a.residual = at(o.residual, dst_bytes);
      a.dst = static_cast<unsigned char*>(o.dst) + dst_bytes;
      a.relu = p.activation == Activation::relu;
      a.wide = wide_dst;
    }
    a.channel_tiles = static_cast<int>((p.oc + kernel->channels - 1) / kernel->channels);
    const int64_t pixel_tiles = (a.g.pixels + kernel->pixels - 1) / kernel->pixels;
    kernel->start(a, pixel_tiles * a.channel_tiles, parts, stream);
    if (parts > 1) {
      GemmF32 sum{};
      sum.a = a.g;
      sum.plane = a.g.oh * a.g.ow;
      sum.by_plane = a.g.by_plane;
      sum.vector_out = wide_dst;
      sum.bias = o.bias;
      sum.residual = o.residual;
      sum.dst = o.dst;
      sum.partial = a.partial;
      sum.part_elements = a.part_elements;
      sum.relu = p.activation == Activation::relu;
      launch_sum_parts(sum, p.layout, t.dtype, parts, stream);
    }
  }
}

}  // namespace
}  // namespace mma

extern const Algorithm conv_implicit_gemm_mma_sm80 = {
    Op::conv2d, "implicit_gemm", "conv_implicit_gemm_mma_sm80", mma::refuses, mma::configure, mma::pack, mma::run};

}  // namespace fastconv::cuda
