// Whether Winograd pays: rough cycles of one core for one image, from counts of operations and bytes.
#pragma once

#include "common/algorithm.h"

namespace fastconv {

double direct_cycles(const Problem& p, const Machine& machine);
template <int O, int S>
double winograd_cycles(const Problem& p, const Machine& machine);  // F(O x O, 3 x 3) with a stride of S

}  // namespace fastconv
