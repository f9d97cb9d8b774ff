#include "common/log.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace fastconv {
namespace {

std::atomic<int>& level() {
  static std::atomic<int> value{[] {
    const char* text = std::getenv("FASTCONV_VERBOSE");
    if (!text || !*text) return 0;
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end || value < 0 || value > 9)
      throw std::invalid_argument("FASTCONV_VERBOSE must be a number from 0 to 9; got '" + std::string(text) + "'");
    return static_cast<int>(value);
  }()};
  return value;
}

}  // namespace

int verbose_level() {
  return level().load(std::memory_order_relaxed);
}
void set_verbose(int value) {
  level() = value;
}

std::string to_string(const Blocking& b) {
  std::string s;
  const auto put = [&s](const char* name, int64_t value) {
    if (value) s += (s.empty() ? "" : " ") + std::string(name) + std::to_string(value);
  };
  put("mr", b.mr), put("nr", b.nr), put("mc", b.mc), put("band", b.band), put("segs", b.segs), put("seg_k", b.seg_k);
  if (b.flat) s += " flat";
  if (b.channels_first) s += " crs";
  if (b.near) s += s.empty() ? "near" : " near";
  if (b.ahead) s += s.empty() ? "ahead" : " ahead";
  if (b.streaming) s += s.empty() ? "streaming" : " streaming";
  return s;
}

void log(const LogLine& line) {
  char milliseconds[32] = "";
  if (line.milliseconds) std::snprintf(milliseconds, sizeof milliseconds, "%.6g", *line.milliseconds);
  std::fprintf(stderr, "fastconv,%s,%s,%s,%s,%s,%s,%s,%s,%s,%lld,%lld,%s\n", line.event, line.op, line.device,
               line.layout, line.dtype, line.problem.c_str(), line.algorithm, line.ukernel, line.blocking.c_str(),
               static_cast<long long>(line.packed_bytes), static_cast<long long>(line.scratch_bytes), milliseconds);
}

void log_plan(const char* event, const Plan& plan, double milliseconds) {
  const Problem& p = plan.problem;
  log({event, to_string(p.op), plan.algorithm->device, to_string(p.layout), "float32", to_string(p),
       plan.algorithm->name, plan.ukernel_name, to_string(plan.blocking), plan.packed_bytes, plan.scratch_bytes,
       milliseconds});
}

}  // namespace fastconv
