#include "cpu/gemm/gemm.h"

#include <algorithm>
#include <cstring>

namespace fastconv {

void configure_gemm(Plan& plan, const Machine& machine) {
  const GemmUkernel& k = take_leaf<GemmUkernel>(plan, machine);
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  b.mr = k.mr;
  b.nr = k.nr;
  b.panels = div_up(p.ocg(), b.nr);
  b.expect = results_are_far(p, machine);
  plan.packed_bytes = p.groups * b.panels * reduction(p) * b.nr * 4;
  plan.pack_tag = std::string("gemm n") + std::to_string(b.nr) + (b.channels_first ? " crs" : " rsc");
}

void pack_gemm_weights(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const MoveUkernel& move = *find_ukernel<MoveUkernel>(plan.isa);
  const int64_t icg = p.icg(), ocg = p.ocg(), taps = p.kh * p.kw, depth = reduction(p), nr = b.nr;
  const Range mine = share(p.groups * b.panels, worker.tid, worker.nthr);
  // In memory a row of the caller's weights runs over (c, tap) or (tap, c); packed rows run over the other order where
  // they differ.
  const bool source_taps_inner = p.weight_layout == WeightLayout::oihw;
  constexpr int64_t kChunk = 64;
  alignas(64) float rows[kChunk * kMaxNr];
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const int64_t group = unit / b.panels, first = unit % b.panels * nr, cols = std::min(nr, ocg - first);
    float* out = static_cast<float*>(packed) + unit * depth * nr;
    // Packed row of the k-th product in the caller's order.
    const auto packed_row = [&](int64_t k) {
      if (source_taps_inner == b.channels_first) return k;  // both (c, tap) or both (tap, c)
      return source_taps_inner ? (k % taps) * icg + k / taps : (k % icg) * taps + k / icg;
    };
    if (p.weight_layout == WeightLayout::hwio) {
      const float* src = wei + group * ocg + first;
      for (int64_t k = 0; k < depth; ++k) {
        float* row = out + packed_row(k) * nr;
        std::memcpy(row, src + k * p.oc, cols * sizeof(float));
        std::fill(row + cols, row + nr, 0.0f);
      }
      continue;
    }
    const float* src = wei + (group * ocg + first) * depth;
    for (int64_t k = 0; k < depth; k += kChunk) {
      const int64_t count = std::min(kChunk, depth - k);
      if (cols < nr) std::fill(rows, rows + count * nr, 0.0f);
      move.transpose(src + k, depth, rows, nr, cols, count);
      for (int64_t j = 0; j < count; ++j) std::memcpy(out + packed_row(k + j) * nr, rows + j * nr, nr * sizeof(float));
    }
  }
}

Rectangle split_work(const Plan& plan, int64_t pixel_units, int64_t panel_count, const Worker& worker) {
  const Problem& p = plan.problem;
  const double weights = static_cast<double>(p.weight_elements());
  const double activations = static_cast<double>(p.src_elements() + p.dst_elements() * (p.residual ? 2 : 1));
  // Of all factorings nthr = rows x columns: the least estimated time, counted in products of the busiest thread plus
  // what it moves. A weight costs about as much as eight products, and an activation half as much again: weights can be
  // fetched ahead, while another core has just written, or will read, what this one does not keep to itself.
  constexpr double kWeightCost = 8, kActivationCost = 12;
  int best_columns = 1;
  double best = -1;
  for (int columns = 1; columns <= worker.nthr; ++columns) {
    if (worker.nthr % columns) continue;
    const int rows = worker.nthr / columns;
    const double busiest = static_cast<double>(div_up(pixel_units, rows)) / static_cast<double>(pixel_units) *
                           static_cast<double>(div_up(panel_count, columns)) / static_cast<double>(panel_count);
    const double cost = busiest * p.macs() + kWeightCost * weights / columns + kActivationCost * activations / rows;
    if (best < 0 || cost < best) best = cost, best_columns = columns;
  }
  const int rows = worker.nthr / best_columns;
  return {share(pixel_units, worker.tid % rows, rows), share(panel_count, worker.tid / rows, best_columns)};
}

void fetch_next_panel(FetchList& list, const Plan& plan, const Operands& args, const Range& mine, int64_t unit,
                      int64_t tiles) {
  const int64_t size = reduction(plan.problem) * plan.blocking.nr;
  if (unit + 1 < mine.end && worth_fetching(plan))
    list.add_spread(static_cast<const float*>(args.packed) + (unit + 1) * size, size, tiles);
}

void set_panel(GemmPanel& g, const Plan& plan, const Operands& args, int64_t unit, int64_t pixel) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const bool nhwc = p.layout == Layout::nhwc;
  const int64_t plane = args.dst_plane_of(p), panel_size = reduction(p) * b.nr;
  const int64_t group = unit / b.panels, first = unit % b.panels * b.nr, channel = group * p.ocg() + first;
  g.b = static_cast<const float*>(args.packed) + unit * panel_size;
  const int64_t at = pixel + channel * (nhwc ? 1 : plane);
  g.c = args.dst + at;
  g.residual = p.residual ? args.residual + at : nullptr;
  g.bias = p.bias ? args.bias + channel : nullptr;
  g.c_row = nhwc ? p.oc : 1;
  g.c_col = nhwc ? 1 : plane;
  g.c_outer = p.ow * g.c_row;
  g.n = std::min(b.nr, p.ocg() - first);
  g.partial = nullptr;
  g.first = g.last = 1;
  g.relu = p.activation == Activation::relu;
  g.expect = b.expect && !(nhwc && b.ahead);
}

int64_t tile_stride(const Plan& plan) {
  return odd_lines(plan.blocking.mr * reduction(plan.problem));
}

void run_tiles(const Plan& plan, GemmPanel& g, int64_t whole, int64_t rest) {
  const int64_t mr = plan.blocking.mr;
  if (whole) {
    g.outer = whole;
    g.inner = mr;
    g.a_outer = tile_stride(plan);
    g.c_outer = mr * g.c_row;
    gemm_of(plan).panel(&g);
    g.a += whole * g.a_outer;
    g.c += whole * g.c_outer;
    if (g.residual) g.residual += whole * g.c_outer;
    g.fetches = 0;
  }
  if (rest) {
    g.outer = 1;
    g.inner = rest;
    gemm_of(plan).panel(&g);
  }
}

}  // namespace fastconv
