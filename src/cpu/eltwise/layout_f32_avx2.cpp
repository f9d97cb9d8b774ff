// pixels[p][c] = planes[c][p] and back, float32, AVX2.
// Operands: LayoutUkernel (ukernel.h).
// Tails: blocks that are not whole pass through the stack; masked moves.
// Measured: not measured.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/eltwise/layout_body.h"

namespace fastconv {
extern const LayoutUkernel layout_f32_avx2 = {"layout_f32_avx2", kIsaAvx2, turn};
}  // namespace fastconv
