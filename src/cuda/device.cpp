#include "cuda/device.h"

#include <memory>
#include <mutex>
#include <vector>

namespace fastconv::cuda {
namespace {

constexpr int kOldestSm = 80;

std::string version(int number) {  // 13000: 13.0
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

struct Device {
  DeviceLimits limits;
  std::string name;
};

int attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, ordinal), "cudaDeviceGetAttribute");
  return value;
}

Device ask(int ordinal) {
  Device d;
  d.limits.ordinal = ordinal;
  d.limits.sm = 10 * attribute(cudaDevAttrComputeCapabilityMajor, ordinal) +
                attribute(cudaDevAttrComputeCapabilityMinor, ordinal);
  d.limits.sm_count = attribute(cudaDevAttrMultiProcessorCount, ordinal);
  d.limits.shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal);
  d.limits.shared_bytes_per_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, ordinal);
  d.limits.l2_bytes = attribute(cudaDevAttrL2CacheSize, ordinal);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  d.name = properties.name;
  return d;
}

// Never destroyed: arrays may be dropped while the interpreter shuts down.
struct Devices {
  std::mutex mutex;
  bool usable = false;
  std::vector<std::unique_ptr<Device>> known;
};

Devices& devices() {
  static Devices& instance = *new Devices;
  return instance;
}

const Device& device(int ordinal) {
  Devices& all = devices();
  const std::lock_guard lock(all.mutex);
  if (ordinal >= 0 && ordinal < static_cast<int>(all.known.size()) && all.known[ordinal]) return *all.known[ordinal];
  const int count = device_count();
  if (ordinal < 0 || ordinal >= count)
    throw std::invalid_argument("device " + std::to_string(ordinal) + " does not exist: this process sees " +
                                std::to_string(count) + " CUDA devices");
  all.known.resize(count);
  all.known[ordinal] = std::make_unique<Device>(ask(ordinal));
  return *all.known[ordinal];
}

std::string too_old(const Device& d) {
  return "the device " + d.name + " has compute capability " + std::to_string(d.limits.sm / 10) + "." +
         std::to_string(d.limits.sm % 10) + ", but fastconv's CUDA kernels need " + std::to_string(kOldestSm / 10) +
         ".0 or later";
}

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // errors that are not the context's own do not stay behind for whoever asks next
  const std::string message =
      std::string(call) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")";
  if (status == cudaErrorMemoryAllocation) throw OutOfMemory(message);
  throw std::runtime_error(message);
}

std::string why_unavailable() {
  {
    const std::lock_guard lock(devices().mutex);
    if (devices().usable) return "";
  }
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) cudaGetLastError();
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return "no NVIDIA driver was found (libcuda could not be loaded)";
    return "the NVIDIA driver is too old: it supports CUDA " + version(driver) + ", this build needs " +
           version(runtime) + " or a later driver of CUDA " + std::to_string(runtime / 1000);
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    return "the NVIDIA driver sees no CUDA device";
  if (status != cudaSuccess)
    return std::string("the NVIDIA driver cannot be used: ") + cudaGetErrorString(status) + " (" +
           cudaGetErrorName(status) + ")";
  std::string reason;
  for (int i = 0; i < count; ++i) {
    try {
      const Device& d = device(i);
      if (d.limits.sm >= kOldestSm) {
        const std::lock_guard lock(devices().mutex);
        devices().usable = true;
        return "";
      }
      reason = too_old(d);
    } catch (const std::exception& e) {
      reason = "device " + std::to_string(i) + " cannot be used: " + e.what();
    }
  }
  return reason;
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

const DeviceLimits& device_limits(int ordinal) {
  const Device& d = device(ordinal);
  if (d.limits.sm < kOldestSm) throw std::runtime_error(too_old(d));
  return d.limits;
}

std::string device_name(int ordinal) {
  return device(ordinal).name;
}

DeviceLimits assumed_limits() {
  DeviceLimits limits;
  limits.sm = 90;
  limits.sm_count = 132;
  limits.shared_bytes_per_block = 227 << 10;
  limits.shared_bytes_per_sm = 228 << 10;
  limits.l2_bytes = 50 << 20;
  return limits;
}

int current_device() {
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "cudaGetDevice");
  return ordinal;
}

DeviceGuard::DeviceGuard(int ordinal) : before_(current_device()) {
  if (before_ == ordinal) return;
  check(cudaSetDevice(ordinal), "cudaSetDevice");
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

RelaxedCapture::RelaxedCapture() noexcept : changed_(cudaThreadExchangeStreamCaptureMode(&mode_) == cudaSuccess) {
  if (!changed_) cudaGetLastError();
}

RelaxedCapture::~RelaxedCapture() {
  if (changed_) cudaThreadExchangeStreamCaptureMode(&mode_);
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error == cudaErrorStreamCaptureImplicit) {  // the legacy stream while another one is being captured
    cudaGetLastError();
    return false;
  }
  check(error, "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace fastconv::cuda
