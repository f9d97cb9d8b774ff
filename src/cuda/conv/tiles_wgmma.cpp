#include "cuda/conv/tiles_wgmma.h"

#include <algorithm>

#include "cuda/conv/tensor_map.h"

namespace fastconv::cuda {
namespace {

int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int64_t steps_of(const Problem& p) {
  return p.kh * p.kw * packed_channels(p) / kWgmmaK;
}

}  // namespace

const char* wgmma_tile_name(int variant) {
  constexpr const char* names[kWgmmaTileCount] = {"m64n32k64",  "m64n64k64",   "m64n128k64",
                                                  "m128n64k64", "m128n128k64", "m128n256k64"};
  return names[variant];
}

bool wgmma_split_fits(const Problem& p, int variant, int split) {
  return split == 1 || (kWgmmaTiles[variant].groups == 1 && split <= kMaxClusterSplit && split <= steps_of(p));
}

// A multiprocessor's time for its share of the blocks. A step of the reduction takes the longest of: products (2048 a cycle), shared memory
// (128 bytes a cycle: each product of 64 x n x 16 reads both operands, the copies write them once), bytes from the second-level cache
// (48 a cycle, a guess from published GEMM rates). Then storing, what starting and ending a round costs, and a cluster's two meetings.
double wgmma_cycles(const Problem& p, const DeviceLimits& device, int variant, int split) {
  const WgmmaTile& t = kWgmmaTiles[variant];
  const int64_t tiles = div_up(p.n * p.oh * p.ow, t.m) * div_up(p.oc, t.n);
  const int64_t share = div_up(tiles * split, device.sm_count), rounds = div_up(share, t.blocks_per_sm);
  const double products = t.m * t.n * kWgmmaK / 2048.0;
  const double shared = t.groups * 4 * (64 + t.n) * 32 / 128.0 + stage_bytes(t) / 128.0;
  const double step = std::max({products, shared, stage_bytes(t) / 48.0});
  const double store = split > 1 ? t.m * t.n / split / 8.0 : t.m * t.n * (p.residual ? 4 : 2) / 16.0;
  return static_cast<double>(share) * (static_cast<double>(div_up(steps_of(p), split)) * step + store) +
         static_cast<double>(rounds) * 1800 + (split > 1 ? 1500 : 0);
}

Tile wgmma_tile(int variant, int split) {
  const WgmmaTile& t = kWgmmaTiles[variant];
  Tile tile;
  tile.m = t.m, tile.n = t.n, tile.k = kWgmmaK;
  tile.warps = wgmma_threads(t) / 32, tile.stages = t.stages;
  tile.split_k = split;
  tile.variant = variant;
  return tile;
}

Tile choose_wgmma_tile(const Problem& p, const DeviceLimits& device) {
  Tile best;
  double least = 0;
  for (int variant = 0; variant < kWgmmaTileCount; ++variant)
    for (int split = 1; split <= kMaxClusterSplit; split *= 2) {
      if (!wgmma_split_fits(p, variant, split)) continue;
      const double cycles = wgmma_cycles(p, device, variant, split);
      if (best.m != 0 && cycles >= least) continue;
      best = wgmma_tile(variant, split);
      least = cycles;
    }
  return best;
}

WgmmaConv wgmma_conv(const Problem& p, const Tile& tile) {
  WgmmaConv g;
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  g.pixels = i(p.n * p.oh * p.ow), g.oc = i(p.oc);
  g.tiles_n = i(div_up(p.oc, tile.n)), g.tiles = i(div_up(g.pixels, tile.m)) * g.tiles_n;
  g.kblocks = i(steps_of(p)), g.cblocks = i(packed_channels(p) / kWgmmaK);
  g.kw = i(p.kw), g.plane = i(p.oh * p.ow), g.ow = i(p.ow);
  g.sh = i(p.sh), g.sw = i(p.sw), g.pt = i(p.pt), g.pl = i(p.pl), g.dh = i(p.dh), g.dw = i(p.dw);
  g.split = tile.split_k;
  g.flat = reads_flat(p);
  g.relu = p.activation == Activation::relu;
  return g;
}

int wgmma_blocks(const WgmmaConv& g, const Tile& tile, const DeviceLimits& device) {
  if (tile.split_k > 1) return g.tiles * tile.split_k;
  return std::min(g.tiles, device.sm_count * kWgmmaTiles[tile.variant].blocks_per_sm);
}

}  // namespace fastconv::cuda
