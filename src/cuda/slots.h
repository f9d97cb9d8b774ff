// What calls of one Program in flight hold: an arena and the program's CUDA graph over it. Bounded in number; one that is still at work on
// another stream is waited for by the device, never by the host.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/runtime.h"

namespace fastconv::cuda {

// Pointers of one call.
struct Bindings {
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  bool operator==(const Bindings&) const = default;
};

// Steps [begin, end). Bound: they read an input or write an output, so that their launches change with a call's pointers.
struct Segment {
  size_t begin, end;
  bool bound;
};

class Slots {
 public:
  using Enqueue = std::function<void(size_t begin, size_t end, const Bindings&, std::byte* arena, cudaStream_t)>;

  // To be made and used with the program's device current.
  Slots(std::vector<Segment> segments, int64_t arena_bytes, Enqueue enqueue);

  // One call on `stream`, which is not being captured.
  void run(const Bindings& bindings, cudaStream_t stream, bool graph);
  // Why calls go without a graph though one was asked for; empty as long as they do not.
  std::string refusal() const;

 private:
  // The graph is a chain of child graphs, one a segment. Another call's pointers change the launches of the bound ones only: those are
  // captured anew and put into the executable graph in their child's place, which needs no wait.
  struct Slot {
    DeviceBuffer arena;
    UniqueGraph graph;
    std::vector<cudaGraphNode_t> nodes;
    UniqueGraphExec exec;
    Bindings bindings;  // of exec
    UniqueEvent done;   // after the last call
    unsigned long long stream = 0;
    bool used = false;
  };
  Slot& take(cudaStream_t stream, unsigned long long id);
  UniqueGraph captured(const Segment& segment, const Bindings& bindings, std::byte* arena);
  void build(Slot& slot, const Bindings& bindings);
  bool rebind(Slot& slot, const Bindings& bindings);

  const std::vector<Segment> segments_;
  const int64_t arena_bytes_;
  const Enqueue enqueue_;
  mutable std::mutex lock_;
  std::string refusal_;
  UniqueStream capture_;
  std::vector<std::unique_ptr<Slot>> slots_;  // the least lately used first
};

}  // namespace fastconv::cuda
