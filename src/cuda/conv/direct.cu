// Direct convolution, the definition written down: dst[n,oc,oh,ow] = act(bias[oc] + residual
//   + sum_{r,s,c} src[n, g*icg + c, oh*sh - pt + r*dh, ow*sw - pl + s*dw] * wei[oc,c,r,s]).
// Operands: weights packed [r][s][c of the group][oc] in the storage type, both layouts.
// Threads: one an output (depthwise in NHWC: four channels), 256 a block, neighbours as dst lies. No shared memory; reuse is the caches'.
// conv_direct: any geometry, 64-bit numbers throughout. conv_direct_depthwise: one input channel a group, 32-bit numbers, divisions by
//   multiplication.
// Preconditions: none for conv_direct; conv_direct_depthwise: an image and its padding below 2^30 elements.
// Tails: every thread looks whether its output and its taps exist.
// Numerics: one sequential sum in float32 per output, in the order (r, s, c).
// Measured: not measured.
#include <algorithm>

#include "cuda/algorithm.h"
#include "cuda/conv/gather.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

template <class T>
struct Arrays {
  const T* src;
  const T* wei;
  const float* bias;
  const T* residual;
  T* dst;
};

template <class T>
__device__ void store_output(const Arrays<T>& a, int64_t at, int64_t oc, float sum, bool relu) {
  if (a.bias) sum += a.bias[oc];
  if (a.residual) sum += to_float(a.residual[at]);
  a.dst[at] = from_float<T>(relu ? relu_keeping_nan(sum) : sum);
}

template <class T>
__global__ void __launch_bounds__(256) conv_direct_kernel(const __grid_constant__ Problem p, const Arrays<T> a) {
  const bool nhwc = p.layout == Layout::nhwc;
  const int64_t icg = p.ic / p.groups, ocg = p.oc / p.groups, total = p.n * p.oc * p.oh * p.ow;
  const int64_t pixel = nhwc ? p.ic : 1, row = p.iw * pixel, channel = nhwc ? 1 : p.ih * p.iw;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < total; at += step) {
    const int64_t oc = nhwc ? at % p.oc : at / (p.oh * p.ow) % p.oc, place = nhwc ? at / p.oc : at;
    const int64_t ow = place % p.ow, oh = place / p.ow % p.oh, n = at / (p.oc * p.oh * p.ow);
    const T* const src = a.src + n * p.ic * p.ih * p.iw + oc / ocg * icg * channel;
    float sum = 0;
    for (int64_t r = 0; r < p.kh; ++r) {
      const int64_t y = oh * p.sh - p.pt + r * p.dh;
      if (y < 0 || y >= p.ih) continue;
      for (int64_t s = 0; s < p.kw; ++s) {
        const int64_t x = ow * p.sw - p.pl + s * p.dw;
        if (x < 0 || x >= p.iw) continue;
        const T* const from = src + y * row + x * pixel;
        const T* const wei = a.wei + (r * p.kw + s) * icg * p.oc + oc;
        for (int64_t c = 0; c < icg; ++c) sum += to_float(from[c * channel]) * to_float(wei[c * p.oc]);
      }
    }
    store_output(a, at, oc, sum, p.activation == Activation::relu);
  }
}

// by_channels splits a place in dst: NHWC into pixel and channel, NCHW into plane and pixel of the plane.
template <class T>
__global__ void __launch_bounds__(256)
    conv_depthwise_nchw(const __grid_constant__ Gather g, const Arrays<T> a, Divisor by_oc, Divisor by_ocg, bool relu) {
  const int total = g.pixels * g.oc, step = static_cast<int>(gridDim.x * blockDim.x);
  for (int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); at < total; at += step) {
    int in_plane, oc;
    const int plane = g.by_plane.split(at, in_plane), image = by_oc.split(plane, oc);
    const Origin o = origin_of(g, image * static_cast<int>(g.by_plane.divisor) + in_plane);
    const T* const src = a.src + (origin_offset(g, o) + by_ocg.quotient(oc) * g.channel_stride);
    float sum = 0;
    for (int r = 0; r < g.kh; ++r) {
      if (static_cast<unsigned>(o.y + r * g.dh) >= static_cast<unsigned>(g.ih)) continue;
      for (int s = 0; s < g.kw; ++s) {
        if (static_cast<unsigned>(o.x + s * g.dw) >= static_cast<unsigned>(g.iw)) continue;
        sum += to_float(src[r * g.dh * g.row_stride + s * g.dw]) * to_float(a.wei[(r * g.kw + s) * g.oc + oc]);
      }
    }
    store_output(a, at, oc, sum, relu);
  }
}

// width: channels a thread. 4 wants one output channel an input channel, ic a multiple of 4, and aligned arrays.
template <int width, class T>
__global__ void __launch_bounds__(256)
    conv_depthwise_nhwc(const __grid_constant__ Gather g, const Arrays<T> a, Divisor by_oc, Divisor by_ocg, bool relu) {
  const int total = g.pixels * g.oc, step = static_cast<int>(gridDim.x * blockDim.x) * width;
  for (int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * width; at < total; at += step) {
    int oc;
    const int pixel = by_oc.split(at, oc);
    const Origin o = origin_of(g, pixel);
    const T* const src = a.src + (origin_offset(g, o) + by_ocg.quotient(oc));
    float sum[width] = {};
    for (int r = 0; r < g.kh; ++r) {
      if (static_cast<unsigned>(o.y + r * g.dh) >= static_cast<unsigned>(g.ih)) continue;
      for (int s = 0; s < g.kw; ++s) {
        if (static_cast<unsigned>(o.x + s * g.dw) >= static_cast<unsigned>(g.iw)) continue;
        const T* const from = src + (r * g.dh * g.row_stride + s * g.dw * g.column_stride);
        const T* const wei = a.wei + (r * g.kw + s) * g.oc + oc;
        if constexpr (width == 4) {
          const float4 v = load_floats4(from), w = load_floats4(wei);
          sum[0] += v.x * w.x, sum[1] += v.y * w.y, sum[2] += v.z * w.z, sum[3] += v.w * w.w;
        } else {
          sum[0] += to_float(*from) * to_float(*wei);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < width; ++i) store_output(a, at + i, oc + i, sum[i], relu);
  }
}

template <class T>
__global__ void pack_direct(const __grid_constant__ Problem p, const float* wei, T* packed) {
  const int64_t icg = p.ic / p.groups, taps = p.kh * p.kw, total = p.oc * icg * taps;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t oc = i % p.oc, c = i / p.oc % icg, tap = i / p.oc / icg;
    const int64_t at = p.weight_layout == WeightLayout::oihw   ? (oc * icg + c) * taps + tap
                       : p.weight_layout == WeightLayout::ohwi ? (oc * taps + tap) * icg + c
                                                               : (tap * icg + c) * p.oc + oc;
    packed[i] = from_float<T>(wei[at]);
  }
}

dim3 blocks_for(int64_t threads) {
  return dim3(static_cast<unsigned>(std::clamp<int64_t>((threads + 255) / 256, 1, 1 << 20)));
}

template <class T>
Arrays<T> arrays_of(const Problem& p, const Operands& args) {
  return {static_cast<const T*>(args.src), static_cast<const T*>(args.packed), p.bias ? args.bias : nullptr,
          p.residual ? static_cast<const T*>(args.residual) : nullptr, static_cast<T*>(args.dst)};
}

void pack(const Plan& plan, const float* wei, void* packed, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  with_type(plan.task.dtype, [&](auto type) {
    using T = decltype(type);
    launch(pack_direct<T>, blocks_for(p.weight_elements()), dim3(256), 0, stream, p, wei, static_cast<T*>(packed));
  });
}

const char* refuses(const Task& task, const DeviceLimits&) {
  return task.then_max_pool ? "no fused max-pool" : nullptr;
}

void configure(Plan& plan) {
  plan.packed_bytes = plan.task.problem.weight_elements() * element_bytes(plan.task.dtype);
  plan.pack_tag = "direct_rsco";
  plan.tile.warps = 8;
}

void run(const Plan& plan, const Operands& args, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  if (p.n == 0) return;
  with_type(plan.task.dtype, [&](auto type) {
    using T = decltype(type);
    launch(conv_direct_kernel<T>, blocks_for(p.dst_elements()), dim3(256), 0, stream, p, arrays_of<T>(p, args));
  });
}

const char* refuses_depthwise(const Task& task, const DeviceLimits&) {
  if (task.then_max_pool) return "no fused max-pool";
  if (task.problem.icg() != 1 || task.problem.groups == 1) return "more than one input channel a group, or one group";
  return index_refuses(task.problem);
}

bool takes_four(const Problem& p, const Operands& args, int64_t bytes) {
  return p.ocg() == 1 && p.ic % 4 == 0 && is_aligned(args.src, static_cast<size_t>(4 * bytes));
}

void run_depthwise(const Plan& plan, const Operands& args, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const int64_t at_once = images_per_launch(p);
  const bool relu = p.activation == Activation::relu;
  const Divisor by_oc(p.oc), by_ocg(p.ocg());
  with_type(plan.task.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t first = 0; first < p.n; first += at_once) {
      const int64_t images = std::min(at_once, p.n - first), outputs = p.oc * p.oh * p.ow;
      Arrays<T> a = arrays_of<T>(p, args);
      a.src += first * p.ic * p.ih * p.iw;
      a.dst += first * outputs;
      if (a.residual) a.residual += first * outputs;
      const Gather g = gather_of(p, images);
      if (p.layout == Layout::nchw) {
        launch(conv_depthwise_nchw<T>, blocks_for(images * outputs), dim3(256), 0, stream, g, a, by_oc, by_ocg, relu);
      } else if (takes_four(p, args, sizeof(T))) {
        launch(conv_depthwise_nhwc<4, T>, blocks_for(images * outputs / 4), dim3(256), 0, stream, g, a, by_oc, by_ocg,
               relu);
      } else {
        launch(conv_depthwise_nhwc<1, T>, blocks_for(images * outputs), dim3(256), 0, stream, g, a, by_oc, by_ocg,
               relu);
      }
    }
  });
}

}  // namespace

extern const Algorithm conv_direct_depthwise = {
    Op::conv2d, "direct", "conv_direct_depthwise", refuses_depthwise, configure, pack, run_depthwise};
extern const Algorithm conv_direct = {Op::conv2d, "direct", "conv_direct", refuses, configure, pack, run};

}  // namespace fastconv::cuda
