#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/conv/fip.h"

namespace fastconv {
namespace {

constexpr int64_t kMaxScratchBytes = 64 << 20;

int64_t tile_of(const Problem& p, int64_t mr) {
  const int64_t steps = FipOrder(p.ic).steps;
  return p.layout == Layout::nhwc ? fip_blocks(steps, mr) : fip_tile(steps, mr);
}

// NCHW with a stride: planes of a block's pixels are gathered first.
bool gathers(const Problem& p) {
  return p.layout == Layout::nchw && !is_flat(p);
}

const char* refuses(const Problem& p, const Machine& machine) {
  if (p.kh != 1 || p.kw != 1) return "the kernel is not 1x1";
  if (p.padded()) return "the input is padded";
  if (p.groups != 1) return "the channels are grouped";
  const int64_t mr = find_ukernel<FipUkernel>(machine.isa)->mr;
  if (p.ic > kMaxReduction || (tile_of(p, mr) + (gathers(p) ? p.ic * mr : 0)) * 4 > kMaxScratchBytes)
    return "a register tile's pixels exceed 64 MiB of scratch";
  return nullptr;
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  const FipUkernel& k = take_leaf<FipUkernel>(plan, machine);
  const FipOrder order(p.ic);
  b.segs = kFipRuns;
  b.seg_k = order.steps;
  b.flat = is_flat(p);
  b.mr = k.mr;
  b.nr = k.nr;
  b.panels = div_up(p.oc, b.nr);
  plan.packed_bytes = b.panels * fip_panel(order.steps, b.nr) * 4;
  plan.pack_tag = "fip n" + std::to_string(b.nr);
  const int64_t tile = tile_of(p, b.mr), bytes = (tile + (gathers(p) ? p.ic * b.mr : 0)) * 4;
  int64_t tiles = std::max<int64_t>(1, machine.l2_bytes / 2 / bytes);
  if (plan.packed_bytes <= machine.l2_bytes / 2) {
    tiles = std::min<int64_t>(tiles, 5);
    b.ahead = tiles * b.mr * (p.ic + p.oc) * 4 <= machine.l2_bytes / 4;
  }
  tiles = std::min(tiles, div_up(p.n * p.oh * p.ow, b.mr));
  b.mc = tiles * b.mr;
  b.expect = results_are_far(p, machine);
  plan.scratch_bytes = tiles * bytes;
}

// Packed: [panel], as FipUkernel's b.
void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const int64_t size = fip_panel(b.seg_k, b.nr), nr = b.nr;
  const Range mine = share(b.panels, worker.tid, worker.nthr);
  for (int64_t u = mine.begin; u < mine.end; ++u) {
    float* out = static_cast<float*>(packed) + u * size;
    std::fill(out, out + size, 0.0f);
    pack_fip_weights(
        p, wei, u * nr, std::min(nr, p.oc - u * nr), out + 2 * nr,
        // Columns' run 0 meets the rows' run 1: the formula's b1 and b2.
        [&](int64_t step, int64_t run) { return (step * kFipRuns + run) * nr; }, out, out + nr);
  }
}

// Pixels at..at+count of the batch (NHWC), or of an image (NCHW, `src` its first plane), in register tiles of nearly equal height.
void order_pixels(const Plan& plan, const float* src, int64_t at, int64_t count, float* a, float* gathered) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const FipUkernel& leaf = fip_of(plan);
  const int64_t tile = tile_of(p, b.mr), tiles = div_up(count, b.mr), base = count / tiles, extra = count % tiles;
  if (p.layout == Layout::nhwc) {
    FipPixels t{};
    t.src_row = p.sw * p.ic, t.k = p.ic;
    for (int64_t i = 0, pixel = at; i < tiles; ++i) {
      const int64_t height = base + (i < extra ? 1 : 0);
      t.a = a + i * tile;
      for (t.row = 0; t.row < height; t.row += t.rows, pixel += t.rows) {
        const int64_t row = pixel / p.ow, x = pixel % p.ow, image = row / p.oh, y = row % p.oh;
        t.rows = b.flat ? height : std::min(height - t.row, p.ow - x);
        t.src = src + ((image * p.ih + y * p.sh) * p.iw + x * p.sw) * p.ic;
        leaf.input_pixels(&t);
      }
    }
    return;
  }
  FipPlanes t{};
  t.k = p.ic;
  const float* from = src + at;
  t.src_plane = p.oh * p.ow;
  if (gathered) {
    const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
    for (int64_t done = 0; done < count;) {
      const int64_t y = (at + done) / p.ow, x = (at + done) % p.ow, n = std::min(count - done, p.ow - x);
      move.gather_rows(src + y * p.sh * p.iw + x * p.sw, p.ih * p.iw, p.sw, gathered + done, count, p.ic, n, 0, n);
      done += n;
    }
    from = gathered, t.src_plane = count;
  }
  for (int64_t i = 0; i < tiles; ++i, from += t.rows) {
    t.rows = base + (i < extra ? 1 : 0);
    t.src = from, t.out = a + i * tile;
    leaf.input_planes(&t);
  }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const bool nhwc = p.layout == Layout::nhwc;
  const int64_t plane = p.oh * p.ow, total = p.n * plane, size = fip_panel(b.seg_k, b.nr);
  float* a = reinterpret_cast<float*>(worker.scratch);
  float* gathered = gathers(p) ? a + b.mc / b.mr * tile_of(p, b.mr) : nullptr;
  const int64_t unit = div_up(b.mr, 2);
  const Rectangle mine = split_work(plan, div_up(total, unit), b.panels, worker);
  const int64_t begin = mine.pixels.begin * unit, end = std::min(total, mine.pixels.end * unit);
  const int64_t panels = mine.panels.end - mine.panels.begin;
  if (begin >= end || panels <= 0) return;
  const int64_t blocks = div_up(end - begin, b.mc), most = std::min(b.mc, round_up(div_up(end - begin, blocks), b.mr));
  const auto count_at = [&](int64_t at) {
    const int64_t count = std::min(most, end - at);
    return nhwc ? count : std::min(count, plane - at % plane);
  };
  FipPanel t{};
  t.a = a, t.a_tile = tile_of(p, b.mr), t.steps = b.seg_k;
  t.c_row = nhwc ? p.oc : 1, t.c_col = nhwc ? 1 : plane;
  t.first = 0;
  t.relu = p.activation == Activation::relu;
  t.expect = b.expect && !b.ahead;
  FetchList fetch(b.seg_k), ahead(b.seg_k);
  for (int64_t at = begin; at < end; at += t.rows) {
    const int64_t count = count_at(at), image = at / plane, pixel = at % plane;
    t.rows = count;
    if (nhwc) {
      order_pixels(plan, args.src, at, count, a, nullptr);
    } else {
      order_pixels(plan, args.src + image * p.ic * p.ih * p.iw, pixel, count, a, gathered);
    }
    const int64_t tiles = div_up(count, b.mr), next = at + count, after = next < end ? count_at(next) : 0;
    t.last = tiles;
    ahead.clear();
    if (nhwc && b.ahead && after > 0) {
      if (b.flat) ahead.add_lines(args.src + next * p.ic, after * p.ic);
      ahead.add_lines((p.residual ? args.residual : args.dst) + next * p.oc, after * p.oc);
    }
    // Weights lie far away the first time, and each time where the L2 does not keep them.
    const bool far = !b.ahead || at == begin;
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t channel = u * b.nr;
      const int64_t place = nhwc ? at * p.oc + channel : (image * p.oc + channel) * plane + pixel;
      t.b = static_cast<const float*>(args.packed) + u * size;
      t.c = args.dst + place;
      t.residual = p.residual ? args.residual + place : nullptr;
      t.bias = p.bias ? args.bias + channel : nullptr;
      t.n = std::min(b.nr, p.oc - channel);
      fetch.clear();
      if (far && u + 1 < mine.panels.end) fetch.add_spread(t.b + size, size, tiles, 2);
      if (nhwc && !b.ahead && b.flat && u + 1 == mine.panels.end && after > 0)
        fetch.add_spread(args.src + next * p.ic, after * p.ic, tiles, 2);
      fetch.add_part(ahead, u - mine.panels.begin, panels, tiles);
      fetch.give(t);
      nhwc ? fip_of(plan).rows(&t) : fip_of(plan).turned(&t);
    }
  }
}

bool prefers_not(const Problem& p, const Machine& machine) {
  return !machine.adds_beside || machine.isa < Isa::avx512 || p.ic < 32 || p.oc < 32 || p.oh * p.ow < 16;
}

}  // namespace

extern const Algorithm conv_fip = {Op::conv2d, "fip", "conv_fip",            "cpu",       refuses, configure,
                                   pack,       run,   leaves_of<FipUkernel>, prefers_not, true};

}  // namespace fastconv
