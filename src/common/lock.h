// The one lock of the core. It guards the plan cache, the lists of idle buffers and the maps of packed weights, each for a few
// instructions. One lock and not many, because a child of fork() inherits locks in the state they are in: this one is taken
// around every fork, so that the child finds it free and what it guards whole.
#pragma once

#include <mutex>

namespace fastconv {

std::mutex& core_mutex();

class CoreLock {
 public:
  CoreLock() : lock_(core_mutex()) {}

 private:
  std::lock_guard<std::mutex> lock_;
};

}  // namespace fastconv
