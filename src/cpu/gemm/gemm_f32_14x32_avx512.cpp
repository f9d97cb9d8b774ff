// c[p][j] = act(bias[j] + residual[p][j] + sum_k a[p][k] * b[k][j]), float32, AVX-512.
// Operands: GemmPanel (ukernel.h); b packed [K][32], rows of 128 bytes.
// Registers: 14 x 2 accumulators + 2 weight vectors + 1-2 broadcasts = 32. Per step 28 FMA (14 cycles on two ports) against
// 16 loads.
// Preconditions: seg_k >= 1, 1 <= n <= 32, b zero-padded to 32 columns.
// Tails: heights 1..14 are templates; channels past n are computed on the zero padding and masked in the stores. 1 to 16 channels take
// one vector a pixel, 17 to 24 (MobileNet-v2) three for two pixels.
// Numerics: one sequential sum over K per output.
// Measured (2-core Granite-Rapids-class Xeon, one thread, 2026-11-20): the bare loop 90 to 96 % of the FMA peak at
// K = 128..1024 with its operands in the L2; inside a 3x3 128 -> 64 convolution at 28x28 84 to 87 % (180 GFLOP/s).
// What a tile costs beside its products, operands in the L1 (two cores of a Zen 5, 2026-11-21): 50 cycles, of which 28 are its stores; 115
// when each store was followed by reading `g` again. In ResNet-50 that was 3 to 5 %, in MobileNet-v2 5 %.
// Tried: asking for the tile's lines of c at its start (PREFETCHT0), 10 % slower at K = 16 to 64; 6x64, 9x48, 8x48, 7x48 and 12x32 tiles, 90 to 95 % in the same loop; unrolling K by 2 or 4, no gain. What the drivers
// fetch during the reduction (GemmPanel::fetch), and what that gave: docs/performance.md.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/gemm/gemm_body.h"

namespace fastconv {
extern const GemmUkernel gemm_f32_14x32_avx512 = {
    "gemm_f32_14x32_avx512", kIsaAvx512, 14, 32, &Gemm<14, 2>::panel, &Gemm<14, 2>::pixel, &Gemm<14, 2>::sums};
}  // namespace fastconv
