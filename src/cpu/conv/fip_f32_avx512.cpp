#include "cpu/simd/simd_avx512.h"
//
#include "cpu/conv/fip_body.h"

namespace fastconv {
extern const FipUkernel fip_f32_avx512 = Fip<12, 2>::leaf("fip_f32_avx512");
}  // namespace fastconv
