// Winograd's inner product, float32, any machine. Formula, operands and order: fip_body.h, FipUkernel (ukernel.h).
// Registers: the compiler's.
// Preconditions: steps >= 1, 1 <= n <= nr, count >= 1; no alignment is assumed.
// Tails: heights 1..mr are templates; columns past n are computed on the zero padding and masked in the stores.
// Numerics: one sequential sum of (a1 + b2) (a2 + b1) and a3 b3 in turns, which begins with what is subtracted.
// Measured: not for speed; "auto" does not take it.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/conv/fip_body.h"

namespace fastconv {
extern const FipUkernel fip_f32_scalar = Fip<4, 2>::leaf("fip_f32_scalar");
}  // namespace fastconv
