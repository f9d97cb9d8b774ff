// ReLU, batch normalisation (dst = src * scale[c] + shift[c]) and layout conversion. Drivers over eltwise_f32_* and
// layout_f32_*. Workers take contiguous shares: of the elements (ReLU), of planes or pixels (batch normalisation), of
// groups of pixels or channels (conversion).
// Results larger than half of the L3 are stored past the caches.
#include <algorithm>
#include <cstring>

#include "cpu/registry.h"

namespace fastconv {
namespace {

constexpr int64_t kLine = 1024;   // elements that are dealt out together
constexpr int64_t kPiece = 4096;  // elements of a large plane that are dealt out together
constexpr int64_t kGroup = 64;    // pixels, or channels, that are converted together
constexpr int64_t kWide = 256;    // fewer channels than this are repeated to rows of about so many

const char* accepts(const Problem&, const Machine&) {
  return nullptr;
}

// An output that will not be in the caches when it is read.
bool goes_past(const Problem& p, const Machine& machine) {
  return 4 * p.dst_elements() > machine.stream_bytes;
}

// Elements begin..end-1 of `total` for this worker, in whole lines.
Range share_lines(int64_t total, const Worker& worker) {
  const Range lines = share((total + kLine - 1) / kLine, worker.tid, worker.nthr);
  return {std::min(total, lines.begin * kLine), std::min(total, lines.end * kLine)};
}

void configure_relu(Plan& plan, const Machine& machine) {
  take_leaf<EltwiseUkernel>(plan, machine);
  plan.blocking.streaming = goes_past(plan.problem, machine);
}

void run_relu(const Plan& plan, const Operands& args, Worker& worker) {
  const auto& leaf = *static_cast<const EltwiseUkernel*>(plan.ukernel);
  const Range mine = share_lines(plan.problem.ow, worker);
  leaf.relu(args.src + mine.begin, args.dst + mine.begin, mine.end - mine.begin, plan.blocking.streaming);
}

// --- batch normalisation ----------------------------------------------------------------------------------------------

// NHWC: so many pixels are taken as one row of `repeat * c` channels.
int64_t repeat_of(const Problem& p) {
  return std::min((kWide + p.ic - 1) / p.ic, p.ih * p.iw);
}

void configure_batch_norm(Plan& plan, const Machine& machine) {
  take_leaf<EltwiseUkernel>(plan, machine);
  const Problem& p = plan.problem;
  if (p.layout == Layout::nhwc && repeat_of(p) > 1) plan.scratch_bytes = 2 * 4 * repeat_of(p) * p.ic;
}

void run_batch_norm(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const auto& leaf = *static_cast<const EltwiseUkernel*>(plan.ukernel);
  const int64_t plane = p.ih * p.iw, c = p.ic;
  if (p.layout == Layout::nchw) {
    // Large planes are dealt out in pieces, small ones whole.
    const int64_t piece = plane < 4 * kPiece ? plane : kPiece, pieces = (plane + piece - 1) / piece;
    const Range mine = share(p.n * c * pieces, worker.tid, worker.nthr);
    for (int64_t unit = mine.begin; unit < mine.end;) {
      const int64_t channel = unit / pieces % c, begin = unit % pieces * piece, at = unit / pieces * plane + begin;
      const bool whole = pieces == 1;
      const int64_t units = std::min(mine.end - unit, whole ? c - channel : pieces - unit % pieces);
      leaf.affine_rows(args.src + at, args.dst + at, args.scale + channel, args.bias + channel, whole ? units : 1,
                       std::min(plane - begin, whole ? plane : units * piece));
      unit += units;
    }
    return;
  }
  const Range mine = share(p.n * plane, worker.tid, worker.nthr);
  const float *scale = args.scale, *shift = args.bias;
  const int64_t repeat = repeat_of(p);
  int64_t pixel = mine.begin;
  if (repeat > 1) {
    float* wide = reinterpret_cast<float*>(worker.scratch);
    for (int64_t i = 0; i < repeat; ++i) {
      std::memcpy(wide + i * c, scale, c * sizeof(float));
      std::memcpy(wide + (repeat + i) * c, shift, c * sizeof(float));
    }
    scale = wide;
    shift = wide + repeat * c;
    const int64_t rows = (mine.end - pixel) / repeat;
    leaf.affine_columns(args.src + pixel * c, args.dst + pixel * c, scale, shift, rows, repeat * c);
    pixel += rows * repeat;
    // The rest is the beginning of one more such row.
    if (pixel < mine.end)
      leaf.affine_columns(args.src + pixel * c, args.dst + pixel * c, scale, shift, 1, (mine.end - pixel) * c);
    return;
  }
  leaf.affine_columns(args.src + pixel * c, args.dst + pixel * c, scale, shift, mine.end - pixel, c);
}

// --- layout conversion ------------------------------------------------------------------------------------------------

// Which matrix one image is, and along which axis workers share it: the one with more groups.
struct Turn {
  int64_t rows, cols;  // of the source; those of the target are its columns
  bool by_rows;
  int64_t groups;
};
Turn turn_of(const Problem& p) {
  const int64_t plane = p.ih * p.iw, channel_groups = (p.ic + kGroup - 1) / kGroup;
  const int64_t pixel_groups = (plane + kGroup - 1) / kGroup;
  const bool to_pixels = p.layout == Layout::nchw, by_channels = channel_groups > pixel_groups;
  return {to_pixels ? p.ic : plane, to_pixels ? plane : p.ic, to_pixels == by_channels,
          std::max(channel_groups, pixel_groups)};
}

void configure_convert(Plan& plan, const Machine& machine) {
  take_leaf<LayoutUkernel>(plan, machine);
  plan.scratch_bytes = 4 * LayoutUkernel::kWork;
  const Problem& p = plan.problem;
  // Runs that end within lines cost more past the caches than they save.
  const int64_t run = turn_of(p).rows;
  const bool copied = p.layout == p.target_layout || p.ic == 1 || p.ih * p.iw == 1,
             lines = run % LayoutUkernel::kLine == 0;
  plan.blocking.streaming = goes_past(p, machine) && !copied && (lines || run <= LayoutUkernel::kRun);
  plan.blocking.ahead = 2 * 4 * plan.problem.dst_elements() > machine.stream_bytes;
}

void run_convert(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const auto& leaf = *static_cast<const LayoutUkernel*>(plan.ukernel);
  const int64_t plane = p.ih * p.iw, image_size = plane * p.ic;
  if (p.layout == p.target_layout || p.ic == 1 || plane == 1) {
    const Range mine = share_lines(p.n * image_size, worker);
    if (mine.begin < mine.end)
      std::memcpy(args.dst + mine.begin, args.src + mine.begin, (mine.end - mine.begin) * sizeof(float));
    return;
  }
  const Turn turn = turn_of(p);
  LayoutPart part{};
  part.src_ld = turn.cols, part.dst_ld = turn.rows;
  part.work = reinterpret_cast<float*>(worker.scratch);
  part.streaming = plan.blocking.streaming;
  part.ahead = plan.blocking.ahead;
  const Range mine = share(p.n * turn.groups, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end;) {
    const int64_t image = unit / turn.groups, first = unit % turn.groups;
    const int64_t last = std::min(turn.groups, first + mine.end - unit);
    const int64_t begin = first * kGroup, count = std::min(turn.by_rows ? turn.rows : turn.cols, last * kGroup) - begin;
    const int64_t row = turn.by_rows ? begin : 0, col = turn.by_rows ? 0 : begin;
    part.rows = turn.by_rows ? count : turn.rows;
    part.cols = turn.by_rows ? turn.cols : count;
    part.src = args.src + image * image_size + row * turn.cols + col;
    part.dst = args.dst + image * image_size + col * turn.rows + row;
    leaf.turn(&part);
    unit += last - first;
  }
}

}  // namespace

extern const Algorithm relu_direct = {
    Op::relu, "direct", "relu_direct", "cpu", accepts, configure_relu, nullptr, run_relu, leaves_of<EltwiseUkernel>};
extern const Algorithm batch_norm_direct = {Op::batch_norm, "direct",       "batch_norm_direct",
                                            "cpu",          accepts,        configure_batch_norm,
                                            nullptr,        run_batch_norm, leaves_of<EltwiseUkernel>};
extern const Algorithm convert_layout_direct = {
    Op::convert_layout,      "direct", "convert_layout_direct", "cpu", accepts, configure_convert, nullptr, run_convert,
    leaves_of<LayoutUkernel>};

}  // namespace fastconv
