#include "cuda/conv/tiles_mma.h"

#include <cstdlib>

#include "cuda/conv/tiles.h"

namespace fastconv::cuda::mma {
namespace {

// What mma.sync reaches. Data sheets: 1024 multiply-accumulates of 16 bits a cycle and SM on sm_80, 512 on sm_89; on sm_90 about 0.6 of
// wgmma's 4096 (published microbenchmarks; not measured here). tf32 takes twice as long, its three products with the splitting six
// times and a little.
GemmRates rates_of(const Task& t, const DeviceLimits& d) {
  GemmRates r;
  const double whole = d.sm >= 90 ? 2500 : d.sm == 89 ? 512 : 1024;
  r.macs_per_cycle = t.dtype != Dtype::f32 ? whole : t.compute == Compute::tf32 ? whole / 2 : whole / 8;
  r.warps_for_rate = 0;
  r.bytes_per_cycle = 48;
  r.element_bytes = static_cast<int>(element_bytes(t.dtype));
  return r;
}

// A warp that owns fewer sums reads more of shared memory for each, and mma.sync is fast enough for that to show. Not measured.
double efficiency_of(const Task& t, const Kernel& k) {
  const int sums = k.pixels * k.channels / k.warps;
  if (t.dtype == Dtype::f32 && t.compute == Compute::tf32x3) return sums >= 2048 ? 1 : 0.9;
  return sums >= 4096 ? 1 : sums >= 2048 ? 0.83 : 0.75;
}

bool divides(int64_t bytes, int64_t by) {
  return bytes % by == 0;
}

}  // namespace

int widest_load_bytes(const Task& t) {
  const Problem& p = t.problem;
  const int64_t single = element_bytes(t.dtype);
  const int64_t run = (p.layout == Layout::nhwc ? p.ic : reads_every_pixel(p) ? p.ih * p.iw : 1) * single;
  for (int64_t bytes = 16; bytes > single; bytes /= 2) {
    if (divides(run, bytes)) return static_cast<int>(bytes);
  }
  return static_cast<int>(single);
}

Tile choose_tile_mma(const Task& t, const std::vector<Kernel>& kernels, const DeviceLimits& device) {
  const int allowed = widest_load_bytes(t);
  int widest = 0;
  for (const Kernel& k : kernels) {
    if (k.layout == t.problem.layout && k.load_bytes <= allowed && k.load_bytes > widest) widest = k.load_bytes;
  }
  std::vector<TileShape> shapes;
  std::vector<int> indices;
  const int step = kStepBytes / static_cast<int>(element_bytes(t.dtype));
  for (size_t i = 0; i < kernels.size(); ++i) {
    const Kernel& k = kernels[i];
    if (k.layout != t.problem.layout || k.load_bytes != widest) continue;
    int64_t resident = device.shared_bytes_per_sm / (k.shared_bytes + 1024);  // the driver takes 1 KB a block
    if (resident > k.blocks_per_sm) resident = k.blocks_per_sm;
    if (resident < 1) resident = 1;
    shapes.push_back({k.pixels, k.channels, step, k.warps, k.stages, static_cast<int>(resident), efficiency_of(t, k)});
    indices.push_back(static_cast<int>(i));
  }
  GemmRates rates = rates_of(t, device);
  if (images_per_launch(t.problem) < t.problem.n) rates.max_split = 1;  // parts lie side by side in whole outputs
  Tile tile = choose_tile(gemm_extent(t.problem, t.problem.n), shapes, rates, device);
  tile.variant = indices[static_cast<size_t>(tile.variant)];
  return tile;
}

int kernel_for_single_values(const Kernel& planned, const std::vector<Kernel>& kernels, int64_t element_bytes) {
  int nearest = -1;
  int64_t distance = 0;
  for (size_t i = 0; i < kernels.size(); ++i) {
    const Kernel& k = kernels[i];
    if (k.layout != planned.layout || k.load_bytes != element_bytes) continue;
    const int64_t d = std::abs(k.pixels - planned.pixels) + std::abs(k.channels - planned.channels);
    if (nearest < 0 || d < distance) nearest = static_cast<int>(i), distance = d;
  }
  return nearest;
}

}  // namespace fastconv::cuda::mma
