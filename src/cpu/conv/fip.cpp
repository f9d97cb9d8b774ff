// 1x1 convolution by Winograd's inner product, pixels as rows:  dst[p, oc] = act(bias[oc] + residual + sum_c src[p, c] wei[oc, c]), where of each three
// channels two cost one multiplication:  a1 b1 + a2 b2 = (a1 + b2) (a2 + b1) - a1 a2 - b1 b2. What is subtracted is a sum a pixel and one a channel.
// Operands: weights packed in panels (FipUkernel's b), scaled a channel, 1.01 to 1.06 of the plain ones. Scratch: a block of pixels in order, NHWC as
// rows, NCHW as register tiles of planes; with a stride its planes are gathered before.
// Preconditions: no padding, one group; any numbers of channels, any stride.
// Blocking: blocks of pixels that fit half the L2, five register tiles where the weights are few; panels outside, tiles inside. What comes next is
// asked for: weights where they lie far, else the next block's input and output.
// Threads: half register tiles, or panels. Bits depend neither on the batch nor on the threads: a pixel's scale follows from its own channels.
// Tails: those of the leaf. NCHW ends turn.
// Numerics: each pixel and channel is divided by the power of two next to its root mean square, and every other pair is negated in a2 and b2, so that
// the sums of a1 a2 and b1 b2 grow no faster than the results. Relative L2 as that of a plain sum: 0.6e-6 at 1024 channels, 0.85e-6 at 2048 (direct 0.6
// and 0.8e-6; without the signs, of values of one sign, 7e-6 and 12e-6). Small integers are exact. What is small beside the rest of its pixel or
// channel carries the error of the rest. A value that is not finite reaches all outputs of its pixel, an
// infinity mostly as NaN. A sum times the scale of its pixel or of its channel has to fit into a float, not only times both.
// Measured (two cores of a Zen 4, AVX-512, in ResNet-50 at batch 1): 118 to 139 % of the FMA peak; of Strassen's time 0.76 to 0.83 on one thread
// and on two, 0.9 for 64 to 256 channels at 56x56, of direct's 0.70 to 0.75 at 7x7. The order of 64 channels takes 40 cycles a pixel, of 256 90.
// Tried: rows within register tiles, [block][row][run][16], 3 % faster at 64 channels, but not in place.
// Reference: Winograd, "A New Algorithm for Inner Product", IEEE Trans. Computers C-17, 1968.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/conv/fip.h"

namespace fastconv {

void fip_scales(const double* squares, int64_t count, int64_t width, float* scales) {
  for (int64_t j = 0; j < width; ++j) {
    scales[j] = squares[j] == 0 ? 0.0f : 1.0f;
    if (squares[j] == 0 || !std::isfinite(squares[j])) continue;
    const double power = std::round(0.5 * std::log2(squares[j] / static_cast<double>(count)));
    scales[j] = std::ldexp(1.0f, static_cast<int>(std::clamp(power, -126.0, 126.0)));
  }
}

void add_fip_squares(const float* values, int64_t depth, int64_t width, double* squares) {
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = 0; j < width; ++j) {
      const double x = values[k * width + j];
      squares[j] += x * x;
    }
}

void order_fip_weights(float* values, int64_t depth, int64_t width, const float* scales, double* taken) {
  float inverse[kMaxNr];
  for (int64_t j = 0; j < width; ++j) inverse[j] = scales[j] == 0 ? 0.0f : 1.0f / scales[j];
  alignas(64) float block[kFipBlock * kMaxNr];
  for (int64_t k0 = 0; k0 < depth; k0 += kFipBlock) {
    const int64_t count = std::min<int64_t>(kFipBlock, depth - k0), steps = div_up(count, kFipRuns);
    std::memcpy(block, values + k0 * width, count * width * sizeof(float));
    std::fill(block + count * width, block + kFipRuns * steps * width, 0.0f);
    float* out = values + k0 * width;
    for (int64_t s = 0; s < steps; ++s, out += kFipRuns * width) {
      const float sign = s % 2 ? -1.0f : 1.0f;
      for (int64_t j = 0; j < width; ++j) {
        out[j] = block[s * width + j] * inverse[j];
        out[width + j] = block[(steps + s) * width + j] * (sign * inverse[j]);
        out[2 * width + j] = block[(2 * steps + s) * width + j] * inverse[j];
        taken[j] += static_cast<double>(out[j]) * static_cast<double>(out[width + j]);
      }
    }
  }
}

void pack_fip_weights(const Plan& plan, const float* wei, int64_t first, int64_t count, int64_t width, float* head,
                      int64_t apart, float* values) {
  const Problem& p = plan.problem;
  if (count < width) std::fill(values, values + p.ic * width, 0.0f);
  if (p.weight_layout == WeightLayout::hwio) {
    for (int64_t k = 0; k < p.ic; ++k) std::copy_n(wei + k * p.oc + first, count, values + k * width);
  } else {
    find_ukernel<MoveUkernel>(plan.isa)->transpose(wei + first * p.ic, p.ic, values, width, count, p.ic);
  }
  double squares[kMaxNr] = {}, taken[kMaxNr] = {};
  add_fip_squares(values, p.ic, width, squares);
  fip_scales(squares, p.ic, width, head + apart);
  order_fip_weights(values, p.ic, width, head + apart, taken);
  for (int64_t j = 0; j < width; ++j) head[j] = static_cast<float>(-taken[j]);
}

namespace {

constexpr int64_t kMaxScratchBytes = 64 << 20;

// Scratch of a register tile, in values: rows with their heads and scales, or a tile of planes.
int64_t row_of(const Problem& p) {
  return odd_lines(fip_row(p.ic));
}
int64_t tile_of(const Problem& p, int64_t mr) {
  return p.layout == Layout::nhwc ? (row_of(p) + 2) * mr : fip_tile(fip_steps(p.ic), mr);
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
  b.segs = kFipRuns;
  b.seg_k = fip_steps(p.ic);
  b.flat = is_flat(p);
  b.mr = k.mr;
  b.nr = k.nr;
  b.panels = div_up(p.oc, b.nr);
  plan.packed_bytes = b.panels * fip_panel(b.seg_k, b.nr) * 4;
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

// Packed: panels as FipUkernel wants them.
void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Blocking& b = plan.blocking;
  const int64_t size = fip_panel(b.seg_k, b.nr), oc = plan.problem.oc;
  const Range mine = share(b.panels, worker.tid, worker.nthr);
  for (int64_t u = mine.begin; u < mine.end; ++u) {
    float* out = static_cast<float*>(packed) + u * size;
    pack_fip_weights(plan, wei, u * b.nr, std::min(b.nr, oc - u * b.nr), b.nr, out, b.nr, out + 2 * b.nr);
  }
}

// Rows and what belongs to them, of a block of pixels.
struct Rows {
  float *a, *heads, *scales;
  int64_t row;
};

// Pixels at..at+count of the batch, NHWC.
void order_pixels(const Plan& plan, const float* src, int64_t at, int64_t count, const Rows& rows) {
  const Problem& p = plan.problem;
  FipPixels t{};
  t.src_row = p.sw * p.ic, t.k = p.ic, t.a_row = rows.row;
  for (int64_t done = 0; done < count; done += t.rows) {
    const int64_t row = (at + done) / p.ow, x = (at + done) % p.ow, image = row / p.oh, y = row % p.oh;
    t.rows = plan.blocking.flat ? count : std::min(count - done, p.ow - x);
    t.src = src + ((image * p.ih + y * p.sh) * p.iw + x * p.sw) * p.ic;
    t.a = rows.a + done * rows.row, t.heads = rows.heads + done, t.scales = rows.scales + done;
    fip_of(plan).order_rows(&t);
  }
}

// Pixels at..at+count of an image, NCHW, in register tiles of nearly equal height.
void order_planes(const Plan& plan, const float* src, int64_t src_plane, int64_t at, int64_t count, float* a,
                  float* gathered) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const int64_t tile = tile_of(p, b.mr), tiles = div_up(count, b.mr), base = count / tiles, extra = count % tiles;
  FipPlanes t{};
  t.k = p.ic;
  const float* from = src + at;
  t.src_plane = src_plane;
  if (gathered) {
    const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
    for (int64_t done = 0; done < count;) {
      const int64_t y = (at + done) / p.ow, x = (at + done) % p.ow, n = std::min(count - done, p.ow - x);
      move.gather_rows(src + y * p.sh * p.iw + x * p.sw, src_plane, p.sw, gathered + done, count, p.ic, n, 0, n);
      done += n;
    }
    from = gathered, t.src_plane = count;
  }
  for (int64_t i = 0; i < tiles; ++i, from += t.rows) {
    t.rows = base + (i < extra ? 1 : 0);
    t.src = from, t.out = a + i * tile;
    fip_of(plan).order_tile(&t);
  }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const bool nhwc = p.layout == Layout::nhwc;
  const int64_t plane = p.oh * p.ow, src_plane = args.src_plane_of(p), dst_plane = args.dst_plane_of(p);
  const int64_t total = p.n * plane, size = fip_panel(b.seg_k, b.nr);
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
  const Rows rows{a, a + b.mc * row_of(p), a + b.mc * (row_of(p) + 1), row_of(p)};
  t.a = a, t.a_tile = tile_of(p, b.mr), t.steps = b.seg_k;
  t.a_row = rows.row, t.heads = rows.heads, t.scales = rows.scales;
  t.c_row = nhwc ? p.oc : 1, t.c_col = nhwc ? 1 : dst_plane;
  t.first = 0;
  t.relu = p.activation == Activation::relu;
  t.expect = b.expect && !b.ahead;
  FetchList fetch(b.seg_k), ahead(b.seg_k);
  for (int64_t at = begin; at < end; at += t.count) {
    const int64_t count = count_at(at), image = at / plane, pixel = at % plane;
    t.count = count;
    if (nhwc) {
      order_pixels(plan, args.src, at, count, rows);
    } else {
      order_planes(plan, args.src + image * p.ic * src_plane, src_plane, pixel, count, a, gathered);
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
      const int64_t place = nhwc ? at * p.oc + channel : (image * p.oc + channel) * dst_plane + pixel;
      t.columns = static_cast<const float*>(args.packed) + u * size;
      t.b = t.columns + 2 * b.nr;
      t.c = args.dst + place;
      t.residual = p.residual ? args.residual + place : nullptr;
      t.bias = p.bias ? args.bias + channel : nullptr;
      t.n = std::min(b.nr, p.oc - channel);
      fetch.clear();
      if (far && u + 1 < mine.panels.end) fetch.add_spread(t.columns + size, size, tiles, 2);
      if (nhwc && !b.ahead && b.flat && u + 1 == mine.panels.end && after > 0)
        fetch.add_spread(args.src + next * p.ic, after * p.ic, tiles, 2);
      fetch.add_part(ahead, u - mine.panels.begin, panels, tiles);
      fetch.give(t);
      nhwc ? fip_of(plan).rows(&t) : fip_of(plan).turned(&t);
    }
  }
}

// Where both numbers of channels are small, ordering the pixels takes what the products save.
bool prefers_not(const Problem& p, const Machine& machine) {
  if (!adds_beside(machine) || p.ic < 24 || p.oc < 24 || p.oh * p.ow < 16) return true;
  if (p.layout == Layout::nchw && p.ic * p.oc < 3000) return true;
  return p.ic <= 64 && p.oc <= 64;
}

}  // namespace

extern const Algorithm conv_fip = {
    Op::conv2d,  "fip", "conv_fip",           "cpu", refuses, configure, pack, run, leaves_of<FipUkernel>,
    prefers_not, true,  /*planes_apart=*/true};

}  // namespace fastconv
