// dst[n,c,oh,ow] = max over r, s of src[n, c, oh*sh - pt + r*dh, ow*sw - pl + s*dw], cells of the image only; indices: which one, h*iw + w.
// Operands: images in the problem's layout; indices int64 in the output's layout.
// Threads: 256 a block; one makes the 16 bytes of neighbouring channels of an output (NHWC) or one output (NCHW, lanes along the row, so
//   that neighbours share what they read in the first-level cache); no shared memory. The nine loads of a 3x3 window go out together; of
//   NCHW with columns in steps of two, rows are read in vectors.
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

template <class T, int width, bool nhwc, bool with_indices>
__global__ void __launch_bounds__(kThreads) max_pool_kernel(const T* src, T* dst, int64_t* indices, Pool g) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= g.outputs) return;
  const PoolPlace<nhwc> at(g, i, width);
  const int y0 = at.row * g.sh - g.pt, x0 = at.column * g.sw - g.pl;
  const T* const from = src + at.src;
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
  store_floats<width>(dst + static_cast<int64_t>(i) * width, best.value);
  if constexpr (with_indices) {
#pragma unroll
    for (int j = 0; j < width; ++j) indices[static_cast<int64_t>(i) * width + j] = best.index[j];
  }
}

template <class T, int count>
__device__ inline Vector<T, count> lowest() {
  Vector<T, count> v;
#pragma unroll
  for (int j = 0; j < count; ++j) v.value[j] = from_float<T>(-INFINITY);
  return v;
}

// 3x3 without dilation. All nine loads go out before the first is needed.
template <class T, int width, bool nhwc>
__global__ void __launch_bounds__(kThreads) max_pool_3x3_kernel(const T* src, T* dst, Pool g) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= g.outputs) return;
  const PoolPlace<nhwc> at(g, i, width);
  const int y0 = at.row * g.sh - g.pt, x0 = at.column * g.sw - g.pl;
  const T* const from = src + at.src;
  Vector<T, width> cell[9];
#pragma unroll
  for (int k = 0; k < 9; ++k) {
    const int y = y0 + k / 3, x = x0 + k % 3;
    const bool inside = static_cast<unsigned>(y) < static_cast<unsigned>(g.ih) &&
                        static_cast<unsigned>(x) < static_cast<unsigned>(g.iw);
    cell[k] = inside ? load_vector<width>(from + (y * at.row_stride + x * at.column_stride)) : lowest<T, width>();
  }
#pragma unroll
  for (int k = 1; k < 9; ++k) cell[0] = max_of(cell[0], cell[k]);
  store_vector<width>(dst + static_cast<int64_t>(i) * width, cell[0]);
}

// NCHW, 3x3 with columns in steps of two from one column of padding on, rows of whole vectors: a thread reads a vector of each of three
// rows and the column before it, and makes half a vector of outputs.
template <class T>
__global__ void __launch_bounds__(kThreads) max_pool_3x3_rows_kernel(const T* src, T* dst, Pool g) {
  constexpr int width = kVector<T>, half = width / 2;
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= g.outputs) return;
  const PoolPlace<false> at(g, i, 1);  // whose columns are vectors
  const int y0 = at.row * g.sh - g.pt, x = at.column * width;
  const T* const from = src + at.src + x;
  Vector<T, width> most = lowest<T, width>();
  Vector<T, 1> before = lowest<T, 1>();
#pragma unroll
  for (int r = 0; r < 3; ++r) {
    if (static_cast<unsigned>(y0 + r) >= static_cast<unsigned>(g.ih)) continue;
    const T* const row = from + (y0 + r) * g.iw;
    most = max_of(most, load_vector<width>(row));
    if (x > 0) before = max_of(before, load_vector<1>(row - 1));
  }
  Vector<T, half> out;
#pragma unroll
  for (int j = 0; j < half; ++j) {
    const Vector<T, 1> left = j == 0 ? before : Vector<T, 1>{{most.value[j == 0 ? 0 : 2 * j - 1]}};
    const Vector<T, 1> middle{{most.value[2 * j]}}, right{{most.value[2 * j + 1]}};
    out.value[j] = max_of(max_of(left, middle), right).value[0];
  }
  store_vector<half>(dst + static_cast<int64_t>(i) * half, out);
}

bool is_3x3(const Problem& p) {
  return p.kh == 3 && p.kw == 3 && p.dh == 1 && p.dw == 1 && !p.with_indices;
}

bool reads_rows(const Problem& p, int width) {
  return p.layout == Layout::nchw && is_3x3(p) && p.sw == 2 && p.pl == 1 && p.iw % width == 0 && p.ow == p.iw / 2;
}

void configure(Plan& plan) {
  const Problem& p = plan.task.problem;
  const int width = 16 / static_cast<int>(element_bytes(plan.task.dtype));
  plan.ukernel_name = reads_rows(p, width) ? "max_3x3_rows"
                      : is_3x3(p)          ? "max_3x3"
                      : p.with_indices     ? "max_indices"
                                           : "max";
  plan.tile.m = kThreads;
}

unsigned blocks_for(int threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

template <class T, int width, bool nhwc>
void launch_max(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  for_image_ranges(p, width, [&](int64_t first, const Pool& g) {
    const int64_t done = first * p.oc * p.oh * p.ow;
    const T* src = static_cast<const T*>(o.src) + first * p.ic * p.ih * p.iw;
    T* dst = static_cast<T*>(o.dst) + done;
    const dim3 grid(blocks_for(g.outputs)), block(kThreads);
    if (p.with_indices) {
      launch(max_pool_kernel<T, width, nhwc, true>, grid, block, 0, stream, src, dst, o.indices + done, g);
    } else if (is_3x3(p)) {
      launch(max_pool_3x3_kernel<T, width, nhwc>, grid, block, 0, stream, src, dst, g);
    } else {
      launch(max_pool_kernel<T, width, nhwc, false>, grid, block, 0, stream, src, dst, nullptr, g);
    }
  });
}

template <class T>
void launch_rows(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  for_image_ranges(p, 1, [&](int64_t first, Pool g) {
    const int vectors = g.iw / kVector<T>;  // of a row: each makes half as many outputs as it has elements
    g.outputs = g.outputs / g.ow * vectors;
    g.by_ow = Divisor(vectors);
    launch(max_pool_3x3_rows_kernel<T>, dim3(blocks_for(g.outputs)), dim3(kThreads), 0, stream,
           static_cast<const T*>(o.src) + first * p.ic * p.ih * p.iw,
           static_cast<T*>(o.dst) + first * p.oc * p.oh * p.ow, g);
  });
}

void run(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const bool aligned = is_aligned(o.src, 16) && is_aligned(o.dst, 16);
  with_type(plan.task.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (aligned && reads_rows(p, kVector<T>)) return launch_rows<T>(plan, o, stream);
    if (p.layout == Layout::nchw) return launch_max<T, 1, false>(plan, o, stream);
    (aligned && p.ic % kVector<T> == 0 ? launch_max<T, kVector<T>, true> : launch_max<T, 1, true>)(plan, o, stream);
  });
}

}  // namespace

extern const Algorithm max_pool2d_direct;
const Algorithm max_pool2d_direct = {Op::max_pool2d, "direct", "max_pool2d", pool_refuses, configure, nullptr, run};

}  // namespace fastconv::cuda
