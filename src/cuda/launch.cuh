// The way to launch a kernel, and the way for a kernel to get its shared memory. Both have a form for nvcc here and one for the host in
// tests/cuda_on_cpu, where blocks run as fibers.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#ifdef FASTCONV_CUDA_ON_CPU
#include "cuda_on_cpu_launch.h"  // launch and FASTCONV_SHARED
#else

// Inside of a kernel: `name` points at the bytes of shared memory that the launch asked for, aligned to 128.
#define FASTCONV_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace fastconv::cuda {

constexpr size_t kSharedWithoutAsking = 48 << 10;  // more must be allowed kernel by kernel

// What few launches ask for beside their extents.
struct LaunchOptions {
  int cluster = 1;            // blocks along x that share their memories (sm_90)
  bool programmatic = false;  // may start before the grid ahead of it has ended, and waits for it in the kernel (sm_90)
};

// Enqueues kernel<<<grid, block, shared_bytes, stream>>>(args...) on the current device; throws with the kernel's name when that is refused.
// Arguments are converted to the kernel's own parameter types.
template <class... Parameters, class... Arguments>
void launch(const LaunchOptions& options, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Arguments&&... args) {
  cudaError_t status = cudaSuccess;
  if (shared_bytes > kSharedWithoutAsking)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (status == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute attributes[2];
    config.attrs = attributes;
    if (options.cluster > 1) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeClusterDimension;
      a.val.clusterDim.x = static_cast<unsigned>(options.cluster);
      a.val.clusterDim.y = a.val.clusterDim.z = 1;
    }
    // Before 12.3 graphs have no edges that say it, and such a launch could not be captured.
    if (options.programmatic && CUDART_VERSION >= 12030) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      a.val.programmaticStreamSerializationAllowed = 1;
    }
    status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...);
  }
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const char* name = nullptr;
#if CUDART_VERSION >= 12030
  if (cudaFuncGetName(&name, reinterpret_cast<const void*>(kernel)) != cudaSuccess) name = nullptr;
#endif
  if (!name) name = "a kernel";
  throw std::runtime_error(
      std::string("launch of ") + name + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) +
      "), grid " + std::to_string(grid.x) + "x" + std::to_string(grid.y) + "x" + std::to_string(grid.z) + ", block " +
      std::to_string(block.x * block.y * block.z) + ", shared memory " + std::to_string(shared_bytes) + " bytes");
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... args) {
  launch(LaunchOptions{}, kernel, grid, block, shared_bytes, stream, std::forward<Arguments>(args)...);
}

}  // namespace fastconv::cuda

#endif
