#include "common/buffer.h"

#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastconv {
namespace {
constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = 2 << 20;
int64_t alignment_for(int64_t bytes) {
  return bytes >= 2 * kHugePage ? kHugePage : kCacheLine;
}
}  // namespace

Buffer::Buffer(int64_t bytes) {
  if (bytes <= 0) return;
  const int64_t alignment = alignment_for(bytes);
  data_ = static_cast<std::byte*>(::operator new(static_cast<size_t>(bytes), std::align_val_t(alignment)));
  bytes_ = bytes;
#if defined(__linux__)
  if (alignment == kHugePage) madvise(data_, static_cast<size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() {
  if (data_) ::operator delete(data_, std::align_val_t(alignment_for(bytes_)));
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace fastconv
