// dst[j * dst_ld + i] = src[i * src_ld + j], float32, AVX2.
// Operands: LayoutUkernel (ukernel.h).
// Tails: blocks overlap; where there is room for none, masked moves.
// Measured: not measured.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/eltwise/layout_body.h"

namespace fastconv {
extern const LayoutUkernel layout_f32_avx2 = {"layout_f32_avx2", kIsaAvx2, turn};
}  // namespace fastconv
