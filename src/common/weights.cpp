#include "common/weights.h"

#include <utility>

#include "common/lock.h"
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
  {
    const CoreLock lock;
    if (const auto it = packed_.find(key); it != packed_.end()) return it->second;
  }
  // Outside the lock: two threads may pack the same at once, and the first to finish is kept.
  auto made = std::make_shared<Buffer>(plan.packed_bytes);
  parallel(useful_threads(static_cast<double>(plan.packed_bytes) / 8), [&](int tid, int nthr, Barrier& barrier) {
    Worker worker{tid, nthr, nullptr, &barrier, nullptr};
    plan.algorithm->pack(plan, data_, made->data(), worker);
  });
  const CoreLock lock;
  return packed_.emplace(key, std::move(made)).first->second;
}

int64_t ConvWeights::packed_bytes() const {
  const CoreLock lock;
  int64_t total = 0;
  for (const auto& [key, buffer] : packed_) total += buffer ? buffer->bytes() : 0;
  return total;
}

}  // namespace fastconv
