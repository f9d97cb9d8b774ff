// Winograd convolution, 3x3, stride 1: F(2x2, 3x3) and F(4x4, 3x3). With the output cut into tiles of o x o pixels, and
// t = o + 2:   dst[tile] = act(A' [sum_c (G wei[oc,c] G') * (B' src[tile,c] B)] A + bias + residual)
// The sum over channels is a matrix product a position of the t x t tile: V[tiles, ic] by U[ic, oc]. Transforms:
// winograd_body.h. Products: the GEMM leaf.
// Operands: packed U [panel][position][ic][nr], transformed in float64 and rounded once, zero-padded channels.
// Scratch: V [tile][position][ic] and M [tile][position][nr], tiles an odd number of cache lines apart, so that they spread
// over the cache sets: transforms walk through memory in order, products read and write a row a tile.
// Blocking: a group of blocking.mc tiles stays in the L2 from input transform to output transform; panels outside,
// positions inside, so that U is read in order, M is one panel wide and V is read from the L2.
// Threads: tiles are shared out where there are many. Where weights outweigh them, all threads transform channels of
// one common V, meet, and multiply by panels of their own (columns_of).
// Numerics: a tile's sequence of operations is the same wherever it lies; one sequential sum over ic a position.
// Measured (2-core Granite-Rapids-class Xeon, AVX-512, two threads, in ResNet-50 at batch 1, NHWC, rough), us a layer, direct /
// F(4,3) / F(2,3): 56x56x64 565 / 230 / 350, 28x28x128 569 / 245 / 318, 14x14x256 590 / 460 / 357, 7x7x512 810 / 1350 / 725.
// One thread, 56x56x64: input transform 17 %, output transform 10 %, products 72 % of the time; 14x14x256: 5, 4, 90 %.
// Tried: V [position][tile][ic], 5 to 8 % slower at 28x28 and 14x14; groups of 14, 42 and 56 tiles, as good at one shape and
// up to a third slower at another.
// Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308.
#include <algorithm>
#include <cstring>

#include "cpu/conv/winograd.h"
#include "cpu/gemm/gemm.h"
#include "cpu/parallel.h"

namespace fastconv {
namespace {

constexpr int64_t kMaxScratchBytes = 64 << 20;
constexpr double kWorthwhileCycles = 50000;  // an image: below this, exact small integers are worth more
constexpr int64_t kGroup = 28;               // tiles
constexpr int64_t kSlice = 16;               // channels, one cache line: what threads share out of a common V

// Sizes and leaves of F(O x O, 3 x 3) for one problem.
template <int O>
struct Winograd {
  static constexpr int64_t kOut = O, kIn = O + 2, kPositions = kIn * kIn;

  explicit Winograd(const Problem& p)
      : rows(div_up(p.oh, kOut)),
        columns(div_up(p.ow, kOut)),
        v_position(round_up(p.ic, 16)),
        v_tile(odd_lines(kPositions * v_position)) {}
  static const WinogradUkernel::Transforms& leaf(Isa isa) {
    const WinogradUkernel& k = *find_ukernel<WinogradUkernel>(isa);
    return O == 2 ? k.f23 : k.f43;
  }
  int64_t tiles() const { return rows * columns; }  // of one image
  static int64_t m_tile(int64_t nr) { return odd_lines(kPositions * nr); }

  int64_t rows, columns;
  int64_t v_position, v_tile;
};

template <int O>
const char* refuses(const Problem& p, const Machine&) {
  if (p.kh != 3 || p.kw != 3) return "the kernel is not 3x3";
  if (p.sh != 1 || p.sw != 1) return "the stride is not 1";
  if (p.dh != 1 || p.dw != 1) return "the dilation is not 1";
  if (p.groups != 1) return "the channels are grouped";
  if (Winograd<O>::kPositions * kMaxNr * odd_lines(p.ic) * 4 > kMaxScratchBytes)
    return "a register tile's transformed input exceeds 64 MiB of scratch";
  return nullptr;
}

template <int O>
void configure(Plan& plan, const Machine& machine) {
  using W = Winograd<O>;
  const Problem& p = plan.problem;
  const W w(p);
  Blocking& b = plan.blocking;
  b.segs = W::kPositions;
  b.seg_k = p.ic;
  b.row_unit = W::kOut;
  configure_gemm(plan, machine);
  plan.packed_bytes = b.panels * W::kPositions * p.ic * b.nr * 4;
  plan.pack_tag = "winograd f" + std::to_string(O) + "3 n" + std::to_string(b.nr) + " ic" + std::to_string(p.ic);
  // As many tiles as keep the products busy while U streams by, fewer where V and M of the group would not stay in the L2 beside some of
  // U. Not whole register tiles: the 16 tiles of a 7x7 image in one group of 16 read U once, in 14 and 2 twice.
  const int64_t room = std::max<int64_t>(machine.l2_bytes * 3 / 4, 64 << 10) / (4 * (w.v_tile + W::m_tile(b.nr)));
  b.mc = std::max<int64_t>(b.mr, std::min(kGroup, room));
  // A small problem needs no more scratch than it has tiles.
  if (static_cast<double>(p.n) * static_cast<double>(w.tiles()) < static_cast<double>(b.mc))
    b.mc = std::max<int64_t>(1, p.n * w.tiles());
  plan.scratch_bytes = 4 * b.mc * (w.v_tile + W::m_tile(b.nr));
}

template <int O>
void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  using W = Winograd<O>;
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const auto transform = W::leaf(plan.isa).weights;
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  constexpr int64_t kTaps = 9, kChunk = 16;  // input channels at a time
  const int64_t nr = b.nr, chunks = div_up(p.ic, kChunk);
  const bool taps_inner = p.weight_layout == WeightLayout::oihw;
  alignas(64) float rows[kChunk * kTaps * kMaxNr];  // kernels side by side: (c, tap) or (tap, c) by oc
  const Range mine = share(b.panels * chunks, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const int64_t panel = unit / chunks, c0 = unit % chunks * kChunk, channels = std::min(kChunk, p.ic - c0);
    const int64_t first = panel * nr, count = std::min(nr, p.oc - first);
    if (count < nr) std::fill(rows, rows + kChunk * kTaps * nr, 0.0f);
    if (taps_inner) {
      move.transpose(wei + (first * p.ic + c0) * kTaps, p.ic * kTaps, rows, nr, count, channels * kTaps);
    } else if (p.weight_layout == WeightLayout::ohwi) {
      for (int64_t tap = 0; tap < kTaps; ++tap)
        move.transpose(wei + (first * kTaps + tap) * p.ic + c0, p.ic * kTaps, rows + tap * kChunk * nr, nr, count,
                       channels);
    } else {
      for (int64_t tap = 0; tap < kTaps; ++tap)
        for (int64_t c = 0; c < channels; ++c)
          std::memcpy(rows + (tap * kChunk + c) * nr, wei + (tap * p.ic + c0 + c) * p.oc + first, count * 4);
    }
    float* out = static_cast<float*>(packed) + (panel * W::kPositions * p.ic + c0) * nr;
    for (int64_t c = 0; c < channels; ++c)
      transform(rows + c * nr * (taps_inner ? kTaps : 1), nr * (taps_inner ? 1 : kChunk), out + c * nr, p.ic * nr, nr);
  }
}

// Cuts tiles first..first+count of the batch into rectangles of one image each: fn(image, offset from first, row, rows,
// column, columns).
template <int O, class Fn>
void for_each_rectangle(const Winograd<O>& w, int64_t first, int64_t count, const Fn& fn) {
  for (int64_t done = 0; done < count;) {
    const int64_t at = first + done, image = at / w.tiles(), row = at % w.tiles() / w.columns, column = at % w.columns;
    const int64_t left = count - done;
    int64_t rows = 1, columns = std::min(w.columns - column, left);
    if (columns == w.columns) rows = std::min(left / columns, w.rows - row);
    fn(image, done, row, rows, column, columns);
    done += rows * columns;
  }
}

// Channels of tiles first..first+count to v.
template <int O>
void transform_input(const Plan& plan, const Operands& args, const Winograd<O>& w, int64_t first, int64_t count,
                     Range channels, float* v) {
  const Problem& p = plan.problem;
  const auto& leaf = Winograd<O>::leaf(plan.isa);
  WinogradInput t{};
  t.v_position = w.v_position, t.v_tile = w.v_tile;
  t.ic = p.ic, t.ih = p.ih, t.iw = p.iw, t.pt = p.pt, t.pl = p.pl;
  t.channel = channels.begin, t.channels = channels.end - channels.begin;
  if (t.channels <= 0) return;
  for_each_rectangle(w, first, count,
                     [&](int64_t image, int64_t offset, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                       t.src = args.src + image * p.ic * p.ih * p.iw;
                       t.v = v + offset * w.v_tile + t.channel;
                       t.row = row, t.rows = rows, t.column = column, t.columns = columns;
                       p.layout == Layout::nhwc ? leaf.input_pixels(&t) : leaf.input_planes(&t);
                     });
}

// Products and output transforms of the tiles first..first+count, which begin at v, and of some panels.
template <int O>
void multiply(const Plan& plan, const Operands& args, const Winograd<O>& w, int64_t first, int64_t count,
              const Range& panels, const float* v, float* m) {
  using W = Winograd<O>;
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const auto& leaf = W::leaf(plan.isa);
  const int64_t zero_offset = 0, block = p.ic * b.nr;
  const float* end = static_cast<const float*>(args.packed) + panels.end * W::kPositions * block;
  FetchList fetch(p.ic);
  GemmPanel g{};
  g.a_seg = &zero_offset;
  g.segs = 1, g.seg_k = p.ic;
  g.a_row = w.v_tile, g.a_k = 1;
  g.outer = 1, g.inner = count;
  g.c_row = W::m_tile(b.nr), g.c_col = 1;
  g.n = b.nr;
  g.first = g.last = 1;
  WinogradOutput t{};
  t.m = m, t.m_position = b.nr, t.m_tile = W::m_tile(b.nr);
  t.bias = p.bias ? args.bias : nullptr;
  t.oc = p.oc, t.oh = p.oh, t.ow = p.ow;
  t.relu = p.activation == Activation::relu;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t position = 0; position < W::kPositions; ++position) {
      g.a = v + position * w.v_position;
      g.b = static_cast<const float*>(args.packed) + (panel * W::kPositions + position) * block;
      fetch.clear();
      if (worth_fetching(plan) && g.b + block < end) fetch.add_spread(g.b + block, block, div_up(count, b.mr));
      fetch.give(g);
      g.c = m + position * t.m_position;
      gemm_of(plan).panel(&g);
    }
    t.channel = panel * b.nr, t.channels = std::min(b.nr, p.oc - t.channel);
    for_each_rectangle(w, first, count,
                       [&](int64_t image, int64_t offset, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                         const int64_t at = image * p.oc * p.oh * p.ow;
                         t.m = m + offset * t.m_tile;
                         t.dst = args.dst + at;
                         t.residual = p.residual ? args.residual + at : nullptr;
                         t.row = row, t.rows = rows, t.column = column, t.columns = columns;
                         p.layout == Layout::nhwc ? leaf.output_pixels(&t) : leaf.output_planes(&t);
                       });
  }
}

// How the threads divide the products, rows x columns = nthr: tiles into rows, panels into columns. With one column each
// thread does everything for tiles of its own. With more, V is common. The least estimated time, counted in products of the
// busiest thread and what it reads from far away (an element costs about eight products).
template <int O>
int columns_of(const Plan& plan, const Winograd<O>& w, int64_t total, int nthr) {
  constexpr double kReadCost = 8, kMeetingCost = 1e5;
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const double products = static_cast<double>(Winograd<O>::kPositions * total) * static_cast<double>(p.ic * p.oc);
  const double weights = static_cast<double>(plan.packed_bytes / 4);
  const double common = static_cast<double>(total * w.v_tile);
  int best_columns = 1;
  double best = -1;
  for (int columns = 1; columns <= nthr; ++columns) {
    if (nthr % columns) continue;
    const int rows = nthr / columns;
    const int64_t shared = columns == 1 ? div_up(total, rows) : total;  // tiles that go through a V, group by group
    const double groups = static_cast<double>(div_up(shared, b.mc));
    const double busiest = static_cast<double>(div_up(std::min(shared, b.mc), columns == 1 ? 1 : rows)) /
                           static_cast<double>(std::min(shared, b.mc)) * static_cast<double>(shared) /
                           static_cast<double>(total) * static_cast<double>(div_up(b.panels, columns)) /
                           static_cast<double>(b.panels);
    double cost = busiest * products + kReadCost * weights / columns * groups;
    if (columns > 1) cost += kReadCost * common / rows * (nthr - 1) / nthr + kMeetingCost * groups;
    if (best < 0 || cost < best) best = cost, best_columns = columns;
  }
  return best_columns;
}

template <int O>
void run(const Plan& plan, const Operands& args, Worker& worker) {
  using W = Winograd<O>;
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const W w(p);
  const int64_t total = p.n * w.tiles();
  const int columns = columns_of<O>(plan, w, total, worker.nthr), rows = worker.nthr / columns;
  const bool common = columns > 1;
  float* v = reinterpret_cast<float*>(common ? worker.common : worker.scratch);
  float* m = reinterpret_cast<float*>(worker.scratch) + b.mc * w.v_tile;
  const Range panels = common ? share(b.panels, worker.tid / rows, columns) : Range{0, b.panels};
  const Range mine = common ? Range{0, total} : share(total, worker.tid, worker.nthr);
  if (mine.begin == mine.end) return;
  // Groups of nearly equal size, whole register tiles where there are several.
  const int64_t count = mine.end - mine.begin, even = div_up(count, div_up(count, b.mc));
  const int64_t step = even == count ? count : std::min(b.mc, round_up(even, b.mr));
  Range channels{0, p.ic};
  if (common) {
    const Range slices = share(div_up(p.ic, kSlice), worker.tid, worker.nthr);
    channels = {slices.begin * kSlice, std::min(slices.end * kSlice, p.ic)};
  }
  for (int64_t at = mine.begin; at < mine.end; at += step) {
    const int64_t tiles = std::min(step, mine.end - at);
    if (common && at != mine.begin) worker.barrier->wait();  // the others have read the V before
    transform_input(plan, args, w, at, tiles, channels, v);
    if (common) worker.barrier->wait();
    const Range part = common ? share(tiles, worker.tid % rows, rows) : Range{0, tiles};
    if (part.begin == part.end) continue;
    multiply(plan, args, w, at + part.begin, part.end - part.begin, panels, v + part.begin * w.v_tile, m);
  }
}

template <int O>
bool prefers_not(const Problem& p, const Machine& machine) {
  const double direct = direct_cycles(p, machine);
  const double f23 = winograd_cycles(p, machine, 2), f43 = winograd_cycles(p, machine, 4);
  // F(4,3) has to be worth its error and its weights.
  return (O == 2 ? f23 : f43) > direct - std::max(0.1 * direct, kWorthwhileCycles) || (O == 4 && 0.85 * f23 < f43);
}

}  // namespace

extern const Algorithm conv_winograd_f23 = {
    Op::conv2d, "winograd_f23", "conv_winograd_f23",    "cpu",          refuses<2>, configure<2>,
    pack<2>,    run<2>,         leaves_of<GemmUkernel>, prefers_not<2>, true};
extern const Algorithm conv_winograd_f43 = {
    Op::conv2d, "winograd_f43", "conv_winograd_f43",    "cpu",          refuses<4>, configure<4>,
    pack<4>,    run<4>,         leaves_of<GemmUkernel>, prefers_not<4>, true};

}  // namespace fastconv
