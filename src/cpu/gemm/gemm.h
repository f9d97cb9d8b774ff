// Shared by the convolution algorithms that end in GemmPanel calls: blocking of the reduction, packing of weights,
// division of work.
#pragma once

#include <algorithm>

#include "common/algorithm.h"
#include "common/buffer.h"
#include "cpu/registry.h"

namespace fastconv {

inline const GemmUkernel& gemm_of(const Plan& plan) {
  return *static_cast<const GemmUkernel*>(plan.ukernel);
}

// Sets ukernel, tile numbers, panels, packed_bytes and pack_tag. The order of the reduction (blocking.channels_first)
// is set before.
void configure_gemm(Plan& plan, const Machine& machine);

// Packed: [group][panel][K][nr], K = kh*kw*icg in the order (r, s, c), or (c, r, s) with channels_first; columns past
// oc are zero.
void pack_gemm_weights(const Plan& plan, const float* wei, void* packed, Worker& worker);

// Rounds up to an odd number of cache lines.
inline int64_t odd_lines(int64_t elements) {
  const int64_t padded = round_up(elements, 16);
  return (padded / 16) % 2 ? padded : padded + 16;
}

// 1x1 that reads every pixel once: the image is a matrix already. (A stride without a second window has been set to 1.)
inline bool is_flat(const Problem& p) {
  return p.kh == 1 && p.kw == 1 && p.sh == 1 && p.sw == 1 && !p.padded() && p.oh == p.ih && p.ow == p.iw;
}

// What one reduction may need of scratch, in values, for a register tile: past this an algorithm refuses.
constexpr int64_t kMaxReduction = int64_t{1} << 20;
constexpr int64_t kMaxNr = 64;  // widest register tile that packing provides for

inline int64_t reduction(const Problem& p) {
  return p.kh * p.kw * p.icg();
}

// A thread's rectangle of work: output pixels (in units of the driver's choice) x panels of all groups. Which thread
// computes an output changes nothing about its value, so the split may depend on the number of threads and on n.
struct Rectangle {
  Range pixels, panels;
};
// Pixels are split where inputs weigh more than weights, panels where weights weigh more: each core then reads its own
// half of the larger operand.
Rectangle split_work(const Plan& plan, int64_t pixel_units, int64_t panel_count, const Worker& worker);

// Outputs, and the residual if there is one, are more than what the L2 may still hold of them when their turn comes.
inline bool results_are_far(const Problem& p, const Machine& machine) {
  return p.dst_elements() * (p.residual ? 2 : 1) * 4 > machine.l2_bytes / 2;
}

// Memory that will be wanted soon, cut into runs of one cache line a step of the reduction, one run a register tile
// (GemmPanel::fetch). A run may reach past what was asked for. What does not fit into the list is not fetched.
class FetchList {
 public:
  explicit FetchList(int64_t depth) : depth_(depth) {}
  void clear() { count_ = 0; }
  void add_lines(const float* at, int64_t elements) { add_spread(at, elements, 1); }
  // The same, spread evenly over `tiles` register tiles: a core has few misses in flight, and its own come first.
  // Sums may ask for two lines a step, those of the inner product for six.
  void add_spread(const float* at, int64_t elements, int64_t tiles, int64_t lines = 1) {
    const int64_t step = std::min(lines * kLine, div_up(elements, depth_ * tiles));
    for (int64_t i = 0; i < elements; i += depth_ * step) add({at + i, step});
  }
  // `rows` rows of some elements, `stride` apart: a run goes across the rows. Rows that do not begin with a line end in one that they share
  // with what follows: that one is asked for, and the first, which was the last of what came before, is not.
  void add_rows(const float* at, int64_t rows, int64_t stride, int64_t elements) {
    for (int64_t r = 0; r < rows; r += depth_)
      for (int64_t i = 0; i < elements; i += kLine) add({at + r * stride + std::min(i + kLine, elements) - 1, stride});
  }
  // One of several equal parts; at once, or spread evenly over `tiles` register tiles.
  void add_part(const FetchList& all, int64_t part, int64_t parts, int64_t tiles = 0) {
    const Range mine = share(all.count_, part, parts);
    const int64_t runs = mine.end - mine.begin, slots = std::max(runs, tiles);
    int64_t owed = 0;
    for (int64_t i = mine.begin; i < mine.end;) {
      owed += runs;
      add(owed >= slots ? all.runs_[i++] : GemmFetch{all.runs_[i].at, 0});
      if (owed >= slots) owed -= slots;
    }
  }
  int64_t count() const { return count_; }
  template <class Panel>
  void give(Panel& p) const {
    p.fetch = runs_, p.fetches = count_;
  }

 private:
  static constexpr int64_t kLine = 16, kMax = 256;
  void add(GemmFetch run) {
    if (count_ < kMax) runs_[count_++] = run;
  }
  const int64_t depth_;
  int64_t count_ = 0;
  GemmFetch runs_[kMax];
};

// Everything of a panel call but the pixels and what to fetch: weights of panel `unit` (counted over all groups), bias, and where
// the results go. `pixel`: offset in dst of the first pixel, first channel.
void set_panel(GemmPanel& g, const Plan& plan, const Operands& args, int64_t unit, int64_t pixel);

// Packed weights past this will not all lie in the L2 when their turn comes, behind those of the layers before: the next ones are fetched
// meanwhile.
inline bool worth_fetching(const Plan& plan) {
  constexpr int64_t kBytes = 1 << 15;
  return plan.packed_bytes > kBytes;
}

// Adds the weights of the panel after `unit`, where there is one in `mine`, the panels that this thread walks, and where
// they are worth it. `tiles`: register tiles of a panel.
void fetch_next_panel(FetchList& list, const Plan& plan, const Operands& args, const Range& mine, int64_t unit,
                      int64_t tiles);

// Register tiles that a panel call makes of `outer` rows of `inner` pixels.
inline int64_t register_tiles(int64_t outer, int64_t inner, int64_t mr) {
  return 2 * inner <= mr ? div_up(outer, 2) : outer * div_up(inner, mr);
}

// Distance between register tiles [K][mr] that lie one after the other: an odd number of cache lines, so that they spread
// over the cache sets.
int64_t tile_stride(const Plan& plan);

// One panel over pixels that form one row: `whole` register tiles, tile_stride apart (NCHW), then `rest` pixels. A row in
// place (NHWC) is all rest. Uses up g's fetches.
void run_tiles(const Plan& plan, GemmPanel& g, int64_t whole, int64_t rest);

}  // namespace fastconv
