// dst = exp(src - max) / sum of exp(src - max) along rows or columns, float32, AVX-512.
// Operands: SoftmaxUkernel (ukernel.h). dst must not overlap src, unless it is src.
// Tails: masks.
// Numerics: every element within 4 units in the last place of the exact result (largest seen 3.5), subnormal ones
//   included; see softmax_body.h. Rows: sums of 8 vectors, totalled in double. Columns: Kahan's sum.
// Measured: not measured.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/softmax/softmax_body.h"

namespace fastconv {
extern const SoftmaxUkernel softmax_f32_avx512 = {"softmax_f32_avx512", kIsaAvx512, rows, columns};
}  // namespace fastconv
