// Device memory in stream order: a pool for each device, arrays that several streams may use one after the other, and temporaries of one call.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace fastconv::cuda {

// A point in a stream, without timing. Taken from a list of idle ones and returned to it.
class Mark {
 public:
  static std::shared_ptr<const Mark> record(int device, cudaStream_t stream);
  ~Mark();
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
  cudaEvent_t handle() const { return handle_; }
  bool done() const;  // true as well when it cannot be asked any more

 private:
  Mark(int device, cudaEvent_t handle) : device_(device), handle_(handle) {}
  int device_;
  cudaEvent_t handle_;
};
using MarkPtr = std::shared_ptr<const Mark>;

// A stream of this library on the device, for preparations and for freeing. Never destroyed, never captured.
cudaStream_t own_stream(int device);

// A stream for one user, and back from them. Never destroyed but lent again: another library may keep its handle for memory that it
// frees much later.
cudaStream_t borrow_stream(int device);
void return_stream(int device, cudaStream_t stream);

// The process ends: what is still held is left to the driver. Other libraries' streams may be gone before their arrays are.
void abandon();

// Device memory that lives as long as the last work that uses it. Every user calls `acquire` before and `release` after: work on
// another stream is then ordered behind all that was done before, and freeing waits on the device, never on the host.
class Storage {
 public:
  // On the current device. While `stream` is being captured the memory comes from outside of the graph.
  static std::shared_ptr<Storage> allocate(int64_t bytes, cudaStream_t stream);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  int device() const { return device_; }

  void acquire(cudaStream_t stream);
  void release(cudaStream_t stream, const MarkPtr& done);
  // Another library works on the memory from now on, on `stream`, and will not say when it is done. Known: the stream is never destroyed,
  // so that freeing can wait for it; freeing waits for the whole device else.
  void hand_over(cudaStream_t stream, bool known);

 private:
  Storage() = default;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  int device_ = 0;
  std::mutex mutex_;
  std::vector<std::pair<unsigned long long, MarkPtr>>
      uses_;                          // the last one of each stream, by its number in the process
  std::vector<cudaStream_t> others_;  // known streams of other libraries
  bool unknown_ = false;
};

// Memory of one call: from the pool when the stream gets there, back to it behind the call's work. A node of the graph under capture.
class Temporary {
 public:
  Temporary() = default;
  Temporary(int64_t bytes, cudaStream_t stream);  // on the current device; nothing for 0 bytes
  ~Temporary();
  Temporary(Temporary&& other) noexcept : data_(std::exchange(other.data_, nullptr)), stream_(other.stream_) {}
  Temporary& operator=(Temporary&&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace fastconv::cuda
