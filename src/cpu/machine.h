// What this machine is: ISA level, caches, processors that this process may use.
#pragma once

#include <string>

#include "common/algorithm.h"

namespace fastconv {

struct MachineInfo {
  Isa isa_found = Isa::scalar;  // best level with leaves here that processor and system support
  std::string cpu;              // the processor's own name
  int64_t l1d_bytes = 0, l2_bytes = 0, l3_bytes = 0;
  bool adds_beside = false;  // Machine::adds_beside, by the processor's family
  int cpus_affinity = 1;     // processors in the affinity mask
  double cpu_quota = 0.0;    // processors' worth of time that the container grants; 0: no limit
};

const MachineInfo& machine_info();  // found once, at first use

// ISA level in use: found, capped by FASTCONV_MAX_ISA and by set_max_isa.
Isa current_isa();
void set_max_isa(const std::string& level);  // "": back to what FASTCONV_MAX_ISA allows. ValueError for an unknown word
// Another answer than the processor's family gives: 0 or 1; -1: that again.
void set_adds_beside(int answer);
// Outputs of more bytes may be stored past the caches; 0: half of the L3, so that input and output together do not fit.
void set_stream_bytes(int64_t bytes);
Machine current_machine();

}  // namespace fastconv
