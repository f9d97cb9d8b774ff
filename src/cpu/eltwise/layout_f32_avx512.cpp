// dst[j * dst_ld + i] = src[i * src_ld + j], float32, AVX-512.
// Operands: LayoutUkernel (ukernel.h).
// Tails: blocks overlap; where there is room for none, masks.
// Measured: not measured.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/eltwise/layout_body.h"

namespace fastconv {
extern const LayoutUkernel layout_f32_avx512 = {"layout_f32_avx512", kIsaAvx512, turn};
}  // namespace fastconv
