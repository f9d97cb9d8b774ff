// relu: dst[i] = max(src[i] + residual[i], 0), the residual where there is one.   batch_norm: dst = src * scale[c] + shift[c].
// Operands: arrays in any layout, read and written once; scale and shift float32. Threads: 256 a block, 16 bytes of src each and
// grid-strided, no shared memory; batch_norm sends as many blocks as fill the device, so that a thread finds its first channel by
// division once and walks from there.
// Preconditions: elements aligned to themselves. Tails: arrays that are not aligned to 16 bytes, and what is left of the last 16, go
// element by element.
// Numerics: relu exact, sums rounded once; NaN stays NaN. batch_norm is one fused multiply-add in float32.
// Measured: not measured. Reference: the definitions in common/problem.h.
#include <algorithm>

#include "cuda/algorithm.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = int64_t{1} << 20;
constexpr int kBlocksPerSm = 8;

unsigned blocks_for(int64_t threads, int64_t limit = kMaxBlocks) {
  return static_cast<unsigned>(std::clamp<int64_t>((threads + kThreads - 1) / kThreads, 1, limit));
}

// --- relu ---

template <class T, int width, bool add>
__global__ void __launch_bounds__(kThreads) relu_kernel(const T* src, const T* residual, T* dst, int64_t elements) {
  const int64_t vectors = elements / width;
  for (int64_t i = grid_thread(); i < vectors; i += grid_threads()) {
    float v[width];
    load_floats<width>(v, src + i * width);
    if constexpr (add) {
      float r[width];
      load_floats<width>(r, residual + i * width);
#pragma unroll
      for (int j = 0; j < width; ++j) v[j] += r[j];
    }
#pragma unroll
    for (int j = 0; j < width; ++j) v[j] = relu_keeping_nan(v[j]);
    store_floats<width>(dst + i * width, v);
  }
  if constexpr (width > 1) {  // the first block's first threads have one more each
    const int64_t i = vectors * width + grid_thread();
    if (i >= elements) return;
    float v = to_float(src[i]);
    if constexpr (add) v += to_float(residual[i]);
    dst[i] = from_float<T>(relu_keeping_nan(v));
  }
}

const char* accepts_all(const Task&, const DeviceLimits&) {
  return nullptr;
}

void configure_flat(Plan& plan) {
  plan.ukernel_name = plan.algorithm->kernel;
  plan.tile.m = kThreads * 16 / static_cast<int>(element_bytes(plan.task.dtype));
}

template <class T, int width>
void launch_relu(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const int64_t elements = plan.task.problem.dst_elements();
  const auto kernel = plan.task.problem.residual ? relu_kernel<T, width, true> : relu_kernel<T, width, false>;
  launch(kernel, dim3(blocks_for(elements / width)), dim3(kThreads), 0, stream, static_cast<const T*>(o.src),
         static_cast<const T*>(o.residual), static_cast<T*>(o.dst), elements);
}

void run_relu(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const bool aligned = is_aligned(o.src, 16) && is_aligned(o.residual, 16) && is_aligned(o.dst, 16);
  with_type(plan.task.dtype, [&](auto zero) {
    using T = decltype(zero);
    (aligned ? launch_relu<T, kVector<T>> : launch_relu<T, 1>)(plan, o, stream);
  });
}

// --- batch_norm ---

// How channels follow each other along the elements: each is repeated `run` times (NCHW: a plane; NHWC: once).
struct ChannelRuns {
  int64_t run, channels;
  // What one stride of the grid adds.
  int64_t step_in_run, step_channels;
};

// Where in a run an element lies.
struct RunPosition {
  int64_t in_run, channel;

  __device__ RunPosition(const ChannelRuns& r, int64_t element)
      : in_run(element % r.run), channel(element / r.run % r.channels) {}
  __device__ void stride(const ChannelRuns& r) {
    in_run += r.step_in_run;
    channel += r.step_channels;
    if (in_run >= r.run) in_run -= r.run, ++channel;
    if (channel >= r.channels) channel -= r.channels;
  }
  __device__ void next(const ChannelRuns& r) {
    if (++in_run < r.run) return;
    in_run = 0;
    if (++channel == r.channels) channel = 0;
  }
};

// one: a vector lies in one run. neighbours: its channels are neighbours, float32 values of theirs can be loaded four at a time. any: else.
enum class Channels { one, neighbours, any };

template <class T, int width, Channels channels>
__global__ void __launch_bounds__(kThreads) batch_norm_kernel(const T* src, const float* scale, const float* shift,
                                                              T* dst, int64_t elements, ChannelRuns runs) {
  const int64_t vectors = elements / width;
  RunPosition at(runs, grid_thread() * width);
  for (int64_t i = grid_thread(); i < vectors; i += grid_threads()) {
    float v[width], a[width], b[width];
    load_floats<width>(v, src + i * width);
    if constexpr (channels == Channels::neighbours) {
      load_floats<width>(a, scale + at.channel);
      load_floats<width>(b, shift + at.channel);
    } else {
      RunPosition p = at;
#pragma unroll
      for (int j = 0; j < width; ++j) {
        if (channels == Channels::one && j > 0) {
          a[j] = a[0], b[j] = b[0];
          continue;
        }
        a[j] = scale[p.channel], b[j] = shift[p.channel];
        if (channels == Channels::any) p.next(runs);
      }
    }
#pragma unroll
    for (int j = 0; j < width; ++j) v[j] = fmaf(v[j], a[j], b[j]);
    store_floats<width>(dst + i * width, v);
    at.stride(runs);
  }
  if constexpr (width > 1) {
    const int64_t i = vectors * width + grid_thread();
    if (i >= elements) return;
    const int64_t c = RunPosition(runs, i).channel;
    dst[i] = from_float<T>(fmaf(to_float(src[i]), scale[c], shift[c]));
  }
}

template <class T, int width, Channels channels>
void launch_batch_norm(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const int64_t elements = p.src_elements();
  ChannelRuns runs{};
  runs.run = p.layout == Layout::nchw ? p.ih * p.iw : 1;
  runs.channels = p.ic;
  const unsigned blocks = blocks_for(elements / width, int64_t{plan.device.sm_count} * kBlocksPerSm);
  const int64_t step = int64_t{blocks} * kThreads * width;
  runs.step_in_run = step % runs.run;
  runs.step_channels = step / runs.run % runs.channels;
  launch(batch_norm_kernel<T, width, channels>, dim3(blocks), dim3(kThreads), 0, stream, static_cast<const T*>(o.src),
         o.scale, o.bias, static_cast<T*>(o.dst), elements, runs);
}

void run_batch_norm(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  with_type(plan.task.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int width = kVector<T>;
    const bool nchw = p.layout == Layout::nchw;
    if (!is_aligned(o.src, 16) || !is_aligned(o.dst, 16))
      return launch_batch_norm<T, 1, Channels::one>(plan, o, stream);
    if (nchw && p.ih * p.iw % width == 0) return launch_batch_norm<T, width, Channels::one>(plan, o, stream);
    if (!nchw && p.ic % width == 0 && is_aligned(o.scale, 16) && is_aligned(o.bias, 16))
      return launch_batch_norm<T, width, Channels::neighbours>(plan, o, stream);
    launch_batch_norm<T, width, Channels::any>(plan, o, stream);
  });
}

}  // namespace

extern const Algorithm relu_direct, batch_norm_direct;
const Algorithm relu_direct = {Op::relu, "direct", "relu", accepts_all, configure_flat, nullptr, run_relu};
const Algorithm batch_norm_direct = {Op::batch_norm, "direct", "batch_norm",  accepts_all,
                                     configure_flat, nullptr,  run_batch_norm};

}  // namespace fastconv::cuda
