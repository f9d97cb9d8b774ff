#include "common/plan.h"

#include <algorithm>
#include <tuple>

#include "common/environment.h"
#include "common/log.h"
#include "common/planning.h"
#include "common/tuned.h"

namespace fastconv {
namespace {

// The last three: how large an output goes past the caches, whether additions go beside products, which tuned choices were asked.
using Key = std::tuple<Problem, Preference, bool, Isa, int64_t, bool, uint64_t>;

PlanCache<Key, Plan>& cache() {
  static auto* const instance =
      new PlanCache<Key, Plan>;  // never destroyed: threads may still plan while the interpreter shuts down
  return *instance;
}

PlanPtr plan_uncached(const Problem& problem, const Preference& preference, bool winograd, const Machine& machine,
                      const TunedTable& tuned) {
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
      const Algorithm* chosen = tuned.find(problem, machine.isa);
      if (chosen && (!chosen->winograd || (winograd && winograd_allowed())) && take(chosen)) {
        plan->tuned = true;
        return plan;
      }
      std::vector<const Algorithm*> last;
      for (const Algorithm* a : list) {
        if (refused(a, a->refuses(problem, machine))) continue;
        if (a->winograd && !(winograd && winograd_allowed())) {
          refused(a, "fewer products with more rounding are not wanted (winograd=False or FASTCONV_WINOGRAD=0)");
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
  const bool tunable =
      problem.op == Op::conv2d && std::find(preference.begin(), preference.end(), "auto") != preference.end();
  const auto key = [&](uint64_t epoch) {
    return Key(problem, preference, winograd, machine.isa, machine.stream_bytes, machine.adds_beside, epoch);
  };
  if (PlanPtr plan = cache().find(key(tunable ? tuned_epoch() : 0))) return plan;
  static const TunedTable& none = *new TunedTable;
  const std::shared_ptr<const TunedTable> table = tunable ? tuned_table() : nullptr;
  const TunedTable& tuned = table ? *table : none;
  PlanPtr plan = plan_uncached(problem, preference, winograd, machine, tuned);
  if (verbose_level() > 0) log_plan("plan", *plan, 0);
  cache().insert(key(tuned.epoch), plan);
  return plan;
}

uint64_t plan_epoch() {
  const Machine machine = current_machine();
  return tuned_epoch() << 8 | static_cast<uint64_t>(machine.isa) << 1 | (machine.adds_beside ? 1 : 0);
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
