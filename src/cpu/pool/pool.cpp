// Pooling in both layouts: max (with indices), average, adaptive average. Drivers over the leaves of pool_f32_*. A
// unit of work is one output row: of a plane in NCHW, of an image in NHWC. A worker walks a contiguous run of them, so
// that rows that windows share are still in its cache. Means of whole planes divide over planes (NCHW) or groups of
// channels (NHWC).
// Planes of NCHW that leaves do not pool as they read them, and whose windows are narrow, are pooled sixteen at a time, by bands of rows: turned to pixels in private memory,
// pooled with vectors of whole lines there, and turned back. Bits are those of planes by themselves: the order of every sum is the
// same.
// Results larger than half of the L3 are stored past the caches where leaves write them line by line.
// Blocking: mc output columns together, so many that their input columns fill half of the L1 data cache; `band` output rows of planes that are pooled together.
#include <algorithm>

#include "cpu/registry.h"

namespace fastconv {
namespace {

constexpr int64_t kSlack = 64;                       // floats that leaves may read behind a strip
constexpr int64_t kMaxStrip = int64_t{1} << 26;      // floats
constexpr int64_t kMaxCounted = int64_t{1} << 24;    // indices count rows and columns of a window in float lanes
constexpr int64_t kChannelGroup = 64;                // channels that one worker takes at least
constexpr int64_t kPlanes = 16;                      // planes that are pooled together
constexpr int64_t kMostTogether = int64_t{1} << 20;  // floats of their rows that one output row sees
constexpr int64_t kWidestWindow = 8;  // of those; wider ones may run along rows (runs_pay in pool_body.h)

int64_t channels_of(const Problem& p) {
  return p.layout == Layout::nhwc ? p.ic : 1;
}

// The window of an adaptive pooling that divides evenly is the same everywhere; seen as an average it has vector
// columns.
bool even_windows(const Problem& p) {
  return p.ih % p.oh == 0 && p.iw % p.ow == 0;
}

// Whole planes, no padding: a mean.
bool global_mean(const Problem& p) {
  if (p.oh != 1 || p.ow != 1) return false;
  if (p.op == Op::adaptive_avg_pool2d) return true;
  return p.op == Op::avg_pool2d && p.kh == p.ih && p.kw == p.iw && !p.padded();
}

// Input columns (times channels) that `strip` output columns read.
int64_t strip_floats(const Problem& p, int64_t strip) {
  const __int128 columns = p.op == Op::adaptive_avg_pool2d ? __int128{strip} * p.iw / p.ow + 2
                                                           : __int128{strip - 1} * p.sw + __int128{p.kw - 1} * p.dw + 1;
  return static_cast<int64_t>(std::min<__int128>(columns * channels_of(p), int64_t{1} << 40));
}

const char* refuses(const Problem& p, const Machine&) {
  if (!global_mean(p) && strip_floats(p, 1) > kMaxStrip) return "one window spans more than 2^26 values in a row";
  if (p.with_indices && (p.kh > kMaxCounted || p.kw > kMaxCounted))
    return "indices need a window of at most 2^24 rows and columns";
  return nullptr;
}

// Planes that leaves pool as they read them (planes_body.h): windows of stride 2, and square ones of stride 1 that keep the width.
bool halves(const Problem& p) {
  return p.kh <= 3 && (p.kw == 2 || p.kw == 3) && p.sw == 2 && p.dw == 1;
}
bool flat(const Problem& p) {
  return p.kh == p.kw && (p.kw == 3 || p.kw == 5) && p.sh == 1 && p.sw == 1 && p.dh == 1 && p.dw == 1 &&
         p.pl == p.kw / 2 && p.ow == p.iw && p.iw >= p.kw && p.iw <= 256;
}

// Whether planes are pooled together: follows from the problem less its batch.
bool by_planes(const Problem& p) {
  return p.layout == Layout::nchw && p.ic >= kPlanes && p.kw <= kWidestWindow && !p.with_indices &&
         p.op != Op::adaptive_avg_pool2d && !halves(p) && !flat(p) && kPlanes * strip_floats(p, 1) <= kMaxStrip &&
         kPlanes * std::min((p.kh - 1) * p.dh + 1, p.ih) * p.iw <= kMostTogether;
}

// Input rows that output rows y0..y1-1 see.
Range rows_seen(const Problem& p, int64_t y0, int64_t y1) {
  const int64_t first = std::clamp<int64_t>(y0 * p.sh - p.pt, 0, p.ih);
  return {first, std::clamp<int64_t>((y1 - 1) * p.sh - p.pt + (p.kh - 1) * p.dh + 1, first, p.ih)};
}

// Where things lie in the scratch of planes that are pooled together, in floats.
struct Together {
  int64_t rows;                              // output rows of a band
  int64_t input, output, strip, turn, size;  // where they begin; the end
};
Together together(const Plan& plan) {
  const Problem& p = plan.problem;
  Together t{plan.blocking.band, 0, 0, 0, 0, 0};
  const int64_t seen = std::min((t.rows - 1) * p.sh + (p.kh - 1) * p.dh + 1, p.ih);
  t.output = t.input + kPlanes * seen * p.iw;
  t.strip = t.output + kPlanes * t.rows * p.ow;
  t.turn = t.strip + (kPlanes * strip_floats(p, plan.blocking.mc) + kSlack + 15) / 16 * 16;
  t.size = t.turn + LayoutUkernel::kWork;
  return t;
}

// Whether leaves write an output line by line.
bool whole_lines(const Problem& p) {
  if (p.with_indices || p.op == Op::adaptive_avg_pool2d || p.kh > 5 || p.kw > 5) return false;
  if (p.layout == Layout::nhwc) return p.ic % 16 == 0 && ((p.kh <= 3 && p.kw <= 3) || flat(p));
  return (halves(p) && p.ow % 16 == 0 && p.ow > 16) || (flat(p) && p.oh * p.ow % 16 == 0);
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  take_leaf<PoolUkernel>(plan, machine);
  if (global_mean(p)) return;
  plan.blocking.streaming = 4 * p.dst_elements() > machine.stream_bytes && whole_lines(p);
  // What is read and written is more than three quarters of the L3.
  plan.blocking.ahead = 2 * 4 * (p.src_elements() + p.dst_elements()) > 3 * machine.stream_bytes;
  // Pays on a Zen 5; a Zen 4 does better by itself (docs/performance.md).
  plan.blocking.near = !machine.adds_beside;
  const bool planes = by_planes(p);
  const int64_t room =
      std::max<int64_t>(machine.l1d_bytes, 16 << 10) / 8 / (p.with_indices ? 2 : 1) / (planes ? kPlanes : 1);
  // The widest strip that fits, by halving; whole vectors where output columns are vector lanes.
  int64_t strip = p.ow;
  while (strip > 1 && strip_floats(p, strip) > room) strip = (strip + 1) / 2;
  if (channels_of(p) == 1 && strip < p.ow) strip = std::min((strip + 15) / 16 * 16, p.ow);
  if (strip_floats(p, strip) > std::max(room, strip_floats(p, 1)) + 16 * 1024) strip = 1;
  plan.blocking.mc = strip;
  plan.scratch_bytes = 4 * (strip_floats(p, strip) + kSlack) * (p.with_indices ? 2 : 1);
  if (!planes) return;
  // A band's input in a quarter of the L2.
  const int64_t rows = machine.l2_bytes / 16 / (kPlanes * p.iw);
  plan.blocking.band = std::clamp<int64_t>((rows - (p.kh - 1) * p.dh - 1) / p.sh + 1, 1, p.oh);
  plan.scratch_bytes = 4 * together(plan).size;
}

void run_mean(const Plan& plan, const Operands& args, const Worker& worker) {
  const Problem& p = plan.problem;
  const auto& leaf = *static_cast<const PoolUkernel*>(plan.ukernel);
  const int64_t plane = p.ih * p.iw, c = p.ic;
  const double divisor = static_cast<double>(p.divisor_override ? p.divisor_override : plane);
  if (p.layout == Layout::nchw) {
    const Range mine = share(p.n * c, worker.tid, worker.nthr);
    leaf.mean_rows(args.src + mine.begin * plane, args.dst + mine.begin, mine.end - mine.begin, plane, divisor);
    return;
  }
  const int64_t groups = (c + kChannelGroup - 1) / kChannelGroup;
  const Range mine = share(p.n * groups, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end;) {
    const int64_t image = unit / groups, first = unit % groups, last = std::min(groups, first + mine.end - unit);
    const int64_t c0 = first * kChannelGroup, c1 = std::min(c, last * kChannelGroup);
    leaf.mean_columns(args.src + image * plane * c + c0, c, args.dst + image * c + c0, plane, c1 - c0, divisor);
    unit += last - first;
  }
}

void run_planes(const Plan& plan, const Operands& args, Worker& worker, PoolCall g, void (*body)(const PoolCall*)) {
  const Problem& p = plan.problem;
  const Together at = together(plan);
  const LayoutUkernel& layout = *find_ukernel<LayoutUkernel>(plan.isa);
  float* const work = reinterpret_cast<float*>(worker.scratch);
  const int64_t plane = args.src_plane_of(p), out_plane = args.dst_plane_of(p), planes = p.n * p.ic;
  const int64_t bands = (p.oh + at.rows - 1) / at.rows, groups = (planes + kPlanes - 1) / kPlanes;
  LayoutPart turn{};
  turn.work = work + at.turn;
  g.c = kPlanes, g.images = 1;
  g.far = 0;  // bands lie in private memory
  g.work = work + at.strip;
  g.work_floats = at.turn - at.strip;
  const Range mine = share(groups * bands, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const int64_t first = unit / bands * kPlanes, y0 = unit % bands * at.rows, y1 = std::min(p.oh, y0 + at.rows);
    const Range seen = rows_seen(p, y0, y1);
    const int64_t taken = std::min(kPlanes, planes - first);
    turn.ahead = true;
    turn.src = args.src + first * plane + seen.begin * p.iw, turn.src_ld = plane, turn.rows = taken;
    turn.dst = work + at.input, turn.dst_ld = kPlanes, turn.cols = (seen.end - seen.begin) * p.iw;
    // Planes that do not exist are pooled too: of one by itself sums would run otherwise.
    if (taken < kPlanes) std::fill_n(work + at.input, kPlanes * turn.cols, 0.0f);
    if (turn.cols > 0) layout.turn(&turn);
    // The band is an image by itself whose padding begins and ends elsewhere.
    g.src = work + at.input, g.dst = work + at.output;
    g.ih = seen.end - seen.begin, g.oh = y1 - y0, g.row_begin = 0, g.row_end = y1 - y0;
    g.pt = p.pt - y0 * p.sh + seen.begin, g.pb = p.pb + p.ih - seen.end;
    body(&g);
    turn.ahead = false;
    turn.src = g.dst, turn.src_ld = kPlanes, turn.rows = (y1 - y0) * p.ow;
    turn.dst = args.dst + first * out_plane + y0 * p.ow, turn.dst_ld = out_plane, turn.cols = taken;
    layout.turn(&turn);
  }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  if (global_mean(p)) return run_mean(plan, args, worker);
  const auto& leaf = *static_cast<const PoolUkernel*>(plan.ukernel);
  PoolCall g{};
  g.work = reinterpret_cast<float*>(worker.scratch);
  g.work_floats = plan.scratch_bytes / 4;
  g.c = channels_of(p);
  g.ih = p.ih, g.iw = p.iw, g.oh = p.oh, g.ow = p.ow;
  g.kh = p.kh, g.kw = p.kw, g.sh = p.sh, g.sw = p.sw, g.dh = p.dh, g.dw = p.dw;
  g.pt = p.pt, g.pb = p.pb, g.pl = p.pl, g.pr = p.pr;
  g.divisor = p.divisor_override;
  g.count_include_pad = p.count_include_pad;
  g.strip = plan.blocking.mc;
  g.streaming = plan.blocking.streaming;
  g.far = plan.blocking.ahead;
  g.near = plan.blocking.near;

  void (*body)(const PoolCall*) = args.indices ? leaf.max_indices : leaf.max;
  if (p.op == Op::avg_pool2d) body = leaf.average;
  if (p.op == Op::adaptive_avg_pool2d) {
    body = leaf.adaptive;
    if (even_windows(p)) {
      body = leaf.average;
      g.kh = g.sh = p.ih / p.oh;
      g.kw = g.sw = p.iw / p.ow;
    }
  }
  if (by_planes(p)) return run_planes(plan, args, worker, g, body);
  const bool nhwc = p.layout == Layout::nhwc;
  const int64_t images = nhwc ? p.n : p.n * p.ic;
  g.src_image = nhwc ? p.ih * p.iw * p.ic : args.src_plane_of(p);
  g.dst_image = nhwc ? p.oh * p.ow * p.ic : args.dst_plane_of(p);
  const Range mine = share(images * p.oh, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end;) {
    const int64_t image = unit / p.oh, left = mine.end - unit;
    g.row_begin = unit % p.oh;
    g.row_end = std::min(p.oh, g.row_begin + left);
    g.images = g.row_begin == 0 && left >= p.oh ? left / p.oh : 1;
    g.src = args.src + image * g.src_image;
    g.dst = args.dst + image * g.dst_image;
    g.indices = args.indices ? args.indices + image * g.dst_image : nullptr;
    body(&g);
    unit += g.images * (g.row_end - g.row_begin);
  }
}

}  // namespace

extern const Algorithm max_pool_direct = {
    Op::max_pool2d, "direct", "max_pool_direct",      "cpu",   refuses, configure,
    nullptr,        run,      leaves_of<PoolUkernel>, nullptr, false,   /*planes_apart=*/true};
extern const Algorithm avg_pool_direct = {Op::avg_pool2d, "direct", "avg_pool_direct",     "cpu", refuses, configure,
                                          nullptr,        run,      leaves_of<PoolUkernel>};
extern const Algorithm adaptive_avg_pool_direct = {
    Op::adaptive_avg_pool2d, "direct", "adaptive_avg_pool_direct", "cpu", refuses, configure, nullptr, run,
    leaves_of<PoolUkernel>};

}  // namespace fastconv
