#include "common/program.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "common/arena.h"
#include "common/depth_first.h"
#include "common/lock.h"
#include "common/log.h"
#include "cpu/parallel.h"

namespace fastconv {
namespace {

constexpr int64_t kAlign = 64;
constexpr size_t kIdleBuffers = 8;  // calls in flight at once that allocate nothing
double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Buffer BufferPool::take(int64_t bytes) {
  Buffer found;  // what is dropped is freed after the lock
  {
    const CoreLock lock;
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it)
      if (it->bytes() >= bytes && (best == idle_.end() || it->bytes() < best->bytes())) best = it;
    const bool fits = best != idle_.end();
    // None is large enough: make room for a larger one instead of keeping sizes that no longer fit.
    if (!fits && idle_.size() == max_idle_) best = idle_.begin();
    if (best != idle_.end()) {
      found = std::move(*best);
      idle_.erase(best);
    }
    if (fits) return found;
  }
  return Buffer(bytes);
}

void BufferPool::give(Buffer buffer) {
  if (buffer.bytes() == 0 || buffer.bytes() > max_kept_bytes_) return;
  const CoreLock lock;
  if (idle_.size() < max_idle_) idle_.push_back(std::move(buffer));
}

Program::~Program() = default;
Program::Program() : arenas_(std::make_unique<BufferPool>(kIdleBuffers, INT64_MAX)) {}

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
  const std::lock_guard lock(building_);
  require_open();
  const int x = tensor(shape);
  tensors_[x].home = Tensor::Home::input;
  tensors_[x].place = static_cast<int64_t>(inputs_.size());
  inputs_.push_back(x);
  return x;
}

int Program::append(Step step, const Shape& out) {
  const std::lock_guard lock(building_);
  require_open();
  step.dst = tensor(out);
  steps_.push_back(std::move(step));
  return steps_.back().dst;
}

int Program::step(const Problem& problem, int x, const Preference& preference, const Shape& out) {
  checked(x);
  Step s;
  s.plan = make_plan(problem, preference);
  s.src = x;
  return append(std::move(s), out);
}

int Program::conv2d(int x, std::shared_ptr<ConvWeights> weights, Pair stride, Pads padding, Pair dilation,
                    Layout layout, const Preference& preference, bool winograd, Activation activation, int residual) {
  const Problem p = conv2d_problem(checked(x).shape, weights->shape(), weights->bias_size(), residual >= 0, stride,
                                   padding, dilation, weights->groups(), layout, weights->layout(), activation);
  if (residual >= 0 && checked(residual).shape != fastconv::output_shape(p))
    throw std::invalid_argument("residual must have the output's shape " + to_string(fastconv::output_shape(p)) +
                                ", got " + to_string(checked(residual).shape));
  Step s;
  s.plan = make_plan(p, preference, winograd);
  s.src = x;
  s.residual = residual;
  s.weights = std::move(weights);
  return append(std::move(s), fastconv::output_shape(p));
}

int Program::linear(int x, std::shared_ptr<ConvWeights> weights, Activation activation) {
  const Shape in = checked(x).shape;
  if (in.empty()) throw std::invalid_argument("input of linear must have at least 1 dimension, got 0");
  const int64_t features = checked_elements(Shape(in.begin() + 1, in.end()));
  const Problem p = conv2d_problem({in[0], 1, 1, features}, weights->shape(), weights->bias_size(), false, {1, 1},
                                   {0, 0, 0, 0}, {1, 1}, 1, Layout::nhwc, weights->layout(), activation);
  Step s;
  s.plan = make_plan(p);
  s.src = x;
  s.weights = std::move(weights);
  return append(std::move(s), {in[0], p.oc});
}

int Program::batch_norm(int x, const std::vector<float>& scale, const std::vector<float>& shift, Layout layout) {
  const Problem p = batch_norm_problem(checked(x).shape, static_cast<int64_t>(scale.size()),
                                       static_cast<int64_t>(shift.size()), layout);
  Step s;
  s.plan = make_plan(p);
  s.src = x;
  s.scale = scale;
  s.shift = shift;
  return append(std::move(s), fastconv::output_shape(p));
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

std::shared_ptr<const Program::Schedules> Program::schedules_for(int threads) {
  {
    const CoreLock lock;
    if (const auto it = schedules_.find(threads); it != schedules_.end()) return it->second;
  }
  auto made = std::make_shared<Schedules>();  // outside the lock: two threads may make the same, the first is kept
  for (const Together& c : chains_) {
    std::shared_ptr<const BandSchedule> schedule = schedule_bands(plans_of(c), threads, l2_bytes_);
    made->push_back(schedule ? schedule : schedule_bands(plans_of(c), 1, l2_bytes_));
  }
  const CoreLock lock;
  return schedules_.emplace(threads, std::move(made)).first->second;
}

std::vector<PlanPtr> Program::plans_of(const Together& chain) const {
  std::vector<PlanPtr> plans;
  for (int i = chain.first; i <= chain.last; ++i) plans.push_back(steps_[i].plan);
  return plans;
}

std::vector<Together> Program::image_groups() const {
  std::vector<Together> found;
  for (const ImageGroup& g : groups_) found.push_back({g.first, g.last});
  return found;
}

void Program::finalize(int64_t l2_bytes, int64_t l3_bytes) {
  const std::lock_guard lock(building_);
  require_open();
  if (outputs_.empty()) throw std::invalid_argument("the program has no output");
  scratch_bytes_ = 0;
  cycles_ = 0;
  for (Step& s : steps_) {
    cycles_ += estimated_cycles(s.plan->problem);
    scratch_bytes_ = std::max(scratch_bytes_, round_up(s.plan->scratch_bytes, kAlign));
    if (s.weights) s.packed = s.weights->packed(*s.plan);
  }
  if (l2_bytes == 0) l2_bytes = current_machine().l2_bytes;
  if (l3_bytes == 0) l3_bytes = current_machine().l3_bytes;
  l2_bytes_ = l2_bytes;
  const int threads = useful_threads(cycles_);
  chains_ = find_chains(steps_, tensors_, l2_bytes, threads);
  std::erase_if(chains_, [&](const Together& c) { return !schedule_bands(plans_of(c), 1, l2_bytes_); });
  for (const std::shared_ptr<const BandSchedule>& s : *schedules_for(threads))
    scratch_bytes_ = std::max(scratch_bytes_, s->scratch_bytes);
  for (const Together& c : chains_)
    for (int i = c.first; i < c.last; ++i) tensors_[steps_[i].dst].home = Tensor::Home::bands;
  groups_ = find_image_groups(steps_, tensors_, chains_, l3_bytes, threads);
  std::vector<Together> together = chains_;
  for (const ImageGroup& g : groups_) {
    scratch_bytes_ = std::max(scratch_bytes_, g.scratch_bytes);
    for (size_t x = 0; x < tensors_.size(); ++x)
      if (g.places[x] >= 0) tensors_[x].home = Tensor::Home::bands;
    together.push_back({g.first, g.last});
  }
  arena_bytes_ = lay_out_arena(tensors_, steps_, kAlign, /*in_place=*/true, together);
  finalized_ = true;
}

namespace {

// What the steps of one call have in common.
struct Call {
  const std::vector<Program::Step>& steps;
  const std::vector<Program::Tensor>& tensors;
  const std::vector<const float*>& inputs;
  const std::vector<float*>& outputs;
  std::byte* arena;
  std::vector<double>* seconds;

  float* where(int x) const {
    if (x < 0) return nullptr;
    const Program::Tensor& t = tensors[x];
    switch (t.home) {
      case Program::Tensor::Home::input:
        return const_cast<float*>(inputs[t.place]);
      case Program::Tensor::Home::output:
        return outputs[t.place];
      default:
        return reinterpret_cast<float*>(arena + t.place);
    }
  }
  Operands operands(const Program::Step& s) const {
    Operands args;
    args.src = where(s.src);
    args.dst = where(s.dst);
    args.residual = where(s.residual);
    args.packed = s.packed ? s.packed->data() : nullptr;
    args.bias = s.weights ? s.weights->bias() : s.shift.data();
    args.scale = s.scale.data();
    return args;
  }
  // Adds the time since `started` to step i, where times are wanted. One thread calls it.
  void charge(size_t i, double& started) const {
    const double ended = now();
    (*seconds)[i] += ended - started;
    started = ended;
  }
};

// A thread's part of a chain: its segments one after the other, each from its first band to its last.
void run_bands(const Call& call, const Together& chain, const BandSchedule& schedule, int part, std::byte* scratch,
               double* started) {
  Barrier alone(1);
  Worker worker{0, 1, scratch + schedule.step_scratch, &alone, scratch + schedule.step_scratch};
  const int count = chain.last - chain.first + 1;
  for (const BandSchedule::Segment& segment : schedule.threads[part]) {
    for (const Band& band : *segment.bands) {
      for (int k = 0; k < count; ++k) {
        const BandStep& b = band[k];
        if (!b.plan) continue;
        const Program::Step& s = call.steps[chain.first + k];
        const Problem& p = s.plan->problem;
        Operands args = call.operands(s);
        const auto buffer = [&](int of) { return reinterpret_cast<float*>(scratch + schedule.buffers[of]); };
        args.src = (k == 0 ? args.src + segment.image * p.ic * p.ih * p.iw : buffer(k - 1)) + b.src;
        args.src_plane = k == 0 ? p.ih * p.iw : schedule.planes[k - 1];
        if (args.residual) args.residual += segment.image * p.oc * p.oh * p.ow + b.residual;
        if (k + 1 == count) {
          args.dst += segment.image * p.oc * p.oh * p.ow;
          args.dst_plane = p.oh * p.ow;
        } else {
          args.dst = buffer(k);
          args.dst_plane = schedule.planes[k];
          const int64_t planes = b.kept == 0 ? 0 : p.layout == Layout::nhwc ? 1 : p.oc;
          for (int64_t c = 0; c < planes; ++c) {
            float* const plane = args.dst + c * args.dst_plane;
            std::memmove(plane, plane + b.kept_at, b.kept * sizeof(float));
          }
        }
        args.dst += b.dst;
        b.plan->algorithm->run(*b.plan, args, worker);
        if (started) call.charge(chain.first + k, *started);
      }
    }
  }
}

// A thread's images through the steps of a group, one after the other.
void run_images(const Call& call, const ImageGroup& group, const Worker& of, double* started) {
  Barrier alone(1);
  Worker worker{0, 1, of.scratch + group.step_scratch, &alone, of.scratch + group.step_scratch};
  const Range mine = share(group.images, of.tid, of.nthr);
  for (int64_t image = mine.begin; image < mine.end; ++image) {
    const auto where = [&](int x) -> float* {
      if (x < 0) return nullptr;
      if (group.places[x] >= 0) return reinterpret_cast<float*>(of.scratch + group.places[x]);
      return call.where(x) + image * (call.tensors[x].bytes / 4 / group.images);
    };
    for (int i = group.first; i <= group.last; ++i) {
      const Program::Step& s = call.steps[i];
      Operands args = call.operands(s);
      args.src = where(s.src), args.dst = where(s.dst), args.residual = where(s.residual);
      const Plan& plan = *group.plans[i - group.first];
      plan.algorithm->run(plan, args, worker);
      if (started) call.charge(i, *started);
    }
  }
}

}  // namespace

void Program::run(const std::vector<const float*>& inputs, const std::vector<float*>& outputs,
                  std::vector<double>* seconds) {
  if (!finalized_) throw std::invalid_argument("the program is not finalized");
  const bool verbose = verbose_level() > 0;  // once: another thread may change it meanwhile
  std::vector<double> own;
  if (!seconds && verbose) seconds = &own;
  if (seconds) seconds->assign(steps_.size(), 0.0);
  const int threads = useful_threads(cycles_);
  const std::shared_ptr<const Schedules> schedules = schedules_for(threads);
  int64_t scratch_bytes = scratch_bytes_;
  for (const auto& s : *schedules) scratch_bytes = std::max(scratch_bytes, s->scratch_bytes);
  Buffer arena = arenas_->take(std::max<int64_t>(arena_bytes_ + scratch_bytes * threads, 1));
  const Call call{steps_, tensors_, inputs, outputs, arena.data(), seconds};
  parallel(threads, [&](int tid, int nthr, Barrier& barrier) {
    std::byte* const common = arena.data() + arena_bytes_;
    Worker worker{tid, nthr, common + scratch_bytes * tid, &barrier, common};
    double started = seconds && tid == 0 ? now() : 0;
    double* const clock = seconds && tid == 0 ? &started : nullptr;
    size_t chain = 0, group = 0;
    for (size_t i = 0; i < steps_.size(); ++i) {
      const Step* s = &steps_[i];
      if (chain < chains_.size() && static_cast<size_t>(chains_[chain].first) == i) {
        // Fewer threads than asked for may have come: each then takes several parts.
        const BandSchedule& schedule = *(*schedules)[chain];
        for (int part = tid; part < static_cast<int>(schedule.threads.size()); part += nthr)
          run_bands(call, chains_[chain], schedule, part, worker.scratch, clock);
        i = chains_[chain++].last;
      } else if (group < groups_.size() && static_cast<size_t>(groups_[group].first) == i) {
        run_images(call, groups_[group], worker, clock);
        i = groups_[group++].last;
      } else if (tensors_[s->dst].bytes > 0) {  // none: a batch of nothing
        s->plan->algorithm->run(*s->plan, call.operands(*s), worker);
      }
      if (nthr > 1) barrier.wait();
      if (clock) call.charge(i, *clock);
    }
  });
  arenas_->give(std::move(arena));
  if (verbose)
    for (size_t i = 0; i < steps_.size(); ++i) log_plan("run", *steps_[i].plan, (*seconds)[i] * 1e3);
}

void run_single(const Plan& plan, Operands operands, const float* wei) {
  if (plan.problem.dst_elements() == 0) return;
  static BufferPool* const pool =
      new BufferPool(kIdleBuffers, 256 << 20);  // never destroyed: daemon threads may still compute at exit
  const bool pack = wei && plan.algorithm->pack;
  const int threads =
      useful_threads(estimated_cycles(plan.problem) + (pack ? static_cast<double>(plan.packed_bytes) / 8 : 0));
  const int64_t packed_bytes = pack ? round_up(plan.packed_bytes, kAlign) : 0,
                scratch_bytes = round_up(plan.scratch_bytes, kAlign);
  Buffer workspace = pool->take(std::max<int64_t>(packed_bytes + scratch_bytes * threads, 1));
  if (pack) operands.packed = workspace.data();
  const bool verbose = verbose_level() > 0;
  const double started = verbose ? now() : 0;
  parallel(threads, [&](int tid, int nthr, Barrier& barrier) {
    std::byte* const scratch = workspace.data() + packed_bytes;
    Worker worker{tid, nthr, scratch + scratch_bytes * tid, &barrier, scratch};
    if (pack) {
      plan.algorithm->pack(plan, wei, workspace.data(), worker);
      if (nthr > 1) barrier.wait();
    }
    plan.algorithm->run(plan, operands, worker);
  });
  pool->give(std::move(workspace));
  if (verbose) log_plan("run", plan, (now() - started) * 1e3);
}

}  // namespace fastconv
