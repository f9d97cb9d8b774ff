#include "cpu/simd/simd_avx2.h"
//
#include "cpu/conv/fip_body.h"

namespace fastconv {
extern const FipUkernel fip_f32_avx2 = Fip<4, 2>::leaf("fip_f32_avx2");
}  // namespace fastconv
