// Aligned memory that asks for huge pages where they pay: weights and arenas are walked by the megabyte, and 4 KiB
// pages cost address translations in the middle of the products.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastconv {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);  // std::bad_alloc when it cannot be had
  ~Buffer();
  Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr, other.bytes_ = 0;
  }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
inline int64_t div_up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

}  // namespace fastconv
