// FASTCONV_VERBOSE=1: one CSV line on stderr for every plan made and every step run.
//   fastconv,plan|run,op,device,layout,dtype,problem,algorithm,ukernel,blocking,packed_bytes,scratch_bytes,ms
// Each extension module has a level of its own, which the variable sets for all.
#pragma once

#include <optional>
#include <string>

#include "common/algorithm.h"

namespace fastconv {

int verbose_level();
void set_verbose(int level);
void log_plan(const char* event, const Plan& plan, double milliseconds);

// One line, for whatever backend. Without `milliseconds` its last field is empty.
struct LogLine {
  const char *event, *op, *device, *layout, *dtype;
  std::string problem;
  const char *algorithm, *ukernel;
  std::string blocking;
  int64_t packed_bytes = 0, scratch_bytes = 0;
  std::optional<double> milliseconds;
};
void log(const LogLine& line);
std::string to_string(const Blocking& blocking);  // "mr14 nr32 mc56 segs3 seg_k192"

}  // namespace fastconv
