// relu: dst = src > 0 ? src : 0; affine: dst = src * scale + shift, a pair for each row or for each column. float32,
// any machine: groups of 4 floats in plain C++. Operands: EltwiseUkernel (ukernel.h). dst may be src. Tails: masked
// loads and stores. Numerics: ReLU keeps NaN. Product and sum are each rounded. Measured: not measured.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/eltwise/eltwise_body.h"

namespace fastconv {
extern const EltwiseUkernel eltwise_f32_scalar = {"eltwise_f32_scalar", kIsaScalar, relu, affine_rows, affine_columns};
}  // namespace fastconv
