#include "cuda/memory.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <string>

#include "cuda/device.h"

namespace fastconv::cuda {
namespace {

constexpr uint64_t kKeptBytes = uint64_t{1} << 30;  // of idle memory that a pool keeps back when a stream is waited for
constexpr size_t kIdleEvents = 256;

// Never destroyed: arrays may be dropped while the interpreter shuts down.
struct Globals {
  std::mutex mutex;
  std::map<int, cudaMemPool_t> pools;
  std::map<int, cudaStream_t> streams;
  std::map<int, std::vector<cudaEvent_t>> idle_events;
  std::map<int, std::vector<cudaStream_t>> idle_streams;
  std::atomic<bool> abandoned{false};
};

Globals& globals() {
  static Globals& instance = *new Globals;
  return instance;
}

// A pool of our own: other libraries' settings of the device's default pool stay theirs.
cudaMemPool_t pool(int device) {
  Globals& g = globals();
  const std::lock_guard lock(g.mutex);
  const auto it = g.pools.find(device);
  if (it != g.pools.end()) return it->second;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  const RelaxedCapture relaxed;
  cudaMemPool_t made = nullptr;
  check(cudaMemPoolCreate(&made, &properties), "cudaMemPoolCreate");
  uint64_t kept = kKeptBytes;
  check(cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &kept), "cudaMemPoolSetAttribute");
  return g.pools.emplace(device, made).first->second;
}

// Unlike a handle, never given to a later stream; and the stream of each thread has its own.
unsigned long long number_of(cudaStream_t stream) {
  unsigned long long number = 0;
  check(cudaStreamGetId(stream, &number), "cudaStreamGetId");
  return number;
}

void* from_pool(int64_t bytes, cudaStream_t stream) {
  const cudaMemPool_t from = pool(current_device());
  const RelaxedCapture relaxed;  // a pool may have to grow while another thread captures
  void* data = nullptr;
  check(cudaMallocFromPoolAsync(&data, static_cast<size_t>(bytes), from, stream),
        ("cudaMallocFromPoolAsync of " + std::to_string(bytes) + " bytes").c_str());
  return data;
}

cudaStream_t new_stream(int device) {
  const DeviceGuard guard(device);
  const RelaxedCapture relaxed;
  cudaStream_t made = nullptr;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return made;
}

}  // namespace

MarkPtr Mark::record(int device, cudaStream_t stream) {
  cudaEvent_t handle = nullptr;
  {
    Globals& g = globals();
    const std::lock_guard lock(g.mutex);
    std::vector<cudaEvent_t>& idle = g.idle_events[device];
    if (!idle.empty()) {
      handle = idle.back();
      idle.pop_back();
    }
  }
  const RelaxedCapture relaxed;
  if (!handle) check(cudaEventCreateWithFlags(&handle, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  const MarkPtr event(new Mark(device, handle));
  check(cudaEventRecord(handle, stream), "cudaEventRecord");
  return event;
}

Mark::~Mark() {
  Globals& g = globals();
  const std::lock_guard lock(g.mutex);
  std::vector<cudaEvent_t>& idle = g.idle_events[device_];
  if (idle.size() < kIdleEvents) {
    idle.push_back(handle_);
  } else {
    cudaEventDestroy(handle_);
  }
}

bool Mark::done() const {
  const RelaxedCapture relaxed;  // else the answer while another thread captures is an error, and that capture broken
  const cudaError_t status = cudaEventQuery(handle_);
  if (status != cudaSuccess) cudaGetLastError();
  return status != cudaErrorNotReady;
}

cudaStream_t own_stream(int device) {
  Globals& g = globals();
  const std::lock_guard lock(g.mutex);
  const auto it = g.streams.find(device);
  if (it != g.streams.end()) return it->second;
  return g.streams.emplace(device, new_stream(device)).first->second;
}

cudaStream_t borrow_stream(int device) {
  Globals& g = globals();
  {
    const std::lock_guard lock(g.mutex);
    std::vector<cudaStream_t>& idle = g.idle_streams[device];
    if (!idle.empty()) {
      const cudaStream_t stream = idle.back();
      idle.pop_back();
      return stream;
    }
  }
  return new_stream(device);
}

void return_stream(int device, cudaStream_t stream) {
  Globals& g = globals();
  const std::lock_guard lock(g.mutex);
  g.idle_streams[device].push_back(stream);
}

void abandon() {
  globals().abandoned = true;
}

std::shared_ptr<Storage> Storage::allocate(int64_t bytes, cudaStream_t stream) {
  std::shared_ptr<Storage> storage(new Storage);
  storage->device_ = current_device();
  storage->bytes_ = bytes;
  if (bytes == 0) return storage;
  if (!is_capturing(stream)) {
    storage->data_ = from_pool(bytes, stream);
    storage->release(stream, Mark::record(storage->device_, stream));
    return storage;
  }
  const RelaxedCapture relaxed;
  const cudaStream_t own = own_stream(storage->device_);
  storage->data_ = from_pool(bytes, own);
  check(cudaStreamSynchronize(own), "cudaStreamSynchronize");  // nothing but the allocation runs there
  return storage;
}

Storage::~Storage() {
  if (!data_ || globals().abandoned) return;
  try {
    const DeviceGuard guard(device_);
    const RelaxedCapture relaxed;
    const cudaStream_t own = own_stream(device_);
    if (unknown_) check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    for (const cudaStream_t stream : others_)
      if (!is_capturing(stream)) release(stream, Mark::record(device_, stream));
    for (const auto& [stream, mark] : uses_) check(cudaStreamWaitEvent(own, mark->handle(), 0), "cudaStreamWaitEvent");
    cudaFreeAsync(data_, own);
  } catch (const std::exception&) {
    // The context is gone, and its memory with it.
  }
}

void Storage::acquire(cudaStream_t stream) {
  if (is_capturing(stream)) return;  // events of outside are no part of a graph
  const unsigned long long id = number_of(stream);
  const std::lock_guard lock(mutex_);
  for (const auto& [other, mark] : uses_)
    if (other != id) check(cudaStreamWaitEvent(stream, mark->handle(), 0), "cudaStreamWaitEvent");
}

void Storage::release(cudaStream_t stream, const MarkPtr& done) {
  if (!done) return;
  const unsigned long long id = number_of(stream);
  const std::lock_guard lock(mutex_);
  for (auto& [other, mark] : uses_) {
    if (other != id) continue;
    mark = done;
    return;
  }
  uses_.emplace_back(id, done);
}

void Storage::hand_over(cudaStream_t stream, bool known) {
  const std::lock_guard lock(mutex_);
  if (!known) {
    unknown_ = true;
  } else if (std::find(others_.begin(), others_.end(), stream) == others_.end()) {
    others_.push_back(stream);
  }
}

Temporary::Temporary(int64_t bytes, cudaStream_t stream)
    : data_(bytes > 0 ? from_pool(bytes, stream) : nullptr), stream_(stream) {}

Temporary::~Temporary() {
  if (data_) cudaFreeAsync(data_, stream_);
}

}  // namespace fastconv::cuda
