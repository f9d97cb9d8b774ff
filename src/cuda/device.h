// The CUDA devices of this process: whether there are any, what planning may know of one, and the guards around calls to the runtime.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/algorithm.h"

namespace fastconv::cuda {

struct OutOfMemory : std::runtime_error {  // MemoryError
  using std::runtime_error::runtime_error;
};

// Throws std::runtime_error (OutOfMemory where it is that) with the call's name and CUDA's own words.
void check(cudaError_t status, const char* call);

// Empty when a device can be used; else a sentence that says what is missing: the driver, a device, or a device of sm_80 or later.
// Asked once, and again for as long as the answer is no.
std::string why_unavailable();

int device_count();  // 0 where there is none, without throwing
// Of device `ordinal`; std::invalid_argument when there is no such device, std::runtime_error when it is older than sm_80.
const DeviceLimits& device_limits(int ordinal);
std::string device_name(int ordinal);
// What planning assumes where no device can be asked: an H200.
DeviceLimits assumed_limits();
int current_device();

// Makes a device current, and the one before current again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int ordinal);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// While it lives, this thread may allocate and wait though some stream of the process is being captured into a graph. For preparations
// on streams of our own, which no capture knows, and for asking and creating events, which would break another thread's capture.
// Never throws, as destructors use it: where the runtime cannot be asked (after a fault, at the process's end, in a child of fork),
// the calls that follow say so themselves.
class RelaxedCapture {
 public:
  RelaxedCapture() noexcept;
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  bool changed_;
};

bool is_capturing(cudaStream_t stream);

}  // namespace fastconv::cuda
