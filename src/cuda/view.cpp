#include "cuda/view.h"

#include <stdexcept>

#include "cuda/device.h"

namespace fastconv::cuda {

const char* to_string(Element e) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int64"};
  return kNames[static_cast<size_t>(e)];
}

int64_t View::elements() const {
  return checked_elements(shape);
}

bool View::contiguous() const {
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] == 0) return true;
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

View View::reshaped(const Shape& to) const {
  if (!contiguous()) throw std::logic_error("only contiguous arrays are reshaped");
  if (checked_elements(to) != elements())
    throw std::invalid_argument("an array of shape " + fastconv::to_string(shape) + " cannot take the shape " +
                                fastconv::to_string(to));
  View v = *this;
  v.shape = to;
  v.strides = contiguous_strides(to);
  return v;
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = step;
    step *= shape[i] > 0 ? shape[i] : 1;
  }
  return strides;
}

View fresh(const Shape& shape, Element element, cudaStream_t stream) {
  View v;
  v.element = element;
  v.shape = shape;
  v.strides = contiguous_strides(shape);
  v.device = current_device();
  v.storage = Storage::allocate(checked_elements(shape) * bytes_of(element), stream);
  v.data = v.storage->data();
  return v;
}

std::pair<uintptr_t, uintptr_t> extent(const View& view) {
  const uintptr_t data = reinterpret_cast<uintptr_t>(view.data);
  int64_t low = 0, high = 0;
  for (size_t i = 0; i < view.shape.size(); ++i) {
    if (view.shape[i] == 0) return {data, data};
    const int64_t reach = (view.shape[i] - 1) * view.strides[i];
    (reach < 0 ? low : high) += reach;
  }
  const int64_t size = bytes_of(view.element);
  return {data + low * size, data + (high + 1) * size};
}

}  // namespace fastconv::cuda
