// 1x1 convolution with stride 1 on planes (NCHW) by Strassen's seven products (strassen.cpp): dst[oc, p] = act(bias[oc] + residual[oc, p]
// + sum_c wei[oc, c] src[c, p]), with output channels as rows, pixels as columns, so that nothing is transposed. Quarters: channels in
// halves, and the left and right half of the pixels of a plane; pixel p and p + plane / 2 are made together.
// Operands: weights packed in register tiles, [tile][product][ic / 2][mr], the sums of quarters that the products want, made in float64 and
// rounded once: 7/4 of the plain weights. Scratch: the sums of a block of pixels, [product][ic / 2][nr].
// Preconditions: NCHW, no padding, one group, even numbers of channels and of pixels in a plane.
// Blocking: nr pixels of either half against all channels. The first register tile makes the sums while it multiplies them; each asks for the
// weights that follow, and for a share of the lines that the next block will read and write.
// Threads: vectors of pixels, and channels of those that are left over. Bits depend neither on the batch nor on the threads.
// Tails: masks at the end of a half plane; one vector where there is only one. Numerics: as strassen.cpp's; relative L2 1.0e-6 at 1024
// channels. A value that is not finite reaches both pixels of its pair.
// Measured (two cores of a Zen 5, AVX-512, in ResNet-50, batch 1, two threads, of direct's time): 0.88 to 0.91 for 64 to 256 channels, 256 to
// 128, 128 to 512 and 512 to 256, 0.93 to 0.95 for 512 to 128 and 256 to 64, where the sums weigh; 64 to 64: 1.07.
// Tried: weights not asked for ahead, 28x28 1.0 to 1.05 in the network, where they come from memory, though 0.9 to 0.95 alone; channels
// shared out, so that each thread makes all sums: 1.0 to 1.4.
#include <algorithm>
#include <cstring>

#include "cpu/conv/strassen.h"

namespace fastconv {
namespace {

constexpr double kWorthwhileFill = 0.95;  // of the vectors of pixels; below, tiles of pixels waste less

const char* refuses(const Problem& p, const Machine&) {
  if (p.layout != Layout::nchw) return "the layout is not NCHW";
  if (!is_flat(p)) return "not a 1x1 convolution with stride 1 and no padding";
  if (p.groups != 1) return "the channels are grouped";
  if (p.ic % 2 || p.oc % 2) return "a number of channels is odd";
  if (p.oh * p.ow % 2) return "the number of output pixels is odd";
  if (p.ic > kMostStrassenChannels) return "more than 1024 input channels";
  return nullptr;
}

int64_t tile_of(const Problem& p, int64_t mr) {
  return odd_lines(kStrassenProducts * (p.ic / 2) * mr);
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  b.segs = kStrassenProducts;
  b.seg_k = p.ic / 2;
  b.flat = b.ahead = true;
  const StrassenUkernel& k = take_leaf<StrassenUkernel>(plan, machine);
  b.mr = k.mr;
  b.nr = k.nr;
  b.panels = div_up(p.oc / 2, b.mr);
  plan.packed_bytes = b.panels * tile_of(p, b.mr) * 4;
  plan.pack_tag = "strassen rows m" + std::to_string(b.mr);
  plan.scratch_bytes = kStrassenProducts * b.seg_k * b.nr * 4;
}

// Packed: [tile][product][ic / 2][mr].
void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const StrassenUkernel& leaf = strassen_of(plan);
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  constexpr int64_t kChunk = 16;  // input channels at a time
  const int64_t half = p.ic / 2, lower = p.oc / 2, mr = b.mr, chunks = div_up(half, kChunk);
  alignas(64) float rows[4][kChunk * kMaxNr];  // quarters: [channel half][k half]
  alignas(64) float sums[kStrassenProducts][kChunk * kMaxNr];
  const int64_t base = lower / b.panels, extra = lower % b.panels;
  const Range mine = share(b.panels * chunks, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const int64_t tile = unit / chunks, k0 = unit % chunks * kChunk, steps = std::min(kChunk, half - k0);
    const int64_t first = tile * base + std::min(tile, extra), count = base + (tile < extra ? 1 : 0);
    for (int64_t q = 0; q < 4; ++q) {
      const int64_t k = k0 + q % 2 * half, channel = first + q / 2 * lower;
      std::fill(rows[q], rows[q] + kChunk * mr, 0.0f);
      if (p.weight_layout == WeightLayout::hwio) {
        for (int64_t i = 0; i < steps; ++i) std::copy_n(wei + (k + i) * p.oc + channel, count, rows[q] + i * mr);
      } else {
        move.transpose(wei + channel * p.ic + k, p.ic, rows[q], mr, count, steps);
      }
    }
    const float* const quarters[4] = {rows[0], rows[1], rows[2], rows[3]};
    leaf.weights_left(quarters, sums[0], kChunk * kMaxNr, round_up(steps * mr, 8));
    float* out = static_cast<float*>(packed) + tile * tile_of(p, mr) + k0 * mr;
    for (int64_t j = 0; j < kStrassenProducts; ++j)
      std::memcpy(out + j * half * mr, sums[j], steps * mr * sizeof(float));
  }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const int64_t plane = p.oh * p.ow, half = plane / 2, lanes = b.nr / 2, units = div_up(half, lanes);
  float* made = reinterpret_cast<float*>(worker.scratch);
  StrassenPanel t{};
  t.a = static_cast<const float*>(args.packed), t.a_tile = tile_of(p, b.mr), t.half = b.seg_k;
  t.b = t.b_made = made;
  t.b_from_k = plane, t.b_right = half, t.b_lower = p.ic / 2 * plane;
  t.dst_pair = plane, t.dst_odd = p.oc / 2 * plane, t.dst_right = half;
  t.bias = p.bias ? args.bias : nullptr, t.bias_odd = p.oc / 2;
  t.inner = p.oc / 2;
  t.relu = p.activation == Activation::relu;
  FetchList fetch(b.seg_k), ahead(b.seg_k);
  const auto pixels_at = [&](Range pixels, int64_t unit) {
    const int64_t x = unit % units;
    return std::min(std::min({int64_t{2}, pixels.end - unit, units - x}) * lanes, half - x * lanes);
  };
  // Units begin .. end - 1, of all images, by tiles first .. last - 1.
  const auto part = [&](Range pixels, Range tiles) {
    t.first = tiles.begin, t.last = tiles.end;
    const int64_t count = tiles.end - tiles.begin;
    for (int64_t unit = pixels.begin; unit < pixels.end;) {
      const int64_t image = unit / units, at = unit % units * lanes;
      t.n = pixels_at(pixels, unit);
      t.b_from = args.src + image * p.ic * plane + at;
      const int64_t place = image * p.oc * plane + at;
      t.dst = args.dst + place;
      t.residual = p.residual ? args.residual + place : nullptr;
      unit += div_up(t.n, lanes);
      ahead.clear();
      if (unit < pixels.end) {
        const int64_t n = pixels_at(pixels, unit), next = unit / units, x = unit % units * lanes;
        for (int64_t right = 0; right < 2; ++right)
          ahead.add_rows(args.src + next * p.ic * plane + x + right * half, p.ic, plane, n);
        for (int64_t right = 0; right < 2; ++right)
          ahead.add_rows((p.residual ? args.residual : args.dst) + next * p.oc * plane + x + right * half, p.oc, plane,
                         n);
      }
      fetch.clear();
      fetch.add_part(ahead, 0, 1, count * kStrassenProducts);
      fetch.give(t);
      strassen_of(plan).panel_planes(&t);
    }
  };
  // Pixels as far as they can be shared out evenly, then all of the rest by channels where that is sooner done: 784 pixels are 24 pairs of
  // vectors and half a pair.
  const int64_t total = p.n * units, nthr = worker.nthr, even = total / nthr * nthr;
  const bool by_channels = (total - even) * div_up(b.panels, nthr) < b.panels;
  part(share(by_channels ? even : total, worker.tid, nthr), {0, b.panels});
  if (by_channels && even < total) part({even, total}, share(b.panels, worker.tid, nthr));
}

// Fewer channels: the sums of the input, which all output channels share, and the ends of tiles weigh too much.
bool prefers_not(const Problem& p, const Machine& machine) {
  const int64_t half = p.oh * p.ow / 2, lanes = find_ukernel<StrassenUkernel>(machine.isa)->nr / 2;
  if (static_cast<double>(half) < kWorthwhileFill * static_cast<double>(round_up(half, lanes))) return true;
  return p.ic < 64 || p.oc < 64 || p.ic + p.oc < 192 || p.oh * p.ow < 128;
}

}  // namespace

extern const Algorithm conv_strassen_planes = {
    Op::conv2d, "strassen", "conv_strassen_planes",     "cpu",       refuses, configure,
    pack,       run,        leaves_of<StrassenUkernel>, prefers_not, true};

}  // namespace fastconv
