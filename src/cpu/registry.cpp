#include "cpu/registry.h"

#include <array>

namespace fastconv {

#define FASTCONV_ALGORITHM(name) extern const Algorithm name;
#include "cpu/algorithms.inc"
#undef FASTCONV_ALGORITHM

const std::vector<const Algorithm*>& cpu_algorithms(Op op) {
  using Lists = std::array<std::vector<const Algorithm*>, 8>;
  static const Lists& lists = *new Lists([] {
    Lists by_op;
    for (const Algorithm* a : {
#define FASTCONV_ALGORITHM(name) &name,
#include "cpu/algorithms.inc"
#undef FASTCONV_ALGORITHM
         })
      by_op[static_cast<size_t>(a->op)].push_back(a);
    return by_op;
  }());
  return lists[static_cast<size_t>(op)];
}

}  // namespace fastconv
