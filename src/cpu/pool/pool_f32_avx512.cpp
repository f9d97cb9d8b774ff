// Max or mean over r < kh, s < kw of src[y*sh - pt + r*dh, x*sw - pl + s*dw, c], float32, AVX-512.
// Operands: PoolCall (ukernel.h); planes of NCHW are images with c = 1.
// Preconditions: work memory holds a strip's input columns and 64 floats more (each half of it for max_indices).
// Tails: masks; nothing outside src and dst is touched.
// Numerics: NaN sticks in a maximum. Sums go over rows, then over columns, in blocks of 32 terms, and are divided,
//   not multiplied by a rounded inverse. Means of whole planes are totalled in double.
// Measured: % of a copy of the same bytes, docs/performance.md.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/pool/mean_body.h"
#include "cpu/pool/pool_body.h"
#include "cpu/pool/pool_indices_body.h"

namespace fastconv {
extern const PoolUkernel pool_f32_avx512 = {"pool_f32_avx512", kIsaAvx512,   max_pool,
                                            max_pool_indices,  average_pool, adaptive_average_pool,
                                            mean_rows,         mean_columns};
}  // namespace fastconv
