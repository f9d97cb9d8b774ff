// From a Task to a Plan: the first algorithm of the list that accepts, kept in a bounded cache. A pure function of task, preference and
// device, so that it is tested without a GPU.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/algorithm.h"

namespace fastconv::cuda {

using PlanPtr = std::shared_ptr<const Plan>;
using Preference = std::vector<std::string>;  // names in order of preference; "auto" leaves the choice to the list

struct Unsupported : std::runtime_error {  // NotImplementedError
  using std::runtime_error::runtime_error;
};

// Unsupported lists every algorithm asked and its reason; std::invalid_argument for a name that no algorithm of the op has.
PlanPtr make_plan(const Task& task, const Preference& preference, const DeviceLimits& device);

const char* to_string(Dtype);
const char* to_string(Compute);
std::string to_string(const Tile&);  // "m128 n128 k32 warps8 stages3"

// FASTCONV_VERBOSE: the line of common/log.h. The host does not wait for a run, so that its time is known to those alone who measure it.
void log_plan(const char* event, const Plan& plan, std::optional<double> milliseconds);

Dtype parse_dtype(const std::string& text);
Compute parse_compute(const std::string& text);

}  // namespace fastconv::cuda
