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

  struct Sum {
    int segs;
    int position[4];   // of V
    int block[4];      // of U
    int first, count;  // blocks that no sum before has needed
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
      }
    }
    return t;
  }

 private:
  static constexpr int partner(int k) { return S == 2 && k < O ? O + 1 + k : -1; }
  static constexpr int weights_of(int value) { return value < kWeights ? value : kWeights - 1; }
};

}  // namespace fastconv
