// Cache sizes as the Linux kernel lists them, a folder a cache, below <folder>/cpu<number>/cache.
#pragma once

#include <cstdint>
#include <string>

namespace fastconv {

struct CacheSizes {
  int64_t l1d_bytes = 0, l2_bytes = 0, l3_bytes = 0;  // 0: not known
};

// The data and unified caches of one processor. What is missing, or reads like nothing sensible, stays 0.
CacheSizes listed_caches(const std::string& folder, int cpu);

// The C library's answer: on AMD glibc's L3 is that of a whole socket, twelve times what one core can fill.
CacheSizes library_caches();

// Of the machine: each size from the first that knows it, the kernel's list for a processor that this process may use, then
// the C library, then a usual size.
CacheSizes find_caches();

}  // namespace fastconv
