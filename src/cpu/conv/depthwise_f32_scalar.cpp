// Depthwise convolution, float32, baseline. Formula, operands and borders: depthwise_body.h and the two bodies.
// Registers: 4 accumulators of 4 floats in plain C++.
// Preconditions: those of DepthwisePart; no alignment is assumed.
// Tails: lane by lane.
// Numerics: products are rounded before they are added; the order is fixed.
// Measured: 2 to 8 GFLOP/s at the shapes of MobileNet-v2 (rough).
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/conv/depthwise_channels_body.h"
#include "cpu/conv/depthwise_rows_body.h"

namespace fastconv {
extern const DepthwiseUkernel depthwise_f32_scalar = {
    "depthwise_f32_scalar", FASTCONV_SIMD_ISA, kLanes, kPixels, kRows, &along_row, &along_channels};
}  // namespace fastconv
