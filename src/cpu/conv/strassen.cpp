// 1x1 convolution as a matrix product by Strassen's method, in Winograd's form, one level: with pixels (in pairs), input and output
// channels in halves, seven products of quarters for eight:  dst[p, oc] = act(bias[oc] + residual + sum_c src[p, c] wei[oc, c]).
// Operands: weights packed [panel][product][ic / 2][nr], the sums of quarters that the products want (StrassenUkernel), made in float64
// and rounded once: 7/4 of the plain weights. Scratch: the sums of a block of pixels, [product][pair][ic / 2].
// Preconditions: NHWC, no padding, one group, even numbers of channels and of output columns; any stride.
// Pairs are neighbours in a row, (2x, 2x + 1): bits depend neither on the batch nor on where a band of rows begins.
// Blocking: blocks of pairs whose sums fit into the L2; panels outside, pairs inside. What a product shares with the next
// stays in the registers or the L1 (strassen_body.h), so that beside 7/8 of the products there are only the sums of the input.
// The last panel's tiles, which have no weights to fetch, fetch the next block's input.
// Tails: those of the leaf. Numerics: a fixed order of products, each one sequential sum over ic / 2.
// Error: relative L2 2 to 3 times that of the plain sum, 1.3e-6 at 1024 channels. A value that is not finite reaches both
// pixels of its pair.
// Measured (two cores of a Zen 5, AVX-512, one thread, of direct's time): 0.89 to 0.92 at 14x14 and for 128 to 512 at 28x28, 0.92 for 64 to
// 256 at 56x56, 0.98 for 512 to 128; the panel alone 0.86 to 0.91, the sums of the input 0.12 of a panel's time.
// Tried: the products as calls of the GEMM leaf, 0.92 to 1.04.
// Reference: Strassen, "Gaussian elimination is not optimal", Numer. Math. 13, 1969; the form with 15 additions is Winograd's.
#include <algorithm>

#include "cpu/conv/strassen.h"

namespace fastconv {

void configure_strassen_weights(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  b.segs = kStrassenProducts;
  b.seg_k = p.ic / 2;
  b.flat = is_flat(p);
  const StrassenUkernel& k = take_leaf<StrassenUkernel>(plan, machine);
  b.mr = k.mr;
  b.nr = k.nr;
  b.panels = div_up(p.oc / 2, b.nr);
  plan.packed_bytes = b.panels * kStrassenProducts * b.seg_k * b.nr * 4;
  plan.pack_tag = "strassen n" + std::to_string(b.nr);
}

void pack_strassen_weights(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const StrassenUkernel& leaf = strassen_of(plan);
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  constexpr int64_t kChunk = 16;  // input channels at a time
  const int64_t half = p.ic / 2, right = p.oc / 2, nr = b.nr, chunks = div_up(half, kChunk);
  alignas(64) float rows[4][kChunk * kMaxNr];  // quarters: [k half][channel half]
  const Range mine = share(b.panels * chunks, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const int64_t panel = unit / chunks, k0 = unit % chunks * kChunk, steps = std::min(kChunk, half - k0);
    const int64_t first = panel * nr, count = std::min(nr, right - first);
    for (int64_t q = 0; q < 4; ++q) {
      const int64_t k = k0 + q / 2 * half, channel = first + q % 2 * right;
      if (count < nr) std::fill(rows[q], rows[q] + kChunk * nr, 0.0f);
      if (p.weight_layout == WeightLayout::hwio) {
        for (int64_t i = 0; i < steps; ++i) std::copy_n(wei + (k + i) * p.oc + channel, count, rows[q] + i * nr);
      } else {
        move.transpose(wei + channel * p.ic + k, p.ic, rows[q], nr, count, steps);
      }
    }
    const float* const quarters[4] = {rows[0], rows[1], rows[2], rows[3]};
    float* out = static_cast<float*>(packed) + panel * kStrassenProducts * half * nr + k0 * nr;
    leaf.weights(quarters, out, half * nr, steps * nr);
  }
}

namespace {

const char* refuses(const Problem& p, const Machine&) {
  if (p.layout != Layout::nhwc) return "the layout is not NHWC";
  if (p.kh != 1 || p.kw != 1) return "the kernel is not 1x1";
  if (p.padded()) return "the input is padded";
  if (p.groups != 1) return "the channels are grouped";
  if (p.ic % 2 || p.oc % 2) return "a number of channels is odd";
  if (p.ow % 2) return "the number of output columns is odd";
  if (p.ic > kMostStrassenChannels) return "more than 1024 input channels";
  return nullptr;
}

int64_t pair_stride(const Problem& p) {
  return odd_lines(p.ic / 2);
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  configure_strassen_weights(plan, machine);
  const int64_t pair = kStrassenProducts * pair_stride(p), pairs = p.n * p.oh * p.ow / 2;
  b.mc = std::max(b.mr, std::max<int64_t>(machine.l2_bytes / 4 * 3, 64 << 10) / (4 * pair));
  if (plan.packed_bytes <= machine.l2_bytes / 2) {
    b.mc = std::min(b.mc, 2 * b.mr);
    b.ahead = b.mc * 2 * (p.ic + p.oc) * 4 <= machine.l2_bytes / 4;
  }
  b.mc = std::min(b.mc, pairs);
  b.expect = results_are_far(p, machine);
  plan.scratch_bytes = b.mc * pair * 4;
}

// The sums of pairs at..at+count of the batch, to a.
void sum_input(const Plan& plan, const Operands& args, int64_t at, int64_t count, float* a) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  StrassenInput s{};
  s.src_odd = p.sw * p.ic, s.src_pair = 2 * s.src_odd, s.half = b.seg_k;
  s.a_pair = pair_stride(p), s.a_product = b.mc * s.a_pair;
  const int64_t row_pairs = p.ow / 2;
  for (int64_t done = 0; done < count;) {
    const int64_t row = (at + done) / row_pairs, x = (at + done) % row_pairs, image = row / p.oh, y = row % p.oh;
    s.pairs = b.flat ? count : std::min(count - done, row_pairs - x);
    s.src = args.src + ((image * p.ih + y * p.sh) * p.iw) * p.ic + x * s.src_pair;
    s.a = a + done * s.a_pair;
    strassen_of(plan).input(&s);
    done += s.pairs;
  }
}

// Nearly equal blocks of at most `most`; whole register tiles where that leaves as few.
int64_t blocks_of(int64_t count, int64_t most, int64_t mr) {
  if (count <= most) return std::max<int64_t>(count, 1);
  const int64_t blocks = div_up(count, most), tiles = round_up(div_up(count, blocks), mr);
  return tiles <= most ? tiles : div_up(count, blocks);
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  float* a = reinterpret_cast<float*>(worker.scratch);
  const int64_t total = p.n * p.oh * p.ow / 2, size = kStrassenProducts * b.seg_k * b.nr;
  // Half register tiles: 98 pairs of a 14x14 image are 7 whole ones.
  const int64_t unit = div_up(b.mr, 2);
  const Rectangle mine = split_work(plan, div_up(total, unit), b.panels, worker);
  const int64_t begin = mine.pixels.begin * unit, end = std::min(total, mine.pixels.end * unit);
  const int64_t panels = mine.panels.end - mine.panels.begin;
  StrassenPanel t{};
  t.a = a, t.a_pair = pair_stride(p), t.a_product = b.mc * t.a_pair, t.half = b.seg_k;
  t.dst_odd = p.oc, t.dst_pair = 2 * p.oc, t.dst_right = p.oc / 2, t.bias_right = p.oc / 2;
  t.outer = 1;
  t.relu = p.activation == Activation::relu;
  t.expect = b.expect && !b.ahead;
  FetchList fetch(kStrassenProducts * b.seg_k), ahead(kStrassenProducts * b.seg_k);
  const int64_t step = blocks_of(end - begin, b.mc, b.mr);
  for (int64_t at = begin; at < end; at += t.inner) {
    t.inner = std::min(step, end - at);
    sum_input(plan, args, at, t.inner, a);
    const int64_t next = at + t.inner, count = std::min(step, end - next), tiles = div_up(t.inner, b.mr);
    ahead.clear();
    if (b.ahead && count > 0) {
      if (b.flat) ahead.add_lines(args.src + next * 2 * p.ic, count * 2 * p.ic);
      ahead.add_lines((p.residual ? args.residual : args.dst) + next * t.dst_pair, count * t.dst_pair);
    }
    // Weights lie far away the first time, and each time where the L2 does not keep them.
    const bool far = !b.ahead || at == begin;
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t channel = u * b.nr, first = at * t.dst_pair + channel;
      t.b = static_cast<const float*>(args.packed) + u * size;
      t.dst = args.dst + first;
      t.residual = p.residual ? args.residual + first : nullptr;
      t.bias = p.bias ? args.bias + channel : nullptr;
      t.n = std::min(b.nr, p.oc / 2 - channel);
      fetch.clear();
      if (far && u + 1 < mine.panels.end) fetch.add_spread(t.b + size, size, tiles);
      if (!b.ahead && b.flat && u + 1 == mine.panels.end && count > 0)
        fetch.add_spread(args.src + next * 2 * p.ic, count * 2 * p.ic, tiles);
      fetch.add_part(ahead, u - mine.panels.begin, panels, tiles);
      fetch.give(t);
      strassen_of(plan).panel(&t);
    }
  }
}

// Measured on two cores of a Zen 5, 20 shapes with AVX-512 and 11 with AVX2.
bool prefers_not(const Problem& p, const Machine& machine) {
  if (p.ic < 64 || p.oh * p.ow < 128) return true;
  return strassen_share(p, *find_ukernel<StrassenUkernel>(machine.isa), 1.8) > 0.97;
}

}  // namespace

double strassen_share(const Problem& p, const StrassenUkernel& leaf, double tile_end) {
  const double ours = static_cast<double>(2 * round_up(p.oc / 2, leaf.nr));
  const double plain = static_cast<double>(round_up(p.oc, leaf.nr));
  const double lanes = leaf.nr / 2.0, ic = static_cast<double>(p.ic), oc = static_cast<double>(p.oc);
  return static_cast<double>(kStrassenProducts) / 8 * ours / plain + tile_end / ic + 0.47 * lanes / oc;
}

extern const Algorithm conv_strassen = {Op::conv2d,
                                        "strassen",
                                        "conv_strassen",
                                        "cpu",
                                        refuses,
                                        configure,
                                        pack_strassen_weights,
                                        run,
                                        leaves_of<StrassenUkernel>,
                                        prefers_not,
                                        true};

}  // namespace fastconv
