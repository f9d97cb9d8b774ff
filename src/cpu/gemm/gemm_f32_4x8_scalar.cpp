// c[p][j] = act(bias[j] + residual[p][j] + sum_k a[p][k] * b[k][j]), float32, any machine.
// Operands: GemmPanel (ukernel.h); b packed [K][8].
// Registers: 4 x 2 groups of four floats, which a compiler for SSE2 or NEON keeps in 8 vector registers.
// Preconditions: seg_k >= 1, 1 <= n <= 8, b zero-padded to 8 columns.
// Tails: heights 1..4 are templates; channels past n are computed on the zero padding and not stored.
// Numerics: one sequential sum over K per output; products are rounded before they are added (no FMA on the baseline).
// Measured: not measured; it serves machines without AVX2, and tests.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/gemm/gemm_body.h"

namespace fastconv {
extern const GemmUkernel gemm_f32_4x8_scalar = {"gemm_f32_4x8_scalar", kIsaScalar,       4, 8, &Gemm<4, 2>::panel,
                                                &Gemm<4, 2>::pixel,    &Gemm<4, 2>::sums};
}  // namespace fastconv
