// Winograd convolution, 3x3: F(2x2, 3x3) and F(4x4, 3x3), stride 1 and 2. With the output cut into tiles of o x o pixels, and
// tiles of the input of t x t pixels:   dst[tile] = act(A' [sum_c (G wei[oc,c] G') * (B' src[tile,c] B)] A + bias + residual)
// The sum over channels is a matrix product a position of the tile: V[tiles, ic] by U[ic, oc]; with stride 2 up to four of
// them are one product, of 4 ic terms (winograd_tile.h). Transforms: winograd_body.h. Products: the GEMM leaf, or that of the
// inner product (fip.cpp), for which V is put in order in place, and U when it is packed (winograd_fip.h).
// Operands: packed U [panel][block][ic][nr], transformed in float64 and rounded once, zero-padded channels.
// Scratch: V [tile][position][ic] and M [tile][position][nr], tiles an odd number of cache lines apart, so that they spread
// over the cache sets: transforms walk through memory in order, products read and write a row a tile. Positions of V that would lie a
// multiple of 512 bytes apart have a line between them: a tile's are stored at once.
// Blocking: a group of blocking.mc tiles stays in the L2 from input transform to output transform; panels outside,
// positions inside, so that U is read in order, M is one panel wide and V is read from the L2.
// Ragged tiles (winograd_tile.h) lack some of the products. The tiles of a group are sorted by kind, so that each product is of one run of
// rows of V and M; places that a tile does not need are never written. A part that is multiplied together is sorted by itself.
// Threads: tiles are shared out where there are many. Where weights outweigh them, all threads transform channels of
// one common V, meet (and again where they put tiles of it in order), and multiply by panels of their own (columns_of).
// Numerics: a tile's sequence of operations is the same wherever it lies; one sequential sum over ic a position.
// Measured (2-core Granite-Rapids-class Xeon, AVX-512, two threads, in ResNet-50 at batch 1, NHWC, rough), us a layer, direct /
// F(4,3) / F(2,3): 56x56x64 565 / 230 / 350, 28x28x128 569 / 245 / 318, 14x14x256 590 / 460 / 357, 7x7x512 810 / 1350 / 725.
// One thread, 56x56x64: input transform 17 %, output transform 10 %, products 72 % of the time; 14x14x256: 5, 4, 90 %.
// Stride 2 (two cores of a Zen 5, two threads, NHWC, lone layers, of direct's time at batch 1 / 16): 56x56x128 F(4,3) 0.74 / 0.71, 28x28x256
// F(2,3) 0.78 / 0.82, 56x56x64 to 128 F(4,3) 0.71 / 0.47 to 0.64.
// Ragged tiles (Zen 5, in ResNet-50, NHWC, of the time with whole ones, one thread / two / batch 16 on two): 14x14x256 0.88 / 0.97 / 0.87,
// 7x7x512 0.94 / 1 / 0.9; with stride 2 to 7x7x512 0.85 / 0.91 / 0.89 of direct.
// One thread of the Zen 5, 56x56x64, of the products at the FMA peak (249 us): input transform 0.12, products 1.05, output transform 0.09; before
// the transforms kept values in registers and the products had ends of their own 0.14, 1.11, 0.13.
// By the inner product (winograd_f23_fip, winograd_f43_fip; two cores of a Zen 4, lone layers whose weights stay in the L3, of the time without, one
// thread / two): 56x56x64 0.94 / 1, 28x28x128 0.84 / 0.83, 14x14x256 0.78 / 0.83, 7x7x512 0.77 / 0.76; in ResNet-50 at batch 1, where the last two wait
// for their weights, 0.95 / 1 and 0.90 / 0.99; with stride 2 0.80 to 0.89. Errors 1.1 to 1.2 times, on sparse pictures 1.7 to 2.5 times as large.
// Tried: V [position][tile][ic], 5 to 8 % slower at 28x28 and 14x14; groups of 14, 42 and 56 tiles, as good at one shape and
// up to a third slower at another. Stride 2: positions outside, panels inside, M of all channels: the same within 2 %. Weights packed as
// 9 taps and transformed right before their products: docs/performance.md.
// Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cpu/conv/winograd.h"
#include "cpu/conv/winograd_fip.h"
#include "cpu/conv/winograd_tile.h"
#include "cpu/gemm/gemm.h"
#include "cpu/parallel.h"

namespace fastconv {
namespace {

constexpr int64_t kMaxScratchBytes = 64 << 20;
constexpr double kWorthwhileCycles = 50000;  // an image: below this, exact small integers are worth more
constexpr int64_t kSlice = 16;               // channels, one cache line: what threads share out of a common V

// Sizes and leaves of F(O x O, 3 x 3) with a stride of S for one problem; Fip: products by the inner product.
template <int O, int S, bool Fip>
struct Winograd : WinogradTile<O, S> {
  using Tile = WinogradTile<O, S>;
  using Tile::kBlocks, Tile::kOut, Tile::kPositions, Tile::kSums;
  static constexpr typename Tile::Table kTable = Tile::make();
  static constexpr bool kFip = Fip;
  static constexpr int kLines = Fip ? 6 : 2;  // that products ask for in a step

  Winograd(const Problem& p, int64_t nr)
      : steps(fip_steps(p.ic)),
        rows(div_up(p.oh, kOut)),
        columns(div_up(p.ow, kOut)),
        whole_rows(Tile::whole(p.oh)),
        whole_columns(Tile::whole(p.ow)),
        v_position(position_stride(kFip ? fip_row(p.ic) : p.ic)),
        v_tile(odd_lines(kPositions * v_position)),
        m_tile(odd_lines(kSums * nr)),
        block(kFip ? kFipRuns * steps * nr : p.ic * nr),
        heads(kFip ? kSums * 2 * nr : 0),
        panel(heads + kBlocks * block) {}
  explicit Winograd(const Plan& plan) : Winograd(plan.problem, plan.blocking.nr) {}
  static const WinogradUkernel::Transforms& leaf(Isa isa) {
    const WinogradUkernel& k = *find_ukernel<WinogradUkernel>(isa);
    if constexpr (S == 1) {
      return O == 2 ? k.f23 : k.f43;
    } else {
      return O == 2 ? k.f23_stride2 : k.f43_stride2;
    }
  }
  int64_t tiles() const { return rows * columns; }  // of one image
  // What an image's tiles use of `whole` values each, on average.
  int64_t used(double values, int of_whole, int64_t whole) const {
    return static_cast<int64_t>(values / static_cast<double>(tiles() * of_whole) * static_cast<double>(whole));
  }
  // A tile's positions are written together: not so far apart that they meet in a few sets of the L1 (512 bytes and multiples).
  static int64_t position_stride(int64_t ic) {
    return round_up(ic, 128) == round_up(ic, 16) ? odd_lines(ic) : round_up(ic, 16);
  }

  int64_t steps;  // of a product by the inner product
  int64_t rows, columns;
  int64_t whole_rows, whole_columns;
  int64_t v_position, v_tile, m_tile;
  int64_t block;         // weights of a panel: one position of U
  int64_t heads, panel;  // what the inner product wants of its columns, a sum each, before them; all of it
};

template <class W>
const char* refuses(const Problem& p, const Machine&) {
  if (p.kh != 3 || p.kw != 3) return "the kernel is not 3x3";
  // A stride without a second window has been set to 1: with one row or column of outputs any will do.
  if ((p.sh != W::kStride && p.oh > 1) || (p.sw != W::kStride && p.ow > 1))
    return W::kStride == 1 ? "the stride is not 1" : "the stride is not 2";
  if (p.dh != 1 || p.dw != 1) return "the dilation is not 1";
  if (p.groups != 1) return "the channels are grouped";
  if (W::kPositions * kMaxNr * odd_lines(p.ic) * 4 > kMaxScratchBytes)
    return "a register tile's transformed input exceeds 64 MiB of scratch";
  return nullptr;
}

template <class W>
void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  b.segs = W::kPositions;
  b.seg_k = p.ic;
  b.row_unit = W::kOut;
  if constexpr (W::kFip) {
    const FipUkernel& k = take_leaf<FipUkernel>(plan, machine);
    b.mr = k.mr, b.nr = k.nr;
    b.panels = div_up(p.oc, b.nr);
  } else {
    configure_gemm(plan, machine);
  }
  if (find_ukernel<WinogradUkernel>(plan.isa)->nr != b.nr)
    throw std::logic_error("Winograd's transforms and products differ in the channels of a panel");
  const W w(plan);
  plan.packed_bytes = b.panels * w.panel * 4;
  plan.pack_tag = "winograd f" + std::to_string(W::kOut) + "3 n" + std::to_string(b.nr) + " ic" + std::to_string(p.ic);
  if (W::kFip) plan.pack_tag += " fip";
  if (W::kStride > 1) plan.pack_tag += " stride" + std::to_string(W::kStride);
  b.mc = tiles_of_a_group(w.used(W::values(p.oh, p.ow), W::kPositions, w.v_tile),
                          w.used(W::sums(p.oh, p.ow), W::kSums, w.m_tile), b.mr, machine.l2_bytes);
  // A small problem needs no more scratch than it has tiles.
  if (static_cast<double>(p.n) * static_cast<double>(w.tiles()) < static_cast<double>(b.mc))
    b.mc = std::max<int64_t>(1, p.n * w.tiles());
  plan.scratch_bytes = 4 * b.mc * (w.v_tile + w.m_tile + (W::kFip ? W::kSums + 1 : 0));
}

template <class W>
void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const W w(plan);
  const auto transform = W::leaf(plan.isa).weights;
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  constexpr int64_t kTaps = 9, kChunk = 16;  // input channels at a time
  const int64_t nr = b.nr, chunks = div_up(p.ic, kChunk);
  const bool taps_inner = p.weight_layout == WeightLayout::oihw;
  int64_t at[W::kBlocks];
  for (int i = 0; i < W::kBlocks; ++i) at[i] = W::kTable.block[i] * w.block;
  alignas(64) float rows[kChunk * kTaps * kMaxNr];  // kernels side by side: (c, tap) or (tap, c) by oc
  const Range panels = share(b.panels, worker.tid, worker.nthr),
              all = share(b.panels * chunks, worker.tid, worker.nthr);
  // Whole panels, where they are put in order behind.
  const Range mine = W::kFip ? Range{panels.begin * chunks, panels.end * chunks} : all;
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
    float* out = static_cast<float*>(packed) + panel * w.panel + w.heads + c0 * nr;
    for (int64_t c = 0; c < channels; ++c)
      transform(rows + c * nr * (taps_inner ? kTaps : 1), nr * (taps_inner ? 1 : kChunk), out + c * nr, at, nr);
    if (W::kFip && unit % chunks == chunks - 1)
      order_weights(w, p.ic, nr, static_cast<float*>(packed) + panel * w.panel);
  }
}

// Channels of tiles first..first+count to v.
template <class W>
void transform_input(const Plan& plan, const Operands& args, const W& w, int64_t first, int64_t count, Range channels,
                     float* v) {
  const Problem& p = plan.problem;
  const auto& leaf = W::leaf(plan.isa);
  WinogradInput t{};
  t.v_position = w.v_position, t.v_tile = w.v_tile;
  t.ic = p.ic, t.ih = p.ih, t.iw = p.iw, t.pt = p.pt, t.pl = p.pl;
  // With stride 2 the last row may belong to no window: a value there changes nothing, and bands of rows have the same bits.
  t.y_end = std::min(p.ih, (p.oh - 1) * p.sh - p.pt + p.kh);
  t.x_end = std::min(p.iw, (p.ow - 1) * p.sw - p.pl + p.kw);
  t.channel = channels.begin, t.channels = channels.end - channels.begin;
  if (t.channels <= 0) return;
  t.whole_rows = w.whole_rows, t.whole_columns = w.whole_columns;
  for_each_part(w, first, count,
                [&](int64_t image, const int64_t* at, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                  t.src = args.src + image * p.ic * p.ih * p.iw;
                  for (int k = 0; k < 4; ++k) t.v[k] = v + at[k] * w.v_tile + t.channel;
                  t.row = row, t.rows = rows, t.column = column, t.columns = columns;
                  p.layout == Layout::nhwc ? leaf.input_pixels(&t) : leaf.input_planes(&t);
                });
}

// A run of memory that the next group of tiles will read.
struct Soon {
  const float* begin = nullptr;
  int64_t elements = 0;
};

// NHWC: the input that tiles first..first+count of the batch read and the ones before them did not. None where first is 0.
template <class W>
Soon input_of(const Plan& plan, const Operands& args, const W& w, int64_t first, int64_t count) {
  const Problem& p = plan.problem;
  if (p.layout != Layout::nhwc || first == 0) return {};
  const auto end = [&](int64_t tile) {
    const int64_t row = tile % w.tiles() / w.columns * W::kStep - p.pt + W::kIn;
    return (tile / w.tiles() * p.ih + std::clamp<int64_t>(row, 0, p.ih)) * p.iw * p.ic;
  };
  const int64_t begin = end(first - 1);
  return {args.src + begin, end(first + count - 1) - begin};
}

// Products and output transforms of the tiles first..first+count, which begin at v, and of some panels. Meanwhile `soon` is
// fetched, or if that is nothing, weights.
template <class W>
void multiply(const Plan& plan, const Operands& args, const W& w, int64_t first, int64_t count, const Range& panels,
              const float* v, const Heads& h, float* m, const Soon& soon) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const auto& leaf = W::leaf(plan.isa);
  const float* weights = static_cast<const float*>(args.packed) + panels.begin * w.panel + w.heads;
  const float* end = weights + (panels.end - panels.begin) * w.panel;
  const int64_t steps = (panels.end - panels.begin) * W::kPositions;
  const Kinds kinds = kinds_of(w, first, count);
  int64_t a_seg[4], b_seg[4], step = 0;
  GemmPanel g{};
  g.a_seg = a_seg, g.a_row = w.v_tile, g.a_k = 1;
  g.seg_k = p.ic;
  g.outer = 1;
  g.c_row = w.m_tile, g.c_col = 1;
  g.n = b.nr;
  g.first = g.last = 1;
  FipPanel f{};
  f.a_row = w.v_tile, f.steps = w.steps;
  f.c_row = w.m_tile, f.c_col = 1;
  f.n = b.nr;
  WinogradOutput t{};
  t.m_tile = w.m_tile;
  t.whole_rows = w.whole_rows, t.whole_columns = w.whole_columns;
  t.bias = p.bias ? args.bias : nullptr;
  t.oc = p.oc, t.oh = p.oh, t.ow = p.ow;
  t.relu = p.activation == Activation::relu;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel, weights += w.panel) {
    float* c = m;
    for (const auto& sum : W::kTable.sums) {
      const Range tiles = kinds.having(sum);
      const int64_t register_tiles = div_up(tiles.end - tiles.begin, b.mr);
      g.a = v + tiles.begin * w.v_tile, g.c = c + tiles.begin * w.m_tile, g.inner = tiles.end - tiles.begin;
      g.segs = sum.segs;
      for (int s = 0; s < sum.segs; ++s) a_seg[s] = sum.position[s] * w.v_position, b_seg[s] = sum.block[s] * w.block;
      g.b = weights + (sum.segs == 1 ? b_seg[0] : 0);
      g.b_seg = sum.segs == 1 ? nullptr : b_seg;
      FetchList fetch(sum.segs * (W::kFip ? w.steps : p.ic));
      const int64_t next = sum.first + sum.count;
      if (register_tiles && soon.elements) {
        const int64_t from = soon.elements * step / steps, to = soon.elements * (step + sum.segs) / steps;
        fetch.add_spread(soon.begin + from, to - from, register_tiles, W::kLines);
      } else if (register_tiles && worth_fetching(plan) && (next < W::kBlocks || weights + w.panel < end)) {
        const auto& after = next < W::kBlocks ? (&sum)[1] : W::kTable.sums[0];
        fetch.add_spread(weights + (next < W::kBlocks ? next * w.block : w.panel - w.heads),
                         after.count * w.block + (next < W::kBlocks ? 0 : w.heads), register_tiles, W::kLines);
      }
      step += sum.segs;
      if (W::kFip && register_tiles) {
        const int64_t number = &sum - W::kTable.sums, at = number * h.tiles + tiles.begin;
        f.a = g.a, f.b = weights, f.c = g.c;
        f.segs = sum.segs, f.a_seg = a_seg, f.b_seg = b_seg;
        f.columns = weights - w.heads + 2 * number * b.nr;
        f.heads = h.heads + at, f.scales = h.scales + tiles.begin;
        f.count = g.inner, f.last = register_tiles;
        fetch.give(f);
        fip_of(plan).sums(&f);
      } else if (register_tiles) {
        fetch.give(g);
        gemm_of(plan).sums(&g);
      }
      c += b.nr;
    }
    t.channel = panel * b.nr, t.channels = std::min(b.nr, p.oc - t.channel);
    for_each_part(w, first, count,
                  [&](int64_t image, const int64_t* at, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                    const int64_t start = image * p.oc * p.oh * p.ow;
                    for (int k = 0; k < 4; ++k) t.m[k] = m + at[k] * w.m_tile;
                    t.dst = args.dst + start;
                    t.residual = p.residual ? args.residual + start : nullptr;
                    t.row = row, t.rows = rows, t.column = column, t.columns = columns;
                    p.layout == Layout::nhwc ? leaf.output_pixels(&t) : leaf.output_planes(&t);
                  });
  }
}

// How the threads divide the products, rows x columns = nthr: tiles into rows, panels into columns. With one column each
// thread does everything for tiles of its own. With more, V is common. The least estimated time, counted in products of the
// busiest thread and what it reads from far away (an element costs about eight products).
template <class W>
int columns_of(const Plan& plan, const W& w, int64_t total, int nthr) {
  constexpr double kReadCost = 8, kMeetingCost = 1e5;
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const double products = static_cast<double>(p.n) * W::values(p.oh, p.ow) * static_cast<double>(p.ic * p.oc);
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

template <class W>
void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const W w(plan);
  const int64_t total = p.n * w.tiles();
  const int columns = columns_of(plan, w, total, worker.nthr), rows = worker.nthr / columns;
  const bool common = columns > 1;
  float* v = reinterpret_cast<float*>(common ? worker.common : worker.scratch);
  float* m = reinterpret_cast<float*>(worker.scratch) + b.mc * w.v_tile;
  float* heads = v + b.mc * (w.v_tile + w.m_tile);
  const Heads h{heads, heads + W::kSums * b.mc, b.mc};
  const Range panels = common ? share(b.panels, worker.tid / rows, columns) : Range{0, b.panels};
  const Range mine = common ? Range{0, total} : share(total, worker.tid, worker.nthr);
  if (mine.begin == mine.end) return;
  // Groups of nearly equal size; whole register tiles where there are several and they have room, or where they are hardly fewer.
  const int64_t count = mine.end - mine.begin, even = div_up(count, div_up(count, b.mc));
  const int64_t more = round_up(even, b.mr), fewer = b.mc / b.mr * b.mr;
  const int64_t step = even == count ? even : more <= b.mc ? more : 10 * fewer >= 9 * even ? fewer : even;
  Range channels{0, p.ic};
  if (common) {
    const Range slices = share(div_up(p.ic, kSlice), worker.tid, worker.nthr);
    channels = {slices.begin * kSlice, std::min(slices.end * kSlice, p.ic)};
  }
  for (int64_t at = mine.begin; at < mine.end; at += step) {
    const int64_t tiles = std::min(step, mine.end - at);
    if (common && at != mine.begin) worker.barrier->wait();  // the others have read the V before
    // The tiles that are multiplied together lie in an order of their own.
    for (int r = 0; r < (common ? rows : 1); ++r) {
      const Range part = common ? share(tiles, r, rows) : Range{0, tiles};
      transform_input(plan, args, w, at + part.begin, part.end - part.begin, channels, v + part.begin * w.v_tile);
    }
    if (common) worker.barrier->wait();
    if constexpr (W::kFip) {
      for (int r = 0; r < (common ? rows : 1); ++r) {
        const Range part = common ? share(tiles, r, rows) : Range{0, tiles};
        const int64_t count = part.end - part.begin;
        const Range own = common ? share(count, worker.tid, worker.nthr) : Range{0, count};
        order(plan, w, at + part.begin, count, own, v + part.begin * w.v_tile, h.from(part.begin));
      }
      if (common) worker.barrier->wait();
    }
    const Range part = common ? share(tiles, worker.tid % rows, rows) : Range{0, tiles};
    if (part.begin == part.end) continue;
    // The first group meets weights that lie far away; those after it find them nearer, and the input far away.
    const Soon soon = common || at == mine.begin
                          ? Soon{}
                          : input_of(plan, args, w, at + tiles, std::min(step, mine.end - at - tiles));
    multiply(plan, args, w, at + part.begin, part.end - part.begin, panels, v + part.begin * w.v_tile,
             h.from(part.begin), m, soon);
  }
}

template <class W>
bool prefers_not(const Problem& p, const Machine& machine) {
  if (W::kFip != adds_beside(machine)) return true;
  constexpr double kAgainstDirect = W::kStride == 1 ? kStreamed : kStreamedStride2;
  const double direct = direct_cycles(p, machine, kAgainstDirect);
  if (winograd_cycles<W::kOut, W::kStride>(p, machine, kAgainstDirect) >
      direct - std::max(0.1 * direct, kWorthwhileCycles))
    return true;
  double f23 = winograd_cycles<2, W::kStride>(p, machine, kStreamed);
  double f43 = winograd_cycles<4, W::kStride>(p, machine, kStreamed);
  if constexpr (W::kStride == 1)
    f23 += weights_again_cycles<2, 1>(p, machine), f43 += weights_again_cycles<4, 1>(p, machine);
  // F(4,3) has to be worth its error and its weights, of which it has 9/4 times as many.
  constexpr double kWorthwhileShare = W::kStride == 1 ? 0.98 : 0.92;
  return W::kOut == 4 && kWorthwhileShare * f23 < f43;
}

template <class W>
constexpr Algorithm algorithm(const char* name, const char* kernel) {
  return {Op::conv2d,     name,       kernel,
          "cpu",          refuses<W>, configure<W>,
          pack<W>,        run<W>,     W::kFip ? leaves_of<FipUkernel> : leaves_of<GemmUkernel>,
          prefers_not<W>, true};
}

}  // namespace

extern const Algorithm conv_winograd_f23 = algorithm<Winograd<2, 1, false>>("winograd_f23", "conv_winograd_f23");
extern const Algorithm conv_winograd_f43 = algorithm<Winograd<4, 1, false>>("winograd_f43", "conv_winograd_f43");
extern const Algorithm conv_winograd_f23_stride2 =
    algorithm<Winograd<2, 2, false>>("winograd_f23", "conv_winograd_f23_stride2");
extern const Algorithm conv_winograd_f43_stride2 =
    algorithm<Winograd<4, 2, false>>("winograd_f43", "conv_winograd_f43_stride2");
extern const Algorithm conv_winograd_f23_fip =
    algorithm<Winograd<2, 1, true>>("winograd_f23_fip", "conv_winograd_f23_fip");
extern const Algorithm conv_winograd_f43_fip =
    algorithm<Winograd<4, 1, true>>("winograd_f43_fip", "conv_winograd_f43_fip");
extern const Algorithm conv_winograd_f23_fip_stride2 =
    algorithm<Winograd<2, 2, true>>("winograd_f23_fip", "conv_winograd_f23_fip_stride2");
extern const Algorithm conv_winograd_f43_fip_stride2 =
    algorithm<Winograd<4, 2, true>>("winograd_f43_fip", "conv_winograd_f43_fip_stride2");

}  // namespace fastconv
