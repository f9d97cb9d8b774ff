// dst[o,i,p] = exp(src[o,i,p] - max) / sum over i of exp(src[o,i,p] - max), max over i.
// Operands: arrays of outer x axis x inner elements.
// Threads: 256 a block, no or little shared memory. row_warp (inner 1, axis to 1024): a warp a row, which stays in registers. row_block
//   (inner 1, longer): a block a row, read three times, the later ones mostly from cache; 8 floats of shared memory for its warps. column
//   (inner above 1): a thread a column, neighbours side by side, read three times.
// Preconditions: elements aligned to themselves. Tails: lanes past the row hold -inf, whose exponential is 0.
// Numerics: float32 inside. A row with NaN or +inf, or of -inf only, is all NaN; -inf beside finite values gives 0. Sums of a row: by lane,
//   then by halves of the warp, then by warp: the same order each time; of a column: four partial sums.
// Measured: not measured. Tried: nothing yet. Reference: the definition.
#include <algorithm>

#include "cuda/algorithm.h"
#include "cuda/conv/gather.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kMaxInRegisters = 1024;
constexpr int64_t kMaxBlocks = int64_t{1} << 30, kMaxColumns = int64_t{1} << 30;

unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

// `values` of the row in each lane.
template <class T, int values>
__global__ void __launch_bounds__(kThreads) softmax_row_warp(const T* src, T* dst, int64_t rows, int length) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  for (int64_t row = first; row < rows; row += static_cast<int64_t>(gridDim.x) * kWarps) {
    float v[values];
    float largest = -INFINITY;
#pragma unroll
    for (int j = 0; j < values; ++j) {
      const int i = j * 32 + lane;
      v[j] = i < length ? to_float(src[row * length + i]) : -INFINITY;
      largest = max_keeping_nan(largest, v[j]);
    }
    largest = warp_max(largest);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < values; ++j) {
      // Lanes past the row must not turn -inf - -inf into NaN of their own; of a row of -inf the other lanes do.
      v[j] = j * 32 + lane < length ? expf(v[j] - largest) : 0.0f;
      sum += v[j];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int j = 0; j < values; ++j) {
      const int i = j * 32 + lane;
      if (i < length) dst[row * length + i] = from_float<T>(v[j] / sum);
    }
  }
}

// The block's reduction in every thread, by way of `shared`, a float a warp.
template <class Reduce>
__device__ float over_block(float* shared, float v, Reduce&& reduce, float of_nothing) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  v = reduce(v);
  __syncthreads();  // what was read last time is no longer needed
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  return reduce(lane < kWarps ? shared[lane] : of_nothing);
}

template <class T>
__global__ void __launch_bounds__(kThreads) softmax_row_block(const T* src, T* dst, int64_t rows, int64_t length) {
  FASTCONV_SHARED(bytes);
  float* const shared = reinterpret_cast<float*>(bytes);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* const from = src + row * length;
    T* const to = dst + row * length;
    float largest = -INFINITY;
    for (int64_t i = threadIdx.x; i < length; i += kThreads) largest = max_keeping_nan(largest, to_float(from[i]));
    largest = over_block(shared, largest, warp_max, -INFINITY);
    float sum = 0;
    for (int64_t i = threadIdx.x; i < length; i += kThreads) sum += expf(to_float(from[i]) - largest);
    sum = over_block(shared, sum, warp_sum, 0.0f);
    for (int64_t i = threadIdx.x; i < length; i += kThreads)
      to[i] = from_float<T>(expf(to_float(from[i]) - largest) / sum);
  }
}

// Columns of one launch: their number fits into 31 bits.
template <class T>
__global__ void __launch_bounds__(kThreads)
    softmax_column(const T* src, T* dst, int columns, int64_t length, int inner, Divisor by_inner) {
  constexpr int parts = 4;
  const int column = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (column >= columns) return;
  int in_row;
  const int outer = by_inner.split(column, in_row);
  const int64_t first = outer * length * inner + in_row;
  float largest = -INFINITY;
  for (int64_t i = 0; i < length; ++i) largest = max_keeping_nan(largest, to_float(src[first + i * inner]));
  float sum[parts] = {};
  for (int64_t i = 0; i < length; i += parts) {
#pragma unroll
    for (int j = 0; j < parts; ++j)
      if (i + j < length) sum[j] += expf(to_float(src[first + (i + j) * inner]) - largest);
  }
  const float whole = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  for (int64_t i = 0; i < length; ++i)
    dst[first + i * inner] = from_float<T>(expf(to_float(src[first + i * inner]) - largest) / whole);
}

const char* refuses(const Task& task, const DeviceLimits&) {
  return task.problem.iw > kMaxColumns ? "more than 2^30 elements behind the axis" : nullptr;
}

void configure(Plan& plan) {
  const Problem& p = plan.task.problem;
  plan.ukernel_name = p.iw > 1 ? "column" : p.ic <= kMaxInRegisters ? "row_warp" : "row_block";
}

template <class T>
void run_as(const Problem& p, const T* src, T* dst, cudaStream_t stream) {
  const int64_t outer = p.n, length = p.ic, inner = p.iw;
  if (inner > 1) {
    const int64_t rows = std::clamp<int64_t>(kLaunchElements / inner, 1, outer);
    for (int64_t done = 0; done < outer; done += rows) {
      const int64_t columns = std::min(rows, outer - done) * inner, at = done * length * inner;
      launch(softmax_column<T>, dim3(blocks_for(columns, kThreads)), dim3(kThreads), 0, stream, src + at, dst + at,
             static_cast<int>(columns), length, static_cast<int>(inner), Divisor(inner));
    }
  } else if (length <= kMaxInRegisters) {
    const auto kernel = length <= 32    ? softmax_row_warp<T, 1>
                        : length <= 128 ? softmax_row_warp<T, 4>
                        : length <= 512 ? softmax_row_warp<T, 16>
                                        : softmax_row_warp<T, 32>;
    launch(kernel, dim3(blocks_for(outer, kWarps)), dim3(kThreads), 0, stream, src, dst, outer,
           static_cast<int>(length));
  } else {
    launch(softmax_row_block<T>, dim3(blocks_for(outer, 1)), dim3(kThreads), kWarps * sizeof(float), stream, src, dst,
           outer, length);
  }
}

void run(const Plan& plan, const Operands& o, cudaStream_t stream) {
  with_type(plan.task.dtype, [&](auto zero) {
    using T = decltype(zero);
    run_as<T>(plan.task.problem, static_cast<const T*>(o.src), static_cast<T*>(o.dst), stream);
  });
}

}  // namespace

extern const Algorithm softmax_direct;
const Algorithm softmax_direct = {Op::softmax, "direct", "softmax", refuses, configure, nullptr, run};

}  // namespace fastconv::cuda
