// Which tile a GEMM convolution takes on a device, and into how many parts it cuts the reduction. Pure host arithmetic.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/algorithm.h"

namespace fastconv::cuda {

// One instantiation of a kernel.
struct TileShape {
  int m, n, k, warps, stages;
  int blocks_per_sm;      // that registers and shared memory let be resident
  double efficiency = 1;  // share of the family's rate that this one can reach
};

// What a kernel family reaches, for the choice between its tiles; cycles are those of the SM's clock.
struct GemmRates {
  double macs_per_cycle;       // of one SM that is full
  double warps_for_rate;       // resident warps from which on it is full; 0: see `gemm_cycles`
  double bytes_per_cycle;      // from the second-level cache, one SM's share
  int element_bytes;           // of both operands
  double block_cycles = 1200;  // start of a block, its first loads and its stores
  double sum_cycles = 4000;    // one more launch, for the sum of the parts
  int max_split = 32;
  int64_t max_workspace_bytes = int64_t{64} << 20;
};

struct GemmExtent {
  int64_t m, n, k, groups;
};
GemmExtent gemm_extent(const Problem&, int64_t images);

// Estimated cycles of the whole GEMM on `device`.
double gemm_cycles(const GemmExtent&, const TileShape&, int split, const GemmRates&, const DeviceLimits&);

// The tile with the fewest cycles; ties go to the earlier shape and the smaller split. `variant` is its index in `shapes`.
Tile choose_tile(const GemmExtent&, std::span<const TileShape> shapes, const GemmRates&, const DeviceLimits&);

// The part of the reduction that each of `split` blocks takes: a multiple of `step`.
int64_t part_of_reduction(int64_t k, int split, int step);

// The float32 tiles of gemm_f32.cuh, in the order of their instantiations.
std::span<const TileShape> tiles_f32();
constexpr int kTile16Bit = 2;  // the one that also stores float16 and bfloat16
// `result_bytes`: of the array that each part fills, where that is more than the extent's.
Tile choose_tile_f32(const GemmExtent&, const DeviceLimits&, int64_t result_bytes = 0);

}  // namespace fastconv::cuda
