// c[p][j] = act(bias[j] + residual[p][j] + sum_k a[p][k] * b[k][j]), float32, AVX2 + FMA.
// Operands: GemmPanel (ukernel.h); b packed [K][16], rows of 64 bytes.
// Registers: 6 x 2 accumulators + 2 weight vectors + 1-2 broadcasts = 16. Per step 12 FMA (6 cycles) against 8 loads.
// Preconditions: seg_k >= 1, 1 <= n <= 16, b zero-padded to 16 columns.
// Tails: heights 1..6 are templates; channels past n are computed on the zero padding and masked in the stores.
// Numerics: one sequential sum over K per output.
// Measured (2-core Granite-Rapids-class Xeon capped to AVX2, two threads, 2026-11-20): ResNet-50 as a whole 69 % (NHWC)
// and 65 % (NCHW) of the AVX2 FMA peak.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/gemm/gemm_body.h"

namespace fastconv {
extern const GemmUkernel gemm_f32_6x16_avx2 = {"gemm_f32_6x16_avx2", kIsaAvx2,         6, 16, &Gemm<6, 2>::panel,
                                               &Gemm<6, 2>::pixel,   &Gemm<6, 2>::sums};
}  // namespace fastconv
