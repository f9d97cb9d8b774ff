// Cycles of one core for one image (from the problem less its n, so that the choice never depends on the batch).
//   products       2 vectors of FMA a cycle at kEfficiency, less for short register tiles, whose weights are loaded for
//                  fewer pixels
//   weights        those that do not fit into the L2 come from beyond it, in a network from far: half of that time is
//                  hidden behind the products
//   transforms     cycles a value of the transformed input and of the products, as measured
// Packing is not counted: a lone call, which packs each time, takes what a prepared layer takes and has the same bits.
// The constants are those of one machine (2-core Granite-Rapids-class Xeon); the ratios are what matters. They put
// ResNet-50's 14x14x256 on the edge: F(4,3) was 10 % slower than F(2,3) in the network at batch 1, whose weights are
// cold, and 10 to 20 % faster at batch 8; F(2,3) is taken, which has a third of the error and half of the weights.
// Stride 2 (AMD Zen 5, 32 shapes, both layouts, batch 1 and 8, 1 and 2 threads): what is chosen takes 2 % more than the best
// of direct, F(2,3) and F(4,3), geometric mean, and nowhere more than direct.
#include <cmath>

#include "common/buffer.h"
#include "cpu/conv/winograd.h"
#include "cpu/conv/winograd_tile.h"
#include "cpu/gemm/gemm.h"

namespace fastconv {
namespace {

constexpr double kEfficiency = 0.88;
constexpr double kStreamed = 8;                        // bytes for a cycle that is not hidden: about 4 a cycle arrive
constexpr double kMoved = 0.55, kMovedStride2 = 0.45;  // cycles a value of V or M in its transform

// `positions` products of [pixels, k] by [k, oc], by `blocks` matrices of weights.
double product_cycles(const GemmUkernel& leaf, double positions, double blocks, double pixels, double k, double oc,
                      int64_t l2) {
  const double height = pixels / std::ceil(pixels / leaf.mr), weight_bytes = 4 * blocks * k * oc;
  const double products = positions * pixels * k * oc / leaf.nr / kEfficiency * (1 + 1 / height);
  return products + (weight_bytes > static_cast<double>(l2) / 2 ? weight_bytes / kStreamed : 0);
}

}  // namespace

double direct_cycles(const Problem& p, const Machine& machine) {
  const GemmUkernel& leaf = *find_ukernel<GemmUkernel>(machine.isa);
  const double ic = static_cast<double>(p.ic), oc = static_cast<double>(p.oc);
  const double pixels = static_cast<double>(p.oh) * static_cast<double>(p.ow);
  return product_cycles(leaf, 1, 1, pixels, 9 * ic, oc, machine.l2_bytes);
}

template <int O, int S>
double winograd_cycles(const Problem& p, const Machine& machine) {
  using Tile = WinogradTile<O, S>;
  const GemmUkernel& leaf = *find_ukernel<GemmUkernel>(machine.isa);
  const double lanes = leaf.nr / 2.0, ic = static_cast<double>(p.ic), oc = static_cast<double>(p.oc);
  const double tiles = static_cast<double>(div_up(p.oh, O)) * static_cast<double>(div_up(p.ow, O));
  // Cycles a vector, on the way in or out: mostly the caches' (V and M pass through the L2), so the wider the vector the
  // more. Planes are transposed too.
  const double transform = (S == 1 ? kMoved : kMovedStride2) * lanes * (p.layout == Layout::nchw ? 1.3 : 1);
  return product_cycles(leaf, Tile::kPositions, Tile::kBlocks, tiles, ic, oc, machine.l2_bytes) +
         tiles * transform * (Tile::kPositions * std::ceil(ic / lanes) + Tile::kSums * std::ceil(oc / lanes));
}

template double winograd_cycles<2, 1>(const Problem&, const Machine&);
template double winograd_cycles<4, 1>(const Problem&, const Machine&);
template double winograd_cycles<2, 2>(const Problem&, const Machine&);
template double winograd_cycles<4, 2>(const Problem&, const Machine&);

}  // namespace fastconv
