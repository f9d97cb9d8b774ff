#include "cuda/program.h"

#include <algorithm>
#include <stdexcept>

#include "common/arena.h"
#include "common/buffer.h"
#include "common/log.h"
#include "cuda/cast.h"
#include "cuda/device.h"
#include "cuda/memory.h"

namespace fastconv::cuda {

Program::Program(int ordinal, Compute compute) : device_(device_limits(ordinal)), compute_(compute) {}

void Program::require_open() const {
  if (finalized_) throw std::invalid_argument("the program is finalized; steps can no longer be added");
}

void Program::require_final() const {
  if (!finalized_) throw std::invalid_argument("the program is not finalized");
}

const Program::Tensor& Program::checked(int x) const {
  if (x < 0 || x >= static_cast<int>(tensors_.size()))
    throw std::invalid_argument("tensor " + std::to_string(x) + " does not exist; the program has " +
                                std::to_string(tensors_.size()));
  return tensors_[x];
}

const Shape& Program::shape(int x) const {
  return checked(x).shape;
}

int Program::tensor(const Shape& shape, Dtype dtype) {
  Tensor t;
  t.shape = shape;
  t.dtype = dtype;
  t.bytes = checked_elements(shape) * element_bytes(dtype);
  tensors_.push_back(std::move(t));
  return static_cast<int>(tensors_.size()) - 1;
}

int Program::input(const Shape& shape, Dtype dtype) {
  const std::lock_guard lock(building_);
  require_open();
  const int x = tensor(shape, dtype);
  tensors_[x].home = Tensor::Home::input;
  tensors_[x].place = static_cast<int64_t>(inputs_.size());
  inputs_.push_back(x);
  return x;
}

int Program::append(Step step, const Shape& out, Dtype dtype) {
  const std::lock_guard lock(building_);
  require_open();
  step.dst = tensor(out, dtype);
  steps_.push_back(std::move(step));
  return steps_.back().dst;
}

int Program::conv2d(int x, std::shared_ptr<ConvWeights> weights, Pair stride, Pads padding, Pair dilation,
                    Layout layout, const Preference& preference, Activation activation, int residual,
                    bool then_max_pool) {
  const Dtype dtype = checked(x).dtype;
  Task task;
  task.problem = conv2d_problem(checked(x).shape, weights->shape(), weights->bias_size(), residual >= 0, stride,
                                padding, dilation, weights->groups(), layout, weights->layout(), activation);
  task.dtype = dtype;
  task.compute = dtype == Dtype::f32 ? compute_ : Compute::f32;
  task.then_max_pool = then_max_pool;
  Shape out = fastconv::output_shape(task.problem);
  if (residual >= 0 && (checked(residual).shape != out || checked(residual).dtype != dtype))
    throw std::invalid_argument("residual must have the output's shape " + fastconv::to_string(out) +
                                " and its dtype, got " + fastconv::to_string(checked(residual).shape));
  if (then_max_pool)
    out = fastconv::output_shape(max_pool2d_problem(out, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}, false, layout));
  Step s;
  s.plan = make_plan(task, preference, device_);
  s.src = x;
  s.residual = residual;
  s.weights = std::move(weights);
  return append(std::move(s), out, dtype);
}

int Program::linear(int x, std::shared_ptr<ConvWeights> weights, Activation activation) {
  const Shape in = checked(x).shape;
  if (in.empty()) throw std::invalid_argument("input of linear must have at least 1 dimension, got 0");
  const int64_t features = checked_elements(Shape(in.begin() + 1, in.end()));
  Task task;
  task.problem = conv2d_problem({in[0], 1, 1, features}, weights->shape(), weights->bias_size(), false, {1, 1},
                                {0, 0, 0, 0}, {1, 1}, 1, Layout::nhwc, weights->layout(), activation);
  task.dtype = checked(x).dtype;
  Step s;
  s.plan = make_plan(task, {"auto"}, device_);
  s.src = x;
  s.weights = std::move(weights);
  return append(std::move(s), {in[0], task.problem.oc}, task.dtype);
}

int Program::cast(int x, Dtype dtype) {
  if (checked(x).dtype == dtype) return x;
  Step s;
  s.src = x;
  return append(std::move(s), checked(x).shape, dtype);
}

int Program::step(const Problem& problem, int x, const Shape& out) {
  Task task;
  task.problem = problem;
  task.dtype = checked(x).dtype;
  Step s;
  s.plan = make_plan(task, {"auto"}, device_);
  s.src = x;
  return append(std::move(s), out, task.dtype);
}

void Program::output(int x) {
  const std::lock_guard lock(building_);
  require_open();
  if (checked(x).home != Tensor::Home::arena)
    throw std::invalid_argument("tensor " + std::to_string(x) + " is already an input or an output");
  tensors_[x].home = Tensor::Home::output;
  tensors_[x].place = static_cast<int64_t>(outputs_.size());
  outputs_.push_back(x);
}

void Program::split_at_bindings() {
  const auto outside = [this](int x) { return x >= 0 && tensors_[x].home != Tensor::Home::arena; };
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& s = steps_[i];
    const bool bound = outside(s.src) || outside(s.dst) || outside(s.residual);
    if (segments_.empty() || segments_.back().bound != bound) segments_.push_back({i, i, bound});
    segments_.back().end = i + 1;
  }
}

void Program::finalize() {
  const std::lock_guard lock(building_);
  require_open();
  if (outputs_.empty()) throw std::invalid_argument("the program has no output");
  const DeviceGuard current(device_.ordinal);
  workspace_bytes_ = 0;
  segments_.clear();
  // The steps run one after the other, so that one workspace behind the tensors serves them all.
  arena_bytes_ = lay_out_arena(tensors_, steps_, kDeviceAlign, /*in_place=*/false);
  split_at_bindings();
  for (Step& s : steps_) {
    if (s.plan) workspace_bytes_ = std::max(workspace_bytes_, round_up(s.plan->workspace_bytes, kDeviceAlign));
    if (!s.weights) continue;
    s.packed = s.weights->packed(*s.plan);
    s.bias = s.weights->bias(device_.ordinal);
  }
  slots_ = std::make_unique<Slots>(segments_, arena_bytes_ + workspace_bytes_,
                                   [this](size_t begin, size_t end, const Bindings& bindings, std::byte* arena,
                                          cudaStream_t stream) { enqueue(begin, end, bindings, arena, stream); });
  finalized_ = true;
}

void Program::enqueue(size_t begin, size_t end, const Bindings& bindings, std::byte* arena, cudaStream_t stream) const {
  const auto where = [&](int x) -> void* {
    if (x < 0) return nullptr;
    const Tensor& t = tensors_[x];
    switch (t.home) {
      case Tensor::Home::input:
        return const_cast<void*>(bindings.inputs[t.place]);
      case Tensor::Home::output:
        return bindings.outputs[t.place];
      default:
        return arena + t.place;
    }
  };
  for (size_t i = begin; i < end; ++i) {
    const Step& s = steps_[i];
    const Tensor& dst = tensors_[s.dst];
    if (dst.bytes == 0) continue;  // a batch of nothing
    if (!s.plan) {
      const Dtype from = tensors_[s.src].dtype;
      fastconv::cuda::cast(where(s.src), from, where(s.dst), dst.dtype, dst.bytes / element_bytes(dst.dtype), stream);
      continue;
    }
    Operands args;
    args.src = where(s.src);
    args.dst = where(s.dst);
    args.residual = where(s.residual);
    args.packed = s.packed ? s.packed->data() : nullptr;
    args.bias = s.bias ? reinterpret_cast<const float*>(s.bias->data()) : nullptr;
    args.workspace = arena + arena_bytes_;
    s.plan->algorithm->run(*s.plan, args, stream);
  }
}

void Program::log_step(size_t index, std::optional<double> milliseconds) const {
  const Step& s = steps_[index];
  if (s.plan) return log_plan("run", *s.plan, milliseconds);
  const Tensor &src = tensors_[s.src], &dst = tensors_[s.dst];
  log({"run", "cast", "cuda", "", to_string(dst.dtype), "n" + std::to_string(dst.bytes / element_bytes(dst.dtype)),
       "cast", to_string(src.dtype), "", 0, 0, milliseconds});
}

std::string Program::graph_refusal() const {
  require_final();
  return slots_->refusal();
}

void Program::run(const Bindings& bindings, cudaStream_t stream) {
  require_final();
  if (std::all_of(steps_.begin(), steps_.end(), [this](const Step& s) { return tensors_[s.dst].bytes == 0; }))
    return;  // a batch of nothing
  const DeviceGuard current(device_.ordinal);
  if (verbose_level() > 0)
    for (size_t i = 0; i < steps_.size(); ++i) log_step(i, {});
  if (!is_capturing(stream)) return slots_->run(bindings, stream, graphs_);
  // The caller's graph may be replayed at any time beside other calls, so it gets an arena of its own, that it allocates and frees itself.
  const Temporary arena(std::max<int64_t>(arena_bytes_ + workspace_bytes_, 1), stream);
  enqueue(0, steps_.size(), bindings, static_cast<std::byte*>(arena.data()), stream);
}

std::vector<double> Program::run_profiled(const Bindings& bindings, cudaStream_t stream) {
  require_final();
  const DeviceGuard current(device_.ordinal);
  DeviceBuffer arena(std::max<int64_t>(arena_bytes_ + workspace_bytes_, 1));
  std::vector<UniqueEvent> events;
  for (size_t i = 0; i <= steps_.size(); ++i) events.push_back(make_event(true));
  check(cudaEventRecord(events[0].get(), stream), "cudaEventRecord");
  for (size_t i = 0; i < steps_.size(); ++i) {
    enqueue(i, i + 1, bindings, arena.data(), stream);
    check(cudaEventRecord(events[i + 1].get(), stream), "cudaEventRecord");
  }
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  const bool verbose = verbose_level() > 0;
  std::vector<double> seconds;
  for (size_t i = 0; i < steps_.size(); ++i) {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, events[i].get(), events[i + 1].get()), "cudaEventElapsedTime");
    seconds.push_back(milliseconds * 1e-3);
    if (verbose) log_step(i, milliseconds);
  }
  return seconds;
}

}  // namespace fastconv::cuda
