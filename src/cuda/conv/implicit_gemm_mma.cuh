// The main loop of the tensor core implicit GEMM: dst[pixel, oc] = act(bias[oc] + residual + sum_k src(pixel, k) * wei[oc, k]),
// k = (r * kw + s) * ic + c in both layouts, no patch matrix. What it computes, needs and reaches: implicit_gemm_mma.cu.
//
// A block owns `rows` x `cols` sums so that its columns lie side by side in dst: rows are pixels and columns channels in NHWC, the
// other way round in NCHW.
#pragma once

#include <type_traits>

#include "cuda/conv/implicit_gemm_mma_load.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda::mma {

// What a warp reads of a stage: fragments of `mma`, 32 bytes of k at a time (`half` 0 or 1 of a step).
template <class S>
struct FragmentReader {
  int row_place, col_place, lane;

  __device__ FragmentReader(int warp_row, int warp_col) : lane(static_cast<int>(threadIdx.x) % 32) {
    row_place = swizzled(warp_row + lane % 16, lane / 16);
    if constexpr (S::nhwc)
      col_place = S::row_operand_bytes + swizzled(warp_col + lane % 8 + lane / 16 * 8, lane / 8 % 2);
    else if constexpr (sizeof(typename S::T) == 2)
      col_place = S::row_operand_bytes + PixelLoaderNchw<S>::place(lane % 16, (warp_col + lane / 16 * 8) * 2);
    else
      col_place = S::row_operand_bytes + PixelLoaderNchw<S>::place(lane % 4, (warp_col + lane / 4) * 4);
  }
  __device__ void rows(SharedAddress stage, int half, int tile, uint32_t (&a)[4]) const {
    load_matrix_x4(a, stage + ((row_place ^ half * 2 * kChunkBytes) + tile * 16 * kStepBytes));
  }
  // Two neighbouring tiles of 8 columns.
  __device__ void cols(SharedAddress stage, const unsigned char* pointer, int half, int pair, uint32_t (&left)[2],
                       uint32_t (&right)[2]) const {
    uint32_t b[4];
    if constexpr (S::nhwc) {
      load_matrix_x4(b, stage + ((col_place ^ half * 2 * kChunkBytes) + pair * 16 * kStepBytes));
    } else if constexpr (sizeof(typename S::T) == 2) {
      constexpr int row_bytes = PixelLoaderNchw<S>::row_bytes;
      load_matrix_x4_transposed(b, stage + ((col_place ^ pair * 2 * kChunkBytes) + half * 16 * row_bytes));
    } else {
      constexpr int row_bytes = PixelLoaderNchw<S>::row_bytes;
#pragma unroll
      for (int i = 0; i < 4; ++i)  // k + 4 keeps the swizzle of k
        b[i] = *reinterpret_cast<const uint32_t*>(
            pointer + ((col_place ^ (pair * 2 + i / 2) * 2 * kChunkBytes) + (half * 8 + i % 2 * 4) * row_bytes));
    }
    left[0] = b[0], left[1] = b[1], right[0] = b[2], right[1] = b[3];
  }
};

template <class S>
using Sums = float[S::tiles_down][S::tiles_across][4];

// One step of the reduction, operands as they are or (tf32) rounded; weights were rounded when they were packed.
template <class S>
__device__ void multiply(const FragmentReader<S>& reader, SharedAddress stage, const unsigned char* pointer,
                         Sums<S>& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t a[S::tiles_down][4], b[S::tiles_across][2];
#pragma unroll
    for (int i = 0; i < S::tiles_down; ++i) reader.rows(stage, half, i, a[i]);
#pragma unroll
    for (int j = 0; j < S::tiles_across; j += 2) reader.cols(stage, pointer, half, j / 2, b[j], b[j + 1]);
    if constexpr (S::product == Product::tf32 && S::nhwc) {
#pragma unroll
      for (int i = 0; i < S::tiles_down * 4; ++i) a[i / 4][i % 4] = to_tf32(bits_to_float(a[i / 4][i % 4]));
    }
    if constexpr (S::product == Product::tf32 && !S::nhwc) {
#pragma unroll
      for (int j = 0; j < S::tiles_across * 2; ++j) b[j / 2][j % 2] = to_tf32(bits_to_float(b[j / 2][j % 2]));
    }
#pragma unroll
    for (int i = 0; i < S::tiles_down; ++i) {
#pragma unroll
      for (int j = 0; j < S::tiles_across; ++j) {
        if constexpr (S::product == Product::whole)
          mma_m16n8k16(sums[i][j], a[i], b[j], typename S::T{});
        else
          mma_m16n8k8_tf32(sums[i][j], a[i], b[j]);
      }
    }
  }
}

// The same by three products. A tensor core rounds its sums towards zero, which over hundreds of steps loses 1e-5 of the result and more: it sums
// only this step's 16 products, small ones first, and the CUDA cores add that to the sums, rounding to nearest.
template <class S>
__device__ void multiply_split(const FragmentReader<S>& reader, SharedAddress stage, const unsigned char* pointer,
                               Sums<S>& sums) {
  uint32_t b_big[2][S::tiles_across][2], b_small[2][S::tiles_across][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int j = 0; j < S::tiles_across; j += 2) {
      uint32_t left[2], right[2];
      reader.cols(stage, pointer, half, j / 2, left, right);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        split_tf32(left[i], b_big[half][j][i], b_small[half][j][i]);
        split_tf32(right[i], b_big[half][j + 1][i], b_small[half][j + 1][i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < S::tiles_down; ++i) {
    uint32_t a_big[2][4], a_small[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
      reader.rows(stage, half, i, a);
#pragma unroll
      for (int e = 0; e < 4; ++e) split_tf32(a[e], a_big[half][e], a_small[half][e]);
    }
    float part[S::tiles_across][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < S::tiles_across; ++j) mma_m16n8k8_tf32(part[j], a_small[half], b_big[half][j]);
#pragma unroll
      for (int j = 0; j < S::tiles_across; ++j) mma_m16n8k8_tf32(part[j], a_big[half], b_small[half][j]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < S::tiles_across; ++j) mma_m16n8k8_tf32(part[j], a_big[half], b_big[half][j]);
    }
#pragma unroll
    for (int j = 0; j < S::tiles_across; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][j][e] += part[j][e];
    }
  }
}

// `width` neighbours of a row at once: float sums in shared memory -> dst, with bias, residual and activation.
template <class S, class Out, int width>
__device__ void store_sums(const Args& a, const Sums<S>& sums, float* staged, int row0, int col0, Out* dst) {
  const Gather& g = a.g;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row_limit = S::nhwc ? g.pixels : g.oc, col_limit = S::nhwc ? g.oc : g.pixels;
  const int64_t row_stride = S::nhwc ? g.oc : g.oh * g.ow;
  constexpr int lanes_per_row = S::warp_cols / width < 32 ? S::warp_cols / width : 32;
  constexpr int rows_at_once = 32 / lanes_per_row, groups = S::warp_cols / width / lanes_per_row;
  int place[groups];  // of this lane's columns in dst; row 0
  bool inside[groups];
#pragma unroll
  for (int j = 0; j < groups; ++j) {
    const int col = col0 + (lane % lanes_per_row + j * lanes_per_row) * width;
    inside[j] = col < col_limit;
    place[j] = !inside[j] ? 0 : S::nhwc ? col : dst_offset_nchw(g, col);
  }
#pragma unroll
  for (int i = 0; i < S::tiles_down; ++i) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < S::tiles_across; ++j) {
      float* to = staged + lane / 4 * S::staged_row + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(sums[i][j][0], sums[i][j][1]);
      *reinterpret_cast<float2*>(to + 8 * S::staged_row) = make_float2(sums[i][j][2], sums[i][j][3]);
    }
    __syncwarp();
#pragma unroll
    for (int first = 0; first < 16; first += rows_at_once) {
      const int in_tile = first + lane / lanes_per_row, row = row0 + i * 16 + in_tile;
      if (row >= row_limit) continue;
#pragma unroll
      for (int j = 0; j < groups; ++j) {
        if (!inside[j]) continue;
        const int col = (lane % lanes_per_row + j * lanes_per_row) * width;
        const int64_t at = row * row_stride + place[j];
        float v[width];
#pragma unroll
        for (int e = 0; e < width; ++e) v[e] = staged[in_tile * S::staged_row + col + e];
        if constexpr (std::is_same_v<Out, typename S::T>) {  // partial sums have none of these
          if (a.bias != nullptr) {
#pragma unroll
            for (int e = 0; e < width; ++e) v[e] += a.bias[S::nhwc ? col0 + col + e : row];
          }
          if (a.residual != nullptr) {
            float more[width];
            load_floats<width>(more, static_cast<const typename S::T*>(a.residual) + at);
#pragma unroll
            for (int e = 0; e < width; ++e) v[e] += more[e];
          }
          if (a.relu) {
#pragma unroll
            for (int e = 0; e < width; ++e) v[e] = relu_keeping_nan(v[e]);
          }
        }
        store_floats<width>(dst + at, v);
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::threads, S::blocks_per_sm) implicit_gemm_mma(const Args a) {
  using T = typename S::T;
  FASTCONV_SHARED(shared);
  const SharedAddress base = shared_address(shared);
  const Gather& g = a.g;
  const int tile = static_cast<int>(blockIdx.x), part = static_cast<int>(blockIdx.y);
  const int pixel = tile / a.channel_tiles * S::pixels, channel = tile % a.channel_tiles * S::channels;
  const int first_step = part * a.steps_per_part;
  const int steps = a.steps - first_step < a.steps_per_part ? a.steps - first_step : a.steps_per_part;
  constexpr int pixel_operand = S::nhwc ? 0 : S::row_operand_bytes, weight_operand = S::nhwc ? S::row_operand_bytes : 0;

  WeightLoader<S> weights(a, channel, first_step);
  typename PixelLoaderOf<S>::Type pixels(a, pixel, first_step);
#pragma unroll
  for (int i = 0; i < S::stages - 1; ++i) {
    if (i < steps) {
      weights.load(base + (i * S::stage_bytes + weight_operand));
      pixels.load(g, base + (i * S::stage_bytes + pixel_operand));
      if constexpr (S::through_registers) pixels.store(shared + i * S::stage_bytes + pixel_operand);
    }
    copy_async_commit();
  }

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / S::warps_across * S::warp_rows, warp_col = warp % S::warps_across * S::warp_cols;
  const FragmentReader<S> reader(warp_row, warp_col);
  Sums<S> sums = {};
  int reading = 0, writing = (S::stages - 1) * S::stage_bytes;
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    copy_async_wait<S::stages - 2>();
    __syncthreads();  // this step has come for all; the one before has been read by all, its stage is free
    const bool more = i + S::stages - 1 < steps;
    if (more) {
      weights.load(base + (writing + weight_operand));
      pixels.load(g, base + (writing + pixel_operand));
    }
    copy_async_commit();
    if constexpr (S::product == Product::tf32x3)
      multiply_split<S>(reader, base + reading, shared + reading, sums);
    else
      multiply<S>(reader, base + reading, shared + reading, sums);
    if constexpr (S::through_registers) {
      if (more) pixels.store(shared + writing + pixel_operand);
    }
    writing = reading;
    reading = reading + S::stage_bytes == S::stages * S::stage_bytes ? 0 : reading + S::stage_bytes;
  }
  copy_async_wait<0>();
  __syncthreads();

  float* staged = reinterpret_cast<float*>(shared + warp * S::staged_bytes);
  const int row0 = (S::nhwc ? pixel : channel) + warp_row, col0 = (S::nhwc ? channel : pixel) + warp_col;
  if constexpr (sizeof(T) == 2) {
    if (a.partial != nullptr) {
      float* dst = a.partial + part * a.part_elements;
      if (a.wide)
        store_sums<S, float, 4>(a, sums, staged, row0, col0, dst);
      else
        store_sums<S, float, 1>(a, sums, staged, row0, col0, dst);
      return;
    }
  }
  T* dst = sizeof(T) == 4 && a.partial != nullptr ? reinterpret_cast<T*>(a.partial + part * a.part_elements)
                                                  : static_cast<T*>(a.dst);
  if (a.wide)
    store_sums<S, T, kChunkBytes / int{sizeof(T)}>(a, sums, staged, row0, col0, dst);
  else
    store_sums<S, T, 1>(a, sums, staged, row0, col0, dst);
}

template <class S>
void start(const Args& a, int64_t blocks, int parts, cudaStream_t stream) {
  launch(implicit_gemm_mma<S>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)), dim3(S::threads),
         S::shared_bytes, stream, a);
}

template <class S>
constexpr Kernel kernel_of() {
  return {S::nhwc ? Layout::nhwc : Layout::nchw,
          S::pixels,
          S::channels,
          S::threads / 32,
          S::stages,
          S::load_bytes,
          S::blocks_per_sm,
          S::shared_bytes,
          start<S>};
}

}  // namespace fastconv::cuda::mma
