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
#include <cmath>

#include "common/buffer.h"
#include "cpu/conv/winograd.h"
#include "cpu/gemm/gemm.h"

namespace fastconv {
namespace {

constexpr double kEfficiency = 0.88;
constexpr double kStreamed = 8;  // bytes for a cycle that is not hidden: about 4 a cycle arrive
constexpr double kMoved = 0.55;  // cycles a value of V or M in its transform

// `positions` products of [pixels, k] by [k, oc].
double product_cycles(const GemmUkernel& leaf, double positions, double pixels, double k, double oc, int64_t l2) {
  const double height = pixels / std::ceil(pixels / leaf.mr), weight_bytes = 4 * positions * k * oc;
  const double products = positions * pixels * k * oc / leaf.nr / kEfficiency * (1 + 1 / height);
  return products + (weight_bytes > static_cast<double>(l2) / 2 ? weight_bytes / kStreamed : 0);
}

}  // namespace

double direct_cycles(const Problem& p, const Machine& machine) {
  const GemmUkernel& leaf = *find_ukernel<GemmUkernel>(machine.isa);
  const double ic = static_cast<double>(p.ic), oc = static_cast<double>(p.oc);
  const double pixels = static_cast<double>(p.oh) * static_cast<double>(p.ow);
  return product_cycles(leaf, 1, pixels, 9 * ic, oc, machine.l2_bytes);
}

double winograd_cycles(const Problem& p, const Machine& machine, int64_t out) {
  const GemmUkernel& leaf = *find_ukernel<GemmUkernel>(machine.isa);
  const double lanes = leaf.nr / 2.0, ic = static_cast<double>(p.ic), oc = static_cast<double>(p.oc);
  const double positions = static_cast<double>((out + 2) * (out + 2));
  const double tiles = static_cast<double>(div_up(p.oh, out)) * static_cast<double>(div_up(p.ow, out));
  // Cycles a tile and vector, on the way in or out: mostly the caches' (V and M pass through the L2), so the wider the
  // vector the more. Planes are transposed too.
  const double transform = positions * kMoved * lanes * (p.layout == Layout::nchw ? 1.3 : 1);
  return product_cycles(leaf, positions, tiles, ic, oc, machine.l2_bytes) +
         tiles * transform * (std::ceil(ic / lanes) + std::ceil(oc / lanes));
}

}  // namespace fastconv
