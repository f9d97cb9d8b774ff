// dst[n,c,oh,ow] = max over r, s of src[n, c, oh*sh - pt + r*dh, ow*sw - pl + s*dw], cells of the image only; indices: which one, h*iw + w.
// Operands: images in the problem's layout; indices int64 in the output's layout.
// Threads: 256 a block; one makes the 16 bytes of neighbouring channels of an output (NHWC) or one output (NCHW, lanes along the row, so
//   that neighbours share what they read in the first-level cache); no shared memory. The nine loads of a 3x3 window go out together.
// Preconditions: an image of at most 2^30 elements (pool_refuses). Tails: channels that do not fill vectors, and arrays that are not
//   aligned to 16 bytes, go channel by channel.
// Numerics: exact. The first of equal cells wins; a NaN beats every number and the first NaN wins; a window without a cell gives -inf and
//   index -1. Measured: not measured. Reference: the definition.
#include "cuda/pool.cuh"

#include "cuda/algorithm.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;

// A later cell replaces the best one so far: it is larger, or the first NaN.
__device__ inline bool beats(float v, float best) {
  return !(v <= best) && best == best;
}

template <class T, int width>
struct Best {
  float value[width];
  int index[width];

  __device__ Best() {
#pragma unroll
    for (int j = 0; j < width; ++j) value[j] = -INFINITY, index[j] = -1;
  }
  __device__ void look(const T* p, int cell) {
    float v[width];
    load_floats<width>(v, p);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const bool better = index[j] < 0 || beats(v[j], value[j]);
      value[j] = better ? v[j] : value[j];
      index[j] = better ? cell : index[j];
    }
  }
};

// `window`: its rows and columns where they are known, without dilation; else 0.
template <class T, int width, bool nhwc, int window, bool with_indices>
__global__ void __launch_bounds__(kThreads) max_pool_kernel(const T* src, T* dst, int64_t* indices, Pool g) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= g.outputs) return;
  const PoolPlace<nhwc> at(g, i, width);
  const int y0 = at.row * g.sh - g.pt, x0 = at.column * g.sw - g.pl;
  const T* const from = src + at.src;
  T* const to = dst + static_cast<int64_t>(i) * width;
  if constexpr (window > 0) {
    float value[window * window][width];
#pragma unroll
    for (int r = 0; r < window; ++r) {
#pragma unroll
      for (int s = 0; s < window; ++s) {
        const int y = y0 + r, x = x0 + s;
        float (&v)[width] = value[r * window + s];
        if (static_cast<unsigned>(y) < static_cast<unsigned>(g.ih) &&
            static_cast<unsigned>(x) < static_cast<unsigned>(g.iw)) {
          load_floats<width>(v, from + (y * at.row_stride + x * at.column_stride));
        } else {
#pragma unroll
          for (int j = 0; j < width; ++j) v[j] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int k = 1; k < window * window; ++k) {
#pragma unroll
      for (int j = 0; j < width; ++j) value[0][j] = beats(value[k][j], value[0][j]) ? value[k][j] : value[0][j];
    }
    store_floats<width>(to, value[0]);
  } else {
    Best<T, width> best;
    for (int r = 0; r < g.kh; ++r) {
      const int y = y0 + r * g.dh;
      if (static_cast<unsigned>(y) >= static_cast<unsigned>(g.ih)) continue;
      for (int s = 0; s < g.kw; ++s) {
        const int x = x0 + s * g.dw;
        if (static_cast<unsigned>(x) >= static_cast<unsigned>(g.iw)) continue;
        best.look(from + (y * at.row_stride + x * at.column_stride), y * g.iw + x);
      }
    }
    store_floats<width>(to, best.value);
    if constexpr (with_indices) {
#pragma unroll
      for (int j = 0; j < width; ++j) indices[static_cast<int64_t>(i) * width + j] = best.index[j];
    }
  }
}

bool is_window(const Problem& p, int64_t k) {
  return p.kh == k && p.kw == k && p.dh == 1 && p.dw == 1 && !p.with_indices;
}

void configure(Plan& plan) {
  const Problem& p = plan.task.problem;
  plan.ukernel_name = is_window(p, 3) ? "max_3x3" : p.with_indices ? "max_indices" : "max";
  plan.tile.m = kThreads;
}

template <class T, int width, bool nhwc>
void launch_max(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const auto kernel = p.with_indices    ? max_pool_kernel<T, width, nhwc, 0, true>
                      : is_window(p, 3) ? max_pool_kernel<T, width, nhwc, 3, false>
                                        : max_pool_kernel<T, width, nhwc, 0, false>;
  for_image_ranges(p, width, [&](int64_t first, const Pool& g) {
    const int64_t done = first * p.oc * p.oh * p.ow;
    launch(kernel, dim3(static_cast<unsigned>((g.outputs + kThreads - 1) / kThreads)), dim3(kThreads), 0, stream,
           static_cast<const T*>(o.src) + first * p.ic * p.ih * p.iw, static_cast<T*>(o.dst) + done,
           o.indices ? o.indices + done : nullptr, g);
  });
}

void run(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  with_type(plan.task.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (p.layout == Layout::nchw) return launch_max<T, 1, false>(plan, o, stream);
    const bool vectors = p.ic % kVector<T> == 0 && is_aligned(o.src, 16) && is_aligned(o.dst, 16);
    (vectors ? launch_max<T, kVector<T>, true> : launch_max<T, 1, true>)(plan, o, stream);
  });
}

}  // namespace

extern const Algorithm max_pool2d_direct;
const Algorithm max_pool2d_direct = {Op::max_pool2d, "direct", "max_pool2d", pool_refuses, configure, nullptr, run};

}  // namespace fastconv::cuda
