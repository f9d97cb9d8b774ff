// FASTCONV_VERBOSE=1: one CSV line on stderr for every plan made and every step run.
//   fastconv,plan|run,op,device,layout,dtype,problem,algorithm,ukernel,blocking,packed_bytes,scratch_bytes,ms
#pragma once

#include <string>

#include "common/algorithm.h"

namespace fastconv {

int verbose_level();
void set_verbose(int level);
void log_plan(const char* event, const Plan& plan, double milliseconds);
std::string to_string(const Blocking& blocking);  // "mr14 nr32 mc56 segs3 seg_k192"

}  // namespace fastconv
