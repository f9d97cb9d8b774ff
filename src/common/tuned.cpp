#include "common/tuned.h"

#include <atomic>
#include <stdexcept>
#include <utility>

#include "common/environment.h"
#include "common/lock.h"

namespace fastconv {
namespace {

// Never destroyed: threads may still plan while the interpreter shuts down.
struct State {
  std::function<void()> source;
  std::shared_ptr<const TunedTable> table = std::make_shared<TunedTable>();
  std::atomic<bool> asked{!tuning_allowed()};
  std::atomic<uint64_t> epoch{0};
};

State& state() {
  static State& instance = *new State;
  return instance;
}

std::string key_of(const char* isa, const char* layout, const std::string& problem) {
  return std::string(isa) + " " + layout + " " + problem;
}

// Outside of any lock: the source waits for Python's, and two threads may be here at once.
void ask_source() {
  State& s = state();
  if (!s.asked.load(std::memory_order_acquire) && s.source) s.source();
}

}  // namespace

const Algorithm* TunedTable::find(const Problem& problem, Isa isa) const {
  if (choices.empty() || problem.op != Op::conv2d) return nullptr;
  const std::string text = to_string(problem);
  const auto it = choices.find(key_of(to_string(isa), to_string(problem.layout), text.substr(text.find(' ') + 1)));
  return it == choices.end() ? nullptr : it->second;
}

void set_tuned(const std::vector<TunedChoice>& choices) {
  auto table = std::make_shared<TunedTable>();
  for (const TunedChoice& c : choices) {
    const Algorithm* found = nullptr;
    for (const Algorithm* a : cpu_algorithms(Op::conv2d))
      if (c.kernel == a->kernel) found = a;
    if (!found) throw std::invalid_argument("kernel must be a convolution's driver; got \"" + c.kernel + "\"");
    table->choices[key_of(c.isa.c_str(), c.layout.c_str(), c.problem)] = found;
  }
  State& s = state();
  std::shared_ptr<const TunedTable> before;  // freed after the lock
  {
    const CoreLock lock;
    before = s.table;
    if (before->choices != table->choices) {
      table->epoch = s.epoch.load(std::memory_order_relaxed) + 1;
      s.epoch.store(table->epoch, std::memory_order_release);
      s.table = std::move(table);
    }
  }
  s.asked.store(true, std::memory_order_release);
}

void set_tuned_source(std::function<void()> source) {
  state().source = std::move(source);
}

uint64_t tuned_epoch() {
  ask_source();
  return state().epoch.load(std::memory_order_acquire);
}

std::shared_ptr<const TunedTable> tuned_table() {
  ask_source();
  const CoreLock lock;
  return state().table;
}

}  // namespace fastconv
