// Which instantiation of the tensor core implicit GEMM a task takes. Pure host arithmetic.
#pragma once

#include <vector>

#include "cuda/conv/implicit_gemm_mma.h"

namespace fastconv::cuda::mma {

// The widest reads of src, 16 bytes at most, that stay within a tap (NHWC) or a plane that is read as it lies (NCHW).
int widest_load_bytes(const Task&);

// The kernel with the fewest estimated cycles among those of the task's layout with the widest reads it allows, and the parts of the
// reduction. `variant` is its index in `kernels`.
Tile choose_tile_mma(const Task&, const std::vector<Kernel>& kernels, const DeviceLimits&);

// The kernel for an array that is not aligned to what the planned one reads: single values, and the tile nearest in size.
int kernel_for_single_values(const Kernel& planned, const std::vector<Kernel>& kernels, int64_t element_bytes);

}  // namespace fastconv::cuda::mma
