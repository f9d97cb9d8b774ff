#include "common/weights.h"

#include <utility>

#include "cpu/parallel.h"

namespace fastconv {

ConvWeights::ConvWeights(const float* data, Shape shape, WeightLayout layout, int64_t groups, const float* bias,
                         int64_t bias_size, std::shared_ptr<void> owner)
    : data_(data),
      shape_(std::move(shape)),
      layout_(layout),
      groups_(groups),
      bias_(bias),
      bias_size_(bias ? bias_size : -1),
      owner_(std::move(owner)) {}

std::shared_ptr<const Buffer> ConvWeights::packed(const Plan& plan) {
  if (!plan.algorithm->pack) return nullptr;
  const std::string key = plan.pack_tag + " " + std::to_string(plan.packed_bytes);
  const std::lock_guard lock(mutex_);
  std::shared_ptr<const Buffer>& slot = packed_[key];
  if (!slot) {
    auto buffer = std::make_shared<Buffer>(plan.packed_bytes);
    parallel(plan.packed_bytes > (1 << 20) ? num_threads() : 1, [&](int tid, int nthr, Barrier& barrier) {
      Worker worker{tid, nthr, nullptr, &barrier};
      plan.algorithm->pack(plan, data_, buffer->data(), worker);
    });
    slot = std::move(buffer);
  }
  return slot;
}

int64_t ConvWeights::packed_bytes() const {
  const std::lock_guard lock(mutex_);
  int64_t total = 0;
  for (const auto& [key, buffer] : packed_) total += buffer ? buffer->bytes() : 0;
  return total;
}

}  // namespace fastconv
