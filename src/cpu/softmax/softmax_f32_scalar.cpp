// dst = exp(src - max) / sum of exp(src - max) along rows or columns, float32, any machine.
// Operands: SoftmaxUkernel (ukernel.h). dst must not overlap src, unless it is src.
// Tails: loops over the lanes in use.
// Numerics: every element within 4 units in the last place of the exact result (largest seen 3.5), subnormal ones
//   included; see softmax_body.h. Rows: sums of 8 vectors, totalled in double. Columns: Kahan's sum.
// Measured: not measured.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/softmax/softmax_body.h"

namespace fastconv {
extern const SoftmaxUkernel softmax_f32_scalar = {"softmax_f32_scalar", kIsaScalar, rows, columns};
}  // namespace fastconv
