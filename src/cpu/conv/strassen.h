// Shared by the drivers of Strassen's products: NHWC (strassen.cpp), NCHW with channels as rows (strassen_planes.cpp) and with pixels (strassen_tiles.cpp).
#pragma once

#include "cpu/gemm/gemm.h"

namespace fastconv {

constexpr int64_t kMostStrassenChannels = 1024;  // what the error allows

inline const StrassenUkernel& strassen_of(const Plan& plan) {
  return *static_cast<const StrassenUkernel*>(plan.ukernel);
}

// The leaf, its numbers and everything about packed weights, where pixels are rows.
void configure_strassen_weights(Plan& plan, const Machine& machine);

// Packed: [panel][product][ic / 2][nr], the sums of quarters that the products want (StrassenUkernel); columns past oc / 2 are zero.
void pack_strassen_weights(const Plan& plan, const float* wei, void* packed, Worker& worker);

// Time in direct's, rows of pixels: products (columns past the channels are computed too), the ends of the register tiles, `tile_end` in steps of a
// product's sum, and the sums of the input, which all output channels share.
double strassen_share(const Problem& p, const StrassenUkernel& leaf, double tile_end);

}  // namespace fastconv
