#include "common/lock.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastconv {

std::mutex& core_mutex() {
  static std::mutex& mutex = []() -> std::mutex& {
    auto* made = new std::mutex;  // never destroyed: threads may still compute while the process ends
#if defined(__unix__) || defined(__APPLE__)
    static std::mutex* const kept = made;
    pthread_atfork([] { kept->lock(); }, [] { kept->unlock(); }, [] { kept->unlock(); });
#endif
    return *made;
  }();
  return mutex;
}

}  // namespace fastconv
