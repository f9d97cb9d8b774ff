#include "cuda/runtime.h"

namespace fastconv::cuda {

DeviceBuffer::DeviceBuffer(int64_t bytes) : bytes_(bytes) {
  if (bytes <= 0) return;
  const RelaxedCapture relaxed;
  ordinal_ = current_device();
  void* data = nullptr;
  check(cudaMalloc(&data, static_cast<size_t>(bytes)), "cudaMalloc");
  data_ = static_cast<std::byte*>(data);
}

DeviceBuffer::~DeviceBuffer() {
  if (!data_) return;
  const RelaxedCapture relaxed;
  int before = 0;
  const bool other = cudaGetDevice(&before) == cudaSuccess && before != ordinal_;
  if (other) cudaSetDevice(ordinal_);
  cudaFree(data_);
  if (other) cudaSetDevice(before);
  cudaGetLastError();
}

UniqueStream make_stream() {
  const RelaxedCapture relaxed;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return UniqueStream(stream);
}

UniqueEvent make_event(bool timed) {
  const RelaxedCapture relaxed;
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming),
        "cudaEventCreateWithFlags");
  return UniqueEvent(event);
}

}  // namespace fastconv::cuda
