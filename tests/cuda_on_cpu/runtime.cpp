#include "runtime.h"

#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace {

struct Work {
  const char* what;
  std::function<void()> run;
};
// Memory that a captured graph allocates; lives as long as anything that may use it.
using GraphMemory = std::shared_ptr<void>;

struct Capture {
  std::vector<Work> work;
  std::vector<cudaStream_t> streams;
};
using CapturePtr = std::shared_ptr<Capture>;

struct DeviceFacts {
  const char* name;
  int sm, sm_count, l2_bytes;
  size_t shared_bytes_per_block, shared_bytes_per_sm;
};
constexpr DeviceFacts kDevices[] = {{"host as sm_80", 80, 108, 40 << 20, 163 << 10, 164 << 10},
                                    {"host as sm_90", 90, 132, 50 << 20, 227 << 10, 228 << 10}};
constexpr int kDeviceCount = 2;

struct Allocation {
  size_t bytes;
  int device;
};

std::mutex& mutex = *new std::mutex;
std::map<uintptr_t, Allocation>& allocations = *new std::map<uintptr_t, Allocation>;
unsigned long long next_stream_id = 10;
thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

cudaError_t status(cudaError_t e) {
  if (e != cudaSuccess && e != cudaErrorNotReady) last_error = e;
  return e;
}

void* allocate(size_t bytes, int device) {
  void* p = nullptr;
  if (bytes > (size_t{1} << 46) || posix_memalign(&p, 256, bytes ? bytes : 1) != 0) return nullptr;
  std::memset(p, 0xFF, bytes);
  const std::lock_guard lock(mutex);
  allocations[reinterpret_cast<uintptr_t>(p)] = {bytes, device};
  return p;
}

bool release(void* p) {
  {
    const std::lock_guard lock(mutex);
    if (allocations.erase(reinterpret_cast<uintptr_t>(p)) == 0) return false;
  }
  std::free(p);
  return true;
}

}  // namespace

struct CUstream_st {
  unsigned long long id;
  int device;
  CapturePtr capture;
};
struct CUevent_st {
  CapturePtr capture;  // of the stream when it was recorded
  std::chrono::steady_clock::time_point time;
};
struct CUmemPool_st {
  int device;
};
struct CUgraphNode_st {
  std::vector<Work> work;
};
struct CUgraph_st {
  std::vector<std::shared_ptr<CUgraphNode_st>> nodes;
};
struct CUgraphExec_st {
  std::vector<std::pair<cudaGraphNode_t, std::shared_ptr<CUgraphNode_st>>> nodes;  // by the graph's node, a copy of it
};

namespace {

bool is_real(cudaStream_t s) {
  return reinterpret_cast<uintptr_t>(s) > 2;
}
Capture* capture_of(cudaStream_t s) {
  return is_real(s) ? s->capture.get() : nullptr;
}
std::vector<Work> whole(cudaGraph_t graph) {
  std::vector<Work> work;
  for (const auto& n : graph->nodes) work.insert(work.end(), n->work.begin(), n->work.end());
  return work;
}
cudaError_t malloc_async(void** p, size_t bytes, int device, cudaStream_t stream) {
  *p = allocate(bytes, device);
  if (!*p) return status(cudaErrorMemoryAllocation);
  if (Capture* c = capture_of(stream)) {  // the graph's own; as fresh at every launch
    const GraphMemory memory(*p, [](void* q) { release(q); });
    c->work.push_back({"malloc", [memory, bytes] { std::memset(memory.get(), 0xFF, bytes); }});
  }
  return cudaSuccess;
}

}  // namespace

namespace shim {

void enqueue(cudaStream_t stream, const char* what, std::function<void()> work) {
  if (Capture* c = capture_of(stream)) {
    c->work.push_back({what, std::move(work)});
  } else {
    work();
  }
}

std::string refuses(const Launch& l) {
  const DeviceFacts& d = kDevices[current];
  const auto number = [](uint64_t v) { return std::to_string(v); };
  const uint64_t threads = uint64_t{l.block.x} * l.block.y * l.block.z;
  if (threads == 0 || threads > 1024 || l.block.z > 64) return "a block of " + number(threads) + " threads";
  if (l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0 || l.grid.x > 0x7FFFFFFFu || l.grid.y > 65535 || l.grid.z > 65535)
    return "a grid of " + number(l.grid.x) + "x" + number(l.grid.y) + "x" + number(l.grid.z) + " blocks";
  if (l.shared_bytes > d.shared_bytes_per_block)
    return number(l.shared_bytes) + " bytes of shared memory, the device has " + number(d.shared_bytes_per_block);
  if (l.cluster > 1 && d.sm < 90) return "clusters, which the device does not have";
  if (l.cluster < 1 || l.cluster > 8 || l.grid.x % static_cast<unsigned>(l.cluster) != 0)
    return "clusters of " + number(static_cast<uint64_t>(l.cluster)) + " in a grid of " + number(l.grid.x);
  return "";
}

}  // namespace shim

const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorGraphExecUpdateFailure:
      return "cudaErrorGraphExecUpdateFailure";
    default:
      return "a CUDA error";
  }
}
const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "out of memory" : cudaGetErrorName(e);
}
cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}

cudaError_t cudaGetDeviceCount(int* n) {
  *n = kDeviceCount;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* d) {
  *d = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int d) {
  if (d < 0 || d >= kDeviceCount) return status(cudaErrorInvalidDevice);
  current = d;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  if (device < 0 || device >= kDeviceCount) return status(cudaErrorInvalidDevice);
  const DeviceFacts& d = kDevices[device];
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      *value = d.sm_count;
      break;
    case cudaDevAttrL2CacheSize:
      *value = d.l2_bytes;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = d.sm / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = d.sm % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(d.shared_bytes_per_sm);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(d.shared_bytes_per_block);
      break;
    default:
      return status(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device < 0 || device >= kDeviceCount) return status(cudaErrorInvalidDevice);
  const DeviceFacts& d = kDevices[device];
  *p = {};
  std::strcpy(p->name, d.name);
  p->totalGlobalMem = size_t{1} << 40;
  p->sharedMemPerBlockOptin = d.shared_bytes_per_block;
  p->multiProcessorCount = d.sm_count;
  p->major = d.sm / 10;
  p->minor = d.sm % 10;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = allocate(bytes, current);
  return *p ? cudaSuccess : status(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* p) {
  return !p || release(p) ? cudaSuccess : status(cudaErrorInvalidValue);
}
cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t stream) {
  return malloc_async(p, bytes, current, stream);
}
cudaError_t cudaMallocFromPoolAsync(void** p, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  return malloc_async(p, bytes, pool->device, stream);
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  if (Capture* c = capture_of(stream)) {
    c->work.push_back({"free", [] {}});
    return cudaSuccess;
  }
  return cudaFree(p);
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
  *p = std::malloc(bytes);
  return *p ? cudaSuccess : status(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* p) {
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* p) {
  *pool = new CUmemPool_st{p->location.id};
  return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  delete pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  const std::lock_guard lock(mutex);
  auto it = allocations.upper_bound(at);
  *a = {cudaMemoryTypeUnregistered, -2, nullptr, const_cast<void*>(p)};
  if (it == allocations.begin()) return cudaSuccess;
  --it;
  if (at - it->first >= it->second.bytes) return cudaSuccess;
  *a = {cudaMemoryTypeDevice, it->second.device, const_cast<void*>(p), nullptr};
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 40;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  shim::enqueue(stream, "memcpy", [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  shim::enqueue(stream, "memset", [=] { std::memset(p, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* s) {
  return cudaStreamCreateWithFlags(s, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
  const std::lock_guard lock(mutex);
  *s = new CUstream_st{next_stream_id++, current, nullptr};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  if (!is_real(s)) return status(cudaErrorInvalidResourceHandle);
  delete s;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  return capture_of(s) ? status(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
  return cudaStreamSynchronize(s);
}
cudaError_t cudaStreamGetId(cudaStream_t s, unsigned long long* id) {
  *id = is_real(s) ? s->id : reinterpret_cast<uintptr_t>(s);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  if (!e->capture || !is_real(s) || s->capture == e->capture) return cudaSuccess;
  if (s->capture) return status(cudaErrorInvalidValue);  // two captures would become one
  s->capture = e->capture;
  s->capture->streams.push_back(s);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) {
  return cudaEventCreateWithFlags(e, cudaEventDefault);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  *e = new CUevent_st{};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  delete e;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  e->capture = is_real(s) ? s->capture : nullptr;
  e->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  return e->capture ? status(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  return cudaEventQuery(e);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  if (!is_real(s) || s->capture) return status(cudaErrorStreamCaptureUnsupported);
  s->capture = std::make_shared<Capture>();
  s->capture->streams.push_back(s);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!is_real(s) || !s->capture || s->capture->streams[0] != s) return status(cudaErrorInvalidValue);
  const CapturePtr capture = s->capture;
  for (cudaStream_t joined : capture->streams) joined->capture = nullptr;
  *graph = new CUgraph_st;
  for (Work& w : capture->work) {
    (*graph)->nodes.push_back(std::make_shared<CUgraphNode_st>());
    (*graph)->nodes.back()->work.push_back(std::move(w));
  }
  capture->work.clear();
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status_) {
  *status_ = capture_of(s) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}
cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  *graph = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes) {
    if (*count > graph->nodes.size()) *count = graph->nodes.size();
    for (size_t i = 0; i < *count; ++i) nodes[i] = graph->nodes[i].get();
  } else {
    *count = graph->nodes.size();
  }
  return cudaSuccess;
}
cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t*, size_t,
                                       cudaGraph_t child) {
  graph->nodes.push_back(std::make_shared<CUgraphNode_st>());
  graph->nodes.back()->work = whole(child);
  *node = graph->nodes.back().get();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st;
  for (const auto& n : graph->nodes) (*exec)->nodes.emplace_back(n.get(), std::make_shared<CUgraphNode_st>(*n));
  return cudaSuccess;
}
cudaError_t cudaGraphExecChildGraphNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node, cudaGraph_t child) {
  for (auto& [original, copy] : exec->nodes) {
    if (original != node) continue;
    std::vector<Work> work = whole(child);
    if (work.size() != copy->work.size()) return status(cudaErrorGraphExecUpdateFailure);
    for (size_t i = 0; i < work.size(); ++i)
      if (std::strcmp(work[i].what, copy->work[i].what) != 0) return status(cudaErrorGraphExecUpdateFailure);
    copy->work = std::move(work);
    return cudaSuccess;
  }
  return status(cudaErrorInvalidValue);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const auto& [original, copy] : exec->nodes)
    for (const Work& w : copy->work) shim::enqueue(stream, w.what, w.run);
  return cudaSuccess;
}
