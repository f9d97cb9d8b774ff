// Whether Winograd pays: rough cycles of one core for one image, from counts of operations and bytes.
#pragma once

#include "common/algorithm.h"

namespace fastconv {

double direct_cycles(const Problem& p, const Machine& machine);
double winograd_cycles(const Problem& p, const Machine& machine, int64_t out);  // F(out x out, 3 x 3)

}  // namespace fastconv
