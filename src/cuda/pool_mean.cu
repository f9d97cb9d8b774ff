// dst[n,c,oh,ow] = (sum over the window's cells of src) / divisor. avg_pool2d: the window clipped to the padded image, or its real cells
// only, or divisor_override; adaptive_avg_pool2d: rows floor(i*ih/oh) to ceil((i+1)*ih/oh), columns alike.
// Operands: images in the problem's layout.
// Threads: 256 a block. mean: one makes the 16 bytes of neighbouring channels of an output (NHWC) or one output (NCHW). plane (one window
//   over each whole image): 32 lanes of channels by 8 parts of the pixels (NHWC), or a warp a plane (NCHW).
// Shared memory: plane in NHWC: 8 parts x 32 lanes x 16 bytes' worth of float32 sums; else none.
// Preconditions: an image of at most 2^30 elements (pool_refuses). Tails: channels that do not fill vectors, and arrays that are not
//   aligned to 16 bytes, go channel by channel.
// Numerics: float32 sums, row by row; plane: parts of pixels first, then the parts in a fixed order. One division, one rounding.
// Measured: not measured. Reference: the definition.
#include "cuda/algorithm.h"
#include "cuda/launch.cuh"
#include "cuda/pool.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct Mean {
  Pool pool;
  bool adaptive, count_include_pad;
  float divisor;  // 0: the window says
};

struct Window {
  int top, bottom, left, right;
  float divisor;

  __device__ Window(const Mean& m, int row, int column) {
    const Pool& g = m.pool;
    if (m.adaptive) {
      const auto start = [](int64_t i, int in, int out) { return static_cast<int>(i * in / out); };
      const auto end = [](int64_t i, int in, int out) { return static_cast<int>(((i + 1) * in + out - 1) / out); };
      top = start(row, g.ih, g.oh), bottom = end(row, g.ih, g.oh);
      left = start(column, g.iw, g.ow), right = end(column, g.iw, g.ow);
      divisor = static_cast<float>((bottom - top) * (right - left));
      return;
    }
    top = row * g.sh - g.pt, left = column * g.sw - g.pl;
    bottom = min(top + g.kh, g.ih + g.pb), right = min(left + g.kw, g.iw + g.pr);
    const int padded = (bottom - top) * (right - left);
    top = max(top, 0), left = max(left, 0);
    bottom = min(bottom, g.ih), right = min(right, g.iw);
    const int cells = max(bottom - top, 0) * max(right - left, 0);
    divisor = m.divisor != 0.0f ? m.divisor : static_cast<float>(m.count_include_pad ? padded : cells);
  }
};

template <class T, int width, bool nhwc>
__global__ void __launch_bounds__(kThreads) mean_kernel(const T* src, T* dst, Mean m) {
  const Pool& g = m.pool;
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= g.outputs) return;
  const PoolPlace<nhwc> at(g, i, width);
  const Window w(m, at.row, at.column);
  float sum[width] = {};
  for (int y = w.top; y < w.bottom; ++y) {
    for (int x = w.left; x < w.right; ++x) {
      float v[width];
      load_floats<width>(v, src + (at.src + y * at.row_stride + x * at.column_stride));
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += v[j];
    }
  }
#pragma unroll
  for (int j = 0; j < width; ++j) sum[j] /= w.divisor;
  store_floats<width>(dst + static_cast<int64_t>(i) * width, sum);
}

// Whole images, NHWC. Block: 32 vectors of channels of image blockIdx.y + k * gridDim.y.
template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    plane_nhwc_kernel(const T* src, T* dst, int64_t images, int64_t pixels, int64_t channels) {
  FASTCONV_SHARED(bytes);
  float* const parts = reinterpret_cast<float*>(bytes);  // [kWarps][width][32]
  const int lane = static_cast<int>(threadIdx.x) % 32, part = static_cast<int>(threadIdx.x) / 32;
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * 32 + lane) * width;
  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
    float sum[width] = {};
    if (channel < channels) {
#pragma unroll 4
      for (int64_t p = part; p < pixels; p += kWarps) {
        float v[width];
        load_floats<width>(v, src + (image * pixels + p) * channels + channel);
#pragma unroll
        for (int j = 0; j < width; ++j) sum[j] += v[j];
      }
    }
#pragma unroll
    for (int j = 0; j < width; ++j) parts[(part * width + j) * 32 + lane] = sum[j];
    __syncthreads();
    if (part == 0 && channel < channels) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
#pragma unroll
        for (int other = 1; other < kWarps; ++other) sum[j] += parts[(other * width + j) * 32 + lane];
        sum[j] /= static_cast<float>(pixels);
      }
      store_floats<width>(dst + image * channels + channel, sum);
    }
    __syncthreads();
  }
}

// Whole images, NCHW: a warp a plane.
template <class T, int width>
__global__ void __launch_bounds__(kThreads) plane_nchw_kernel(const T* src, T* dst, int64_t planes, int64_t pixels) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t plane = static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (plane >= planes) return;  // a whole warp
  float sum = 0;
#pragma unroll 4
  for (int64_t p = lane * width; p < pixels; p += 32 * width) {
    float v[width];
    load_floats<width>(v, src + plane * pixels + p);
#pragma unroll
    for (int j = 0; j < width; ++j) sum += v[j];
  }
  sum = warp_sum(sum);
  if (lane == 0) dst[plane] = from_float<T>(sum / static_cast<float>(pixels));
}

bool is_plane(const Problem& p) {
  return p.op == Op::adaptive_avg_pool2d && p.oh == 1 && p.ow == 1;
}

const char* refuses(const Task& task, const DeviceLimits& device) {
  return is_plane(task.problem) ? nullptr : pool_refuses(task, device);
}

void configure(Plan& plan) {
  plan.ukernel_name = is_plane(plan.task.problem) ? "plane" : "mean";
  plan.tile.m = kThreads;
}

template <class T, int width>
void launch_plane(const Problem& p, const Operands& o, cudaStream_t stream) {
  const int64_t pixels = p.ih * p.iw;
  const T* src = static_cast<const T*>(o.src);
  T* dst = static_cast<T*>(o.dst);
  if (p.layout == Layout::nchw) {
    const int64_t planes = p.n * p.ic;
    launch(plane_nchw_kernel<T, width>, dim3(static_cast<unsigned>((planes + kWarps - 1) / kWarps)), dim3(kThreads), 0,
           stream, src, dst, planes, pixels);
  } else {
    const unsigned across = static_cast<unsigned>((p.ic + 32 * width - 1) / (32 * width));
    launch(plane_nhwc_kernel<T, width>, dim3(across, static_cast<unsigned>(std::min<int64_t>(p.n, 65535))),
           dim3(kThreads), kThreads * width * sizeof(float), stream, src, dst, p.n, pixels, p.ic);
  }
}

template <class T, int width, bool nhwc>
void launch_mean(const Problem& p, const Operands& o, cudaStream_t stream) {
  Mean m{};
  m.adaptive = p.op == Op::adaptive_avg_pool2d;
  m.count_include_pad = p.count_include_pad;
  m.divisor = static_cast<float>(p.divisor_override);
  for_image_ranges(p, width, [&](int64_t first, const Pool& g) {
    m.pool = g;
    launch(mean_kernel<T, width, nhwc>, dim3(static_cast<unsigned>((g.outputs + kThreads - 1) / kThreads)),
           dim3(kThreads), 0, stream, static_cast<const T*>(o.src) + first * p.ic * p.ih * p.iw,
           static_cast<T*>(o.dst) + first * p.oc * p.oh * p.ow, m);
  });
}

void run(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  with_type(plan.task.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int width = kVector<T>;
    const bool nchw = p.layout == Layout::nchw, aligned = is_aligned(o.src, 16) && is_aligned(o.dst, 16);
    const bool vectors = aligned && (nchw ? p.ih * p.iw : p.ic) % width == 0;
    if (is_plane(p)) return (vectors ? launch_plane<T, width> : launch_plane<T, 1>)(p, o, stream);
    if (nchw) return launch_mean<T, 1, false>(p, o, stream);
    (vectors ? launch_mean<T, width, true> : launch_mean<T, 1, true>)(p, o, stream);
  });
}

}  // namespace

extern const Algorithm avg_pool2d_direct, adaptive_avg_pool2d_direct;
const Algorithm avg_pool2d_direct = {Op::avg_pool2d, "direct", "avg_pool2d", refuses, configure, nullptr, run};
const Algorithm adaptive_avg_pool2d_direct = {
    Op::adaptive_avg_pool2d, "direct", "adaptive_avg_pool2d", refuses, configure, nullptr, run};

}  // namespace fastconv::cuda
