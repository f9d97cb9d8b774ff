// What a device can do at most, for benchmarks to set times beside: our own copy, and fused multiply-adds on registers.
#pragma once

#include "cuda/algorithm.h"

namespace fastconv::cuda {

// A copy by threads, 16 bytes each; pointers and bytes are multiples of 16.
void copy(const void* src, void* dst, int64_t bytes, cudaStream_t stream);
// FLOP that one launch of the loop does (an FMA counts as two); `sink` takes a few floats and is never read.
double fma_loop(const DeviceLimits& device, float* sink, cudaStream_t stream);

}  // namespace fastconv::cuda
