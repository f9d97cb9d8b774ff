#include "cpu/caches.h"

#include <cctype>
#include <fstream>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace fastconv {
namespace {

constexpr int kMostCaches = 16;  // folders of one processor that are looked at; machines have four or five
constexpr int kMostAsked = 8;    // processors that are asked until one has a list
constexpr int64_t kSmallest = 1 << 10, kLargest = int64_t{1} << 40;

constexpr CacheSizes kUsual = {32 << 10, 1 << 20, 8 << 20};

std::string first_word(const std::string& file) {
  std::ifstream stream(file);
  stream.width(32);  // bounds what a word takes in
  std::string word;
  stream >> word;
  return word;
}

// "48K", "32768K", "1M" or plain bytes; 0 for anything else.
int64_t size_of(const std::string& word) {
  int64_t value = 0;
  size_t digits = 0;
  for (; digits < word.size() && std::isdigit(static_cast<unsigned char>(word[digits])); ++digits)
    if (value <= kLargest) value = 10 * value + (word[digits] - '0');
  const std::string unit = word.substr(digits);
  const int shift = unit.empty() ? 0 : unit == "K" ? 10 : unit == "M" ? 20 : unit == "G" ? 30 : -1;
  if (shift < 0 || value > kLargest >> shift) return 0;
  value <<= shift;
  return value >= kSmallest ? value : 0;
}

void take_missing(CacheSizes& into, const CacheSizes& from) {
  if (into.l1d_bytes == 0) into.l1d_bytes = from.l1d_bytes;
  if (into.l2_bytes == 0) into.l2_bytes = from.l2_bytes;
  if (into.l3_bytes == 0) into.l3_bytes = from.l3_bytes;
}

#if defined(__linux__)
[[maybe_unused]] int64_t answer(int key) {
  const long found = sysconf(key);
  return found > 0 ? found : 0;
}
#endif

}  // namespace

CacheSizes listed_caches(const std::string& folder, int cpu) {
  CacheSizes found;
  const std::string caches = folder + "/cpu" + std::to_string(cpu) + "/cache/index";
  for (int i = 0; i < kMostCaches; ++i) {
    const std::string cache = caches + std::to_string(i);
    const std::string type = first_word(cache + "/type");
    if (type != "Data" && type != "Unified") continue;
    const std::string level = first_word(cache + "/level");
    const int64_t size = size_of(first_word(cache + "/size"));
    if (level == "1") take_missing(found, {size, 0, 0});
    if (level == "2") take_missing(found, {0, size, 0});
    if (level == "3") take_missing(found, {0, 0, size});
  }
  return found;
}

CacheSizes library_caches() {
#if defined(__linux__) && defined(_SC_LEVEL1_DCACHE_SIZE)  // glibc; musl has no such question
  return {answer(_SC_LEVEL1_DCACHE_SIZE), answer(_SC_LEVEL2_CACHE_SIZE), answer(_SC_LEVEL3_CACHE_SIZE)};
#else
  return {};
#endif
}

CacheSizes find_caches() {
  CacheSizes found;
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    int asked = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && asked < kMostAsked && found.l1d_bytes == 0; ++cpu) {
      if (!CPU_ISSET(cpu, &mask)) continue;
      found = listed_caches("/sys/devices/system/cpu", cpu);
      ++asked;
    }
  }
#endif
  take_missing(found, library_caches());
  take_missing(found, kUsual);
  return found;
}

}  // namespace fastconv
