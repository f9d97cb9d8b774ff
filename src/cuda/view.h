// An array in device memory as a caller gave it, or as this library made it: pointer, shape, strides, and what keeps the memory.
#pragma once

#include <cstdint>
#include <memory>

#include "common/validate.h"
#include "cuda/memory.h"

namespace fastconv::cuda {

enum class Element : uint8_t { f32, f16, bf16, i64 };
const char* to_string(Element);
inline int64_t bytes_of(Element e) {
  return e == Element::f32 ? 4 : e == Element::i64 ? 8 : 2;
}

struct View {
  void* data = nullptr;
  Element element = Element::f32;
  Shape shape, strides;  // strides in elements
  int device = 0;
  bool read_only = false;
  std::shared_ptr<Storage> storage;  // of arrays of our own
  std::shared_ptr<void> owner;       // of everyone else's: released when the last view goes

  int64_t elements() const;
  bool contiguous() const;  // in C order; axes of one element may have any stride
  // The same memory under another shape of as many elements; of contiguous ones only.
  View reshaped(const Shape& to) const;
};

Shape contiguous_strides(const Shape& shape);
// A fresh array on the current device, ready for `stream`.
View fresh(const Shape& shape, Element element, cudaStream_t stream);

// Where the elements lie, as half-open byte addresses; empty for an array without elements.
std::pair<uintptr_t, uintptr_t> extent(const View& view);

}  // namespace fastconv::cuda
