// Transpose and row gather, float32: see MoveUkernel in ukernel.h and move_body.h.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/move/move_body.h"

namespace fastconv {
extern const MoveUkernel move_f32_scalar = {"move_f32_scalar", kIsaScalar, transpose, gather_rows};
}  // namespace fastconv
