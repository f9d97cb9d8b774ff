// What `fastconv tune` measured on this machine: the driver that "auto" takes for a convolution, where another than planning's own choice is
// clearly faster. The package reads the file and hands the choices over; here they are a table that plans ask.
// A choice goes by the problem less its n, bias, residual and activation, by layout and by ISA level, so that a result does not depend on the
// batch or on the threads, and a layer alone is computed as it is in a network.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/algorithm.h"

namespace fastconv {

// Words as a plan tells them: "avx512", "NHWC", "ic64 ih56 iw56 oc64 ..." (to_string of the problem less its n), "conv_im2col".
struct TunedChoice {
  std::string isa, layout, problem, kernel;
};

// Immutable. `epoch` is 0 until there are choices, and another with each new table: plans of two tables are kept apart by it.
struct TunedTable {
  uint64_t epoch = 0;
  std::map<std::string, const Algorithm*> choices;

  const Algorithm* find(const Problem& problem, Isa isa) const;  // null: planning's own choice
};

// Replaces all choices; std::invalid_argument for a kernel that no convolution here has. Nobody has to wait: plans in the making keep the
// table that they began with.
void set_tuned(const std::vector<TunedChoice>& choices);

// Called before the first plan that may be tuned; it calls set_tuned. Not called again after that, nor where FASTCONV_TUNE is 0.
void set_tuned_source(std::function<void()> source);

// Both ask the source first.
uint64_t tuned_epoch();
std::shared_ptr<const TunedTable> tuned_table();

}  // namespace fastconv
