// Environment variables that planning obeys, read once. Each extension module reads them for itself.
#pragma once

#include <string>

namespace fastconv {

// FASTCONV_KERNEL: the algorithm or driver ("im2col", "conv_direct_depthwise") that stands for "auto" where an op of a backend has it; ""
// if not set. Whether any backend of this build has it, the package asks when it is imported.
const std::string& forced_kernel();

// False where FASTCONV_WINOGRAD is 0; std::invalid_argument when it is neither 0 nor 1.
bool winograd_allowed();

// False where FASTCONV_TUNE is 0; std::invalid_argument when it is neither 0 nor 1.
bool tuning_allowed();

// False where FASTCONV_DEPTH_FIRST is 0: each step of a network then runs on whole tensors. The same bits, other times.
bool depth_first_allowed();

}  // namespace fastconv
