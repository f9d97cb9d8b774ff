// What the planners of all backends share: names of algorithms, and the cache of plans. Each has an Algorithm and a Plan of its own.
#pragma once

#include <algorithm>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/lock.h"

namespace fastconv {

// An algorithm goes by its public name, which several may share, and by its kernel's.
template <class Algorithm>
bool answers_to(const Algorithm& a, const std::string& name) {
  return name == a.name || name == a.kernel;
}

template <class Algorithm>
bool any_answers_to(const std::vector<const Algorithm*>& list, const std::string& name) {
  return std::any_of(list.begin(), list.end(), [&](const Algorithm* a) { return answers_to(*a, name); });
}

// "auto" and the public names, each once, quoted, for messages.
template <class Algorithm>
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

// Plans by what was asked, bounded; the least recently used goes first.
template <class Key, class Plan>
class PlanCache {
 public:
  using PlanPtr = std::shared_ptr<const Plan>;

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
    if (map_.size() > kMost) {
      map_.erase(order_.back());
      order_.pop_back();
    }
  }

 private:
  static constexpr size_t kMost = 1024;  // far more than a network has layers; an entry is a few hundred bytes
  std::list<Key> order_;
  std::map<Key, std::pair<PlanPtr, typename std::list<Key>::iterator>> map_;
};

}  // namespace fastconv
