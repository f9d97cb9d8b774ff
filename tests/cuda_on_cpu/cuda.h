// What of <cuda.h> this project uses: the copy engine's descriptor, opaque as there. hopper_on_cpu.cpp fills and reads it.
#pragma once

struct alignas(16) CUtensorMap {
  unsigned long long opaque[16];
};
