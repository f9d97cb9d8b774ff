// Shared by the convolution algorithms that end in GemmPanel calls: blocking of the reduction, packing of weights,
// division of work.
#pragma once

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
inline const float* packed_panel(const Plan& plan, const void* packed, int64_t group, int64_t panel) {
  return static_cast<const float*>(packed) +
         (group * plan.blocking.panels + panel) * reduction(plan.problem) * plan.blocking.nr;
}

// The panel that this thread walks after panel `unit`, where weights are large enough that it will not lie in the L2
// already; else null.
const float* next_panel(const Plan& plan, const float* panel, int64_t unit, const Range& mine);

// A thread's rectangle of work: output pixels (in units of the driver's choice) x panels of all groups. Which thread
// computes an output changes nothing about its value, so the split may depend on the number of threads and on n.
struct Rectangle {
  Range pixels, panels;
};
// Pixels are split where inputs weigh more than weights, panels where weights weigh more: each core then reads its own
// half of the larger operand.
Rectangle split_work(const Plan& plan, int64_t pixel_units, int64_t panel_count, const Worker& worker);

// Epilogue fields of one panel call, and c/residual pointing at the panel's first channel. `c_offset`: first pixel,
// first channel 0.
struct PanelTarget {
  int64_t c_offset = 0;
  int64_t oc_begin = 0;  // first output channel of the panel, all groups counted
  int64_t n = 0;
};
void set_epilogue(GemmPanel& g, const Problem& p, const Operands& args, const PanelTarget& target);

// Distance between register tiles [K][mr] that lie one after the other: an odd number of cache lines, so that they spread
// over the cache sets.
int64_t tile_stride(const Plan& plan);

// One panel over pixels that form one row: `whole` register tiles, tile_stride apart (NCHW), then `rest` pixels. A row in
// place (NHWC) is all rest.
void run_tiles(const Plan& plan, GemmPanel& g, int64_t whole, int64_t rest);

}  // namespace fastconv
