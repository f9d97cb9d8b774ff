// Transpose and row gather, float32: see MoveUkernel in ukernel.h and move_body.h.
#include "cpu/simd/simd_avx512.h"
//
#include "cpu/move/move_body.h"

namespace fastconv {
extern const MoveUkernel move_f32_avx512 = {"move_f32_avx512", kIsaAvx512, transpose, gather_rows};
}  // namespace fastconv
