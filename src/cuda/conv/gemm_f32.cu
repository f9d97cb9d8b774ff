// Launches, packing and the sum of parts around gemm_f32.cuh.
// Packed weights: [group][k up to a multiple of 16][channels of the group up to a multiple of 4], zeros in between, float32 whatever
//   the storage of the activations.
// The sum of parts: dst[i] = act(((part 0 + part 1) + part 2) ... + bias + residual), one thread four values where they adjoin.
// Preconditions: those of gemm_f32.cuh.
// Measured: not measured.
#include "cuda/conv/gemm_f32.cuh"
#include "cuda/conv/tiles.h"

namespace fastconv::cuda {
namespace {

using Tile128x128 = TileF32<128, 128, 4, 2, 8, 2>;
using Tile128x64 = TileF32<128, 64, 4, 1, 8, 4>;
using Tile64x64 = TileF32<64, 64, 2, 1, 8, 6>;
using Tile64x32 = TileF32<64, 32, 2, 1, 4, 10>;

int64_t round_up(int64_t v, int64_t step) {
  return (v + step - 1) / step * step;
}

template <class Tile, class T>
void launch_tile(const GemmF32& g, Layout layout, unsigned parts, cudaStream_t stream) {
  const unsigned tiles_m = static_cast<unsigned>((g.a.pixels + Tile::m - 1) / Tile::m);
  const unsigned tiles_n = static_cast<unsigned>((g.a.ocg + Tile::n - 1) / Tile::n);
  const dim3 grid(tiles_m * tiles_n, static_cast<unsigned>(g.a.groups), parts), block(Tile::threads);
  if (layout == Layout::nhwc) {
    launch(conv_gemm_f32<Tile, true, T>, grid, block, Tile::shared_bytes, stream, g);
  } else {
    launch(conv_gemm_f32<Tile, false, T>, grid, block, Tile::shared_bytes, stream, g);
  }
}

// One thread a packed value, k and channel from its number. T: what the values are rounded to.
template <class T>
__global__ void pack_gemm_f32(const float* wei, float* packed, int64_t packed_k, int64_t packed_n, WeightLayout layout,
                              bool channels_inside, int groups, int icg, int ocg, int kh, int kw) {
  const int64_t total = groups * packed_k * packed_n;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t n = i % packed_n, k = i / packed_n % packed_k, group = i / packed_n / packed_k;
    const int64_t taps = int64_t{1} * kh * kw;
    float v = 0;
    if (n < ocg && k < icg * taps) {
      const int64_t c = channels_inside ? k % icg : k / taps, tap = channels_inside ? k / icg : k % taps;
      const int64_t o = group * ocg + n, oc = int64_t{1} * groups * ocg;
      const int64_t at = layout == WeightLayout::oihw   ? (o * icg + c) * taps + tap
                         : layout == WeightLayout::ohwi ? (o * taps + tap) * icg + c
                                                        : (tap * icg + c) * oc + o;
      v = to_float(from_float<T>(wei[at]));
    }
    packed[i] = v;
  }
}

template <bool kNhwc, class T>
__global__ void sum_parts_f32(const __grid_constant__ GemmF32 g, int parts, int64_t elements) {
  const int width = g.vector_out ? 4 : 1;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * width;
  Finish<T> finish(g, 0, 0);
  finish.partial = nullptr;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * width; i < elements; i += step) {
    const int at = static_cast<int>(i);
    if (g.vector_out) {
      float4 sum = load4(g.partial + at);
      for (int part = 1; part < parts; ++part) {
        const float4 v = load4(g.partial + part * g.part_elements + at);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      float4 b;
      if (kNhwc) {
        const int n = at % g.a.oc;
        b = make_float4(finish.bias_at(n), finish.bias_at(n + 1), finish.bias_at(n + 2), finish.bias_at(n + 3));
      } else {
        const float one = finish.bias_at(at / g.plane % g.a.oc);
        b = make_float4(one, one, one, one);
      }
      finish.four(at, sum, b);
    } else {
      float sum = g.partial[at];
      for (int part = 1; part < parts; ++part) sum += g.partial[part * g.part_elements + at];
      finish.one(at, sum, finish.bias_at(kNhwc ? at % g.a.oc : at / g.plane % g.a.oc));
    }
  }
}

unsigned blocks_for(int64_t threads) {
  const int64_t blocks = (threads + 255) / 256;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > 8192 ? 8192 : blocks);
}

template <class T>
void sum_parts_of(const GemmF32& g, Layout layout, int parts, cudaStream_t stream) {
  const int64_t elements = g.part_elements;
  const dim3 grid(blocks_for(g.vector_out ? elements / 4 : elements)), block(256);
  if (layout == Layout::nhwc) {
    launch(sum_parts_f32<true, T>, grid, block, 0, stream, g, parts, elements);
  } else {
    launch(sum_parts_f32<false, T>, grid, block, 0, stream, g, parts, elements);
  }
}

}  // namespace

int64_t packed_f32_k(const Problem& p) {
  return round_up(p.icg() * p.kh * p.kw, kPackedStepK);
}
int64_t packed_f32_n(const Problem& p) {
  return round_up(p.ocg(), kPackedStepN);
}

void configure_packing_f32(Plan& plan) {
  const Problem& p = plan.task.problem;
  plan.packed_bytes = p.groups * packed_f32_k(p) * packed_f32_n(p) * 4;
  plan.pack_tag = p.layout == Layout::nhwc ? "gemm_f32_rsc" : "gemm_f32_crs";
}

void pack_f32(const Plan& plan, const float* wei, void* packed, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const int64_t k = packed_f32_k(p), n = packed_f32_n(p);
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  with_type(plan.task.dtype, [&](auto type) {
    launch(pack_gemm_f32<decltype(type)>, dim3(blocks_for(p.groups * k * n)), dim3(256), 0, stream, wei,
           static_cast<float*>(packed), k, n, p.weight_layout, p.layout == Layout::nhwc, i(p.groups), i(p.icg()),
           i(p.ocg()), i(p.kh), i(p.kw));
  });
}

GemmF32 gemm_f32_of(const Plan& plan, const Operands& args, int64_t first, int64_t images, float* partial) {
  const Problem& p = plan.task.problem;
  const int64_t plane = p.oh * p.ow, before = first * p.oc * plane, bytes = element_bytes(plan.task.dtype);
  GemmF32 g{};
  g.wei = static_cast<const float*>(args.packed);
  g.packed_k = static_cast<int>(packed_f32_k(p)), g.packed_n = static_cast<int>(packed_f32_n(p));
  g.plane = static_cast<int>(plane);
  g.by_plane = Divisor(plane);
  g.bias = p.bias ? args.bias : nullptr;
  g.residual = p.residual ? static_cast<const char*>(args.residual) + before * bytes : nullptr;
  g.dst = static_cast<char*>(args.dst) + before * bytes;
  g.partial = plan.tile.split_k > 1 ? partial : nullptr;
  g.part_elements = images * p.oc * plane;
  g.part_k = static_cast<int>(part_of_reduction(p.icg() * p.kh * p.kw, plan.tile.split_k, plan.tile.k));
  g.relu = p.activation == Activation::relu;
  const int64_t neighbours = p.layout == Layout::nhwc ? p.ocg() : plane;
  const auto width = static_cast<size_t>(4 * bytes);
  g.vector_out = neighbours % 4 == 0 && is_aligned(g.dst, width) && is_aligned(g.residual, width);
  return g;
}

void launch_gemm_f32(const GemmF32& g, Layout layout, Dtype dst, const Tile& tile, cudaStream_t stream) {
  const unsigned parts = static_cast<unsigned>(tile.split_k);
  // 16-bit results come from im2col alone, which has one tile for them.
  if (dst == Dtype::f16 && !g.partial) return launch_tile<Tile64x64, __half>(g, layout, parts, stream);
  if (dst == Dtype::bf16 && !g.partial) return launch_tile<Tile64x64, __nv_bfloat16>(g, layout, parts, stream);
  switch (tile.variant) {
    case 0:
      return launch_tile<Tile128x128, float>(g, layout, parts, stream);
    case 1:
      return launch_tile<Tile128x64, float>(g, layout, parts, stream);
    case 2:
      return launch_tile<Tile64x64, float>(g, layout, parts, stream);
    default:
      return launch_tile<Tile64x32, float>(g, layout, parts, stream);
  }
}

void launch_sum_parts(const GemmF32& g, Layout layout, Dtype dst, int parts, cudaStream_t stream) {
  with_type(dst, [&](auto type) { sum_parts_of<decltype(type)>(g, layout, parts, stream); });
}

}  // namespace fastconv::cuda
