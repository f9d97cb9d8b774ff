#include "common/program.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "common/log.h"
#include "cpu/parallel.h"

namespace fastconv {
namespace {

constexpr int64_t kAlign = 64;
// A second thread pays when each has at least this much to do: waking and meeting cost a few microseconds.
constexpr double kCyclesPerThread = 40000;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int useful_threads(double cycles) {
  const double worth = std::min(cycles / kCyclesPerThread, static_cast<double>(num_threads()));
  return std::max(1, static_cast<int>(worth));
}

}  // namespace

Buffer BufferPool::take(int64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    for (Buffer& b : idle_) {
      if (b.bytes() < bytes) continue;
      Buffer found = std::move(b);
      std::swap(b, idle_.back());
      idle_.pop_back();
      return found;
    }
    // None is large enough: make room for a larger one instead of keeping sizes that no longer fit.
    if (!idle_.empty()) idle_.pop_back();
  }
  return Buffer(bytes);
}

void BufferPool::give(Buffer buffer) {
  if (buffer.bytes() == 0 || buffer.bytes() > max_kept_bytes_) return;
  const std::lock_guard lock(mutex_);
  if (idle_.size() < max_idle_) idle_.push_back(std::move(buffer));
}

Program::Program() : arenas_(std::make_unique<BufferPool>(4, INT64_MAX)) {}

void Program::require_open() const {
  if (finalized_) throw std::invalid_argument("the program is finalized; steps can no longer be added");
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

int Program::tensor(const Shape& shape) {
  Tensor t;
  t.shape = shape;
  t.bytes = checked_elements(shape) * 4;
  tensors_.push_back(std::move(t));
  return static_cast<int>(tensors_.size()) - 1;
}

int Program::input(const Shape& shape) {
  require_open();
  const int x = tensor(shape);
  tensors_[x].home = Tensor::Home::input;
  tensors_[x].place = static_cast<int64_t>(inputs_.size());
  inputs_.push_back(x);
  return x;
}

int Program::step(const Problem& problem, int x, const Preference& preference, const Shape& out) {
  require_open();
  checked(x);
  Step s;
  s.plan = make_plan(problem, preference);
  s.src = x;
  s.dst = tensor(out);
  steps_.push_back(std::move(s));
  return steps_.back().dst;
}

int Program::conv2d(int x, std::shared_ptr<ConvWeights> weights, Pair stride, Pads padding, Pair dilation,
                    Layout layout, const Preference& preference, Activation activation, int residual) {
  const Problem p = conv2d_problem(checked(x).shape, weights->shape(), weights->bias_size(), residual >= 0, stride,
                                   padding, dilation, weights->groups(), layout, weights->layout(), activation);
  if (residual >= 0 && checked(residual).shape != fastconv::output_shape(p))
    throw std::invalid_argument("residual must have the output's shape " + to_string(fastconv::output_shape(p)) +
                                ", got " + to_string(checked(residual).shape));
  const int y = step(p, x, preference, fastconv::output_shape(p));
  steps_.back().residual = residual;
  steps_.back().weights = std::move(weights);
  return y;
}

int Program::linear(int x, std::shared_ptr<ConvWeights> weights, Activation activation) {
  const Shape& in = checked(x).shape;
  if (in.empty()) throw std::invalid_argument("input of linear must have at least 1 dimension, got 0");
  int64_t features = 1;
  for (size_t i = 1; i < in.size(); ++i) features *= in[i];
  const Problem p = conv2d_problem({in[0], 1, 1, features}, weights->shape(), weights->bias_size(), false, {1, 1},
                                   {0, 0, 0, 0}, {1, 1}, 1, Layout::nhwc, weights->layout(), activation);
  const int y = step(p, x, {"auto"}, {in[0], p.oc});
  steps_.back().weights = std::move(weights);
  return y;
}

int Program::batch_norm(int x, const std::vector<float>& scale, const std::vector<float>& shift, Layout layout) {
  const Problem p = batch_norm_problem(checked(x).shape, static_cast<int64_t>(scale.size()),
                                       static_cast<int64_t>(shift.size()), layout);
  const int y = step(p, x, {"auto"}, fastconv::output_shape(p));
  steps_.back().scale = scale;
  steps_.back().shift = shift;
  return y;
}

void Program::output(int x) {
  require_open();
  if (checked(x).home != Tensor::Home::arena)
    throw std::invalid_argument("tensor " + std::to_string(x) + " is already an input or an output");
  tensors_[x].home = Tensor::Home::output;
  tensors_[x].place = static_cast<int64_t>(outputs_.size());
  outputs_.push_back(x);
}

// First fit in the order of the steps: a tensor lives from the step that writes it to the last that reads it.
void Program::lay_out_arena() {
  std::vector<int> last(tensors_.size(), -1);
  for (int i = 0; i < static_cast<int>(steps_.size()); ++i) {
    last[steps_[i].src] = i;
    if (steps_[i].residual >= 0) last[steps_[i].residual] = i;
  }
  struct Live {
    int64_t begin, end;
    int until;
  };
  std::vector<Live> live;
  for (int i = 0; i < static_cast<int>(steps_.size()); ++i) {
    Tensor& t = tensors_[steps_[i].dst];
    if (t.home != Tensor::Home::arena) continue;
    std::erase_if(live, [i](const Live& l) { return l.until < i; });
    std::sort(live.begin(), live.end(), [](const Live& a, const Live& b) { return a.begin < b.begin; });
    const int64_t bytes = round_up(t.bytes, kAlign);
    int64_t at = 0;
    for (const Live& l : live) {
      if (at + bytes <= l.begin) break;
      at = std::max(at, l.end);
    }
    t.place = at;
    arena_bytes_ = std::max(arena_bytes_, at + bytes);
    live.push_back({at, at + bytes, std::max(last[steps_[i].dst], i)});
  }
}

void Program::finalize() {
  require_open();
  if (outputs_.empty()) throw std::invalid_argument("the program has no output");
  lay_out_arena();
  for (Step& s : steps_) {
    cycles_ += estimated_cycles(s.plan->problem);
    scratch_bytes_ = std::max(scratch_bytes_, round_up(s.plan->scratch_bytes, kAlign));
    if (s.weights) s.packed = s.weights->packed(*s.plan);
  }
  for (const Tensor& t : tensors_) empty_ = empty_ || t.bytes == 0;
  finalized_ = true;
}

void Program::run(const std::vector<const float*>& inputs, const std::vector<float*>& outputs,
                  std::vector<double>* seconds) {
  if (!finalized_) throw std::invalid_argument("the program is not finalized");
  std::vector<double> own;
  if (!seconds && verbose_level() > 0) seconds = &own;
  if (seconds) seconds->assign(steps_.size(), 0.0);
  if (empty_) return;  // a batch of none
  const int threads = useful_threads(cycles_);
  Buffer arena = arenas_->take(std::max<int64_t>(arena_bytes_ + scratch_bytes_ * threads, 1));
  const auto where = [&](int x) -> float* {
    if (x < 0) return nullptr;
    const Tensor& t = tensors_[x];
    switch (t.home) {
      case Tensor::Home::input:
        return const_cast<float*>(inputs[t.place]);
      case Tensor::Home::output:
        return outputs[t.place];
      default:
        return reinterpret_cast<float*>(arena.data() + t.place);
    }
  };
  parallel(threads, [&](int tid, int nthr, Barrier& barrier) {
    Worker worker{tid, nthr, arena.data() + arena_bytes_ + scratch_bytes_ * tid, &barrier};
    double started = seconds && tid == 0 ? now() : 0;
    for (size_t i = 0; i < steps_.size(); ++i) {
      const Step& s = steps_[i];
      Operands args;
      args.src = where(s.src);
      args.dst = where(s.dst);
      args.residual = where(s.residual);
      args.packed = s.packed ? s.packed->data() : nullptr;
      args.bias = s.weights ? s.weights->bias() : s.shift.data();
      args.scale = s.scale.data();
      s.plan->algorithm->run(*s.plan, args, worker);
      if (nthr > 1) barrier.wait();
      if (seconds && tid == 0) {
        const double ended = now();
        (*seconds)[i] = ended - started;
        started = ended;
      }
    }
  });
  arenas_->give(std::move(arena));
  if (verbose_level() > 0)
    for (size_t i = 0; i < steps_.size(); ++i) log_plan("run", *steps_[i].plan, (*seconds)[i] * 1e3);
}

void run_single(const Plan& plan, Operands operands, const float* wei) {
  if (plan.problem.dst_elements() == 0) return;
  static BufferPool* const pool =
      new BufferPool(4, 256 << 20);  // never destroyed: daemon threads may still compute at exit
  const bool pack = wei && plan.algorithm->pack;
  const int threads =
      useful_threads(estimated_cycles(plan.problem) + (pack ? static_cast<double>(plan.packed_bytes) / 8 : 0));
  const int64_t packed_bytes = pack ? round_up(plan.packed_bytes, kAlign) : 0,
                scratch_bytes = round_up(plan.scratch_bytes, kAlign);
  Buffer workspace = pool->take(std::max<int64_t>(packed_bytes + scratch_bytes * threads, 1));
  if (pack) operands.packed = workspace.data();
  const double started = verbose_level() > 0 ? now() : 0;
  parallel(threads, [&](int tid, int nthr, Barrier& barrier) {
    Worker worker{tid, nthr, workspace.data() + packed_bytes + scratch_bytes * tid, &barrier};
    if (pack) {
      plan.algorithm->pack(plan, wei, workspace.data(), worker);
      if (nthr > 1) barrier.wait();
    }
    plan.algorithm->run(plan, operands, worker);
  });
  pool->give(std::move(workspace));
  if (verbose_level() > 0) log_plan("run", plan, (now() - started) * 1e3);
}

}  // namespace fastconv
