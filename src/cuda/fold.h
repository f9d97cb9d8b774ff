// Batch normalisation at inference as one multiply-add a channel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastconv::cuda {

// scale = weight / sqrt(var + eps), shift = bias - mean * scale: float32 from float64, rounded once. weight and bias may be null (1 and 0).
void fold_batch_norm(const float* mean, const float* var, const float* weight, const float* bias, double eps,
                     int64_t channels, float* scale, float* shift, cudaStream_t stream);

}  // namespace fastconv::cuda
