// 1x1 convolution with stride 1 on planes (NCHW): dst[n,oc,p] = act(bias[oc] + residual[n,oc,p] + sum_c wei[oc,c] * src[n,c,p]).
// The GEMM leaf with its roles turned round: rows of its tile are output channels, vectors run along a plane's pixels, so that results are
// stored as they lie and nothing is transposed.
// Operands: weights packed [oc][ic], rows an odd number of cache lines apart, so that a tile's rows spread over the cache sets. A block of pixels
// is copied to scratch, [ic][nr], zero-padded at the end of a plane, by the register tile that is first to read it.
// Blocking: a block of nr or 2 nr pixels against all channels, in a register tile's height at a time; the next block's inputs and output
// lines are fetched meanwhile. Weights stay in the L2.
// Threads: half panels of pixels are shared out, or channels where there are few blocks.
// Numerics: one sequential sum per output, the bias first and then c in order.
// Measured, tried: docs/performance.md.
#include <algorithm>
#include <cstring>
#include <string>

#include "cpu/gemm/gemm.h"

namespace fastconv {
namespace {

constexpr double kWorthwhileFill = 0.95;  // of the vectors of pixels; below, conv_direct's tiles waste less

const char* refuses(const Problem& p, const Machine& machine) {
  if (p.layout != Layout::nchw) return "pixels do not lie side by side (NHWC)";
  if (!is_flat(p)) return "not a 1x1 convolution with stride 1 and no padding";
  if (p.groups != 1) return "the channels are grouped";
  const GemmUkernel& leaf = *find_ukernel<GemmUkernel>(machine.isa);
  const int64_t plane = p.oh * p.ow;
  if (static_cast<double>(plane) < kWorthwhileFill * static_cast<double>(round_up(plane, leaf.nr)))
    return "a plane does not fill its last vectors of pixels";
  if (p.ic > machine.l2_bytes / 16 / leaf.nr || p.oc > machine.l2_bytes / 8 / p.ic)
    return "the weights, or the channels of a block of pixels, do not stay in the L2";
  return nullptr;
}

int64_t weight_row(const Problem& p) {
  return odd_lines(p.ic);
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  b.segs = 1;
  b.seg_k = p.ic;
  b.flat = b.ahead = true;
  configure_gemm(plan, machine);
  b.mc = b.nr * (2 * b.nr * p.ic * 4 <= machine.l2_bytes / 8 ? 2 : 1);
  plan.packed_bytes = p.oc * weight_row(p) * 4;
  plan.pack_tag = "rows ld" + std::to_string(weight_row(p));
  plan.scratch_bytes = p.ic * b.nr * 4;
}

void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  const int64_t row = weight_row(p);
  const Range mine = share(p.oc, worker.tid, worker.nthr);
  float* out = static_cast<float*>(packed) + mine.begin * row;
  if (p.weight_layout == WeightLayout::hwio) {
    move.transpose(wei + mine.begin, p.oc, out, row, p.ic, mine.end - mine.begin);
    return;
  }
  for (int64_t i = mine.begin; i < mine.end; ++i, out += row) std::memcpy(out, wei + i * p.ic, p.ic * sizeof(float));
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  // What threads share out: half panels of pixels, so that 784 pixels are 25 and 24 of 49, not 13 and 12 of 25.
  const int64_t plane = p.oh * p.ow, half = b.nr / 2, halves = div_up(plane, half), zero_offset = 0;
  const int64_t src_plane = args.src_plane_of(p), dst_plane = args.dst_plane_of(p);
  float* pixels = reinterpret_cast<float*>(worker.scratch);
  const Rectangle mine = split_work(plan, p.n * halves, div_up(p.oc, b.mr), worker);
  const int64_t channel = mine.panels.begin * b.mr, channels = std::min(mine.panels.end * b.mr, p.oc) - channel;
  GemmPanel g{};
  g.a = static_cast<const float*>(args.packed) + channel * weight_row(p);
  g.a_row = weight_row(p), g.a_k = 1;
  g.a_seg = &zero_offset;
  g.segs = 1, g.seg_k = p.ic;
  g.c_row = dst_plane, g.c_col = 1;
  g.row_bias = p.bias ? args.bias + channel : nullptr;
  g.outer = 1, g.inner = channels;
  g.first = g.last = 1;
  g.relu = p.activation == Activation::relu;
  FetchList fetch(p.ic), ahead(p.ic);
  // Block `unit`: its pixels lie in one image.
  const auto pixels_at = [&](int64_t unit) {
    return std::min({b.mc, (mine.pixels.end - unit) * half, plane - unit % halves * half});
  };
  const auto place = [&](int64_t unit, int64_t image) { return unit / halves * image + unit % halves * half; };
  const int64_t src_image = p.ic * src_plane, dst_image = p.oc * dst_plane;
  for (int64_t unit = mine.pixels.begin; unit < mine.pixels.end;) {
    const int64_t extent = pixels_at(unit), count = div_up(extent, b.nr), next = unit + div_up(extent, half);
    ahead.clear();
    if (next < mine.pixels.end) {
      ahead.add_rows(args.src + place(next, src_image), p.ic, src_plane, pixels_at(next));
      // A run that is longer than there are channels would go past the image.
      if (channels >= p.ic)
        ahead.add_rows((p.residual ? args.residual : args.dst) + place(next, dst_image) + channel * dst_plane, channels,
                       dst_plane, pixels_at(next));
    }
    for (int64_t i = 0; i < count; ++i) {
      fetch.clear();
      fetch.add_part(ahead, i, count, div_up(channels, b.mr));
      fetch.give(g);
      const int64_t at = place(unit, dst_image) + i * b.nr + channel * dst_plane;
      g.n = std::min(b.nr, extent - i * b.nr);
      g.b = g.b_copy = pixels;
      g.b_from = args.src + place(unit, src_image) + i * b.nr;
      g.b_from_k = src_plane;
      g.c = args.dst + at;
      g.residual = p.residual ? args.residual + at : nullptr;
      gemm_of(plan).panel(&g);
    }
    unit = next;
  }
}

}  // namespace

extern const Algorithm conv_direct_planes = {
    Op::conv2d, "direct", "conv_direct_planes",   "cpu",   refuses, configure,
    pack,       run,      leaves_of<GemmUkernel>, nullptr, false,   /*planes_apart=*/true};

}  // namespace fastconv
