// relu: dst = src > 0 ? src : 0. affine: dst = src * scale + shift, a pair a row or a column. float32, AVX2.
// Operands: EltwiseUkernel (ukernel.h). dst may be src.
// Tails: masked moves.
// Numerics: ReLU keeps NaN. Affine: One fused multiply-add, rounded once.
// Measured: not measured.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/eltwise/eltwise_body.h"

namespace fastconv {
extern const EltwiseUkernel eltwise_f32_avx2 = {"eltwise_f32_avx2", kIsaAvx2, relu, affine_rows, affine_columns};
}  // namespace fastconv
