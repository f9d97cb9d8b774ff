// relu: dst = src > 0 ? src : 0. affine: dst = src * scale + shift, a pair a row or a column. float32, any machine.
// Operands: EltwiseUkernel (ukernel.h). dst may be src.
// Tails: loops over the lanes in use.
// Numerics: ReLU keeps NaN. Affine: Product and sum are each rounded.
// Measured: not measured.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/eltwise/eltwise_body.h"

namespace fastconv {
extern const EltwiseUkernel eltwise_f32_scalar = {"eltwise_f32_scalar", kIsaScalar, relu, affine_rows, affine_columns};
}  // namespace fastconv
