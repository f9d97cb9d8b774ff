#include "cpu/simd/simd_scalar.h"
//
#include "cpu/conv/fip_body.h"

namespace fastconv {
extern const FipUkernel fip_f32_scalar = Fip<4, 2>::leaf("fip_f32_scalar");
}  // namespace fastconv
