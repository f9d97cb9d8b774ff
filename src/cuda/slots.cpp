#include "cuda/slots.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace fastconv::cuda {
namespace {

constexpr size_t kSlots = 4;  // streams that may compute at once; a fifth waits for the oldest, on the device

// Handles are reused after their stream is gone; these numbers are not.
unsigned long long id_of(cudaStream_t stream) {
  unsigned long long id = 0;
  check(cudaStreamGetId(stream, &id), "cudaStreamGetId");
  return id;
}

}  // namespace

Slots::Slots(std::vector<Segment> segments, int64_t arena_bytes, Enqueue enqueue)
    : segments_(std::move(segments)),
      arena_bytes_(arena_bytes),
      enqueue_(std::move(enqueue)),
      capture_(make_stream()) {}

void Slots::run(const Bindings& bindings, cudaStream_t stream, bool graph) {
  const RelaxedCapture relaxed;  // asking whether a slot is idle is allowed while another stream is captured
  const unsigned long long id = id_of(stream);
  // Held until everything is on the stream: the order of enqueuing is the order in which a slot's calls use its arena.
  const std::lock_guard lock(lock_);
  Slot& slot = take(stream, id);
  graph = graph && refusal_.empty();
  if (graph && !slot.exec) {
    try {
      build(slot, bindings);
    } catch (const OutOfMemory&) {
      throw;
    } catch (const std::runtime_error& e) {
      // What the driver will not have in a graph it may still launch; a launch that is wrong in itself fails again below.
      refusal_ = e.what();
      graph = false;
    }
  }
  const bool current = slot.bindings == bindings;
  if (graph && (current || rebind(slot, bindings))) {
    check(cudaGraphLaunch(slot.exec.get(), stream), "cudaGraphLaunch");
  } else {
    enqueue_(0, segments_.back().end, bindings, slot.arena.data(), stream);
  }
  check(cudaEventRecord(slot.done.get(), stream), "cudaEventRecord");
}

std::string Slots::refusal() const {
  const std::lock_guard lock(lock_);
  return refusal_;
}

Slots::Slot& Slots::take(cudaStream_t stream, unsigned long long id) {
  const auto own =
      std::find_if(slots_.begin(), slots_.end(), [&](const auto& s) { return s->used && s->stream == id; });
  auto found = own;
  if (found == slots_.end())
    found = std::find_if(slots_.begin(), slots_.end(),
                         [](const auto& s) { return !s->used || cudaEventQuery(s->done.get()) == cudaSuccess; });
  cudaGetLastError();  // "not ready" is no error to leave behind
  if (found == slots_.end() && slots_.size() < kSlots) {
    auto made = std::make_unique<Slot>();
    made->arena = DeviceBuffer(std::max<int64_t>(arena_bytes_, 1));
    made->done = make_event();
    slots_.push_back(std::move(made));
    found = slots_.end() - 1;
  } else if (found == slots_.end()) {
    found = slots_.begin();
    check(cudaStreamWaitEvent(stream, (*found)->done.get(), 0), "cudaStreamWaitEvent");
  }
  std::rotate(found, found + 1, slots_.end());
  Slot& slot = *slots_.back();
  slot.stream = id;
  slot.used = true;
  return slot;
}

UniqueGraph Slots::captured(const Segment& segment, const Bindings& bindings, std::byte* arena) {
  check(cudaStreamBeginCapture(capture_.get(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  try {
    enqueue_(segment.begin, segment.end, bindings, arena, capture_.get());
  } catch (...) {
    cudaStreamEndCapture(capture_.get(), &graph);
    cudaGetLastError();
    const UniqueGraph dropped(graph);
    throw;
  }
  check(cudaStreamEndCapture(capture_.get(), &graph), "cudaStreamEndCapture");
  return UniqueGraph(graph);
}

void Slots::build(Slot& slot, const Bindings& bindings) {
  cudaGraph_t made = nullptr;
  check(cudaGraphCreate(&made, 0), "cudaGraphCreate");
  UniqueGraph graph(made);
  std::vector<cudaGraphNode_t> nodes;
  for (const Segment& segment : segments_) {
    const UniqueGraph child = captured(segment, bindings, slot.arena.data());
    cudaGraphNode_t node = nullptr;
    check(cudaGraphAddChildGraphNode(&node, made, nodes.empty() ? nullptr : &nodes.back(), nodes.empty() ? 0 : 1,
                                     child.get()),
          "cudaGraphAddChildGraphNode");
    nodes.push_back(node);
  }
  cudaGraphExec_t exec = nullptr;
  check(cudaGraphInstantiate(&exec, made, 0), "cudaGraphInstantiate");
  slot.exec = UniqueGraphExec(exec);
  slot.graph = std::move(graph);
  slot.nodes = std::move(nodes);
  slot.bindings = bindings;
}

// False where the launches of these pointers have another shape (another number of kernels for an unaligned array, say): this call goes
// without a graph, and the next one builds it afresh. One that is still running is freed by the runtime when it ends.
bool Slots::rebind(Slot& slot, const Bindings& bindings) {
  slot.bindings = {};  // until all are exchanged: an error in between must not leave a mixture under the old ones' name
  for (size_t i = 0; i < segments_.size(); ++i) {
    if (!segments_[i].bound) continue;
    const UniqueGraph child = captured(segments_[i], bindings, slot.arena.data());
    const cudaError_t error = cudaGraphExecChildGraphNodeSetParams(slot.exec.get(), slot.nodes[i], child.get());
    if (error == cudaSuccess) continue;
    cudaGetLastError();
    slot.exec = UniqueGraphExec();
    return false;
  }
  slot.bindings = bindings;
  return true;
}

}  // namespace fastconv::cuda
