// pixels[p][c] = planes[c][p] and back, float32, any machine.
// Operands: LayoutUkernel (ukernel.h).
// Tails: blocks that are not whole pass through the stack; loops over the lanes in use.
// Measured: not measured.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/eltwise/layout_body.h"

namespace fastconv {
extern const LayoutUkernel layout_f32_scalar = {"layout_f32_scalar", kIsaScalar, turn};
}  // namespace fastconv
