#include "cuda/plan.h"

#include <algorithm>
#include <tuple>

#include "common/environment.h"
#include "common/log.h"
#include "common/planning.h"

namespace fastconv::cuda {
namespace {

constexpr const char* kDtypes[] = {"float32", "float16", "bfloat16"};
constexpr const char* kComputes[] = {"float32", "tf32", "3xtf32"};

using Key = std::tuple<Task, Preference, int>;  // the device by its ordinal; assumed ones are not kept

PlanCache<Key, Plan>& cache() {
  static auto* const instance = new PlanCache<Key, Plan>;  // never destroyed, as the CPU's
  return *instance;
}

void require_known(const std::vector<const Algorithm*>& list, const std::string& name) {
  if (name == "auto" || any_answers_to(list, name)) return;
  throw std::invalid_argument("algorithm must be one of " + known_names(list) + " on a CUDA device; got \"" + name +
                              "\"");
}

PlanPtr plan_uncached(const Task& task, const Preference& preference, const DeviceLimits& device) {
  const std::vector<const Algorithm*>& list = algorithms(task.problem.op);
  auto plan = std::make_shared<Plan>();
  plan->task = task;
  plan->device = device;
  for (const std::string& name : preference) require_known(list, name);
  Preference wanted = preference;
  // As on the CPU: who names an algorithm gets it, the environment decides what "auto" means. A name that only the CPU has says nothing here.
  if (any_answers_to(list, forced_kernel()))
    std::replace(wanted.begin(), wanted.end(), std::string("auto"), forced_kernel());
  for (const std::string& name : wanted) {
    for (const Algorithm* a : list) {
      if (name != "auto" && !answers_to(*a, name)) continue;
      if (const char* reason = a->refuses(task, device)) {
        plan->refused.emplace_back(std::string(a->name) + " (" + a->kernel + ")", reason);
        continue;
      }
      plan->algorithm = a;
      a->configure(*plan);
      return plan;
    }
  }
  std::string message = std::string(to_string(task.problem.op)) + " (" + to_string(task.problem) + ", " +
                        to_string(task.dtype) + ", compute " + to_string(task.compute) + ", sm_" +
                        std::to_string(device.sm) + "): no CUDA algorithm asked for can do this";
  for (const auto& [name, reason] : plan->refused) message += "; " + name + ": " + reason;
  throw Unsupported(message);
}

template <class E, size_t N>
E parse(const std::string& text, const char* argument, const char* const (&names)[N]) {
  std::string known;
  for (size_t i = 0; i < N; ++i) {
    if (text == names[i]) return static_cast<E>(i);
    known += (i ? ", \"" : "\"") + std::string(names[i]) + "\"";
  }
  throw std::invalid_argument(std::string(argument) + " must be one of " + known + "; got \"" + text + "\"");
}

}  // namespace

PlanPtr make_plan(const Task& task, const Preference& preference, const DeviceLimits& device) {
  const Key key(task, preference, device.ordinal);
  if (PlanPtr plan = cache().find(key); plan && plan->device == device) return plan;
  PlanPtr plan = plan_uncached(task, preference, device);
  if (verbose_level() > 0) log_plan("plan", *plan, 0.0);
  cache().insert(key, plan);
  return plan;
}

const char* to_string(Dtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)];
}
const char* to_string(Compute compute) {
  return kComputes[static_cast<size_t>(compute)];
}

std::string to_string(const Tile& t) {
  std::string s;
  const auto put = [&s](const char* word, int value, int otherwise) {
    if (value != otherwise) s += (s.empty() ? "" : " ") + std::string(word) + std::to_string(value);
  };
  put("m", t.m, 0), put("n", t.n, 0), put("k", t.k, 0), put("warps", t.warps, 0), put("stages", t.stages, 0);
  put("split_k", t.split_k, 1), put("variant", t.variant, 0);
  return s;
}

void log_plan(const char* event, const Plan& plan, std::optional<double> milliseconds) {
  const Problem& p = plan.task.problem;
  log({event, fastconv::to_string(p.op), "cuda", fastconv::to_string(p.layout), to_string(plan.task.dtype),
       fastconv::to_string(p), plan.algorithm->name, plan.ukernel_name, to_string(plan.tile), plan.packed_bytes,
       plan.workspace_bytes, milliseconds});
}

Dtype parse_dtype(const std::string& text) {
  return parse<Dtype>(text, "dtype", kDtypes);
}
Compute parse_compute(const std::string& text) {
  return parse<Compute>(text, "compute", kComputes);
}

}  // namespace fastconv::cuda
