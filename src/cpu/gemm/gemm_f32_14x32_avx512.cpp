// c[p][j] = act(bias[j] + residual[p][j] + sum_k a[p][k] * b[k][j]), float32, AVX-512.
// Operands: GemmPanel (ukernel.h); b packed [K][32], rows of 128 bytes.
// Registers: 14 x 2 accumulators + 2 weight vectors + 1-2 broadcasts = 32. Per step 28 FMA (14 cycles on two ports)
// against 16 loads. Preconditions: seg_k >= 1, 1 <= n <= 32, b zero-padded to 32 columns. Tails: heights 1..14 are
// templates; channels past n are computed on the zero padding and masked in the stores. Numerics: one sequential sum
// over K per output.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/gemm/gemm_body.h"

namespace fastconv {
extern const GemmUkernel gemm_f32_14x32_avx512 = {"gemm_f32_14x32_avx512", kIsaAvx512, 14, 32, &Gemm<14, 2>::panel};
}  // namespace fastconv
