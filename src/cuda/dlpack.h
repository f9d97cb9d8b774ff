// DLPack's exchange structs, as its specification lays them out in memory (github.com/dmlc/dlpack), and the steps from and to a View.
#pragma once

#include <cstdint>

#include "cuda/view.h"

namespace fastconv::cuda::dlpack {

constexpr int32_t kCuda = 2, kCudaManaged = 13;
constexpr uint64_t kReadOnly = 1;  // bit of Versioned::flags

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;  // code: 0 signed, 1 unsigned, 2 float, 4 bfloat, 5 complex, 6 bool
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null: C-contiguous
  uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Versioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(Versioned*);
  uint64_t flags;
  Tensor tensor;
};

// Without the owner. `name`: the argument, for errors.
View view_of(const Tensor& tensor, bool read_only, const char* name);

// Hand a view over; the consumer calls the deleter. The memory lives until then.
Managed* managed(const View& view);
Versioned* versioned(const View& view);

}  // namespace fastconv::cuda::dlpack
