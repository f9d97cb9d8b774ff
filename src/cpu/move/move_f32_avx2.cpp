// Transpose and row gather, float32: see MoveUkernel in ukernel.h and move_body.h.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/move/move_body.h"

namespace fastconv {
extern const MoveUkernel move_f32_avx2 = {"move_f32_avx2", kIsaAvx2, transpose, gather_rows};
}  // namespace fastconv
