// Which instantiation of the wgmma convolution runs a problem, and with how many parts of the reduction. Pure host functions.
#pragma once

#include "cuda/algorithm.h"
#include "cuda/conv/wgmma_layout.h"

namespace fastconv::cuda {

Tile choose_wgmma_tile(const Problem&, const DeviceLimits&);
// An instantiation with a split of its own choice, for tests and measurements; `split` as the kernel takes it: 1, or 2, 4, 8 with 64 rows.
Tile wgmma_tile(int variant, int split);
// Estimated clock cycles; orders the choices, and is no promise.
double wgmma_cycles(const Problem&, const DeviceLimits&, int variant, int split);
bool wgmma_split_fits(const Problem&, int variant, int split);

WgmmaConv wgmma_conv(const Problem&, const Tile&);
int wgmma_blocks(const WgmmaConv&, const Tile&, const DeviceLimits&);  // of the grid
const char* wgmma_tile_name(int variant);

}  // namespace fastconv::cuda
