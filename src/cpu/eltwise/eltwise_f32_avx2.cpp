// relu: dst = src > 0 ? src : 0; affine: dst = src * scale + shift, a pair for each row or for each column. float32,
// AVX2: 8 floats a vector. Operands: EltwiseUkernel (ukernel.h). dst may be src. Tails: masked loads and stores.
// Numerics: ReLU keeps NaN. One fused multiply-add: rounded once.
// Measured: not measured.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/eltwise/eltwise_body.h"

namespace fastconv {
extern const EltwiseUkernel eltwise_f32_avx2 = {"eltwise_f32_avx2", kIsaAvx2, relu, affine_rows, affine_columns};
}  // namespace fastconv
