// Winograd convolution of phases, float32, AVX2 + FMA. Formulas, operands and borders: winograd_phases_body.h.
// Registers: 14 sums, 1 value; weights from memory (of 16).
// Preconditions: those of PhasesCells, PhasesInput and PhasesOutput; no alignment is assumed.
// Tails: VMASKMOV.
// Numerics: fused multiply-adds in a fixed order.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/conv/winograd_phases_body.h"

namespace fastconv {
extern const PhasesUkernel winograd_phases_f32_avx2 = phases_leaf("winograd_phases_f32_avx2");
}  // namespace fastconv
