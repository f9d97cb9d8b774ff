// Direct convolution: dst[n,oc,oh,ow] = act(bias[oc] + residual
//                         + sum_{r,s,c} src[n, oh*sh-pt+r*dh, ow*sw-pl+s*dw, c] * wei[oc,c,r,s]).
// The GEMM leaf walks the image itself: one output row is a row of pixels, one tap (or one kernel row, where taps lie side
// by side in memory) a segment of the reduction. No patch matrix exists.
// Operands: weights packed [group][panel][K][nr], K in the order (r, s, c); NCHW with few channels (c, r, s).
// Bands: the input rows that a block of output rows needs are copied once into the thread's scratch where that helps: with
// padding (the copy holds the zeros), in NHWC where pixels lie a multiple of 4 KiB apart, and in NCHW, as [row][channel][column], since
// channels that lie planes apart cost a page and a cache line each.
// 1x1 with stride 1: all pixels of an image (NHWC: of the batch) form one row; NCHW copies register tiles of them,
// [tile][channel][pixel].
// Blocking: bands that fill at most half of the L2; panels outside, rows inside, so that a panel is fetched once a band.
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

bool uses_band(const Problem& p) {
  return p.padded() || p.layout == Layout::nchw || collides(p);
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
  if (is_flat(p) && uses_band(p) && p.icg() > kMaxReduction) return "more than 2^20 channels of one pixel to copy";
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
  if (b.flat) {
    // Weights pass by once for as many pixels as fit into the L2. In NHWC, where weights stay in the L2 themselves, blocks are
    // short instead: rows of the output, and of the residual, are then walked whole, and the next block's fetched meanwhile.
    b.mc = std::max<int64_t>(b.mr, machine.l2_bytes / 2 / (4 * p.icg()) / b.mr * b.mr);
    if (p.layout == Layout::nhwc && plan.packed_bytes <= machine.l2_bytes / 2 && b.mc > 4 * b.mr) {
      b.mc = 4 * b.mr;
      b.ahead = p.groups == 1 && b.mc * (p.ic + p.oc) * 4 <= machine.l2_bytes / 4;
    }
    if (p.layout == Layout::nchw) {
      // A whole image where it fits: its planes are then one run of memory, and the next image's are fetched meanwhile.
      const int64_t image = round_up(p.oh * p.ow, b.mr);
      b.ahead = p.groups == 1 && image * p.ic * 4 <= machine.l2_bytes / 8 * 7;
      b.mc = b.ahead ? image : std::min(b.mc, image);
      plan.scratch_bytes += b.mc / b.mr * tile_stride(plan) * 4;
    } else if (collides(p)) {
      plan.scratch_bytes += std::min(b.mc, p.n * p.oh * p.ow) * odd_lines(p.icg()) * 4;
    }
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

// Pixels that a thread multiplies by all its panels before it goes on. NHWC runs over image borders, NCHW has a plane per
// channel and image.
struct PixelBlock {
  int64_t image, pixel, count;
};

PixelBlock block_at(const Plan& plan, int64_t at, int64_t end) {
  const Problem& p = plan.problem;
  const int64_t plane = p.oh * p.ow;
  if (p.layout == Layout::nhwc) return {0, at, std::min(plan.blocking.mc, end - at)};
  return {at / plane, at % plane, std::min({plan.blocking.mc, end - at, plane - at % plane})};
}

// What a block will read first, and in NHWC what it will read or write in its epilogues.
void fetch_block(FetchList& list, const Problem& p, const Operands& args, const PixelBlock& block) {
  const int64_t plane = p.oh * p.ow;
  if (p.layout == Layout::nchw) {
    if (block.count == plane && !args.src_plane) list.add_lines(args.src + block.image * p.ic * plane, p.ic * plane);
    return;
  }
  list.add_lines(args.src + block.pixel * p.ic, block.count * p.ic);
  list.add_lines((p.residual ? args.residual : args.dst) + block.pixel * p.oc, block.count * p.oc);
}

// 1x1, stride 1: pixels as one row.
void run_flat(const Plan& plan, const Operands& args, Worker& worker, GemmPanel g, float* scratch) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const bool nhwc = p.layout == Layout::nhwc, copied = uses_band(p);
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  const int64_t tile = tile_stride(plan);
  const int64_t plane = p.oh * p.ow, total = p.n * plane, units = div_up(total, b.mr), icg = p.icg();
  const int64_t src_plane = args.src_plane_of(p), dst_plane = args.dst_plane_of(p);
  const Rectangle mine = split_work(plan, units, p.groups * b.panels, worker);
  const int64_t end = std::min(total, mine.pixels.end * b.mr), panels = mine.panels.end - mine.panels.begin;
  FetchList fetch(icg), ahead(icg);
  for (int64_t at = mine.pixels.begin * b.mr; at < end;) {
    const auto [image, pixel, count] = block_at(plan, at, end);
    const int64_t whole = nhwc ? 0 : count / b.mr, rest = count - whole * b.mr;
    ahead.clear();
    if (b.ahead && at + count < end) fetch_block(ahead, p, args, block_at(plan, at + count, end));
    if (nhwc && !copied && count == 1 && p.groups == 1 && panels > 0) {
      g.a = args.src + pixel * p.ic;
      set_panel(g, plan, args, mine.panels.begin, pixel * p.oc);
      g.n = std::min(panels * b.nr, p.oc - mine.panels.begin * b.nr);
      g.outer = g.inner = 1;
      gemm_of(plan).pixel(&g);
      at += 1;
      continue;
    }
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t group = u / b.panels, panel = u % b.panels, c0 = group * icg;
      if (copied && nhwc && (u == mine.panels.begin || panel == 0)) {
        for (int64_t i = 0; i < count; ++i)
          std::memcpy(scratch + i * g.a_row, args.src + (pixel + i) * p.ic + c0, icg * sizeof(float));
      } else if (copied && (u == mine.panels.begin || panel == 0)) {
        const float* src = args.src + (image * p.ic + c0) * src_plane + pixel;
        // Channels outside: long runs of each plane, which lie pages apart.
        for (int64_t c = 0; c < icg; ++c) {
          const float* line = src + c * src_plane;
          move.gather_rows(line, b.mr, 1, scratch + c * b.mr, tile, whole, b.mr, 0, b.mr);
          if (rest) move.gather_rows(line + whole * b.mr, 0, 1, scratch + whole * tile + c * b.mr, 0, 1, rest, 0, rest);
        }
      }
      g.a = copied ? scratch : args.src + pixel * p.ic + c0;
      fetch.clear();
      if (!nhwc || !b.ahead || at == mine.pixels.begin * b.mr)
        fetch_next_panel(fetch, plan, args, mine.panels, u,
                         std::max<int64_t>(1, div_up(count, b.mr) - div_up(ahead.count(), panels)));
      fetch.add_part(ahead, u - mine.panels.begin, panels);
      fetch.give(g);
      set_panel(g, plan, args, u, nhwc ? pixel * p.oc : image * p.oc * dst_plane + pixel);
      run_tiles(plan, g, whole, rest);
    }
    at += count;
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
  if (b.flat) {
    seg[0] = 0;
    g.a_row = !nhwc ? 1 : copied ? odd_lines(p.icg()) : p.ic;
    g.a_k = nhwc ? 1 : b.mr;
    return run_flat(plan, args, worker, g, scratch);
  }

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
      fetch_next_panel(fetch, plan, args, mine.panels, u, register_tiles(rows, p.ow, b.mr));
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
