// Winograd transforms, float32, AVX2 + FMA. Formulas, operands and borders: winograd_body.h and the two bodies.
// Registers, F(4,3): 12 of a part, 6 results, 2 points (of 16); with stride 2 18, 9 and 4.
// Preconditions: those of WinogradInput and WinogradOutput; no alignment is assumed.
// Tails: VMASKMOV.
// Numerics: fused multiply-adds in a fixed order.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/conv/winograd_input_body.h"
#include "cpu/conv/winograd_output_body.h"

namespace fastconv {
extern const WinogradUkernel winograd_f32_avx2 = {
    "winograd_f32_avx2",         FASTCONV_SIMD_ISA,          kNr, transforms_of<F23>(), transforms_of<F43>(),
    transforms_of<F23Stride2>(), transforms_of<F43Stride2>()};
}  // namespace fastconv
