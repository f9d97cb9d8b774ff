// What the CUDA runtime hands out, owned: device memory, streams, events, graphs.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cuda/device.h"

namespace fastconv::cuda {

constexpr int64_t kDeviceAlign = 256;  // what cudaMalloc gives, and every tensor of an arena gets

// Memory of the device that is current when it is made. Freed on that device; errors at that point (the driver may be gone when the
// process ends) have nobody to tell.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(int64_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(ordinal_, other.ordinal_);
  }
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  int ordinal_ = 0;
};

// A handle of the runtime, destroyed with its owner.
template <class Handle, cudaError_t (*destroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  ~Owned() {
    if (!handle_) return;
    const RelaxedCapture relaxed;
    if (destroy(handle_) != cudaSuccess) cudaGetLastError();
  }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Handle get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  Handle handle_ = nullptr;
};
using UniqueStream = Owned<cudaStream_t, cudaStreamDestroy>;
using UniqueEvent = Owned<cudaEvent_t, cudaEventDestroy>;
using UniqueGraph = Owned<cudaGraph_t, cudaGraphDestroy>;
using UniqueGraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;

UniqueStream make_stream();  // does not wait for the legacy default stream
UniqueEvent make_event(bool timed = false);

}  // namespace fastconv::cuda
