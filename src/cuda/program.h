// A Program on a GPU: planned steps over an arena of activations, run in one call as one CUDA graph on the caller's stream. The counterpart
// of common/program.h.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/validate.h"
#include "cuda/plan.h"
#include "cuda/slots.h"
#include "cuda/weights.h"

namespace fastconv::cuda {

class Program {
 public:
  Program(int ordinal, Compute compute);

  // Building. Tensors are named by their index; each has a dtype, and a step computes in its input's.
  int input(const Shape& shape, Dtype dtype);
  // `then_max_pool`: the 3x3 max-pool with stride 2 and padding 1 that follows, in the same kernel. Unsupported where no algorithm fuses it.
  int conv2d(int x, std::shared_ptr<ConvWeights> weights, Pair stride, Pads padding, Pair dilation, Layout layout,
             const Preference& preference, Activation activation, int residual, bool then_max_pool);
  int linear(int x, std::shared_ptr<ConvWeights> weights, Activation activation);  // products of float32 are exact
  int cast(int x, Dtype dtype);                                                    // x itself if it has that dtype
  int step(const Problem& problem, int x, const Shape& out);                       // an op without parameters
  void output(int x);
  void finalize();  // packs weights and lays out the arena; waits for the device

  const Shape& shape(int x) const;
  int ordinal() const { return device_.ordinal; }

  // Enqueues on `stream` and returns. Pointers in the order of input() and output() calls. While the stream is being captured the steps
  // become part of that graph, with memory that the graph owns. Calls in flight never share an arena.
  void run(const Bindings& bindings, cudaStream_t stream);
  // Seconds of each step on the device: launched one by one with events between, waited for. For benchmarks.
  std::vector<double> run_profiled(const Bindings& bindings, cudaStream_t stream);
  void use_graphs(bool on) { graphs_ = on; }
  std::string graph_refusal() const;  // why calls are plain launches though graphs are on; empty where they are graphs

  struct Tensor {
    enum class Home { input, arena, output } home = Home::arena;
    Shape shape;
    Dtype dtype = Dtype::f32;
    int64_t bytes = 0;
    int64_t place = 0;  // index of the input or output, or byte offset in the arena
  };
  struct Step {
    PlanPtr plan;  // null: a cast
    int src = -1, dst = -1, residual = -1;
    std::shared_ptr<ConvWeights> weights;
    std::shared_ptr<const DeviceBuffer> packed, bias;
  };
  const std::vector<Step>& steps() const { return steps_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  int64_t arena_bytes() const { return arena_bytes_; }
  int64_t workspace_bytes() const { return workspace_bytes_; }  // of the step that needs most
  size_t input_count() const { return inputs_.size(); }
  size_t output_count() const { return outputs_.size(); }
  const Tensor& input_tensor(size_t i) const { return tensors_[inputs_[i]]; }
  const Tensor& output_tensor(size_t i) const { return tensors_[outputs_[i]]; }

 private:
  int append(Step step, const Shape& out, Dtype dtype);
  int tensor(const Shape& shape, Dtype dtype);
  const Tensor& checked(int x) const;
  void require_open() const;
  void require_final() const;
  void split_at_bindings();
  void log_step(size_t index, std::optional<double> milliseconds) const;
  void enqueue(size_t begin, size_t end, const Bindings& bindings, std::byte* arena, cudaStream_t stream) const;

  DeviceLimits device_;
  Compute compute_;
  std::vector<Tensor> tensors_;
  std::vector<Step> steps_;
  std::vector<int> inputs_, outputs_;
  std::vector<Segment> segments_;
  int64_t arena_bytes_ = 0, workspace_bytes_ = 0;
  std::atomic<bool> finalized_{false}, graphs_{true};
  std::mutex building_;  // builders and finalize; nothing changes after that
  std::unique_ptr<Slots> slots_;
};

}  // namespace fastconv::cuda
