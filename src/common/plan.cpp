#include "common/plan.h"

#include <algorithm>
#include <list>
#include <map>
#include <tuple>

#include "common/environment.h"
#include "common/lock.h"
#include "common/log.h"

namespace fastconv {
namespace {

constexpr size_t kCachedPlans = 1024;  // far more than a network has layers; an entry is a few hundred bytes

using Key = std::tuple<Problem, Preference, bool, Isa>;

// Least recently used goes first.
class Cache {
 public:
  PlanPtr find(const Key& key) {
    const CoreLock lock;
    const auto it = map_.find(key);
    if (it == map_.end()) return nullptr;
    order_.splice(order_.begin(), order_, it->second.second);
    return it->second.first;
  }
  void insert(const Key& key, PlanPtr plan) {
    const CoreLock lock;
    if (map_.count(key)) return;
    order_.push_front(key);
    map_.emplace(key, std::pair(std::move(plan), order_.begin()));
    if (map_.size() > kCachedPlans) {
      map_.erase(order_.back());
      order_.pop_back();
    }
  }

 private:
  std::list<Key> order_;
  std::map<Key, std::pair<PlanPtr, std::list<Key>::iterator>> map_;
};

Cache& cache() {
  static Cache* const instance = new Cache;  // never destroyed: threads may still plan while the interpreter shuts down
  return *instance;
}

bool answers_to(const Algorithm& a, const std::string& name) {
  return name == a.name || name == a.kernel;
}

bool any_answers_to(const std::vector<const Algorithm*>& list, const std::string& name) {
  return std::any_of(list.begin(), list.end(), [&](const Algorithm* a) { return answers_to(*a, name); });
}

std::string known_names(const std::vector<const Algorithm*>& list) {
  std::string known = "\"auto\"";
  std::vector<std::string> seen;
  for (const Algorithm* a : list) {
    if (std::find(seen.begin(), seen.end(), a->name) != seen.end()) continue;
    seen.push_back(a->name);
    known += ", \"" + seen.back() + "\"";
  }
  return known;
}

PlanPtr plan_uncached(const Problem& problem, const Preference& preference, bool winograd, const Machine& machine) {
  const std::vector<const Algorithm*>& list = cpu_algorithms(problem.op);
  auto plan = std::make_shared<Plan>();
  plan->problem = problem;
  const auto refused = [&](const Algorithm* a, const char* reason) {
    if (reason) plan->refused.emplace_back(std::string(a->name) + " (" + a->kernel + ")", reason);
    return reason != nullptr;
  };
  const auto take = [&](const Algorithm* a) {
    if (refused(a, a->refuses(problem, machine))) return false;
    plan->algorithm = a;
    a->configure(*plan, machine);
    return true;
  };
  for (const std::string& name : preference)
    if (name != "auto" && !any_answers_to(list, name))
      throw std::invalid_argument("algorithm must be one of " + known_names(list) + "; got \"" + name + "\"");
  Preference wanted = preference;
  // A caller who names an algorithm gets it; the environment decides what "auto" means.
  if (any_answers_to(list, forced_kernel()))
    std::replace(wanted.begin(), wanted.end(), std::string("auto"), forced_kernel());
  for (const std::string& name : wanted) {
    if (name == "auto") {
      std::vector<const Algorithm*> last;
      for (const Algorithm* a : list) {
        if (refused(a, a->refuses(problem, machine))) continue;
        if (a->winograd && !(winograd && winograd_allowed())) {
          refused(a, "Winograd is not wanted (winograd=False or FASTCONV_WINOGRAD=0)");
        } else if (a->prefers_not && a->prefers_not(problem, machine)) {
          refused(a, "another is expected to be faster here");
          last.push_back(a);
        } else if (take(a)) {
          return plan;
        }
      }
      for (const Algorithm* a : last)
        if (take(a)) return plan;
    }
    for (const Algorithm* a : list)
      if (answers_to(*a, name) && take(a)) return plan;
  }
  std::string message =
      std::string(to_string(problem.op)) + " (" + to_string(problem) + "): no algorithm asked for can do this";
  for (const auto& [name, reason] : plan->refused) message += "; " + name + ": " + reason;
  throw Unsupported(message);
}

}  // namespace

PlanPtr make_plan(const Problem& problem, const Preference& preference, bool winograd) {
  const Machine machine = current_machine();
  const Key key(problem, preference, winograd, machine.isa);
  if (PlanPtr plan = cache().find(key)) return plan;
  PlanPtr plan = plan_uncached(problem, preference, winograd, machine);
  if (verbose_level() > 0) log_plan("plan", *plan, 0);
  cache().insert(key, plan);
  return plan;
}

double estimated_cycles(const Problem& p) {
  const double moved = static_cast<double>(p.src_elements()) + static_cast<double>(p.dst_elements());
  switch (p.op) {
    case Op::conv2d:
      return p.macs() / 32 + moved / 8;
    case Op::softmax:
      return moved * 2;
    case Op::relu:
      return static_cast<double>(p.ow) / 4;
    default:
      return moved * static_cast<double>(p.op == Op::convert_layout ? 1 : p.kh * p.kw) / 8;
  }
}

}  // namespace fastconv
