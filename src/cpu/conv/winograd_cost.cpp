// Cycles of one core for one image (from the problem less its n, so that the choice never depends on the batch).
//   products       2 vectors of FMA a cycle at kEfficiency, less for short register tiles, whose weights are loaded for
//                  fewer pixels
//                  Those that are made: ragged tiles have fewer
//   weights        those that do not fit into the L2 come from beyond it, in a network from far: half of that time is
//                  hidden behind the products, with stride 2 against direct four fifths
//   transforms     cycles a value of the transformed input and of the products, as measured
//   weights again  of several groups of tiles each reads the weights, after the first from nearer: half of the above.
//                  Counted between F(2,3) and F(4,3) with stride 1 alone
// Packing is not counted: a lone call, which packs each time, takes what a prepared layer takes and has the same bits.
// The constants are those of one machine (2-core Granite-Rapids-class Xeon); the ratios are what matters. They put ResNet-50's
// 14x14x256 on the edge. F(4,3) over F(2,3) at 14x14, lone layers on an AMD Zen 5, both layouts, batch 1 with cold weights by one and
// by two threads, then batch 8: 128 to 256 channels 0.83 to 0.93, 0.95 to 1.08, 0.78 to 0.95; 384 and 512, where a group of
// F(4,3)'s tiles leaves the L2, 1.17 to 1.40, 1.06 to 1.37, 0.87 to 1.17.
// Stride 2 (AMD Zen 5, 32 shapes, both layouts, batch 1 and 8, 1 and 2 threads): what is chosen takes 2 % more than the best
// of direct, F(2,3) and F(4,3), geometric mean, and nowhere more than direct. With ragged tiles F(2,3) is taken from 6 rows of 192 channels on:
// 0.44 to 1.04 of direct's time there.
#include <cmath>

#include "common/buffer.h"
#include "cpu/conv/winograd.h"
#include "cpu/conv/winograd_tile.h"
#include "cpu/gemm/gemm.h"

namespace fastconv {
namespace {

constexpr double kEfficiency = 0.88;
constexpr double kMoved = 0.55, kMovedStride2 = 0.45;  // cycles a value of V or M in its transform
constexpr double kAgain = 0.5;                         // of the time of a first reading

// `blocks` matrices of weights from beyond the L2.
double streamed_cycles(double blocks, double k, double oc, int64_t l2, double streamed) {
  const double weight_bytes = 4 * blocks * k * oc;
  return weight_bytes > static_cast<double>(l2) / 2 ? weight_bytes / streamed : 0;
}

// Products of [pixels, k] by [k, oc] and the like, `rows` rows of k in all, by `blocks` matrices of weights.
double product_cycles(const GemmUkernel& leaf, double rows, double blocks, double pixels, double k, double oc,
                      int64_t l2, double streamed) {
  const double height = pixels / std::ceil(pixels / leaf.mr);
  const double products = rows * k * oc / leaf.nr / kEfficiency * (1 + 1 / height);
  return products + streamed_cycles(blocks, k, oc, l2, streamed);
}

}  // namespace

double direct_cycles(const Problem& p, const Machine& machine, double streamed) {
  const GemmUkernel& leaf = *find_ukernel<GemmUkernel>(machine.isa);
  const double ic = static_cast<double>(p.ic), oc = static_cast<double>(p.oc);
  const double pixels = static_cast<double>(p.oh) * static_cast<double>(p.ow);
  return product_cycles(leaf, pixels, 1, pixels, 9 * ic, oc, machine.l2_bytes, streamed);
}

template <int O, int S>
double winograd_cycles(const Problem& p, const Machine& machine, double streamed) {
  using Tile = WinogradTile<O, S>;
  const GemmUkernel& leaf = *find_ukernel<GemmUkernel>(machine.isa);
  const double lanes = leaf.nr / 2.0, ic = static_cast<double>(p.ic), oc = static_cast<double>(p.oc);
  const double tiles = static_cast<double>(div_up(p.oh, O)) * static_cast<double>(div_up(p.ow, O));
  // Cycles a vector, on the way in or out: mostly the caches' (V and M pass through the L2), so the wider the vector the
  // more. Planes are transposed too.
  const double transform = (S == 1 ? kMoved : kMovedStride2) * lanes * (p.layout == Layout::nchw ? 1.3 : 1);
  const double values = Tile::values(p.oh, p.ow), sums = Tile::sums(p.oh, p.ow);
  return product_cycles(leaf, values, Tile::kBlocks, tiles, ic, oc, machine.l2_bytes, streamed) +
         transform * (values * std::ceil(ic / lanes) + sums * std::ceil(oc / lanes));
}

template <int O, int S>
double weights_again_cycles(const Problem& p, const Machine& machine) {
  using Tile = WinogradTile<O, S>;
  const GemmUkernel& leaf = *find_ukernel<GemmUkernel>(machine.isa);
  const double tiles = static_cast<double>(div_up(p.oh, O)) * static_cast<double>(div_up(p.ow, O));
  const double v_tile = Tile::values(p.oh, p.ow) / tiles * static_cast<double>(round_up(p.ic, 16));
  const double m_tile = Tile::sums(p.oh, p.ow) / tiles * leaf.nr;
  const double group = static_cast<double>(
      tiles_of_a_group(static_cast<int64_t>(v_tile), static_cast<int64_t>(m_tile), leaf.mr, machine.l2_bytes));
  return kAgain * (std::ceil(tiles / group) - 1) *
         streamed_cycles(Tile::kBlocks, static_cast<double>(p.ic), static_cast<double>(p.oc), machine.l2_bytes,
                         kStreamed);
}

template double winograd_cycles<2, 1>(const Problem&, const Machine&, double);
template double winograd_cycles<4, 1>(const Problem&, const Machine&, double);
template double winograd_cycles<2, 2>(const Problem&, const Machine&, double);
template double winograd_cycles<4, 2>(const Problem&, const Machine&, double);
template double weights_again_cycles<2, 1>(const Problem&, const Machine&);
template double weights_again_cycles<4, 1>(const Problem&, const Machine&);

}  // namespace fastconv
