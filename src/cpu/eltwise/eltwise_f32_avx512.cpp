// relu: dst = src > 0 ? src : 0. affine: dst = src * scale + shift, a pair a row or a column. float32, AVX-512.
// Operands: EltwiseUkernel (ukernel.h). dst may be src.
// Tails: masks.
// Numerics: ReLU keeps NaN. Affine: One fused multiply-add, rounded once.
// Measured: not measured.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/eltwise/eltwise_body.h"

namespace fastconv {
extern const EltwiseUkernel eltwise_f32_avx512 = {"eltwise_f32_avx512", kIsaAvx512, relu, affine_rows, affine_columns};
}  // namespace fastconv
