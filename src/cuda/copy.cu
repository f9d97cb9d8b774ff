// dst[i] = src[i] for every index i, strides of any kind on both sides, rounded to nearest even where dtypes differ.
// Operands: two arrays of equal shape, up to eight axes once they are sorted by dst's strides and neighbours that walk memory alike are
//   joined. Contiguous on both sides: one copy of the runtime's, or a cast.
// Threads: 256 a block. transposed (the axis that is dense in dst is not the one that is dense in src): tiles of 32 x 32 through shared
//   memory, so that both sides are read and written along their own rows. strided (else): one element each, along dst's order.
// Shared memory: transposed: 32 x 33 elements of dst. Preconditions: elements aligned to themselves; int64 to int64 only.
// Tails: tiles at the border store what exists; arrays of more than 2^30 elements are halved until their parts have fewer.
// Numerics: 16-bit dtypes to each other through float32; NaN and infinity stay. Measured: not measured. Reference: the definition.
#include "cuda/copy.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cuda/cast.h"
#include "cuda/conv/gather.cuh"
#include "cuda/device.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

constexpr int kThreads = 256, kTile = 32, kPitch = kTile + 1;
constexpr int kMaxAxes = 8, kNarrow = 4;  // an axis below that is no side of a tile

struct Axis {
  int64_t extent, src, dst;
};

// Outermost first; offsets of the element that has all indices 0.
struct Walk {
  int rank = 0;
  Axis axis[kMaxAxes];

  int64_t elements() const {
    int64_t count = 1;
    for (int i = 0; i < rank; ++i) count *= axis[i].extent;
    return count;
  }
};

// The axes that are left when those of one element are dropped, along dst's order, and neighbours that walk on alike are joined.
Walk walk_of(const View& src, const View& dst) {
  std::vector<Axis> axes;
  for (size_t i = 0; i < src.shape.size(); ++i)
    if (src.shape[i] != 1) axes.push_back({src.shape[i], src.strides[i], dst.strides[i]});
  std::stable_sort(axes.begin(), axes.end(),
                   [](const Axis& a, const Axis& b) { return std::llabs(a.dst) > std::llabs(b.dst); });
  Walk w;
  for (const Axis& a : axes) {
    if (w.rank > 0) {
      Axis& last = w.axis[w.rank - 1];
      if (last.src == a.src * a.extent && last.dst == a.dst * a.extent) {
        last = {last.extent * a.extent, a.src, a.dst};
        continue;
      }
    }
    if (w.rank == kMaxAxes)
      throw std::invalid_argument("arrays of more than " + std::to_string(kMaxAxes) +
                                  " axes must be contiguous on a CUDA device");
    w.axis[w.rank++] = a;
  }
  return w;
}

// The same for a kernel: numbers of elements in 31 bits.
struct Steps {
  int rank = 0;
  Divisor extent[kMaxAxes];
  int64_t src[kMaxAxes], dst[kMaxAxes];

  void push(const Axis& a) {
    extent[rank] = Divisor(a.extent);
    src[rank] = a.src, dst[rank] = a.dst;
    ++rank;
  }
  __device__ void offsets(int number, int64_t& from, int64_t& to) const {
    for (int i = rank - 1; i >= 0; --i) {
      int at;
      number = extent[i].split(number, at);
      from += at * src[i];
      to += at * dst[i];
    }
  }
};

template <class To, class From>
__device__ inline To converted(From v) {
  if constexpr (std::is_same_v<To, From>) {
    return v;
  } else {
    return from_float<To>(to_float(v));
  }
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads) copy_strided(const From* src, To* dst, Steps steps, int elements) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= elements) return;
  int64_t from = 0, to = 0;
  steps.offsets(i, from, to);
  dst[to] = converted<To>(src[from]);
}

// rows: the axis that is dense in src; columns: the one that is dense in dst. Tiles of both inside, then the other axes.
template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    copy_transposed(const From* src, To* dst, Steps others, int rows, int columns, int64_t src_column, int64_t dst_row,
                    Divisor tiles_down, Divisor tiles_across) {
  FASTCONV_SHARED(bytes);
  To* const tile = reinterpret_cast<To*>(bytes);  // [column][row]
  int down, across;
  const int rest = tiles_across.split(static_cast<int>(blockIdx.x), across);
  const int outer = tiles_down.split(rest, down);
  int64_t from = 0, to = 0;
  others.offsets(outer, from, to);
  const int lane = static_cast<int>(threadIdx.x) % kTile, first = static_cast<int>(threadIdx.x) / kTile;
  const int row0 = down * kTile, column0 = across * kTile;
#pragma unroll
  for (int c = first; c < kTile; c += kThreads / kTile) {
    if (row0 + lane < rows && column0 + c < columns)
      tile[c * kPitch + lane] = converted<To>(src[from + row0 + lane + (column0 + c) * src_column]);
  }
  __syncthreads();
#pragma unroll
  for (int r = first; r < kTile; r += kThreads / kTile) {
    if (row0 + r < rows && column0 + lane < columns)
      dst[to + (row0 + r) * dst_row + column0 + lane] = tile[lane * kPitch + r];
  }
}

template <class From, class To>
void run(const From* src, To* dst, const Walk& walk, cudaStream_t stream) {
  const int64_t elements = walk.elements();
  if (elements > kLaunchElements) {
    Walk half = walk;
    Axis& longest = *std::max_element(half.axis, half.axis + half.rank,
                                      [](const Axis& a, const Axis& b) { return a.extent < b.extent; });
    const int64_t whole = longest.extent, first = whole / 2, from = first * longest.src, to = first * longest.dst;
    longest.extent = first;
    run(src, dst, half, stream);
    longest.extent = whole - first;
    run(src + from, dst + to, half, stream);
    return;
  }
  const int last = walk.rank - 1;
  int dense = -1;  // in src
  for (int i = 0; i < last; ++i)
    if (walk.axis[i].src == 1 && walk.axis[i].extent >= kNarrow) dense = i;
  Steps steps;
  if (dense >= 0 && walk.axis[last].dst == 1 && walk.axis[last].src != 1 && walk.axis[last].extent >= kNarrow) {
    const Axis& rows = walk.axis[dense];
    const Axis& columns = walk.axis[last];
    for (int i = 0; i < last; ++i)
      if (i != dense) steps.push(walk.axis[i]);
    const int64_t down = (rows.extent + kTile - 1) / kTile, across = (columns.extent + kTile - 1) / kTile;
    const int64_t blocks = elements / (rows.extent * columns.extent) * down * across;
    launch(copy_transposed<From, To>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), kTile * kPitch * sizeof(To),
           stream, src, dst, steps, static_cast<int>(rows.extent), static_cast<int>(columns.extent), columns.src,
           rows.dst, Divisor(down), Divisor(across));
    return;
  }
  for (int i = 0; i < walk.rank; ++i) steps.push(walk.axis[i]);
  launch(copy_strided<From, To>, dim3(static_cast<unsigned>((elements + kThreads - 1) / kThreads)), dim3(kThreads), 0,
         stream, src, dst, steps, static_cast<int>(elements));
}

template <class From, class To>
void run_views(const View& src, const View& dst, cudaStream_t stream) {
  run(static_cast<const From*>(src.data), static_cast<To*>(dst.data), walk_of(src, dst), stream);
}

template <class From>
void run_from(const View& src, const View& dst, cudaStream_t stream) {
  switch (dst.element) {
    case Element::f32:
      return run_views<From, float>(src, dst, stream);
    case Element::f16:
      return run_views<From, __half>(src, dst, stream);
    case Element::bf16:
      return run_views<From, __nv_bfloat16>(src, dst, stream);
    case Element::i64:
      break;
  }
  throw std::invalid_argument(std::string("no copy from ") + to_string(src.element) + " to " + to_string(dst.element));
}

Dtype dtype_of(Element e) {
  return e == Element::f32 ? Dtype::f32 : e == Element::f16 ? Dtype::f16 : Dtype::bf16;
}

}  // namespace

void copy(const View& src, const View& dst, cudaStream_t stream) {
  const int64_t elements = src.elements();
  if (elements == 0) return;
  const bool integers = src.element == Element::i64 || dst.element == Element::i64;
  if (src.contiguous() && dst.contiguous()) {
    if (src.element == dst.element) {
      const size_t bytes = static_cast<size_t>(elements * bytes_of(src.element));
      check(cudaMemcpyAsync(dst.data, src.data, bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
      return;
    }
    if (!integers) return cast(src.data, dtype_of(src.element), dst.data, dtype_of(dst.element), elements, stream);
  }
  switch (src.element) {
    case Element::f32:
      return run_from<float>(src, dst, stream);
    case Element::f16:
      return run_from<__half>(src, dst, stream);
    case Element::bf16:
      return run_from<__nv_bfloat16>(src, dst, stream);
    case Element::i64:
      if (dst.element == Element::i64) return run_views<int64_t, int64_t>(src, dst, stream);
      break;
  }
  throw std::invalid_argument(std::string("no copy from ") + to_string(src.element) + " to " + to_string(dst.element));
}

}  // namespace fastconv::cuda
