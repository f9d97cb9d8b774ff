// Values of one dtype as another, rounded to nearest even. Pointers need their element's alignment only.
#pragma once

#include "cuda/algorithm.h"

namespace fastconv::cuda {

void cast(const void* src, Dtype from, void* dst, Dtype to, int64_t elements, cudaStream_t stream);

}  // namespace fastconv::cuda
