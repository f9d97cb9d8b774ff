// Direct convolution: dst[n,oc,oh,ow] = act(bias[oc] + residual + sum_{r,s,c} src[n, oh*sh-pt+r*dh, ow*sw-pl+s*dw, c] * wei[oc,c,r,s]).
// The GEMM leaf reads the image in place: one output row is a row of pixels, one tap (or one kernel row, where taps lie side by
// side in memory) a segment of the reduction. No patch matrix exists.
// Operands: weights packed [group][panel][K][nr], K in the order (r, s, c); NCHW with few channels (c, r, s).
// Padding: the band of input rows that a block of output rows needs is copied once, with its zeros, into the thread's scratch.
// 1x1 with stride 1: all pixels of an image (NHWC: of the batch) form one row.
// Blocking: bands of output rows such that a padded band fills at most half of the L2; panels outside, rows inside, so that a panel of
// weights is fetched once per band.
// Numerics: one sequential sum over K per output, whatever the batch or the threads.
#include <algorithm>
#include <cstring>

#include "cpu/gemm/gemm.h"

namespace fastconv {
namespace {

// A padded row of one image must stay small beside any cache: past this, im2col gathers instead.
constexpr int64_t kMaxScratchBytes = 64 << 20;

// Extents of a padded band with `rows` output rows, one group of channels.
struct Band {
  int64_t rows, width;           // input rows and padded row length in pixels
  int64_t pixel, row, channel;   // strides, elements
  int64_t elements;
};

Band band_of(const Problem& p, int64_t out_rows) {
  Band b;
  b.rows = (out_rows - 1) * p.sh + p.dh * (p.kh - 1) + 1;
  b.width = (p.ow - 1) * p.sw + p.dw * (p.kw - 1) + 1;
  if (p.layout == Layout::nhwc) {
    b.pixel = p.icg(), b.row = b.width * b.pixel, b.channel = 1;
    b.elements = b.rows * b.row;
  } else {
    b.pixel = 1, b.row = b.width;
    // An odd number of cache lines between channels: a power of two would put all channels of a pixel into a few cache sets.
    b.channel = round_up(b.rows * b.width, 16);
    if ((b.channel / 16) % 2 == 0) b.channel += 16;
    b.elements = p.icg() * b.channel;
  }
  return b;
}

bool is_flat(const Problem& p) { return p.kh == 1 && p.kw == 1 && p.sh == 1 && p.sw == 1 && !p.padded() && p.oh == p.ih && p.ow == p.iw; }

const char* refuses(const Problem& p, const Machine&) {
  if (p.padded() && (band_of(p, 1).elements > kMaxScratchBytes / 4))
    return "one padded row of the input with its kernel rows exceeds 64 MiB of scratch";
  return nullptr;
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  b.flat = is_flat(p);
  if (p.layout == Layout::nhwc) {
    const bool taps_adjoin = p.kw == 1 || (p.dw == 1 && p.groups == 1);  // a kernel row is one run of kw * ic values
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
    b.mc = std::max<int64_t>(b.mr, machine.l2_bytes / 2 / (4 * p.icg()) / b.mr * b.mr);
  } else {
    b.mc = p.oh;
    if (p.padded()) {
      const int64_t room = std::min(std::max<int64_t>(machine.l2_bytes / 2, 64 << 10), kMaxScratchBytes) / 4;
      while (b.mc > 1 && band_of(p, b.mc).elements > room) b.mc = div_up(b.mc, 2);
      plan.scratch_bytes += band_of(p, b.mc).elements * 4;
    } else {
      const int64_t row_bytes = p.iw * p.icg() * p.sh * 4;
      b.mc = std::clamp<int64_t>(machine.l2_bytes / 2 / row_bytes, 1, p.oh);
    }
  }
}

// Copies the input rows of one group that output rows y0.. need, with zeros where they leave the image.
void fill_band(const Plan& plan, const Band& band, const float* image, int64_t group, int64_t y0, float* out) {
  const Problem& p = plan.problem;
  const int64_t icg = p.icg(), c0 = group * icg;
  const int64_t x_begin = std::min(p.pl, band.width), x_end = std::clamp<int64_t>(p.pl + p.iw, x_begin, band.width);
  if (p.layout == Layout::nhwc) {
    for (int64_t i = 0; i < band.rows; ++i) {
      const int64_t y = y0 * p.sh - p.pt + i;
      float* row = out + i * band.row;
      if (y < 0 || y >= p.ih) {
        std::memset(row, 0, band.row * sizeof(float));
        continue;
      }
      std::memset(row, 0, x_begin * icg * sizeof(float));
      const float* src = image + y * p.iw * p.ic + c0;
      if (icg == p.ic) {
        std::memcpy(row + x_begin * icg, src, (x_end - x_begin) * icg * sizeof(float));
      } else {
        for (int64_t x = x_begin; x < x_end; ++x) std::memcpy(row + x * icg, src + (x - x_begin) * p.ic, icg * sizeof(float));
      }
      std::memset(row + x_end * icg, 0, (band.width - x_end) * icg * sizeof(float));
    }
    return;
  }
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  for (int64_t c = 0; c < icg; ++c) {
    float* plane = out + c * band.channel;
    const int64_t y_first = y0 * p.sh - p.pt;
    const int64_t top = std::clamp<int64_t>(-y_first, 0, band.rows), bottom = std::clamp<int64_t>(p.ih - y_first, top, band.rows);
    std::memset(plane, 0, top * band.row * sizeof(float));
    move.gather_rows(image + ((c0 + c) * p.ih + y_first + top) * p.iw, p.iw, 1, plane + top * band.row, band.row, bottom - top, band.width, x_begin, x_end);
    std::memset(plane + bottom * band.row, 0, (band.rows - bottom) * band.row * sizeof(float));
  }
}

// 1x1, stride 1: pixels as one row.
void run_flat(const Plan& plan, const Operands& args, Worker& worker, GemmPanel g) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const bool nhwc = p.layout == Layout::nhwc;
  const int64_t plane = p.oh * p.ow, total = p.n * plane, units = div_up(total, b.mr);
  const Rectangle mine = split_work(plan, units, p.groups * b.panels, worker);
  const int64_t end = std::min(total, mine.pixels.end * b.mr);
  for (int64_t at = mine.pixels.begin * b.mr; at < end;) {
    // NHWC runs over image borders, NCHW has a plane per channel and image.
    const int64_t image = nhwc ? 0 : at / plane, pixel = nhwc ? at : at % plane;
    const int64_t count = std::min({b.mc, end - at, nhwc ? end - at : plane - pixel});
    g.outer = 1;
    g.inner = count;
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t group = u / b.panels, panel = u % b.panels, c0 = group * p.icg();
      g.a = nhwc ? args.src + pixel * p.ic + c0 : args.src + (image * p.ic + c0) * plane + pixel;
      g.b = packed_panel(plan, args.packed, group, panel);
      set_epilogue(g, p, args, {nhwc ? pixel * p.oc : image * p.oc * plane + pixel, group * p.ocg() + panel * b.nr, std::min(b.nr, p.ocg() - panel * b.nr)});
      gemm_of(plan).panel(&g);
    }
    at += count;
  }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const bool nhwc = p.layout == Layout::nhwc, padded = p.padded();
  int64_t* seg = reinterpret_cast<int64_t*>(worker.scratch);
  float* scratch = reinterpret_cast<float*>(worker.scratch + round_up(b.segs * 8, 64));

  // Where pixels and taps lie: in the padded band, or in the image itself.
  const Band band = band_of(p, b.mc);
  const int64_t pixel = padded ? band.pixel : nhwc ? p.ic : 1;
  const int64_t row = padded ? band.row : nhwc ? p.iw * p.ic : p.iw;
  const int64_t channel = padded ? band.channel : nhwc ? 1 : p.ih * p.iw;
  GemmPanel g{};
  g.a_row = p.sw * pixel;
  g.a_outer = p.sh * row;
  g.a_seg = seg;
  g.segs = b.segs;
  g.seg_k = b.seg_k;
  g.a_k = nhwc ? 1 : b.channels_first ? p.dw : channel;
  for (int64_t s = 0; s < b.segs; ++s) {
    if (b.channels_first) {
      seg[s] = s / p.kh * channel + s % p.kh * p.dh * row;
    } else if (b.segs == p.kh && (nhwc || p.kw == 1)) {
      seg[s] = s * p.dh * row;
    } else {
      seg[s] = s / p.kw * p.dh * row + s % p.kw * p.dw * pixel;
    }
  }
  if (b.flat) return run_flat(plan, args, worker, g);

  const int64_t image_elements = p.ic * p.ih * p.iw;
  const Rectangle mine = split_work(plan, p.n * p.oh, p.groups * b.panels, worker);
  for (int64_t at = mine.pixels.begin; at < mine.pixels.end;) {
    const int64_t image = at / p.oh, y = at % p.oh;
    const int64_t rows = std::min({b.mc, mine.pixels.end - at, p.oh - y});
    const float* src = args.src + image * image_elements;
    g.outer = rows;
    g.inner = p.ow;
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t group = u / b.panels, panel = u % b.panels, c0 = group * p.icg();
      if (padded) {
        if (u == mine.panels.begin || panel == 0) {
          Band here = band;
          here.rows = (rows - 1) * p.sh + p.dh * (p.kh - 1) + 1;
          fill_band(plan, here, src, group, y, scratch);
        }
        g.a = scratch;
      } else {
        g.a = src + y * p.sh * row + c0 * channel;
      }
      g.b = packed_panel(plan, args.packed, group, panel);
      const int64_t offset = nhwc ? (image * p.oh + y) * p.ow * p.oc : (image * p.oc * p.oh + y) * p.ow;
      set_epilogue(g, p, args, {offset, group * p.ocg() + panel * b.nr, std::min(b.nr, p.ocg() - panel * b.nr)});
      gemm_of(plan).panel(&g);
    }
    at += rows;
  }
}

}  // namespace

extern const Algorithm conv_direct = {Op::conv2d, "direct", "conv_direct", "cpu", refuses, configure, pack_gemm_weights, run, leaves_of<GemmUkernel>};

}  // namespace fastconv
