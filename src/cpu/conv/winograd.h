// Whether Winograd pays: rough cycles of one core for one image, from counts of operations and bytes.
#pragma once

#include <algorithm>

#include "common/algorithm.h"

namespace fastconv {

// Tiles whose V and M stay in the L2 beside some of U, at most what keeps the products busy while U streams by. Not whole register
// tiles: the 16 tiles of a 7x7 image in one group of 16 read U once, in 14 and 2 twice. Sizes in values.
inline int64_t tiles_of_a_group(int64_t v_tile, int64_t m_tile, int64_t mr, int64_t l2_bytes) {
  constexpr int64_t kGroup = 28;
  const int64_t room = std::max<int64_t>(l2_bytes * 3 / 4, 64 << 10) / (4 * (v_tile + m_tile));
  return std::max(mr, std::min(kGroup, room));
}

// Weights from beyond the L2: bytes for a cycle that is not hidden behind products. About 4 a cycle arrive. kStreamedStride2: between direct
// and Winograd with stride 2, as measured at 7x7.
constexpr double kStreamed = 8, kStreamedStride2 = 20;

double direct_cycles(const Problem& p, const Machine& machine, double streamed);
template <int O, int S>
double winograd_cycles(const Problem& p, const Machine& machine,
                       double streamed);  // F(O x O, 3 x 3) with a stride of S
template <int O, int S>
double weights_again_cycles(const Problem& p, const Machine& machine);  // what a second and later group of tiles waits

}  // namespace fastconv
