// Between launch and the runtime.
#pragma once

#include <cuda_runtime.h>

#include <functional>

namespace shim {

// Now, or when the graph is launched whose capture the stream takes part in. `what` says which kind of work it is: a graph may exchange
// work only for work of the same kind.
void enqueue(cudaStream_t stream, const char* what, std::function<void()> work);

// Empty, or why no device would take that launch.
std::string refuses(const Launch& launch);

}  // namespace shim
