#include "common/environment.h"

#include <cstdlib>
#include <stdexcept>

namespace fastconv {
namespace {

// A switch that is on unless it is 0.
bool is_on(const char* name) {
  const char* text = std::getenv(name);
  const std::string asked = text ? text : "";
  if (!asked.empty() && asked != "0" && asked != "1")
    throw std::invalid_argument(std::string(name) + " must be 0 or 1; got '" + asked + "'");
  return asked != "0";
}

}  // namespace

const std::string& forced_kernel() {
  static const std::string& name = *new std::string([] {
    const char* text = std::getenv("FASTCONV_KERNEL");
    return text ? text : "";
  }());
  return name;
}

bool winograd_allowed() {
  static const bool allowed = is_on("FASTCONV_WINOGRAD");
  return allowed;
}

bool tuning_allowed() {
  static const bool allowed = is_on("FASTCONV_TUNE");
  return allowed;
}

bool depth_first_allowed() {
  static const bool allowed = is_on("FASTCONV_DEPTH_FIRST");
  return allowed;
}

}  // namespace fastconv
