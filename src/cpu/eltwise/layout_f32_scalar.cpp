// dst[j * dst_ld + i] = src[i * src_ld + j], float32, any machine.
// Operands: LayoutUkernel (ukernel.h).
// Tails: blocks overlap; where there is room for none, loops over the lanes in use.
// Measured: not measured.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/eltwise/layout_body.h"

namespace fastconv {
extern const LayoutUkernel layout_f32_scalar = {"layout_f32_scalar", kIsaScalar, turn};
}  // namespace fastconv
