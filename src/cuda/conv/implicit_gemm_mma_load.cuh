// How the tensor core implicit GEMM brings its operands into shared memory: a block's shape, and what each thread copies of a step.
// Every step of the reduction brings 64 bytes of k. The operand of k-contiguous rows (weights; pixels of NHWC) lies as [row][64 bytes],
// pixels of NCHW as [k][pixel]. Both are swizzled in 16-byte chunks so that neither copies nor ldmatrix meet in a bank:
// [row][chunk ^ (row / 2) % 4], [k][chunk ^ k % 8], 32-bit pixels [k][chunk ^ 2 * (k % 4)].
#pragma once

#include "cuda/conv/gather.cuh"
#include "cuda/conv/implicit_gemm_mma.h"
#include "cuda/mma.cuh"

namespace fastconv::cuda::mma {

// whole: 16-bit operands; tf32: float32 rounded to tf32; tf32x3: float32 as the sum of two tf32, three products.
enum class Product : uint8_t { whole, tf32, tf32x3 };

constexpr int kChunkBytes = 16;  // moved at once
constexpr int kChunks = kStepBytes / kChunkBytes;

template <class Element, Product product_, Layout layout, int pixels_, int channels_, int warp_rows_, int warp_cols_,
          int stages_, int load_bytes_>
struct Shape {
  using T = Element;
  static constexpr Product product = product_;
  static constexpr bool nhwc = layout == Layout::nhwc;
  static constexpr int pixels = pixels_, channels = channels_;
  static constexpr int rows = nhwc ? pixels : channels, cols = nhwc ? channels : pixels;
  static constexpr int warp_rows = warp_rows_, warp_cols = warp_cols_;
  static constexpr int warps_across = cols / warp_cols;
  static constexpr int threads = 32 * (rows / warp_rows) * warps_across;
  static constexpr int blocks_per_sm = threads > 128                  ? 1
                                       : warp_rows * warp_cols > 2048 ? 2
                                       : product == Product::tf32x3   ? (warp_rows * warp_cols > 1024 ? 2 : 3)
                                       : warp_rows * warp_cols > 1024 ? 3
                                                                      : 4;
  static constexpr int stages = stages_;
  static constexpr int load_bytes = load_bytes_;  // of src at once: 16, 8, 4, or 2 through registers
  static constexpr int step = kStepBytes / int{sizeof(T)}, chunk = kChunkBytes / int{sizeof(T)};
  static constexpr int row_operand_bytes = rows * kStepBytes, stage_bytes = (rows + cols) * kStepBytes;
  static constexpr int tiles_down = warp_rows / 16, tiles_across = warp_cols / 8;
  // The epilogue turns 16 rows of a warp at a time; 8 floats more, so that eight lanes' pairs lie in different banks.
  static constexpr int staged_row = warp_cols + 8, staged_bytes = 16 * staged_row * 4;
  static constexpr int shared_bytes =
      stages * stage_bytes > threads / 32 * staged_bytes ? stages * stage_bytes : threads / 32 * staged_bytes;
  static constexpr bool through_registers = load_bytes < 4;
  static_assert(rows % warp_rows == 0 && cols % warp_cols == 0 && warp_rows % 16 == 0 && warp_cols % 16 == 0);
};

// Bytes from the start of a k-contiguous operand.
__device__ inline int swizzled(int row, int chunk) {
  return row * kStepBytes + ((chunk ^ (row >> 1)) & (kChunks - 1)) * kChunkBytes;
}

// Where in the kernel window, and in which channel, an index of the reduction lies. Past the end r reaches kh.
struct Walk {
  int r, s, c;

  __device__ Walk(const Gather& g, int k) {
    const int tap = g.by_icg.split(k, c);
    r = g.by_kw.split(tap, s);
  }
  __device__ void advance(const Gather& g, int by) {
    c += by;
    while (c >= g.ic) {
      c -= g.ic;
      if (++s == g.kw) s = 0, ++r;
    }
  }
  __device__ int offset(const Gather& g) const {
    return r * g.dh * g.row_stride + s * g.dw * g.column_stride + c * g.channel_stride;
  }
  // What a pixel's mask must have. Past the end all bits, which only 16x16 kernels could satisfy, and theirs end with a step.
  __device__ uint32_t bits(const Gather& g) const { return r < g.kh ? 1u << r | 0x10000u << s : ~0u; }
};

template <class S>
struct WeightLoader {
  using T = typename S::T;
  static constexpr int rows_per_pass = S::threads / kChunks, passes = S::channels / rows_per_pass;
  static_assert(S::channels % rows_per_pass == 0);

  const T* from;
  int64_t pass_stride;
  int to, left;  // left: channels from this thread's first one to the last

  __device__ WeightLoader(const Args& a, int channel, int first_step) {
    const int row = static_cast<int>(threadIdx.x) / kChunks, chunk = static_cast<int>(threadIdx.x) % kChunks;
    from = static_cast<const T*>(a.wei) + static_cast<int64_t>(channel + row) * a.k_row + first_step * S::step +
           chunk * S::chunk;
    pass_stride = static_cast<int64_t>(rows_per_pass) * a.k_row;
    to = swizzled(row, chunk);
    left = a.g.oc - channel - row;
  }
  __device__ void load(SharedAddress operand) {
#pragma unroll
    for (int p = 0; p < passes; ++p)
      copy_async<kChunkBytes>(operand + to + p * rows_per_pass * kStepBytes, from + p * pass_stride,
                              p * rows_per_pass < left);
    from += S::step;
  }
};

// A thread copies one chunk of k of `passes` pixels.
template <class S>
struct PixelLoaderNhwc {
  using T = typename S::T;
  static constexpr int rows_per_pass = S::threads / kChunks, passes = S::pixels / rows_per_pass;
  static constexpr int pieces = kChunkBytes / S::load_bytes, piece = S::load_bytes / int{sizeof(T)};
  static_assert(S::pixels % rows_per_pass == 0);

  const T* src;
  Walk walk;
  int to;
  int origin[passes];
  uint32_t mask[passes];
  uint32_t held[S::through_registers ? passes : 1][4];

  __device__ PixelLoaderNhwc(const Args& a, int pixel, int first_step)
      : src(static_cast<const T*>(a.src)),
        walk(a.g, first_step * S::step + static_cast<int>(threadIdx.x) % kChunks * S::chunk) {
    const int row = static_cast<int>(threadIdx.x) / kChunks;
    to = swizzled(row, static_cast<int>(threadIdx.x) % kChunks);
#pragma unroll
    for (int p = 0; p < passes; ++p) {
      const int mine = pixel + row + p * rows_per_pass;
      const Origin o = origin_of(a.g, mine < a.g.pixels ? mine : 0);
      origin[p] = origin_offset(a.g, o);
      mask[p] = mine < a.g.pixels ? tap_mask(a.g, o) : 0;
    }
  }
  __device__ void load(const Gather& g, SharedAddress operand) {
    Walk w = walk;
#pragma unroll
    for (int e = 0; e < pieces; ++e) {
      const int offset = w.offset(g);
      const uint32_t bits = w.bits(g);
#pragma unroll
      for (int p = 0; p < passes; ++p) {
        const bool valid = tap_is_inside(mask[p], bits);
        const T* from = src + (valid ? origin[p] + offset : 0);
        if constexpr (S::through_registers) {
          const uint32_t value = valid ? *reinterpret_cast<const uint16_t*>(from) : 0u;
          held[p][e / 2] = e % 2 ? held[p][e / 2] | value << 16 : value;
        } else {
          copy_async<S::load_bytes>(operand + to + p * rows_per_pass * kStepBytes + e * S::load_bytes, from, valid);
        }
      }
      if (pieces > 1) w.advance(g, piece);
    }
    walk.advance(g, S::step);
  }
  __device__ void store(unsigned char* operand) {
#pragma unroll
    for (int p = 0; p < passes; ++p)
      *reinterpret_cast<uint4*>(operand + to + p * rows_per_pass * kStepBytes) =
          make_uint4(held[p][0], held[p][1], held[p][2], held[p][3]);
  }
};

// A thread copies one unit of neighbouring pixels (a piece; two single 16-bit pixels) of `passes` indices of the reduction. Pieces of
// several pixels are for 1x1 convolutions whose planes are read as they lie.
template <class S>
struct PixelLoaderNchw {
  using T = typename S::T;
  static constexpr int unit_bytes = S::through_registers ? 4 : S::load_bytes, owned = unit_bytes / S::load_bytes;
  static constexpr int row_bytes = S::pixels * int{sizeof(T)}, units = row_bytes / unit_bytes;
  static constexpr int k_per_pass = S::threads / units, passes = S::step / k_per_pass;
  static constexpr int turns = sizeof(T) == 2 ? 7 : 3, turn_bytes = sizeof(T) == 2 ? kChunkBytes : 2 * kChunkBytes;
  static_assert(S::threads % units == 0 && S::step % k_per_pass == 0 && (k_per_pass & (k_per_pass - 1)) == 0);

  const T* src;
  Walk walk;
  int to;
  int origin[owned];
  uint32_t mask[owned];
  uint32_t held[S::through_registers ? passes : 1];

  // Bytes from the start of the operand. k_per_pass is a power of two above a thread's first k, so that both parts of k swizzle apart.
  __device__ static int place(int k, int byte) { return k * row_bytes + (byte ^ (k & turns) * turn_bytes); }
  __device__ int place_of_pass(int p) const {
    return (to ^ (p * k_per_pass & turns) * turn_bytes) + p * k_per_pass * row_bytes;
  }

  __device__ PixelLoaderNchw(const Args& a, int pixel, int first_step)
      : src(static_cast<const T*>(a.src)), walk(a.g, first_step * S::step + static_cast<int>(threadIdx.x) / units) {
    const int k = static_cast<int>(threadIdx.x) / units, byte = static_cast<int>(threadIdx.x) % units * unit_bytes;
    to = place(k, byte);
#pragma unroll
    for (int i = 0; i < owned; ++i) {
      const int mine = pixel + byte / int{sizeof(T)} + i;
      const Origin o = origin_of(a.g, mine < a.g.pixels ? mine : 0);
      origin[i] = origin_offset(a.g, o);
      mask[i] = mine < a.g.pixels ? tap_mask(a.g, o) : 0;
    }
  }
  __device__ void load(const Gather& g, SharedAddress operand) {
#pragma unroll
    for (int p = 0; p < passes; ++p) {
      const int offset = walk.offset(g);
      const uint32_t bits = walk.bits(g);
      if constexpr (S::through_registers) {
        uint32_t value[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          value[i] = tap_is_inside(mask[i], bits) ? reinterpret_cast<const uint16_t*>(src)[origin[i] + offset] : 0u;
        held[p] = value[0] | value[1] << 16;
      } else {
        const bool valid = tap_is_inside(mask[0], bits);
        copy_async<S::load_bytes>(operand + place_of_pass(p), src + (valid ? origin[0] + offset : 0), valid);
      }
      walk.advance(g, k_per_pass);
    }
  }
  __device__ void store(unsigned char* operand) {
#pragma unroll
    for (int p = 0; p < passes; ++p) *reinterpret_cast<uint32_t*>(operand + place_of_pass(p)) = held[p];
  }
};

template <class S, bool nhwc = S::nhwc>
struct PixelLoaderOf {
  using Type = PixelLoaderNhwc<S>;
};
template <class S>
struct PixelLoaderOf<S, false> {
  using Type = PixelLoaderNchw<S>;
};

}  // namespace fastconv::cuda::mma
