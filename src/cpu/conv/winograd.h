// Whether Winograd pays: rough cycles of one core for one image, from counts of operations and bytes.
#pragma once

#include "common/algorithm.h"

namespace fastconv {

// `prepared`: weights are packed once and used often; else every call transforms them.
double direct_cycles(const Problem& p, const Machine& machine, bool prepared);
double winograd_cycles(const Problem& p, const Machine& machine, bool prepared, int64_t out);  // F(out x out, 3 x 3)

}  // namespace fastconv
