// The one front door: from a Problem to a Plan. Validated problem in, immutable plan out, kept in a bounded cache.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/algorithm.h"

namespace fastconv {

using PlanPtr = std::shared_ptr<const Plan>;
using Preference = std::vector<std::string>;  // names in order of preference; "auto" leaves the choice to the list

struct Unsupported : std::runtime_error {  // NotImplementedError
  using std::runtime_error::runtime_error;
};

// The first algorithm that accepts, in the order of `preference`. Unsupported lists every algorithm asked and its
// reason; std::invalid_argument for a name that no algorithm of the op has. `winograd`: whether "auto" may take Winograd.
PlanPtr make_plan(const Problem& problem, const Preference& preference = {"auto"}, bool winograd = true);

// Counts changes of what choices go by besides the problem: the ISA level and the tuned table. Plans of two numbers may differ.
uint64_t plan_epoch();

// Cycles that one core would need, roughly: what decides whether a second thread pays.
double estimated_cycles(const Problem& problem);

}  // namespace fastconv
