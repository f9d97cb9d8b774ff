// Direct convolution: dst[n,oc,oh,ow] = act(bias[oc] + residual
//                         + sum_{r,s,c} src[n, oh*sh-pt+r*dh, ow*sw-pl+s*dw, c] * wei[oc,c,r,s]).
// The GEMM leaf walks the image itself: one output row is a row of pixels, one tap (or one kernel row, where taps lie side
// by side in memory) a segment of the reduction. No patch matrix exists.
// Operands: weights packed [group][panel][K][nr], K in the order (r, s, c); NCHW with few channels (c, r, s).
// Bands: the input rows that a block of output rows needs are copied once into the thread's scratch where that helps: with
// padding (the copy holds the zeros), in NHWC where pixels lie a multiple of 4 KiB apart, and in NCHW, as [row][channel][column], since
// channels that lie planes apart cost a page and a cache line each.
// 1x1 with stride 1: all pixels of an image (NHWC: of the batch) form one row. 1x1 in NCHW, with stride 2 too: register tiles of pixels,
// [tile][channel][pixel], which the leaf copies during the first panel's products.
// Blocking: bands that fill at most half of the L2; panels outside, rows inside, so that a panel is fetched once a band. In NCHW
// a band of a whole image is followed by the next image, fetched beside the last panel's products.
// Numerics: one sequential sum over K per output, whatever the batch or the threads.
// Measured (2-core Granite-Rapids-class Xeon, two threads, batch 1, 2026-11-20): ResNet-50's 53 convolutions one by one
// 35.3 ms in NHWC and 40.0 ms in NCHW (im2col 36.6 and 42.3); on no layer under 85 % of im2col's speed.
// Tried: NCHW read in place, 0.75 of NHWC's speed at 1x1 and 0.85 at 3x3, though prefetched.
#include <algorithm>
#include <cstring>

#include "cpu/gemm/gemm.h"

namespace fastconv {
namespace {

// A padded row of one image must stay small beside any cache: past this, im2col gathers instead.
constexpr int64_t kMaxScratchBytes = 64 << 20;

// A band of input rows in scratch, for one group of channels. Rows and columns that no tap touches are left out where
// the kernel has extent 1: `row_step` and `column_step` are what one band row or column means in the image, `sh` and
// `sw` the strides that remain.
struct Band {
  int64_t rows, width;          // extents
  int64_t pixel, row, channel;  // strides, elements
  int64_t row_step, column_step;
  int64_t sh, sw;
  int64_t elements() const { return rows * row; }
};

// NHWC: neighbouring output pixels read values a multiple of 4 KiB apart, so that the rows of a register tile would share one set of a
// first-level cache. They are copied, and the copy keeps its pixels further apart.
bool collides(const Problem& p) {
  return p.layout == Layout::nhwc && p.icg() <= kMaxReduction && (p.padded() ? p.icg() : p.ic) * p.sw % 1024 == 0;
}

// NCHW, 1x1: register tiles of pixels, every one or every other, are copied by the panel of channels that is first to read them.
bool copies_tiles(const Problem& p) {
  return p.layout == Layout::nchw && p.kh == 1 && p.kw == 1 && !p.padded() && p.sw <= 2;
}

bool uses_band(const Problem& p) {
  return p.padded() || (p.layout == Layout::nchw && !copies_tiles(p)) || collides(p);
}

Band band_of(const Problem& p, int64_t out_rows) {
  Band b;
  b.row_step = p.kh == 1 ? p.sh : 1;
  b.column_step = p.kw == 1 ? p.sw : 1;
  b.sh = p.sh / b.row_step;
  b.sw = p.sw / b.column_step;
  b.rows = (out_rows - 1) * b.sh + p.dh * (p.kh - 1) + 1;
  b.width = (p.ow - 1) * b.sw + p.dw * (p.kw - 1) + 1;
  if (p.layout == Layout::nhwc) {
    b.pixel = collides(p) ? odd_lines(p.icg()) : p.icg(), b.channel = 1, b.row = b.width * b.pixel;
  } else {
    b.pixel = 1, b.channel = b.width, b.row = b.width * p.icg();
  }
  return b;
}

// band_of(...).elements in floating point: absurd paddings and dilations must not overflow while they are being judged.
double band_size(const Problem& p, int64_t out_rows) {
  const Band b = band_of(p, 1);
  const double rows = static_cast<double>(out_rows - 1) * static_cast<double>(b.sh) + static_cast<double>(b.rows);
  return rows * static_cast<double>(b.width) * static_cast<double>(p.icg());
}

const char* refuses(const Problem& p, const Machine&) {
  if (!is_flat(p) && uses_band(p) && band_size(p, 1) > kMaxScratchBytes / 4)
    return "the input rows of one output row exceed 64 MiB of scratch";
  if (copies_tiles(p) && p.icg() > kMaxReduction) return "more than 2^20 channels of one pixel to copy";
  return p.kh * p.kw * p.icg() > (kMaxReduction << 10) ? "more than 2^30 products in one sum" : nullptr;
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  b.flat = is_flat(p);
  if (p.layout == Layout::nhwc) {
    // A kernel row is one run of kw * ic values.
    const bool taps_adjoin = p.kw == 1 || (p.dw == 1 && p.groups == 1 && !collides(p));
    b.segs = taps_adjoin ? p.kh : p.kh * p.kw;
    b.seg_k = taps_adjoin ? p.kw * p.icg() : p.icg();
  } else {
    b.channels_first = p.icg() < 8 && p.kw > p.icg();
    b.segs = b.channels_first ? p.icg() * p.kh : p.kh * p.kw;
    b.seg_k = b.channels_first ? p.kw : p.icg();
  }
  configure_gemm(plan, machine);
  plan.scratch_bytes = round_up(b.segs * 8, 64);
  if (copies_tiles(p)) {
    // A whole image where it fits: its planes are then one run of memory, and the next image's are fetched meanwhile. With stride 2 the
    // rows that are fetched for a block hold twice as much as it copies.
    const int64_t width = b.flat ? b.mr : p.ow, tile = tile_stride(plan) * 4;
    const auto bytes = [&] { return tile * (b.flat ? b.mc / b.mr : register_tiles(b.mc / p.ow, p.ow, b.mr)); };
    const auto shrink = [&](int64_t room) {
      while (b.mc > width && bytes() > room) b.mc = div_up(b.mc / width, 2) * width;
    };
    b.mc = round_up(p.oh * p.ow, width);
    if (!b.flat) shrink(machine.l2_bytes / 16 * 7);
    b.ahead = p.groups == 1 && bytes() <= machine.l2_bytes / 8 * 7;
    if (!b.ahead) shrink(machine.l2_bytes / 2);
    // Beside tiles that leave no room for their pixels in the L2, products do not hide all the misses.
    b.at_once = b.flat ? machine.l2_bytes / 2 / tile + 1 : INT64_MAX;
    plan.scratch_bytes += bytes();
  } else if (b.flat) {
    // Weights pass by once for as many pixels as fit into the L2; where they stay in the L2 themselves, blocks are short instead: rows of the
    // output, and of the residual, are then walked whole, and the next block's fetched meanwhile. Register tiles of a short reduction take
    // little more than a call of the leaf: more of them a call.
    b.mc = std::max<int64_t>(b.mr, machine.l2_bytes / 2 / (4 * p.icg()) / b.mr * b.mr);
    const int64_t tiles = p.icg() <= 32 ? 16 : 4;
    if (plan.packed_bytes <= machine.l2_bytes / 2 && b.mc > tiles * b.mr) {
      b.mc = tiles * b.mr;
      b.ahead = p.groups == 1 && b.mc * (p.ic + p.oc) * 4 <= machine.l2_bytes / 4;
    }
    if (collides(p)) plan.scratch_bytes += std::min(b.mc, p.n * p.oh * p.ow) * odd_lines(p.icg()) * 4;
  } else {
    b.mc = p.oh;
    if (uses_band(p)) {
      const int64_t room = std::min(std::max<int64_t>(machine.l2_bytes / 2, 64 << 10), kMaxScratchBytes) / 4;
      while (b.mc > 1 && band_size(p, b.mc) > static_cast<double>(room)) b.mc = div_up(b.mc, 2);
      plan.scratch_bytes += band_of(p, b.mc).elements() * 4;
    } else {
      const int64_t row_bytes = p.iw * p.icg() * p.sh * 4;
      b.mc = std::clamp<int64_t>(machine.l2_bytes / 2 / row_bytes, 1, p.oh);
    }
  }
}

// Copies the input rows of one group that output rows y0.. need, with zeros where they leave the image.
void fill_band(const Plan& plan, const Band& band, const float* image, int64_t plane, int64_t group, int64_t y0,
               float* out) {
  const Problem& p = plan.problem;
  const int64_t icg = p.icg(), c0 = group * icg;
  // Band columns whose image column exists.
  const int64_t x_begin = std::min(div_up(p.pl, band.column_step), band.width);
  const int64_t x_end = std::clamp<int64_t>(div_up(p.iw + p.pl, band.column_step), x_begin, band.width);
  const int64_t x_first = x_begin * band.column_step - p.pl;
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  for (int64_t i = 0; i < band.rows; ++i) {
    const int64_t y = y0 * p.sh - p.pt + i * band.row_step;
    float* row = out + i * band.row;
    if (y < 0 || y >= p.ih) {
      std::memset(row, 0, band.row * sizeof(float));
    } else if (p.layout == Layout::nchw) {
      move.gather_rows(image + c0 * plane + y * p.iw + x_first, plane, band.column_step, row, band.width, icg,
                       band.width, x_begin, x_end);
    } else {
      std::memset(row, 0, x_begin * band.pixel * sizeof(float));
      const float* src = image + (y * p.iw + x_first) * p.ic + c0;
      if (band.pixel == p.ic && band.column_step == 1) {
        std::memcpy(row + x_begin * icg, src, (x_end - x_begin) * icg * sizeof(float));
      } else {
        for (int64_t x = x_begin; x < x_end; ++x, src += band.column_step * p.ic)
          std::memcpy(row + x * band.pixel, src, icg * sizeof(float));
      }
      std::memset(row + x_end * band.pixel, 0, (band.width - x_end) * band.pixel * sizeof(float));
    }
  }
}

// NHWC, 1x1, stride 1: pixels as one row.
void run_flat(const Plan& plan, const Operands& args, Worker& worker, GemmPanel g, float* scratch) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const bool copied = uses_band(p);
  const int64_t total = p.n * p.oh * p.ow, units = div_up(total, b.mr), icg = p.icg();
  const Rectangle mine = split_work(plan, units, p.groups * b.panels, worker);
  const int64_t end = std::min(total, mine.pixels.end * b.mr), panels = mine.panels.end - mine.panels.begin;
  FetchList fetch(icg), ahead(icg);
  g.outer = 1;
  g.a_row = copied ? odd_lines(icg) : p.ic, g.a_k = 1;
  for (int64_t at = mine.pixels.begin * b.mr; at < end; at += g.inner) {
    const int64_t count = g.inner = std::min(b.mc, end - at), next = at + count, after = std::min(b.mc, end - next);
    ahead.clear();
    if (b.ahead && after > 0) {
      ahead.add_lines(args.src + next * p.ic, after * p.ic);
      ahead.add_lines((p.residual ? args.residual : args.dst) + next * p.oc, after * p.oc);
    }
    if (!copied && count == 1 && p.groups == 1 && panels > 0) {
      g.a = args.src + at * p.ic;
      set_panel(g, plan, args, mine.panels.begin, at * p.oc);
      g.n = std::min(panels * b.nr, p.oc - mine.panels.begin * b.nr);
      gemm_of(plan).pixel(&g);
      continue;
    }
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t group = u / b.panels, panel = u % b.panels, c0 = group * icg;
      if (copied && (u == mine.panels.begin || panel == 0))
        for (int64_t i = 0; i < count; ++i)
          std::memcpy(scratch + i * g.a_row, args.src + (at + i) * p.ic + c0, icg * sizeof(float));
      g.a = copied ? scratch : args.src + at * p.ic + c0;
      fetch.clear();
      if (!b.ahead || at == mine.pixels.begin * b.mr)
        fetch_next_panel(fetch, plan, args, mine.panels, u,
                         std::max<int64_t>(1, div_up(count, b.mr) - div_up(ahead.count(), panels)));
      fetch.add_part(ahead, u - mine.panels.begin, panels);
      fetch.give(g);
      set_panel(g, plan, args, u, at * p.oc);
      gemm_of(plan).panel(&g);
    }
  }
}

// `count` pixels of planes in register tiles [K][mr], cut as the leaf cuts a row of them.
void copy_tiles(const Plan& plan, const float* src, int64_t src_plane, int64_t count, float* out) {
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  const int64_t mr = plan.blocking.mr, tile = tile_stride(plan), tiles = div_up(count, mr);
  const int64_t low = count / tiles, high = low + 1, extra = count % tiles;
  // Channels outside: long runs of each plane, which may lie pages apart.
  for (int64_t c = 0; c < plan.problem.icg(); ++c, src += src_plane, out += mr) {
    if (extra) move.gather_rows(src, high, 1, out, tile, extra, high, 0, high);
    move.gather_rows(src + extra * high, low, 1, out + extra * tile, tile, tiles - extra, low, 0, low);
  }
}

// NCHW, 1x1. The pixels of an image are one row with stride 1.
void run_tiles_of_planes(const Plan& plan, const Operands& args, Worker& worker, GemmPanel g, float* scratch) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const int64_t plane = p.oh * p.ow, total = p.n * plane, icg = p.icg();
  const int64_t src_plane = args.src_plane_of(p), dst_plane = args.dst_plane_of(p);
  const int64_t width = b.flat ? b.mr : p.ow;  // pixels are shared out in such units
  const Rectangle mine = split_work(plan, div_up(total, width), p.groups * b.panels, worker);
  const int64_t end = std::min(total, mine.pixels.end * width), panels = mine.panels.end - mine.panels.begin;
  // Pixels that a thread multiplies by all its panels before it goes on: some of one image.
  const auto count_at = [&](int64_t at) { return std::min({b.mc, end - at, plane - at % plane}); };
  const auto place = [&](int64_t at) {
    return at / plane * p.ic * src_plane + (b.flat ? at % plane : at % plane / p.ow * p.sh * p.iw);
  };
  FetchList fetch(icg), ahead(icg);
  g.a = scratch;
  g.a_row = 1, g.a_k = b.mr, g.a_tile = tile_stride(plan);
  g.a_copy = scratch;
  g.a_from_row = p.sw, g.a_from_outer = p.sh * p.iw, g.a_from_k = src_plane;
  for (int64_t at = mine.pixels.begin * width; at < end;) {
    const int64_t count = count_at(at), next = at + count;
    g.outer = b.flat ? 1 : count / p.ow, g.inner = b.flat ? count : p.ow;
    const int64_t tiles = register_tiles(g.outer, g.inner, b.mr);
    ahead.clear();
    if (b.ahead && next < end) {
      if (b.flat && count_at(next) == plane && !args.src_plane) ahead.add_lines(args.src + place(next), p.ic * plane);
      if (!b.flat)
        for (int64_t y = 0; y < count_at(next) / p.ow; ++y)
          ahead.add_rows(args.src + place(next + y * p.ow), p.ic, src_plane, (p.ow - 1) * p.sw + 1);
    }
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t group = u / b.panels, panel = u % b.panels;
      const float* from =
          u == mine.panels.begin || panel == 0 ? args.src + place(at) + group * icg * src_plane : nullptr;
      const bool at_once = from && tiles >= b.at_once;
      if (at_once) copy_tiles(plan, from, src_plane, count, scratch);
      g.a_from = at_once ? nullptr : from;
      fetch.clear();
      fetch_next_panel(fetch, plan, args, mine.panels, u, std::max<int64_t>(1, tiles - div_up(ahead.count(), panels)));
      fetch.add_part(ahead, u - mine.panels.begin, panels);
      fetch.give(g);
      set_panel(g, plan, args, u, at / plane * p.oc * dst_plane + at % plane);
      gemm_of(plan).panel(&g);
    }
    at = next;
  }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const bool nhwc = p.layout == Layout::nhwc, copied = uses_band(p);
  int64_t* seg = reinterpret_cast<int64_t*>(worker.scratch);
  float* scratch = reinterpret_cast<float*>(worker.scratch + round_up(b.segs * 8, 64));
  GemmPanel g{};
  g.a_seg = seg;
  g.segs = b.segs;
  g.seg_k = b.seg_k;
  seg[0] = 0;
  if (copies_tiles(p)) return run_tiles_of_planes(plan, args, worker, g, scratch);
  if (b.flat) return run_flat(plan, args, worker, g, scratch);

  // Where pixels and taps lie: in the band, or (NHWC without padding) in the image itself.
  Band band = band_of(p, b.mc);
  if (!copied) {
    band.pixel = p.ic;
    band.row = p.iw * p.ic;
    band.sh = p.sh, band.sw = p.sw;
  }
  g.a_row = band.sw * band.pixel;
  g.a_outer = band.sh * band.row;
  g.a_k = nhwc ? 1 : b.channels_first ? p.dw : band.channel;
  for (int64_t s = 0; s < b.segs; ++s) {
    if (b.channels_first) {
      seg[s] = s / p.kh * band.channel + s % p.kh * p.dh * band.row;
    } else if (b.segs == p.kh) {
      seg[s] = s * p.dh * band.row;
    } else {
      seg[s] = s / p.kw * p.dh * band.row + s % p.kw * p.dw * band.pixel;
    }
  }

  FetchList fetch(b.segs * b.seg_k);
  const Rectangle mine = split_work(plan, p.n * p.oh, p.groups * b.panels, worker);
  for (int64_t at = mine.pixels.begin; at < mine.pixels.end;) {
    const int64_t image = at / p.oh, y = at % p.oh;
    const int64_t rows = std::min({b.mc, mine.pixels.end - at, p.oh - y});
    const float* src = args.src + image * p.ic * p.ih * p.iw;
    g.outer = rows;
    g.inner = p.ow;
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t group = u / b.panels, panel = u % b.panels;
      if (!copied) {
        g.a = src + y * p.sh * band.row + group * p.icg();
      } else if (u == mine.panels.begin || panel == 0) {
        band.rows = (rows - 1) * band.sh + p.dh * (p.kh - 1) + 1;
        fill_band(plan, band, src, args.src_plane_of(p), group, y, scratch);
        g.a = scratch;
      }
      fetch.clear();
      const int64_t tiles = register_tiles(rows, p.ow, b.mr);
      fetch_next_panel(fetch, plan, args, mine.panels, u, tiles);
      if (!nhwc && !args.src_plane && rows == p.oh && u + 1 == mine.panels.end && at + rows < mine.pixels.end) {
        // Whole images: no weights follow, the next image does.
        const int64_t planes = p.ic * p.ih * p.iw;
        fetch.add_spread(src + planes, planes, tiles);
      }
      fetch.give(g);
      set_panel(g, plan, args, u, nhwc ? (image * p.oh + y) * p.ow * p.oc : (image * p.oc * p.oh + y) * p.ow);
      gemm_of(plan).panel(&g);
    }
    at += rows;
  }
}

}  // namespace

extern const Algorithm conv_direct = {
    Op::conv2d,        "direct", "conv_direct",          "cpu",   refuses, configure,
    pack_gemm_weights, run,      leaves_of<GemmUkernel>, nullptr, false,   /*planes_apart=*/true};

}  // namespace fastconv
