// Winograd transforms, float32, any machine. Formulas, operands and borders: winograd_body.h and the two bodies.
// Registers: vectors of four floats in plain C++.
// Preconditions: those of WinogradInput and WinogradOutput; no alignment is assumed.
// Tails: lane by lane.
// Numerics: products are rounded before they are added (no FMA on the baseline); the order is fixed.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/conv/winograd_input_body.h"
#include "cpu/conv/winograd_output_body.h"

namespace fastconv {
extern const WinogradUkernel winograd_f32_scalar = {
    "winograd_f32_scalar",       FASTCONV_SIMD_ISA,          kNr, transforms_of<F23>(), transforms_of<F43>(),
    transforms_of<F23Stride2>(), transforms_of<F43Stride2>()};
}  // namespace fastconv
