// A Program is an ordered list of planned steps over an arena of activations, run in one call and one parallel region.
// A lone op is a program of one step (`run_single`).
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "common/arena.h"
#include "common/buffer.h"
#include "common/plan.h"
#include "common/weights.h"

namespace fastconv {

// Buffers that calls borrow, so that steady state allocates nothing. Keeps a bounded number of idle ones up to a size.
class BufferPool {
 public:
  BufferPool(size_t max_idle, int64_t max_kept_bytes) : max_idle_(max_idle), max_kept_bytes_(max_kept_bytes) {}
  Buffer take(int64_t bytes);
  void give(Buffer buffer);

 private:
  const size_t max_idle_;
  const int64_t max_kept_bytes_;
  std::vector<Buffer> idle_;
};

struct BandSchedule;  // common/depth_first.h
struct ImageGroup;

class Program {
 public:
  Program();
  ~Program();

  // Building. Tensors are named by their index.
  int input(const Shape& shape);
  int conv2d(int x, std::shared_ptr<ConvWeights> weights, Pair stride, Pads padding, Pair dilation, Layout layout,
             const Preference& preference, bool winograd, Activation activation, int residual);
  int linear(int x, std::shared_ptr<ConvWeights> weights, Activation activation);
  int batch_norm(int x, const std::vector<float>& scale, const std::vector<float>& shift, Layout layout);
  int step(const Problem& problem, int x, const Preference& preference, const Shape& out);  // an op without parameters
  void output(int x);
  // Packs weights, lays out the arena. The cache sizes decide which steps run depth-first; 0: this machine's.
  void finalize(int64_t l2_bytes = 0, int64_t l3_bytes = 0);

  const Shape& shape(int x) const;

  // Plans for another ISA level or other tuned choices would be others than this program's.
  bool stale() const { return epoch_ != plan_epoch(); }

  // Running: pointers in the order of input() and output() calls. seconds: per step, or null.
  void run(const std::vector<const float*>& inputs, const std::vector<float*>& outputs,
           std::vector<double>* seconds = nullptr);

  struct Tensor {
    enum class Home { input, arena, output, bands } home = Home::arena;  // bands: never whole, see common/depth_first.h
    Shape shape;
    int64_t bytes = 0;
    int64_t place = 0;  // index of the input or output, or byte offset in the arena
  };
  struct Step {
    PlanPtr plan;
    int src = -1, dst = -1, residual = -1;
    std::shared_ptr<ConvWeights> weights;
    std::shared_ptr<const Buffer> packed;
    std::vector<float> scale, shift;
  };
  const std::vector<Step>& steps() const { return steps_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::vector<Together>& chains() const { return chains_; }  // steps that go by bands of rows, together
  std::vector<Together> image_groups() const;                      // steps that go image by image
  int64_t arena_bytes() const { return arena_bytes_; }
  int64_t scratch_bytes() const { return scratch_bytes_; }  // per thread
  size_t input_count() const { return inputs_.size(); }
  size_t output_count() const { return outputs_.size(); }
  const Shape& input_shape(size_t i) const { return tensors_[inputs_[i]].shape; }
  const Shape& output_shape(size_t i) const { return tensors_[outputs_[i]].shape; }

 private:
  int append(Step step, const Shape& out);
  int tensor(const Shape& shape);
  const Tensor& checked(int x) const;
  void require_open() const;
  using Schedules = std::vector<std::shared_ptr<const BandSchedule>>;  // of each chain
  std::shared_ptr<const Schedules> schedules_for(int threads);
  std::vector<PlanPtr> plans_of(const Together& chain) const;

  std::vector<Tensor> tensors_;
  std::vector<Step> steps_;
  std::vector<int> inputs_, outputs_;
  std::vector<Together> chains_;
  std::vector<ImageGroup> groups_;
  std::map<int, std::shared_ptr<const Schedules>> schedules_;  // by the number of threads
  int64_t arena_bytes_ = 0, scratch_bytes_ = 0, l2_bytes_ = 0;
  double cycles_ = 0;
  const uint64_t epoch_ = plan_epoch();
  std::atomic<bool> finalized_{false};
  std::mutex building_;  // builders and finalize; nothing changes after that

  std::unique_ptr<BufferPool> arenas_;
};

// One plan, once. `wei`: the caller's weights, packed on the way; null when operands.packed is set or nothing is
// packed.
void run_single(const Plan& plan, Operands operands, const float* wei);

}  // namespace fastconv
