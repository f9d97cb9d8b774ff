// Winograd convolution of phases, float32, any machine. Formulas, operands and borders: winograd_phases_body.h.
// Registers: vectors of four floats in plain C++.
// Preconditions: those of PhasesCells, PhasesInput and PhasesOutput; no alignment is assumed.
// Tails: lane by lane.
// Numerics: products are rounded before they are added (no FMA on the baseline); the order is fixed.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/conv/winograd_phases_body.h"

namespace fastconv {
extern const PhasesUkernel winograd_phases_f32_scalar = phases_leaf("winograd_phases_f32_scalar");
}  // namespace fastconv
