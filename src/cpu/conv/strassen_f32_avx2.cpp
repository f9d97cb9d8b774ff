// Strassen's products of pairs of pixels, float32, AVX2 + FMA. Formula, operands and order: strassen_body.h, StrassenUkernel (ukernel.h).
// Registers: those of the GEMM leaf of this ISA, whose loop it shares.
// Preconditions: half >= 1, 1 <= n <= nr, pairs >= 1; no alignment is assumed.
// Tails: heights 1..mr are templates; channels past n are computed on the zero padding and masked in the stores.
// Numerics: seven sequential sums, added in a fixed order.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/conv/strassen_body.h"

namespace fastconv {
extern const StrassenUkernel strassen_f32_avx2 = Strassen<6, 2>::leaf("strassen_f32_avx2");
}  // namespace fastconv
