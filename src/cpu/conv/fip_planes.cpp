// 1x1 convolution with stride 1 on planes (NCHW) by Winograd's inner product (fip.cpp), with output channels as rows and pixels as columns, so that
// nothing is turned: dst[oc, p] = act(bias[oc] + residual[oc, p] + sum_c wei[oc, c] src[c, p]).
// Operands: weights packed in register tiles (FipUkernel's a), scaled a channel. Scratch: a panel of nr pixels in order, scaled a pixel.
// Preconditions: NCHW, no padding, one group.
// Blocking: nr pixels against all channels; the lines that the next ones read and write are asked for meanwhile.
// Threads: vectors of pixels, and channels of those that are left over. Bits depend neither on the batch nor on the threads.
// Tails: masks at the end of a plane; one vector where there is only one. Numerics: as fip.cpp's.
// Measured (two cores of a Zen 4, AVX-512, in ResNet-50, of the time with pixels as rows): 56x56 0.79 to 0.90, 28x28 0.89 to 0.97, 14x14 with 256 and more
// channels 1.04 to 1.10 at batch 1 and 0.88 to 0.99 at batch 16, with 64 and 96 (MobileNet-v2) 0.83 to 0.96, 7x7 1.2 to 1.7.
#include <algorithm>

#include "cpu/conv/fip.h"

namespace fastconv {
namespace {

// Of the vectors of pixels; below, tiles of pixels waste less. With few channels their turned ends weigh more.
constexpr double kWorthwhileFill = 0.95, kFillOfFew = 0.9;
constexpr int64_t kFew = 192, kFewOut = 96;  // input channels, or output channels
constexpr int64_t kMaxScratchBytes = 64 << 20;

const char* refuses(const Problem& p, const Machine& machine) {
  if (p.layout != Layout::nchw) return "the layout is not NCHW";
  if (!is_flat(p)) return "not a 1x1 convolution with stride 1 and no padding";
  if (p.groups != 1) return "the channels are grouped";
  const int64_t nr = find_ukernel<FipUkernel>(machine.isa)->nr;
  if (p.ic > kMaxReduction || fip_panel(fip_steps(p.ic), nr) * 4 > kMaxScratchBytes)
    return "a register tile's pixels exceed 64 MiB of scratch";
  return nullptr;
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  const FipUkernel& k = take_leaf<FipUkernel>(plan, machine);
  b.segs = kFipRuns;
  b.seg_k = fip_steps(p.ic);
  b.flat = b.ahead = true;
  b.mr = k.mr;
  b.nr = k.nr;
  b.panels = div_up(p.oc, b.mr);
  plan.packed_bytes = b.panels * fip_tile(b.seg_k, b.mr) * 4;
  plan.pack_tag = "fip rows m" + std::to_string(b.mr);
  plan.scratch_bytes = fip_panel(b.seg_k, b.nr) * 4;
}

// Packed: register tiles of nearly equal height, as FipUkernel's a.
void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Blocking& b = plan.blocking;
  const int64_t size = fip_tile(b.seg_k, b.mr), oc = plan.problem.oc, base = oc / b.panels, extra = oc % b.panels;
  const Range mine = share(b.panels, worker.tid, worker.nthr);
  for (int64_t u = mine.begin; u < mine.end; ++u) {
    float* out = static_cast<float*>(packed) + u * size;
    std::fill(out, out + size, 0.0f);
    pack_fip_weights(plan, wei, u * base + std::min(u, extra), base + (u < extra ? 1 : 0), b.mr, out, kFipRun,
                     out + kFipHead);
  }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const FipUkernel& leaf = fip_of(plan);
  const int64_t plane = p.oh * p.ow, lanes = b.nr / 2, units = div_up(plane, lanes);
  const int64_t src_plane = args.src_plane_of(p), dst_plane = args.dst_plane_of(p);
  FipPlanes from{};
  from.src_plane = src_plane, from.k = p.ic, from.out = reinterpret_cast<float*>(worker.scratch);
  FipPanel t{};
  t.a = static_cast<const float*>(args.packed), t.a_tile = fip_tile(b.seg_k, b.mr);
  t.columns = from.out, t.b = from.out + 2 * b.nr, t.steps = b.seg_k;
  t.c_row = dst_plane, t.c_col = 1;
  t.bias = p.bias ? args.bias : nullptr;
  t.count = p.oc;
  t.relu = p.activation == Activation::relu;
  FetchList fetch(b.seg_k), ahead(b.seg_k);
  const auto pixels_at = [&](Range pixels, int64_t unit) {
    const int64_t x = unit % units;
    return std::min(std::min({int64_t{2}, pixels.end - unit, units - x}) * lanes, plane - x * lanes);
  };
  // Units begin .. end - 1, of all images, by tiles first .. last - 1.
  const auto part = [&](Range pixels, Range tiles) {
    t.first = tiles.begin, t.last = tiles.end;
    for (int64_t unit = pixels.begin; unit < pixels.end;) {
      const int64_t image = unit / units, at = unit % units * lanes;
      t.n = from.rows = pixels_at(pixels, unit);
      from.src = args.src + image * p.ic * src_plane + at;
      leaf.order_panel(&from);
      const int64_t place = image * p.oc * dst_plane + at;
      t.c = args.dst + place;
      t.residual = p.residual ? args.residual + place : nullptr;
      unit += div_up(t.n, lanes);
      ahead.clear();
      if (unit < pixels.end) {
        const int64_t n = pixels_at(pixels, unit), next = unit / units, x = unit % units * lanes;
        ahead.add_rows(args.src + next * p.ic * src_plane + x, p.ic, src_plane, n);
        ahead.add_rows((p.residual ? args.residual : args.dst) + next * p.oc * dst_plane + x, p.oc, dst_plane, n);
      }
      fetch.clear();
      fetch.add_part(ahead, 0, 1, tiles.end - tiles.begin);
      fetch.give(t);
      leaf.planes(&t);
    }
  };
  // Pixels as far as they can be shared out evenly, then all of the rest by channels where that is sooner done: 784 pixels are 24 pairs of
  // vectors and a single one.
  const int64_t total = p.n * units, nthr = worker.nthr, even = total / (2 * nthr) * (2 * nthr);
  const bool by_channels = (total - even) * div_up(b.panels, nthr) < div_up(total - even, nthr) * b.panels;
  part(share(by_channels ? even : total, worker.tid, nthr), {0, b.panels});
  if (by_channels && even < total) part({even, total}, share(b.panels, worker.tid, nthr));
}

bool prefers_not(const Problem& p, const Machine& machine) {
  if (!adds_beside(machine) || p.ic < 16 || p.oc < 24 || p.oh * p.ow < 64) return true;
  // Few products a pixel: what ordering it takes is shared by too few of them, unless the outputs are many (16 to 96: 0.94 of direct's time).
  if (p.ic * p.oc < 3000 && p.oc < 6 * p.ic) return true;
  const int64_t plane = p.oh * p.ow, lanes = find_ukernel<FipUkernel>(machine.isa)->nr / 2;
  const double fill = static_cast<double>(plane) / static_cast<double>(round_up(plane, lanes));
  return fill < (p.ic <= kFew || p.oc <= kFewOut ? kFillOfFew : kWorthwhileFill);
}

}  // namespace

extern const Algorithm conv_fip_planes = {
    Op::conv2d, "fip", "conv_fip_planes",     "cpu",       refuses, configure,
    pack,       run,   leaves_of<FipUkernel>, prefers_not, true,    /*planes_apart=*/true};

}  // namespace fastconv
