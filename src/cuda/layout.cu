// convert_layout: dst[n][p][c] = src[n][c][p] (NCHW to NHWC) or back, p the pixels of an image: a transposition of every image.
// Operands: src as images of `rows` x `columns`, dst as images of `columns` x `rows`.
// Threads: 256 a block. transpose: a tile of 64 x 64 elements goes through shared memory, both sides in vectors of 16 bytes along their own
//   rows; one element more a row (two of 16 bits) keeps the columns' banks apart: at most two lanes meet in one. narrow: at most 16 rows
//   or columns (images of 3 channels): a run of 1024 pixels with all its channels, both sides element by element, neighbours by neighbours.
// Shared memory: 64 * 65 * 4 or 64 * 66 * 2 bytes; narrow: channels * 1024 elements.
// Preconditions: elements aligned to themselves. Tails: a side whose rows do not start at multiples of 16 bytes goes element by element,
// the other one need not; tiles at the border store what exists.
// Numerics: exact, bit for bit. Measured: not measured. Tried: nothing yet. Reference: the definition.
#include <algorithm>

#include "cuda/algorithm.h"
#include "cuda/device.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256, kTile = 64;
constexpr int kNarrow = 16, kRun = 1024;

// Elements as bits: a copy keeps every NaN as it is.
template <class Bits>
constexpr int kPitch = kTile + 4 / static_cast<int>(sizeof(Bits));

template <class Bits, int load_width, int store_width>
__global__ void __launch_bounds__(kThreads) transpose_kernel(const Bits* src, Bits* dst, int64_t rows, int64_t columns,
                                                             int64_t tiles_down, int64_t tiles_across) {
  FASTCONV_SHARED(bytes);
  Bits* const tile = reinterpret_cast<Bits*>(bytes);
  constexpr int pitch = kPitch<Bits>;
  const int64_t id = blockIdx.x;
  const int64_t across = id % tiles_across, down = id / tiles_across % tiles_down,
                image = id / tiles_across / tiles_down;
  const int64_t row0 = down * kTile, column0 = across * kTile, image0 = image * rows * columns;
  const int t = static_cast<int>(threadIdx.x);

  constexpr int load_lanes = kTile / load_width;
#pragma unroll
  for (int r = t / load_lanes; r < kTile; r += kThreads / load_lanes) {
    const int c = t % load_lanes * load_width;
    if (row0 + r >= rows || column0 + c >= columns) continue;  // rows of vectors have no partial one
    const auto v = load_vector<load_width>(src + image0 + (row0 + r) * columns + column0 + c);
#pragma unroll
    for (int j = 0; j < load_width; ++j) tile[r * pitch + c + j] = v.value[j];
  }
  __syncthreads();
  constexpr int store_lanes = kTile / store_width;
#pragma unroll
  for (int c = t / store_lanes; c < kTile; c += kThreads / store_lanes) {
    const int r = t % store_lanes * store_width;
    if (row0 + r >= rows || column0 + c >= columns) continue;
    Vector<Bits, store_width> v;
#pragma unroll
    for (int j = 0; j < store_width; ++j) v.value[j] = tile[(r + j) * pitch + c];
    store_vector<store_width>(dst + image0 + (column0 + c) * rows + row0 + r, v);
  }
}

// few: channels. planar_src: src is [channels][pixels], else [pixels][channels].
template <class Bits, bool planar_src>
__global__ void __launch_bounds__(kThreads)
    narrow_kernel(const Bits* src, Bits* dst, int channels, int64_t pixels, int64_t runs) {
  FASTCONV_SHARED(bytes);
  Bits* const run = reinterpret_cast<Bits*>(bytes);  // [kRun][channels]: as the packed side lies
  const int64_t image = blockIdx.x / runs, pixel0 = blockIdx.x % runs * kRun;
  const int count = static_cast<int>(pixels - pixel0 < kRun ? pixels - pixel0 : kRun);
  const int64_t image0 = image * channels * pixels, packed0 = image0 + pixel0 * channels;
  const int t = static_cast<int>(threadIdx.x);
  if (planar_src) {
    for (int c = 0; c < channels; ++c)
      for (int i = t; i < count; i += kThreads) run[i * channels + c] = src[image0 + c * pixels + pixel0 + i];
    __syncthreads();
    for (int i = t; i < count * channels; i += kThreads) dst[packed0 + i] = run[i];
  } else {
    for (int i = t; i < count * channels; i += kThreads) run[i] = src[packed0 + i];
    __syncthreads();
    for (int c = 0; c < channels; ++c)
      for (int i = t; i < count; i += kThreads) dst[image0 + c * pixels + pixel0 + i] = run[i * channels + c];
  }
}

const char* refuses(const Task&, const DeviceLimits&) {
  return nullptr;
}

bool is_narrow(const Problem& p) {
  return p.ic <= kNarrow;
}

void configure(Plan& plan) {
  plan.ukernel_name = is_narrow(plan.task.problem) ? "narrow" : "transpose";
  plan.tile.m = plan.tile.n = kTile;
  if (is_narrow(plan.task.problem)) plan.tile.m = kRun, plan.tile.n = static_cast<int>(plan.task.problem.ic);
}

template <class Bits, int load_width, int store_width>
void launch_transpose(const void* src, void* dst, int64_t images, int64_t rows, int64_t columns, cudaStream_t stream) {
  const int64_t down = (rows + kTile - 1) / kTile, across = (columns + kTile - 1) / kTile;
  // A grid holds 2^31 - 1 blocks of 4096 elements: more than any memory.
  launch(transpose_kernel<Bits, load_width, store_width>, dim3(static_cast<unsigned>(images * down * across)),
         dim3(kThreads), kTile * kPitch<Bits> * sizeof(Bits), stream, static_cast<const Bits*>(src),
         static_cast<Bits*>(dst), rows, columns, down, across);
}

template <class Bits>
void run_as(const Problem& p, const Operands& o, cudaStream_t stream) {
  constexpr int width = 16 / static_cast<int>(sizeof(Bits));
  const int64_t pixels = p.ih * p.iw;
  const bool planar_src = p.layout == Layout::nchw;
  if (is_narrow(p)) {
    const int64_t runs = (pixels + kRun - 1) / kRun;
    launch(planar_src ? narrow_kernel<Bits, true> : narrow_kernel<Bits, false>, dim3(static_cast<unsigned>(p.n * runs)),
           dim3(kThreads), static_cast<size_t>(p.ic) * kRun * sizeof(Bits), stream, static_cast<const Bits*>(o.src),
           static_cast<Bits*>(o.dst), static_cast<int>(p.ic), pixels, runs);
    return;
  }
  const int64_t rows = planar_src ? p.ic : pixels, columns = planar_src ? pixels : p.ic;
  const bool vector_load = is_aligned(o.src, 16) && columns % width == 0;
  const bool vector_store = is_aligned(o.dst, 16) && rows % width == 0;
  const auto f = vector_load ? (vector_store ? launch_transpose<Bits, width, width> : launch_transpose<Bits, width, 1>)
                             : (vector_store ? launch_transpose<Bits, 1, width> : launch_transpose<Bits, 1, 1>);
  f(o.src, o.dst, p.n, rows, columns, stream);
}

void run(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  if (p.layout == p.target_layout) {
    const size_t bytes = static_cast<size_t>(p.src_elements() * element_bytes(plan.task.dtype));
    check(cudaMemcpyAsync(o.dst, o.src, bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
    return;
  }
  (plan.task.dtype == Dtype::f32 ? run_as<uint32_t> : run_as<uint16_t>)(p, o, stream);
}

}  // namespace

extern const Algorithm convert_layout_transpose;
const Algorithm convert_layout_transpose = {
    Op::convert_layout, "direct", "convert_layout", refuses, configure, nullptr, run};

}  // namespace fastconv::cuda
