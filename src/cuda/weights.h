// A convolution's weights and what plans made of them on each device. The caller's float32 array stays in host memory, alive and unchanged;
// every packed form is made once and shared by all programs whose plans carry the same tag.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "common/validate.h"
#include "cuda/algorithm.h"
#include "cuda/runtime.h"

namespace fastconv::cuda {

class ConvWeights {
 public:
  // `owner` keeps data and bias alive. bias may be null.
  ConvWeights(const float* data, Shape shape, WeightLayout layout, int64_t groups, const float* bias, int64_t bias_size,
              std::shared_ptr<void> owner);

  const Shape& shape() const { return shape_; }
  WeightLayout layout() const { return layout_; }
  int64_t groups() const { return groups_; }
  int64_t bias_size() const { return bias_size_; }  // -1: none

  // On the plan's device, ready for any stream: as its algorithm packs them, else as they lie, in the task's dtype.
  std::shared_ptr<const DeviceBuffer> packed(const Plan& plan);
  // Float32 on that device; null without a bias.
  std::shared_ptr<const DeviceBuffer> bias(int ordinal);
  int64_t packed_bytes() const;  // on all devices

 private:
  const float* data_;
  Shape shape_;
  WeightLayout layout_;
  int64_t groups_;
  const float* bias_;
  int64_t bias_size_;
  std::shared_ptr<void> owner_;
  mutable std::mutex lock_;
  std::map<std::pair<int, std::string>, std::shared_ptr<const DeviceBuffer>> packed_;
  std::map<int, std::shared_ptr<const DeviceBuffer>> device_bias_;
};

// Host values on the current device, there when this returns.
std::shared_ptr<const DeviceBuffer> uploaded(const void* data, int64_t bytes);

}  // namespace fastconv::cuda
