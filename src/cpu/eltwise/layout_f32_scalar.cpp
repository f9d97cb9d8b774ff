// pixels[p][c] = planes[c][p] and back, float32, any machine: groups of 4 floats in plain C++.
// Operands: LayoutUkernel (ukernel.h).
// Tails: blocks that are not whole pass through the stack with masked loads and stores.
// Measured: not measured.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/eltwise/layout_body.h"

namespace fastconv {
extern const LayoutUkernel layout_f32_scalar = {"layout_f32_scalar", kIsaScalar, to_pixels, to_planes};
}  // namespace fastconv
