// Winograd convolution of phases: 7x7 and 8x8 kernels with stride 2, the first layer of ResNet, by F(4x4, 4x4).
//   y[i] = sum_r w[r] x[2i - pt + r] = sum_b sum_a w[2a + b] x[2(i + a) - pt + b]
// in one dimension: each phase b of the image passes a filter of four taps (the last of 7 is zero) with stride 1. All phases and channels of
// a cell of 2 x 2 pixels are the 4 ic values of one reduction:
//   dst[tile] = act(A' [sum over values (G wei G') * (B' cells[tile] B)] A + bias + residual)
// Multiplies for an output: 12.25 ic, 49 ic by definition.
// Operands: packed U [panel][row][4 ic][column][nr], transformed in float64 and rounded once, zero-padded channels.
// Scratch: seven rows of cells, the V of a strip of tiles [row][run of values][tile][column][16], the sums of a few tiles.
// Blocking: strips of blocking.mc tiles side by side, one below the other so that each row of cells is made once; within a strip panels
// outside, so that V and a panel of U stay in the L2.
// Threads: strips of one row of tiles are shared out.
// Numerics: a tile's sequence of operations is the same wherever it lies. What no output reads counts as zero, so that bands of rows have
// the same bits.
// Measured (Zen 5, 224x224x3 to 112x112x64, AVX-512, lone layer, of direct's time): one thread NHWC 0.57, NCHW 0.57; two 0.68, 0.57; AVX2
// NHWC 0.49. Error 1.0e-6 (direct 0.2e-6).
// Not built: F(3,4), 35 % more products for a third of the error.
// Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308.
#include <algorithm>
#include <cmath>

#include "cpu/gemm/gemm.h"

namespace fastconv {
namespace {

constexpr int64_t kOut = 4, kSide = kPhasesSide, kRun = kPhasesRun, kTaps = 4;
constexpr int64_t kMostChannels = 8;  // the error grows with the reduction: 1.5e-6 at 8, 1.9e-6 at 16
constexpr int64_t kStrip = 28;        // tiles side by side

const PhasesUkernel& phases_of(const Plan& plan) {
  return *static_cast<const PhasesUkernel*>(plan.ukernel);
}

struct Sizes {
  Sizes(const Problem& p, int64_t tiles)
      : rows(div_up(p.oh, kOut)),
        columns(div_up(p.ow, kOut)),
        strips(div_up(columns, tiles)),
        values(4 * p.ic),
        cell(round_up(values, kRun)),
        cells(tiles * kOut + kSide - kOut),
        wide(round_up(cells, kRun)),
        v_run(tiles * kSide * kRun),
        v_row(v_run * (cell / kRun)) {}
  int64_t rows, columns, strips;  // of tiles
  int64_t values, cell;           // of a cell; with what fills the last run
  int64_t cells, wide;            // of a row of a strip; planes are transposed by whole vectors
  int64_t v_run, v_row;
  int64_t row() const { return wide * cell; }
  int64_t ring() const { return kSide * row(); }
  int64_t v() const { return kSide * v_row; }
};

const char* refuses(const Problem& p, const Machine&) {
  if (p.kh < 7 || p.kh > 8 || p.kw < 7 || p.kw > 8) return "the kernel is not 7x7 or 8x8";
  // A stride without a second window has been set to 1: with one row or column of outputs any will do.
  if ((p.sh != 2 && p.oh > 1) || (p.sw != 2 && p.ow > 1)) return "the stride is not 2";
  if (p.dh != 1 || p.dw != 1) return "the dilation is not 1";
  if (p.groups != 1) return "the channels are grouped";
  if (p.ic > kMostChannels) return "more than 8 input channels";
  return nullptr;
}

int64_t sums_of(const PhasesUkernel& leaf) {
  return kSide * leaf.group * kOut * leaf.nr;
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  const PhasesUkernel& leaf = take_leaf<PhasesUkernel>(plan, machine);
  b.mr = leaf.tiles, b.nr = leaf.nr;
  b.panels = div_up(p.oc, b.nr);
  b.segs = kSide * kSide, b.seg_k = 4 * p.ic;
  b.row_unit = kOut;
  b.expect = results_are_far(p, machine);
  const int64_t columns = div_up(p.ow, kOut);
  b.mc = div_up(columns, div_up(columns, kStrip));
  const Sizes s(p, b.mc);
  plan.packed_bytes = b.panels * kSide * s.values * kSide * b.nr * 4;
  plan.pack_tag = "winograd f44 phases n" + std::to_string(b.nr);
  plan.scratch_bytes = 4 * (s.ring() + s.v() + sums_of(leaf) + 2 * s.cell + s.cell * s.wide);
}

// Row i of G: the kernel at point i, over M'(point).
constexpr double kPoints[kSide - 1] = {0.5, -0.5, 1, -1, 2, -2};
double weight_of(int64_t i, int64_t tap) {
  if (i == kSide - 1) return tap == kTaps - 1 ? 1 : 0;
  double at = 1;
  for (int64_t j = 0; j < kSide - 1; ++j)
    if (j != i) at *= kPoints[i] - kPoints[j];
  return std::pow(kPoints[i], static_cast<double>(tap)) / at;
}

void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  double g[kSide][kTaps];
  for (int64_t i = 0; i < kSide; ++i)
    for (int64_t tap = 0; tap < kTaps; ++tap) g[i][tap] = weight_of(i, tap);
  const auto weight = [&](int64_t oc, int64_t ic, int64_t r, int64_t s) -> double {
    if (oc >= p.oc || r >= p.kh || s >= p.kw) return 0;
    const int64_t at = p.weight_layout == WeightLayout::oihw   ? ((oc * p.ic + ic) * p.kh + r) * p.kw + s
                       : p.weight_layout == WeightLayout::ohwi ? ((oc * p.kh + r) * p.kw + s) * p.ic + ic
                                                               : ((r * p.kw + s) * p.ic + ic) * p.oc + oc;
    return wei[at];
  };
  const int64_t values = 4 * p.ic;
  const Range mine = share(b.panels * b.nr, worker.tid, worker.nthr);
  for (int64_t oc = mine.begin; oc < mine.end; ++oc) {
    float* const u = static_cast<float*>(packed) + oc / b.nr * kSide * values * kSide * b.nr + oc % b.nr;
    for (int64_t value = 0; value < values; ++value) {
      const int64_t phase = value / p.ic, ic = value % p.ic, row = phase / 2, column = phase % 2;
      double down[kSide][kTaps] = {};
      for (int64_t s = 0; s < kTaps; ++s)
        for (int64_t r = 0; r < kTaps; ++r) {
          const double w = weight(oc, ic, 2 * r + row, 2 * s + column);
          for (int64_t i = 0; i < kSide; ++i) down[i][s] += g[i][r] * w;
        }
      for (int64_t i = 0; i < kSide; ++i)
        for (int64_t j = 0; j < kSide; ++j) {
          double sum = 0;
          for (int64_t s = 0; s < kTaps; ++s) sum += g[j][s] * down[i][s];
          u[((i * values + value) * kSide + j) * b.nr] = static_cast<float>(sum);
        }
    }
  }
}

// Makes rows of cells. `planes`: private memory, zero past the values.
void make_cells(const Plan& plan, const Operands& args, const Sizes& s, int64_t image, int64_t y, int64_t x,
                float* cells, float* planes) {
  const Problem& p = plan.problem;
  // The last row or column may belong to no window.
  const int64_t y_end = std::min(p.ih, (p.oh - 1) * p.sh - p.pt + p.kh);
  const int64_t x_end = std::min(p.iw, (p.ow - 1) * p.sw - p.pl + p.kw);
  const int64_t first = 2 * x - p.pl;
  const float* const src = args.src + image * p.ic * p.ih * p.iw;
  const auto there = [&](int64_t b) {
    const int64_t row = 2 * y - p.pt + b;
    return row >= 0 && row < y_end;
  };
  if (p.layout == Layout::nhwc) {
    PhasesCells c{};
    for (int64_t b = 0; b < 2; ++b) c.row[b] = there(b) ? src + (2 * y - p.pt + b) * p.iw * p.ic : nullptr;
    c.ic = p.ic, c.columns = x_end, c.first = first;
    c.cells = cells, c.cell = s.cell, c.count = s.cells;
    phases_of(plan).cells(&c);
    return;
  }
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t d = 0; d < 2; ++d) {
      float* const to = planes + (2 * b + d) * p.ic * s.wide;
      // Cells lo .. hi - 1 have such a column.
      const int64_t lo = std::clamp<int64_t>(div_up(std::max<int64_t>(-first - d, 0), 2), 0, s.cells);
      const int64_t hi = std::clamp<int64_t>(div_up(std::max<int64_t>(x_end - first - d, 0), 2), lo, s.cells);
      if (!there(b) || lo == hi) {
        std::fill(to, to + p.ic * s.wide, 0.0f);
      } else {
        move.gather_rows(src + (2 * y - p.pt + b) * p.iw + first + d + 2 * lo, p.ih * p.iw, 2, to, s.wide, p.ic, s.wide,
                         lo, hi);
      }
    }
  }
  move.transpose(planes, s.wide, cells, s.cell, s.cell, s.wide);
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const PhasesUkernel& leaf = phases_of(plan);
  const Sizes s(p, b.mc);
  float* const ring = reinterpret_cast<float*>(worker.scratch);
  float* const v = ring + s.ring();
  float* const sums = v + s.v();
  float* const last_row = sums + sums_of(leaf);
  float* const last_column = last_row + s.cell;
  float* const planes = last_column + s.cell;
  for (int64_t value = 0; value < s.cell; ++value) {
    const int64_t phase = value / p.ic;
    last_row[value] = value < s.values && 2 * kTaps - 2 + phase / 2 < p.kh ? 1.0f : 0.0f;
    last_column[value] = value < s.values && 2 * kTaps - 2 + phase % 2 < p.kw ? 1.0f : 0.0f;
  }
  std::fill(planes, planes + s.cell * s.wide, 0.0f);
  PhasesInput in{};
  in.cell = s.cell;
  in.last_row = last_row, in.last_column = last_column;
  in.v = v, in.v_row = s.v_row, in.v_run = s.v_run;
  PhasesOutput out{};
  out.v = v, out.v_row = s.v_row, out.v_run = s.v_run, out.values = s.values;
  out.sums = sums;
  WinogradOutput& o = out.out;
  o.bias = p.bias ? args.bias : nullptr;
  o.oc = p.oc, o.oh = p.oh, o.ow = p.ow;
  o.rows = 1;
  o.relu = p.activation == Activation::relu;
  out.expect = b.expect;
  const Range mine = share(p.n * s.strips * s.rows, worker.tid, worker.nthr);
  int64_t ready = 0;  // rows of cells before this one are in the ring, row y in slot y % kSide
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const int64_t image = unit / (s.strips * s.rows), strip = unit / s.rows % s.strips, row = unit % s.rows;
    const Range tiles = share(s.columns, strip, s.strips);
    if (row == 0 || unit == mine.begin) ready = row * kOut;
    for (; ready < row * kOut + kSide; ++ready)
      make_cells(plan, args, s, image, ready, tiles.begin * kOut, ring + ready % kSide * s.row(), planes);
    for (int64_t i = 0; i < kSide; ++i) in.row[i] = ring + (row * kOut + i) % kSide * s.row();
    in.tiles = tiles.end - tiles.begin;
    leaf.input(&in);
    const int64_t at = image * p.oc * p.oh * p.ow;
    o.dst = args.dst + at, o.residual = p.residual ? args.residual + at : nullptr;
    o.row = row, o.column = tiles.begin, o.columns = in.tiles;
    for (int64_t panel = 0; panel < b.panels; ++panel) {
      out.u = static_cast<const float*>(args.packed) + panel * kSide * s.values * kSide * b.nr;
      o.channel = panel * b.nr, o.channels = std::min(b.nr, p.oc - o.channel);
      p.layout == Layout::nhwc ? leaf.output_pixels(&out) : leaf.output_planes(&out);
    }
  }
}

// Cycles of one core for one image, from the problem less its n.
bool prefers_not(const Problem& p, const Machine& machine) {
  constexpr double kWorthwhileCycles = 50000;  // below this, exact small integers are worth more
  const PhasesUkernel& leaf = *find_ukernel<PhasesUkernel>(machine.isa);
  const double lanes = leaf.nr / 2.0, panels = static_cast<double>(div_up(p.oc, leaf.nr));
  const double tiles = static_cast<double>(div_up(p.oh, kOut)) * static_cast<double>(div_up(p.ow, kOut));
  const double pixels = static_cast<double>(p.oh) * static_cast<double>(p.ow), ic = static_cast<double>(p.ic);
  const double plain = pixels * panels * static_cast<double>(p.kh * p.kw) * ic / 0.9;
  const double products = kSide * kSide * 4 * ic * (leaf.tiles > 1 ? 1.1 : 1.5);
  const double ours = tiles * (panels * (products + 250) + 200 * std::ceil(4 * ic / lanes));
  return ours > plain - std::max(0.1 * plain, kWorthwhileCycles);
}

}  // namespace

extern const Algorithm conv_winograd_f44_phases = {Op::conv2d,
                                                   "winograd_f44",
                                                   "conv_winograd_f44_phases",
                                                   "cpu",
                                                   refuses,
                                                   configure,
                                                   pack,
                                                   run,
                                                   leaves_of<PhasesUkernel>,
                                                   prefers_not,
                                                   true};

}  // namespace fastconv
