// Winograd convolution of phases, float32, AVX-512. Formulas, operands and borders: winograd_phases_body.h.
// Registers: 28 sums, 2 vectors of weights, 1 value (of 32).
// Preconditions: those of PhasesCells, PhasesInput and PhasesOutput; no alignment is assumed.
// Tails: mask registers.
// Numerics: fused multiply-adds in a fixed order.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/conv/winograd_phases_body.h"

namespace fastconv {
extern const PhasesUkernel winograd_phases_f32_avx512 = phases_leaf("winograd_phases_f32_avx512");
}  // namespace fastconv
