// The first convolution of a ResNet: 7x7, stride 2, padding 3, three input channels; alone, or with the 3x3 max-pool of stride 2 and
//   padding 1 that follows its activation: dst[n,oc,i,j] = max over |y - 2i| <= 1, |x - 2j| <= 1 of act(bias[oc] + conv[n,oc,y,x]).
// Operands: weights packed [block of 64 oc][c][r][s][64] in float32 (rounded to the storage type), zeros past oc.
// Threads: 256 for 16x16 pixels of the convolution and 64 channels: 8 pixels along x and 8 channels each. A kernel row is 24 inputs in
//   registers, used by all 7 taps: 20 vector loads from shared memory for 448 products. With the pool, the 15x15 pixels of 7x7
//   pooled ones: 1.31 times the products.
// Shared memory: 19 KiB of image as [c][37 rows][44], where the four groups of a warp fall into different banks, and 37 KiB of weights;
//   then, in the same place, the tile's results for pooling and for stores that adjoin.
// Preconditions: an image below 2^30 elements.
// Tails: outside the image zeros are read; the pool skips what is outside the convolution's result.
// Numerics: one sequential sum in float32 in the order (c, r, s); the pool keeps NaN.
// Measured: not measured.
#include "cuda/algorithm.h"
#include "cuda/conv/gather.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kTile = 16, kPooled = 7;    // pixels a side
constexpr int kChannels = 64, kTaps = 7;  // of a block; a side
constexpr int kRows = 2 * (kTile - 1) + kTaps, kPitch = 44, kPatch = 3 * kRows * kPitch;
constexpr int kWeights = 3 * kTaps * kTaps * kChannels;
constexpr int kPlanePitch = kTile * kTile + 1;  // NCHW results lie [oc][pixel], NHWC [pixel][oc]
constexpr int kResult = kChannels * kPlanePitch;
constexpr int kSharedBytes = 4 * (kPatch + kWeights > kResult ? kPatch + kWeights : kResult);

struct Stem {
  int n, ih, iw, oc, oh, ow;  // of the convolution
  int out_h, out_w;           // of dst
  int tiles_x, tiles_y;
  bool nhwc, relu;
};

template <class T>
__device__ void load_patch(const Stem& g, const T* src, float* patch, int y0, int x0) {
  for (int i = threadIdx.x; i < 3 * kRows * kRows; i += 256) {
    int c, y, x;  // as src lies
    if (g.nhwc) {
      c = i % 3, x = i / 3 % kRows, y = i / (3 * kRows);
    } else {
      x = i % kRows, y = i / kRows % kRows, c = i / (kRows * kRows);
    }
    const int sy = y0 + y, sx = x0 + x;
    float v = 0;
    if (static_cast<unsigned>(sy) < static_cast<unsigned>(g.ih) &&
        static_cast<unsigned>(sx) < static_cast<unsigned>(g.iw))
      v = to_float(src[g.nhwc ? (sy * g.iw + sx) * 3 + c : (c * g.ih + sy) * g.iw + sx]);
    patch[(c * kRows + y) * kPitch + x] = v;
  }
}

// sums[8 pixels][8 channels]; `patch` at the thread's first input, `wei` at its first channel.
__device__ void multiply_taps(float (&sum)[8][8], const float* patch, const float* wei) {
#pragma unroll 1
  for (int row = 0; row < 3 * kTaps; ++row) {
    float in[24];
    const float* const from = patch + (row / kTaps * kRows + row % kTaps) * kPitch;
#pragma unroll
    for (int i = 0; i < 24; i += 4) {
      const float4 v = load_floats4(from + i);
      in[i] = v.x, in[i + 1] = v.y, in[i + 2] = v.z, in[i + 3] = v.w;
    }
#pragma unroll
    for (int s = 0; s < kTaps; ++s) {
      const float4 v = load_floats4(wei + (row * kTaps + s) * kChannels);
      const float4 w = load_floats4(wei + (row * kTaps + s) * kChannels + 32);
      const float by[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] += in[2 * i + s] * by[j];
      }
    }
  }
}

template <bool kPool, class T>
__global__ void __launch_bounds__(256, 2)
    conv_stem(const __grid_constant__ Stem g, const T* src, const float* wei, const float* bias, T* dst) {
  FASTCONV_SHARED(shared_bytes);
  float* const patch = reinterpret_cast<float*>(shared_bytes);
  float* const weights = patch + kPatch;
  const int tid = threadIdx.x, oc0 = static_cast<int>(blockIdx.y) * kChannels;
  const int tiles = g.tiles_x * g.tiles_y, image = static_cast<int>(blockIdx.x) / tiles;
  const int tile = static_cast<int>(blockIdx.x) - image * tiles;
  const int tile_y = tile / g.tiles_x, tile_x = tile - tile_y * g.tiles_x;
  // The tile's first pixel of the convolution; with the pool, one before the first pooled pixel's centre.
  const int y0 = kPool ? tile_y * 2 * kPooled - 1 : tile_y * kTile;
  const int x0 = kPool ? tile_x * 2 * kPooled - 1 : tile_x * kTile;

  load_patch(g, src + static_cast<int64_t>(image) * 3 * g.ih * g.iw, patch, 2 * y0 - 3, 2 * x0 - 3);
  wei += static_cast<int64_t>(blockIdx.y) * kWeights;
  for (int i = tid * 4; i < kWeights; i += 256 * 4) store_floats4(weights + i, load_floats4(wei + i));
  __syncthreads();

  // Lanes: bits 0 and 2 are the pixels, 1, 3 and 4 the channels, so that half a warp's loads are one wavefront.
  const int lane = tid % 32, half = lane & 1, row = tid / 32 * 2 + (lane >> 2 & 1);
  const int channel = ((lane >> 1 & 1) | (lane >> 2 & 6)) * 4;
  float sum[8][8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[i][j] = 0;
  }
  multiply_taps(sum, patch + 2 * row * kPitch + 16 * half, weights + channel);
  __syncthreads();

  float* const result = patch;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int oc = channel + j % 4 + j / 4 * 32;
    const float b = bias && oc0 + oc < g.oc ? bias[oc0 + oc] : 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float v = sum[i][j] + b;
      const int pixel = row * kTile + half * 8 + i;
      result[g.nhwc ? pixel * kChannels + oc : oc * kPlanePitch + pixel] = g.relu ? relu_keeping_nan(v) : v;
    }
  }
  __syncthreads();

  constexpr int side = kPool ? kPooled : kTile;
  T* const out = dst + static_cast<int64_t>(image) * g.oc * g.out_h * g.out_w;
  for (int i = tid; i < side * side * kChannels; i += 256) {
    const int oc = g.nhwc ? i % kChannels : i / (side * side), pixel = g.nhwc ? i / kChannels : i % (side * side);
    const int y = pixel / side, x = pixel % side;
    const int dst_y = tile_y * side + y, dst_x = tile_x * side + x;
    if (oc0 + oc >= g.oc || dst_y >= g.out_h || dst_x >= g.out_w) continue;
    const float* const from = result + (g.nhwc ? oc : oc * kPlanePitch);
    const int step = g.nhwc ? kChannels : 1;
    float v;
    if constexpr (kPool) {
      v = from[((2 * y + 1) * kTile + 2 * x + 1) * step];  // the centre always exists
#pragma unroll
      for (int r = 0; r < 3; ++r) {
#pragma unroll
        for (int s = 0; s < 3; ++s) {
          const int cy = y0 + 2 * y + r, cx = x0 + 2 * x + s;
          if (cy >= 0 && cy < g.oh && cx >= 0 && cx < g.ow)
            v = max_keeping_nan(v, from[((2 * y + r) * kTile + 2 * x + s) * step]);
        }
      }
    } else {
      v = from[(y * kTile + x) * step];
    }
    out[g.nhwc ? (dst_y * g.out_w + dst_x) * g.oc + oc0 + oc : ((oc0 + oc) * g.out_h + dst_y) * g.out_w + dst_x] =
        from_float<T>(v);
  }
}

template <class T>
__global__ void pack_stem(const float* wei, float* packed, WeightLayout layout, int total, int oc) {
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < total; i += gridDim.x * blockDim.x) {
    constexpr int taps = kTaps * kTaps;
    const int o = i / kWeights * kChannels + i % kChannels, k = i % kWeights / kChannels, c = k / taps, tap = k % taps;
    float v = 0;
    if (o < oc)
      v = wei[layout == WeightLayout::oihw   ? (o * 3 + c) * taps + tap
              : layout == WeightLayout::ohwi ? (o * taps + tap) * 3 + c
                                             : (tap * 3 + c) * oc + o];
    packed[i] = to_float(from_float<T>(v));
  }
}

int div_up(int64_t a, int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

const char* refuses(const Task& task, const DeviceLimits& device) {
  const Problem& p = task.problem;
  // A Problem has stride 1 where there is one output row or column.
  const bool strides = (p.sh == 2 || p.oh == 1) && (p.sw == 2 || p.ow == 1);
  if (p.ic != 3 || p.groups != 1 || p.kh != 7 || p.kw != 7 || !strides || p.dh != 1 || p.dw != 1 || p.pt != 3 ||
      p.pl != 3 || p.pb != 3 || p.pr != 3)
    return "only 7x7 kernels with stride 2, padding 3 and three input channels";
  if (p.residual) return "no residual";
  if (device.shared_bytes_per_block < kSharedBytes) return "needs 65 KiB of shared memory a block";
  return index_refuses(p);
}

void configure(Plan& plan) {
  plan.packed_bytes = int64_t{4} * kWeights * div_up(plan.task.problem.oc, kChannels);
  plan.pack_tag = "stem_crs64";
  plan.ukernel_name = plan.task.then_max_pool ? "stem_max_pool" : "stem";
  plan.tile.m = kTile * kTile, plan.tile.n = kChannels, plan.tile.k = kTaps, plan.tile.warps = 8, plan.tile.stages = 1;
}

void pack(const Plan& plan, const float* wei, void* packed, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const int total = static_cast<int>(plan.packed_bytes / 4);
  with_type(plan.task.dtype, [&](auto type) {
    launch(pack_stem<decltype(type)>, dim3(static_cast<unsigned>(div_up(total, 256))), dim3(256), 0, stream, wei,
           static_cast<float*>(packed), p.weight_layout, total, static_cast<int>(p.oc));
  });
}

void run(const Plan& plan, const Operands& args, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const bool pool = plan.task.then_max_pool;
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  Stem g{};
  g.ih = i(p.ih), g.iw = i(p.iw), g.oc = i(p.oc), g.oh = i(p.oh), g.ow = i(p.ow);
  g.out_h = pool ? (g.oh - 1) / 2 + 1 : g.oh, g.out_w = pool ? (g.ow - 1) / 2 + 1 : g.ow;
  g.tiles_y = div_up(g.out_h, pool ? kPooled : kTile), g.tiles_x = div_up(g.out_w, pool ? kPooled : kTile);
  g.nhwc = p.layout == Layout::nhwc, g.relu = p.activation == Activation::relu;
  const int64_t tiles = int64_t{1} * g.tiles_x * g.tiles_y, at_once = (int64_t{1} << 30) / tiles;
  const unsigned blocks_n = static_cast<unsigned>(div_up(p.oc, kChannels));
  for (int64_t first = 0; first < p.n; first += at_once) {
    const int64_t images = p.n - first < at_once ? p.n - first : at_once;
    const dim3 grid(static_cast<unsigned>(images * tiles), blocks_n);
    with_type(plan.task.dtype, [&](auto type) {
      using T = decltype(type);
      const T* const src = static_cast<const T*>(args.src) + first * 3 * p.ih * p.iw;
      T* const dst = static_cast<T*>(args.dst) + first * p.oc * g.out_h * g.out_w;
      launch(pool ? conv_stem<true, T> : conv_stem<false, T>, grid, dim3(256), kSharedBytes, stream, g, src,
             static_cast<const float*>(args.packed), p.bias ? args.bias : nullptr, dst);
    });
  }
}

}  // namespace

extern const Algorithm conv_stem_7x7 = {Op::conv2d, "stem", "conv_stem_7x7", refuses, configure, pack, run};

}  // namespace fastconv::cuda
