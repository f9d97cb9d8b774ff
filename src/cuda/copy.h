// Copies of arrays with any strides, from one dtype to another, in stream order on the current device.
#pragma once

#include <cuda_runtime.h>

#include "cuda/view.h"

namespace fastconv::cuda {

// dst[i] = src[i] for every index of their common shape; floating-point dtypes are converted and rounded to nearest even.
void copy(const View& src, const View& dst, cudaStream_t stream);

}  // namespace fastconv::cuda
