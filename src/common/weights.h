// Convolution weights and what plans made of them. The caller's array is kept alive and unchanged; every packed form is
// made once and shared by all programs whose plans carry the same tag.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "common/algorithm.h"
#include "common/buffer.h"
#include "common/validate.h"

namespace fastconv {

class ConvWeights {
 public:
  // `owner` keeps data and bias alive. bias may be null.
  ConvWeights(const float* data, Shape shape, WeightLayout layout, int64_t groups, const float* bias, int64_t bias_size,
              std::shared_ptr<void> owner);

  const Shape& shape() const { return shape_; }
  WeightLayout layout() const { return layout_; }
  int64_t groups() const { return groups_; }
  const float* bias() const { return bias_; }
  int64_t bias_size() const { return bias_size_; }  // -1: none
  std::shared_ptr<const Buffer> packed(const Plan& plan);
  int64_t packed_bytes() const;

 private:
  const float* data_;
  Shape shape_;
  WeightLayout layout_;
  int64_t groups_;
  const float* bias_;
  int64_t bias_size_;
  std::shared_ptr<void> owner_;
  std::map<std::string, std::shared_ptr<const Buffer>> packed_;
};

}  // namespace fastconv
