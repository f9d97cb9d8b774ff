#include "cuda/conv/tiles.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace fastconv::cuda {
namespace {

int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// 64 sums a thread and 128 registers leave 16 warps on an SM; the last shape has 32 sums a thread, for short results, and asks
// shared memory for half as much again a product.
constexpr std::array<TileShape, 4> kTilesF32 = {{
    {128, 128, 8, 8, 2, 2, 1.0},
    {128, 64, 8, 4, 2, 4, 0.98},
    {64, 64, 8, 2, 2, 6, 0.96},
    {64, 32, 8, 2, 2, 10, 0.8},
}};

// Of an SM's rate, what so many warps reach. Its four schedulers issue for themselves: warps that do not divide by four leave some
// of them idle, and one that has a single warp waits wherever that warp waits.
double share_of_rate(double warps, const GemmRates& r) {
  if (r.warps_for_rate > 0) return std::min(1.0, warps / r.warps_for_rate);
  const double each = std::ceil(warps / 4);
  return warps / (4 * each) * each / (each + 0.5);
}

}  // namespace

GemmExtent gemm_extent(const Problem& p, int64_t images) {
  return {images * p.oh * p.ow, p.ocg(), p.icg() * p.kh * p.kw, p.groups};
}

int64_t part_of_reduction(int64_t k, int split, int step) {
  return div_up(div_up(k, split), step) * step;
}

double gemm_cycles(const GemmExtent& e, const TileShape& t, int split, const GemmRates& r, const DeviceLimits& device) {
  const double parts = static_cast<double>(div_up(e.k, part_of_reduction(e.k, split, t.k)));
  const double blocks = static_cast<double>(div_up(e.m, t.m) * div_up(e.n, t.n) * e.groups) * parts;
  const double k = static_cast<double>(part_of_reduction(e.k, split, t.k));
  const double block_macs = static_cast<double>(t.m) * t.n * k;
  const double block_bytes = static_cast<double>(t.m + t.n) * k * r.element_bytes;
  // The fullest SM decides. Blocks that run together share its rate; too few of them do not reach it.
  const double sms = device.sm_count;
  const double most = std::max(1.0, static_cast<double>(div_up(static_cast<int64_t>(blocks), device.sm_count)));
  const auto together = [&](double resident) {
    const double rate = r.macs_per_cycle * t.efficiency * share_of_rate(resident * t.warps, r);
    const double compute = resident * block_macs / rate, move = resident * block_bytes / r.bytes_per_cycle;
    return std::max(compute, move) + r.block_cycles;
  };
  const double rounds = static_cast<double>(static_cast<int64_t>(most) / t.blocks_per_sm);
  const double rest = most - rounds * t.blocks_per_sm;
  double cycles = rounds * together(t.blocks_per_sm) + (rest > 0 ? together(rest) : 0);
  if (parts > 1) {
    const double sums = static_cast<double>(e.m) * static_cast<double>(e.n * e.groups) * 4;
    cycles += r.sum_cycles + (2 * parts + 1) * sums / (r.bytes_per_cycle * sms);
  }
  return cycles;
}

Tile choose_tile(const GemmExtent& e, std::span<const TileShape> shapes, const GemmRates& rates,
                 const DeviceLimits& device) {
  Tile best;
  double fewest = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const TileShape& t = shapes[i];
    const int64_t blocks = div_up(e.m, t.m) * div_up(e.n, t.n) * e.groups;
    for (int split = 1; split <= rates.max_split; ++split) {
      if (split > 1) {
        // Blocks enough, parts too short to fill a pipeline, or a workspace too large.
        if (blocks * (split - 1) > int64_t{2} * device.sm_count * t.blocks_per_sm) break;
        if (e.k < int64_t{split} * t.k * 4) break;
        if (double(e.m) * double(e.n * e.groups) * 4 * split > double(rates.max_workspace_bytes)) break;
        if (div_up(e.k, part_of_reduction(e.k, split, t.k)) != split) continue;  // an empty last part
      }
      const double cycles = gemm_cycles(e, t, split, rates, device);
      if (best.m != 0 && cycles >= fewest) continue;
      fewest = cycles;
      best.m = t.m, best.n = t.n, best.k = t.k, best.warps = t.warps, best.stages = t.stages;
      best.split_k = split;
      best.variant = static_cast<int>(i);
    }
  }
  return best;
}

std::span<const TileShape> tiles_f32() {
  return kTilesF32;
}

Tile choose_tile_f32(const GemmExtent& e, const DeviceLimits& device, int64_t result_bytes) {
  GemmRates rates{};
  rates.macs_per_cycle = device.sm == 80 ? 64 : 128;  // lanes of FMA
  rates.warps_for_rate = 0;
  rates.bytes_per_cycle = device.sm >= 90 ? 24 : 32;
  rates.element_bytes = 4;
  if (result_bytes > 0)
    rates.max_split =
        static_cast<int>(std::clamp<int64_t>(rates.max_workspace_bytes / result_bytes, 1, rates.max_split));
  return choose_tile(e, kTilesF32, rates, device);
}

}  // namespace fastconv::cuda
