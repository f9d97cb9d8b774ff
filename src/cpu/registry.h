// The two lists as values: leaves by family (LIST 1) and algorithms by op (LIST 2, in common/algorithm.h).
#pragma once

#include <type_traits>
#include <utility>
#include <vector>

#include "common/algorithm.h"
#include "cpu/ukernel.h"

namespace fastconv {

#define FASTCONV_UKERNEL(family, name) extern const family name;
#include "cpu/ukernels.inc"
#undef FASTCONV_UKERNEL

// All leaves of a family, best first.
template <class Family>
const std::vector<const Family*>& ukernels() {
  // Never destroyed: threads may still compute while the process ends.
  static const auto& list = *new std::vector<const Family*>([] {
    std::vector<const Family*> found;
#define FASTCONV_UKERNEL(family, name) \
  if constexpr (std::is_same_v<family, Family>) found.push_back(&name);
#include "cpu/ukernels.inc"
#undef FASTCONV_UKERNEL
    return found;
  }());
  return list;
}

// The best leaf of a family at an ISA level; never null, since every family has a scalar row.
template <class Family>
const Family* find_ukernel(Isa level) {
  for (const Family* k : ukernels<Family>())
    if (k->isa <= static_cast<int>(level)) return k;
  return nullptr;
}

// The best leaf of a family on this machine, written into the plan as its own.
template <class Family>
const Family& take_leaf(Plan& plan, const Machine& machine) {
  const Family& k = *find_ukernel<Family>(machine.isa);
  plan.ukernel = &k;
  plan.ukernel_name = k.name;
  plan.isa = static_cast<Isa>(k.isa);
  return k;
}

// For Algorithm::leaves.
template <class Family>
std::vector<std::pair<Isa, const char*>> leaves_of() {
  std::vector<std::pair<Isa, const char*>> out;
  for (const Family* k : ukernels<Family>()) out.emplace_back(static_cast<Isa>(k->isa), k->name);
  return out;
}

}  // namespace fastconv
