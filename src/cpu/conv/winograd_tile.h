// The shape of F(O x O, 3 x 3) with a stride of S: how much a tile reads, and which transformed values meet which weights.
//
// Stride 1 (one dimension): O + 2 inputs, transformed to O + 2 values, each multiplied by weights of its own.
// Stride 2: y[i] = (w0 x[2i] + w2 x[2i+2]) + w1 x[2i+1]. The even inputs pass a filter of two taps by F(O, 2), O + 1
// products; the odd ones a filter of one tap, O products. Transformed by the inverse of O columns of F(O, 2)'s A', an odd
// input's product may be added to an even one's before the output transform: value O + 1 + k joins value k, k < O, as one
// longer sum over the channels. All odd values have the same weights w1.
//
// In two dimensions product (k, l) is the sum over 1, 2 or 4 segments of ic channels: rows k and, where it has one, k's
// partner, by columns likewise. V has kIn x kIn positions, M kProducts x kProducts, U kWeights x kWeights blocks, numbered in
// the order in which the products first need them, so that what a product needs first is one run.
// Ragged tiles: the image's last row and column of tiles, where they have at most kRest outputs in that direction, take F(kRest, 3) at some
// of the points of F(O, 3), so for some of the same weights: U is packed once, and a point's factor goes into the tile's own transforms.
//   F(4,3): two outputs at {0, +-q, infinity}, 4 products for 6, with about half the error. F(2,3): one at {0, 1, -1}, 3 for 4; with
//   stride 2 one at {0, 1}, 3 for 5: what whole tiles do for that output, so with the same bits (by the inner product but for a tile's scale).
// A tile that is ragged in one direction alone is whole in the other: 14 outputs take 3 * 6 + 4 = 22 products a side for 24, 7 take 15 for 16
// by F(2,3) and 18 for 20 with stride 2.
// Multiplies for an output, F(2,3) and F(4,3): 4 and 2.25 with stride 1, 6.25 and 5.06 with stride 2 (9 by definition).
#pragma once

#include <cstdint>

namespace fastconv {

template <int O, int S>
struct WinogradTile {
  static_assert(S == 1 || S == 2);
  static constexpr int kOut = O, kStride = S;
  static constexpr int kStep = O * S;                       // inputs between tiles
  static constexpr int kIn = S == 1 ? O + 2 : 2 * O + 1;    // a side of the input tile, and of V
  static constexpr int kProducts = S == 1 ? O + 2 : O + 1;  // a side of M
  static constexpr int kWeights = O + 2;                    // a side of U
  static constexpr int kPositions = kIn * kIn, kSums = kProducts * kProducts, kBlocks = kWeights * kWeights;
  // A tile with at most so many outputs is ragged.
  static constexpr int kRest = S == 1 ? O / 2 : (O == 2 ? 1 : 0);
  static constexpr int kRestIn = kRest > 0 ? (S == 1 ? kRest + 2 : 3) : 0;  // its values, of kIn
  static constexpr int kRestProducts = kRest > 0 ? (S == 1 ? kRest + 2 : 2) : 0;

  // Tiles of `outputs` in one direction that are not ragged.
  static constexpr int64_t whole(int64_t outputs) {
    const int64_t rest = outputs % O;
    return outputs / O + (rest > kRest ? 1 : 0);
  }
  // Values of V, and so products a pair of channels, and sums of M of an image's tiles.
  static constexpr double values(int64_t oh, int64_t ow) { return side(oh, kIn, kRestIn) * side(ow, kIn, kRestIn); }
  static constexpr double sums(int64_t oh, int64_t ow) {
    return side(oh, kProducts, kRestProducts) * side(ow, kProducts, kRestProducts);
  }

  struct Sum {
    int segs;
    int position[4];             // of V
    int block[4];                // of U
    int first, count;            // blocks that no sum before has needed
    bool rest_row, rest_column;  // tiles that are ragged in their rows or columns have it
  };
  struct Table {
    Sum sums[kSums];
    int block[kBlocks];  // number of the block at row * kWeights + column
  };

  static constexpr Table make() {
    Table t{};
    for (int& b : t.block) b = -1;
    int known = 0;
    for (int k = 0; k < kProducts; ++k) {
      for (int l = 0; l < kProducts; ++l) {
        Sum& sum = t.sums[k * kProducts + l];
        sum.first = known;
        for (int row : {k, partner(k)}) {
          for (int column : {l, partner(l)}) {
            if (row < 0 || column < 0) continue;
            int& block = t.block[weights_of(row) * kWeights + weights_of(column)];
            if (block < 0) block = known++;
            sum.position[sum.segs] = row * kIn + column;
            sum.block[sum.segs++] = block;
          }
        }
        sum.count = known - sum.first;
        sum.rest_row = in_rest(k), sum.rest_column = in_rest(l);
      }
    }
    return t;
  }

 private:
  static constexpr double side(int64_t outputs, int64_t of_whole, int64_t of_rest) {
    const int64_t tiles = (outputs + O - 1) / O, full = whole(outputs);
    return static_cast<double>(full * of_whole + (tiles - full) * of_rest);
  }
  static constexpr int partner(int k) { return S == 2 && k < O ? O + 1 + k : -1; }
  // F(4,3): 0, +-q, infinity; F(2,3): 0, 1, -1, with stride 2 0, 1.
  static constexpr bool in_rest(int k) { return O == 4 ? k == 0 || k >= 3 : (S == 1 ? k < 3 : k != 1); }
  static constexpr int weights_of(int value) { return value < kWeights ? value : kWeights - 1; }
};

}  // namespace fastconv
