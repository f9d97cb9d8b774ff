// Depthwise convolution, float32, AVX2 + FMA. Formula, operands and borders: depthwise_body.h and the two bodies.
// Registers, 3x3: along channels 7 accumulators + 1 input, taps from L1; along rows 4 + 9 taps + 1 input (of 16).
// Preconditions: those of DepthwisePart; no alignment is assumed.
// Tails: pixels by VMASKMOV; a partial vector of channels goes through the loop over taps.
// Numerics: fused multiply-adds in a fixed order.
// Measured (Xeon, 48 KiB L1d, 2 MiB L2; 1 thread, shared machine, rough), GFLOP/s NHWC / NCHW: 28x28x192 53 / 45,
// 14x14x384 53 / 40, 7x7x960 49 / 37; 5x5 at 14x14x480 78 / 49.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/conv/depthwise_channels_body.h"
#include "cpu/conv/depthwise_rows_body.h"

namespace fastconv {
extern const DepthwiseUkernel depthwise_f32_avx2 = {"depthwise_f32_avx2", FASTCONV_SIMD_ISA, kLanes, kPixels, kRows,
                                                    &along_row,           &along_channels};
}  // namespace fastconv
