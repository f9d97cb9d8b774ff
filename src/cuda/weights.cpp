#include "cuda/weights.h"

#include <utility>

#include "cuda/cast.h"
#include "cuda/plan.h"

namespace fastconv::cuda {

std::shared_ptr<const DeviceBuffer> uploaded(const void* data, int64_t bytes) {
  const RelaxedCapture relaxed;
  auto buffer = std::make_shared<DeviceBuffer>(bytes);
  if (bytes > 0) {
    // On a stream of its own: a copy through the legacy default stream would break a capture that is under way.
    const UniqueStream stream = make_stream();
    check(cudaMemcpyAsync(buffer->data(), data, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream.get()),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  }
  return buffer;
}

ConvWeights::ConvWeights(const float* data, Shape shape, WeightLayout layout, int64_t groups, const float* bias,
                         int64_t bias_size, std::shared_ptr<void> owner)
    : data_(data),
      shape_(std::move(shape)),
      layout_(layout),
      groups_(groups),
      bias_(bias),
      bias_size_(bias ? bias_size : -1),
      owner_(std::move(owner)) {}

std::shared_ptr<const DeviceBuffer> ConvWeights::packed(const Plan& plan) {
  const bool pack = plan.algorithm->pack != nullptr;
  const int64_t bytes = pack ? plan.packed_bytes : checked_elements(shape_) * element_bytes(plan.task.dtype);
  const std::pair key(plan.device.ordinal,
                      (pack ? plan.pack_tag : to_string(plan.task.dtype)) + (" " + std::to_string(bytes)));
  // One is made at a time: threads that meet a new shape together share the work.
  const std::lock_guard lock(lock_);
  if (const auto it = packed_.find(key); it != packed_.end()) return it->second;
  const DeviceGuard device(plan.device.ordinal);
  const RelaxedCapture relaxed;
  const auto wei = uploaded(data_, checked_elements(shape_) * 4);
  auto made = std::make_shared<DeviceBuffer>(bytes);
  const UniqueStream stream = make_stream();
  if (pack) {
    plan.algorithm->pack(plan, reinterpret_cast<const float*>(wei->data()), made->data(), stream.get());
  } else {
    cast(wei->data(), Dtype::f32, made->data(), plan.task.dtype, checked_elements(shape_), stream.get());
  }
  check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  return packed_.emplace(key, std::move(made)).first->second;
}

std::shared_ptr<const DeviceBuffer> ConvWeights::bias(int ordinal) {
  if (!bias_) return nullptr;
  const std::lock_guard lock(lock_);
  if (const auto it = device_bias_.find(ordinal); it != device_bias_.end()) return it->second;
  const DeviceGuard device(ordinal);
  return device_bias_.emplace(ordinal, uploaded(bias_, bias_size_ * 4)).first->second;
}

int64_t ConvWeights::packed_bytes() const {
  const std::lock_guard lock(lock_);
  int64_t total = 0;
  for (const auto& [key, buffer] : packed_) total += buffer->bytes();
  return total;
}

}  // namespace fastconv::cuda
