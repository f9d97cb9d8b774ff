// Depthwise convolution, float32, AVX-512. Formula, operands and borders: depthwise_body.h and the two bodies.
// Registers, 3x3: along channels 7 accumulators + 9 taps + 1 input, along rows 7 + 9 + 3 (of 32). 5x5 and 7x7 read
// their taps from L1.
// Preconditions: those of DepthwisePart; no alignment is assumed.
// Tails: by mask registers, which cost nothing, so one code serves whole and partial vectors.
// Numerics: fused multiply-adds in a fixed order.
// Measured (Xeon with AVX-512, 48 KiB L1d, 2 MiB L2; 1 thread, shared machine, rough), GFLOP/s NHWC / NCHW:
// 112x112x32 62 / 59 (memory), 28x28x192 89 / 74, 14x14x384 94 / 70, 7x7x960 98 / 50; 5x5 at 14x14x480 143 / 104.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/conv/depthwise_channels_body.h"
#include "cpu/conv/depthwise_rows_body.h"

namespace fastconv {
extern const DepthwiseUkernel depthwise_f32_avx512 = {
    "depthwise_f32_avx512", FASTCONV_SIMD_ISA, kLanes, kPixels, kRows, &along_row, &along_channels};
}  // namespace fastconv
