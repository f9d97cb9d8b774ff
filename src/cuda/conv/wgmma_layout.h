// Where everything lies in the wgmma convolution: tiles, shared memory, swizzle, descriptors, accumulators, pipeline slots, coordinates.
// Plain arithmetic for host and device: the kernel obeys these functions and the tests check them where no GPU is.
// Reference: PTX ISA, "Asynchronous warpgroup level matrix shared memory layout" and "Matrix fragments for wgmma.mma_async.m64nNk16",
// "Tensors: im2col mode", "mbarrier"; the bit fields agree with CuTe's GmmaDescriptor (cute/arch/mma_sm90_desc.hpp).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastconv::cuda {

// One instantiation of the kernel: `groups` warpgroups of consumers, 64 rows each, and one warp that feeds them.
struct WgmmaTile {
  int m, n, groups, stages, blocks_per_sm;
};
inline constexpr WgmmaTile kWgmmaTiles[] = {
    {64, 32, 1, 8, 2},  {64, 64, 1, 6, 2},   {64, 128, 1, 4, 2},
    {128, 64, 2, 4, 2}, {128, 128, 2, 3, 2}, {128, 256, 2, 4, 1},
};
inline constexpr int kWgmmaTileCount = sizeof(kWgmmaTiles) / sizeof(kWgmmaTiles[0]);

inline constexpr int kWgmmaK = 64;  // step of the reduction: 64 channels of one tap
inline constexpr int kSwizzleRow =
    128;  // bytes of a row in shared memory: 64 values of 16 bits, the span of the 128-byte swizzle
inline constexpr int kSwizzleAtom = 1024;   // bytes after which the swizzle repeats: 8 rows
inline constexpr int kMaxClusterSplit = 8;  // the largest cluster that every device of sm_90 has

__host__ __device__ constexpr int wgmma_threads(const WgmmaTile& t) {
  return t.groups * 128 + 32;
}
__host__ __device__ constexpr int stage_bytes(const WgmmaTile& t) {
  return (t.m + t.n) * kSwizzleRow;
}
// Up to 1023 bytes to a multiple of the swizzle atom; the stages, rows of src before rows of weights; a full and an empty barrier a stage.
__host__ __device__ constexpr int wgmma_shared_bytes(const WgmmaTile& t) {
  return kSwizzleAtom + t.stages * (stage_bytes(t) + 16);
}
// A split tile's partial sums lie over the stages, rows 8 values apart from a multiple of 32 so that 8-byte stores meet no bank twice.
__host__ __device__ constexpr int partial_row(const WgmmaTile& t) {
  return t.n + 8;
}

// --- shared memory ---

// Where the copy engine puts byte `offset` of a tile of 128-byte rows, and where the products look for it.
__host__ __device__ constexpr uint32_t swizzled(uint32_t offset) {
  return offset ^ ((offset >> 3) & 0x70);
}

// A matrix of 128-byte rows, K-major with the 128-byte swizzle, whose atoms start at multiples of 1024 bytes and follow each other:
// bits 0-13 address / 16, 16-29 the leading offset (unused under a swizzle; 1), 32-45 from 8 rows to the next 8 / 16, 49-51 base offset
// 0, 62-63 the swizzle.
__host__ __device__ constexpr uint64_t matrix_descriptor(uint32_t shared_address) {
  return (static_cast<uint64_t>(shared_address & 0x3FFFF) >> 4) | uint64_t{1} << 16 |
         static_cast<uint64_t>(kSwizzleAtom >> 4) << 32 | uint64_t{1} << 62;
}
// The same rows, `steps` times 16 values further along K. Inside a swizzle atom the address alone moves: the swizzle is applied to it.
__host__ __device__ constexpr uint64_t advance_k16(uint64_t descriptor, int steps) {
  return descriptor + static_cast<uint64_t>(steps * 32 >> 4);
}

// --- pipeline ---

// The stages in the order of their use. A consumer waits for the full barrier's `parity`; the producer waits for the empty barrier's
// opposite one, which a fresh barrier grants for its first round.
struct PipelineSlot {
  int stage = 0;
  uint32_t parity = 0;
  __host__ __device__ constexpr void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// --- accumulators ---

// Register i of thread `thread` (0..127) of a warpgroup after m64nNk16.
struct TilePosition {
  int row, column;
};
__host__ __device__ constexpr TilePosition accumulator_position(int thread, int i) {
  const int lane = thread % 32;
  return {thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2};
}

// For the stores the four lanes of a quad, which hold the same row, exchange pairs of columns: lane q starts with columns 2q, 2q + 1 of
// four groups of eight columns and ends with all eight of group q. Two steps of a transpose; in step s lane q hands its partner
// q ^ (1 << s) one of each couple of pairs (low, high) and puts what it gets into the same place.
__host__ __device__ constexpr bool sends_high(int step, int q) {
  return (q >> step & 1) == 0;
}
__host__ __device__ constexpr int couple_low(int step, int couple) {
  return step == 0 ? 2 * couple : couple;
}
__host__ __device__ constexpr int couple_high(int step, int couple) {
  return couple_low(step, couple) + (1 << step);
}

// --- the problem ---

struct WgmmaConv {
  int pixels, oc;                         // rows and columns of the product
  int tiles_n, tiles;                     // tiles along the columns; in all
  int kblocks, cblocks;                   // steps of the reduction: taps times blocks of 64 channels
  int kw;                                 // taps of a kernel row
  int plane, ow, sh, sw, pt, pl, dh, dw;  // plane: oh * ow
  int split;                              // blocks of a cluster that share one tile's reduction
  int flat;                               // 1: a 1x1 kernel with stride 1 and no padding; src is read as a matrix
  int relu;
};

struct TileOrigin {
  int pixel, channel;
};
// Tiles of the same pixels follow each other, so that src comes from the second-level cache.
__host__ __device__ constexpr TileOrigin tile_origin(const WgmmaConv& g, const WgmmaTile& t, int tile) {
  return {tile / g.tiles_n * t.m, tile % g.tiles_n * t.n};
}

// Coordinates of the first tap of an output pixel, as the copy engine takes them.
struct PixelStart {
  int w, h, n;
};
__host__ __device__ constexpr PixelStart pixel_start(const WgmmaConv& g, int pixel) {
  const int in_plane = pixel % g.plane;
  return {in_plane % g.ow * g.sw - g.pl, in_plane / g.ow * g.sh - g.pt, pixel / g.plane};
}

struct StepRange {
  int begin, end;
};
__host__ __device__ constexpr StepRange split_range(int kblocks, int split, int rank) {
  return {static_cast<int>(static_cast<int64_t>(kblocks) * rank / split),
          static_cast<int>(static_cast<int64_t>(kblocks) * (rank + 1) / split)};
}

// A step's channels and tap; weights are packed in the order of the steps, so that step i reads their columns 64 * i ....
struct Step {
  int channel, s, r;
  __host__ __device__ constexpr void advance(const WgmmaConv& g) {
    channel += kWgmmaK;
    if (channel < g.cblocks * kWgmmaK) return;
    channel = 0;
    if (++s < g.kw) return;
    s = 0;
    ++r;
  }
};
__host__ __device__ constexpr Step step_at(const WgmmaConv& g, int kblock) {
  const int tap = kblock / g.cblocks;
  return {kblock % g.cblocks * kWgmmaK, tap % g.kw, tap / g.kw};
}

}  // namespace fastconv::cuda
