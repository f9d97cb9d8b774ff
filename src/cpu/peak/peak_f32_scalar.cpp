// What this ISA level can do at best: products per second from registers, bytes per second from memory. See PeakUkernel
// in ukernel.h.
#include "cpu/simd/simd_scalar.h"
//
#include "cpu/peak/peak_body.h"

namespace fastconv {
extern const PeakUkernel peak_f32_scalar = {"peak_f32_scalar", kIsaScalar, kFlopsPerRound, fma_loop, read, move};
}  // namespace fastconv
