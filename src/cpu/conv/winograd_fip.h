// What Winograd's products need where they are made by the inner product (winograd.cpp, fip.h): U and V in its order, with what is added before
// and the scales. W is a Winograd<O, S, true>.
#pragma once

#include "cpu/conv/fip.h"
#include "cpu/conv/winograd_parts.h"

namespace fastconv {
namespace {

// A panel of U to what the inner product wants. With stride 2 a sum may be of several blocks, and several sums share one: a column has one scale in all.
template <class W>
void order_weights(const W& w, int64_t ic, int64_t nr, float* panel) {
  constexpr bool kShared = W::kStride > 1;
  double squares[W::kBlocks][kMaxNr] = {}, taken[W::kBlocks][kMaxNr] = {};
  float scales[W::kBlocks][kMaxNr];
  float* const blocks = panel + w.heads;
  for (int64_t i = 0; i < W::kBlocks; ++i) add_fip_squares(blocks + i * w.block, ic, nr, squares[kShared ? 0 : i]);
  for (int64_t i = 0; i < W::kBlocks; ++i) {
    fip_scales(squares[kShared ? 0 : i], (kShared ? W::kBlocks : 1) * ic, nr, scales[i]);
    order_fip_weights(blocks + i * w.block, ic, nr, scales[i], taken[i]);
  }
  for (int64_t i = 0; i < W::kSums; ++i)
    for (int64_t j = 0; j < nr; ++j) {
      const auto& sum = W::kTable.sums[i];
      double all = 0;
      for (int s = 0; s < sum.segs; ++s) all += taken[sum.block[s]][j];
      panel[2 * i * nr + j] = static_cast<float>(-all), panel[(2 * i + 1) * nr + j] = scales[sum.block[0]][j];
    }
}

// For the inner product: what rows of V add to their sums before, [sum][tile], and the scales of tiles.
struct Heads {
  float *heads, *scales;
  int64_t tiles;  // from sum to sum
  Heads from(int64_t tile) const { return {heads + tile, scales + tile, tiles}; }
};

// Tiles mine of `count` from `first` on, which begin at v, in place to what the inner product wants. A tile's positions have one scale: a sixth of the
// error more than with one each. Those with smaller values lose no more than the larger ones beside them.
template <class W>
void order(const Plan& plan, const W& w, int64_t first, int64_t count, Range mine, float* v, const Heads& h) {
  const Kinds kinds = kinds_of(w, first, count);
  const int64_t ends[4] = {kinds.columns, kinds.columns + kinds.whole, kinds.columns + kinds.whole + kinds.rows, count};
  int64_t places[W::kPositions], sums[W::kPositions];
  float heads[W::kPositions];
  FipPixels t{};
  t.places = places, t.k = plan.problem.ic, t.heads = heads, t.together = 1;
  int kind = -1;
  for (int64_t tile = mine.begin; tile < mine.end; ++tile) {
    if (kind < 0 || tile >= ends[kind]) {
      while (kind < 0 || tile >= ends[kind]) ++kind;
      // A ragged tile lacks some sums, which are not asked for later.
      t.rows = 0;
      for (int i = 0; i < W::kSums; ++i) {
        const auto& sum = W::kTable.sums[i];
        if ((!sum.rest_column && (kind == 0 || kind == 3)) || (!sum.rest_row && kind >= 2)) continue;
        for (int s = 0; s < sum.segs; ++s) sums[t.rows] = i, places[t.rows++] = sum.position[s] * w.v_position;
      }
    }
    t.src = t.a = v + tile * w.v_tile, t.scales = h.scales + tile;
    fip_of(plan).order_rows(&t);
    for (int64_t i = 0; i < t.rows; ++i) {
      const int64_t at = sums[i] * h.tiles + tile;
      h.heads[at] = i > 0 && sums[i] == sums[i - 1] ? h.heads[at] + heads[i] : heads[i];
    }
  }
}

}  // namespace
}  // namespace fastconv
