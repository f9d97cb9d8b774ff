#include "cpu/machine.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(FASTCONV_X86)
#include <cpuid.h>
#endif

#include "cpu/caches.h"

namespace fastconv {
namespace {

constexpr const char* kIsaNames[] = {"scalar", "avx2", "avx512", "amx"};

Isa parse_isa(const std::string& level, const char* argument) {
  for (int i = 0; i < 4; ++i)
    if (level == kIsaNames[i]) return static_cast<Isa>(i);
  throw std::invalid_argument(std::string(argument) + " must be one of scalar, avx2, avx512, amx; got '" + level + "'");
}

Isa find_isa() {
#if defined(FASTCONV_X86)
  __builtin_cpu_init();  // also asks the system whether it saves the wide registers
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::scalar;  // amx: when its leaves exist
#else
  return Isa::scalar;
#endif
}

// Additions have ports of their own, as many as products: AMD's family 19h (Zen 3 and 4). Measured on a Zen 4: twelve FMA and twelve additions of
// 512 bits take the time of twelve FMA. Zen 5 has such ports too, but has not been measured; Intel's 512-bit additions share a port with products.
bool find_adds_beside() {
#if defined(FASTCONV_X86)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return false;
  const bool amd = b == 0x68747541u && d == 0x69746e65u && c == 0x444d4163u;  // "AuthenticAMD"
  if (!amd || !__get_cpuid(1, &a, &b, &c, &d)) return false;
  return ((a >> 8) & 15u) == 15u && ((a >> 20) & 255u) == 0xau;  // base and extended family: 0fh + 0ah
#else
  return false;
#endif
}

std::string find_cpu_name() {
#if defined(FASTCONV_X86)
  unsigned words[12] = {};
  if (__get_cpuid_max(0x80000000u, nullptr) >= 0x80000004u) {
    for (unsigned i = 0; i < 3; ++i)
      __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
  }
  char text[49] = {};
  std::memcpy(text, words, 48);
  std::string name(text);
  name.erase(0, name.find_first_not_of(' '));
  while (!name.empty() && name.back() == ' ') name.pop_back();
  if (!name.empty()) return name;
#endif
  return "unknown processor";
}

#if defined(__linux__)
// Quota of one cgroup folder in processors; 0: none.
double read_quota(const std::string& folder) {
  double quota = 0, period = 0;
  if (std::ifstream v2(folder + "/cpu.max"); v2) {
    std::string first;
    if (v2 >> first >> period && first != "max" && period > 0) quota = std::atof(first.c_str());
  } else if (std::ifstream q(folder + "/cpu.cfs_quota_us"), p(folder + "/cpu.cfs_period_us"); q && p) {
    q >> quota;
    p >> period;
  }
  return quota > 0 && period > 0 ? quota / period : 0.0;
}

// The smallest quota on the way from this process's control group to the root.
double find_quota() {
  double least = 0;
  const auto walk = [&least](const std::string& root, std::string path) {
    while (true) {
      const double quota = read_quota(root + path);
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      const size_t slash = path.rfind('/');
      if (path.empty() || path == "/" || slash == std::string::npos) break;
      path.erase(slash);
    }
  };
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) walk("/sys/fs/cgroup", path);
    if (("," + controllers + ",").find(",cpu,") != std::string::npos) walk("/sys/fs/cgroup/cpu", path);
  }
  return least;
}
#endif

MachineInfo find_machine() {
  MachineInfo info;
  info.isa_found = find_isa();
  info.adds_beside = find_adds_beside();
  info.cpu = find_cpu_name();
  const CacheSizes caches = find_caches();
  info.l1d_bytes = caches.l1d_bytes;
  info.l2_bytes = caches.l2_bytes;
  info.l3_bytes = caches.l3_bytes;
  info.cpus_affinity = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) info.cpus_affinity = std::max(1, CPU_COUNT(&mask));
  info.cpu_quota = find_quota();
#endif
  return info;
}

Isa cap_from_environment() {
  const char* text = std::getenv("FASTCONV_MAX_ISA");
  return text && *text ? parse_isa(text, "FASTCONV_MAX_ISA") : Isa::amx;
}

std::atomic<int>& cap() {
  static std::atomic<int> value{static_cast<int>(cap_from_environment())};
  return value;
}

std::atomic<int64_t> stream_bytes{0};
std::atomic<int> adds_beside{-1};

}  // namespace

const char* to_string(Isa isa) {
  return kIsaNames[static_cast<int>(isa)];
}

const MachineInfo& machine_info() {
  static const MachineInfo& info = *new MachineInfo(find_machine());  // never destroyed, as all that threads read
  return info;
}

Isa current_isa() {
  return std::min(machine_info().isa_found, static_cast<Isa>(cap().load(std::memory_order_relaxed)));
}

void set_max_isa(const std::string& level) {
  cap() = static_cast<int>(level.empty() ? cap_from_environment() : parse_isa(level, "level"));
}

void set_adds_beside(int answer) {
  adds_beside = answer;
}

void set_stream_bytes(int64_t bytes) {
  stream_bytes = bytes;
}

Machine current_machine() {
  const MachineInfo& info = machine_info();
  const int64_t set = stream_bytes.load(std::memory_order_relaxed);
  const int adds = adds_beside.load(std::memory_order_relaxed);
  return {current_isa(),
          info.l1d_bytes,
          info.l2_bytes,
          info.l3_bytes,
          set > 0 ? set : info.l3_bytes / 2,
          adds < 0 ? info.adds_beside : adds != 0};
}

}  // namespace fastconv
