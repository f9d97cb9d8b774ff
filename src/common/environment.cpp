#include "common/environment.h"

#include <cstdlib>
#include <stdexcept>

namespace fastconv {

const std::string& forced_kernel() {
  static const std::string& name = *new std::string([] {
    const char* text = std::getenv("FASTCONV_KERNEL");
    return text ? text : "";
  }());
  return name;
}

bool winograd_allowed() {
  static const bool allowed = [] {
    const char* text = std::getenv("FASTCONV_WINOGRAD");
    const std::string asked = text ? text : "";
    if (!asked.empty() && asked != "0" && asked != "1")
      throw std::invalid_argument("FASTCONV_WINOGRAD must be 0 or 1; got '" + asked + "'");
    return asked != "0";
  }();
  return allowed;
}

}  // namespace fastconv
