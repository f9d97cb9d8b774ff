#include <array>

#include "cuda/algorithm.h"

namespace fastconv::cuda {

#define FASTCONV_CUDA_ALGORITHM(name) extern const Algorithm name;
#include "cuda/algorithms.inc"
#include "cuda/conv/algorithms.inc"
#undef FASTCONV_CUDA_ALGORITHM

const std::vector<const Algorithm*>& algorithms(Op op) {
  using Lists = std::array<std::vector<const Algorithm*>, 8>;
  static const Lists& lists = *new Lists([] {
    const std::vector<const Algorithm*> all = {
#define FASTCONV_CUDA_ALGORITHM(name) &name,
#include "cuda/algorithms.inc"
#include "cuda/conv/algorithms.inc"
#undef FASTCONV_CUDA_ALGORITHM
    };
    Lists by_op;
    for (const Algorithm* a : all) by_op[static_cast<size_t>(a->op)].push_back(a);
    return by_op;
  }());
  return lists[static_cast<size_t>(op)];
}

}  // namespace fastconv::cuda
