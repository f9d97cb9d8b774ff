// What this ISA level can do at best: products per second from registers, bytes per second from memory. See PeakUkernel
// in ukernel.h.
#include "cpu/simd/simd_avx2.h"
//
#include "cpu/peak/peak_body.h"

namespace fastconv {
extern const PeakUkernel peak_f32_avx2 = {"peak_f32_avx2", kIsaAvx2, kFlopsPerRound, fma_loop, read, move};
}  // namespace fastconv
