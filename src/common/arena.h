// Where the tensors of a program lie in its arena. Shared by the programs of all backends, each with tensors and steps of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/buffer.h"

namespace fastconv {

// Steps first..last that run together, so that what one of them reads is read until the last of them has ended.
struct Together {
  int first, last;
};

// Sets `place` of every tensor whose home is the arena, and returns the arena's bytes. First fit in the order of the steps: a tensor lives
// from the step that writes it to the last that reads it.
// in_place: a step that is the last to read its residual writes over it. For backends whose algorithms read an element of the residual just
// before they store that element of the output; the sum then lands in lines that are in the cache already instead of asking for new ones.
// `together`: no two overlap.
template <class Tensor, class Step>
int64_t lay_out_arena(std::vector<Tensor>& tensors, const std::vector<Step>& steps, int64_t align, bool in_place,
                      const std::vector<Together>& together = {}) {
  const int count = static_cast<int>(steps.size());
  std::vector<Together> group(count);  // of each step
  for (int i = 0; i < count; ++i) group[i] = {i, i};
  for (const Together& t : together) std::fill(group.begin() + t.first, group.begin() + t.last + 1, t);
  std::vector<int> last(tensors.size(), -1);
  for (int i = 0; i < count; ++i) {
    last[steps[i].src] = group[i].last;
    if (steps[i].residual >= 0) last[steps[i].residual] = group[i].last;
  }
  const auto may_overwrite = [&](int i, int over) {
    if (!in_place || over < 0 || last[over] != i || tensors[over].home != Tensor::Home::arena) return false;
    for (int j = group[i].first; j <= i; ++j)
      if (steps[j].src == over) return false;
    return true;
  };
  struct Live {
    int64_t begin, end;
    int until;
  };
  std::vector<Live> live;
  int64_t total = 0;
  for (int i = 0; i < count; ++i) {
    Tensor& t = tensors[steps[i].dst];
    if (t.home != Tensor::Home::arena) continue;
    const int until = std::max(last[steps[i].dst], i), over = steps[i].residual;
    if (may_overwrite(i, over)) {
      t.place = tensors[over].place;
      for (Live& l : live)
        if (l.begin == t.place) l.until = until;
      continue;
    }
    std::erase_if(live, [i](const Live& l) { return l.until < i; });
    std::sort(live.begin(), live.end(), [](const Live& a, const Live& b) { return a.begin < b.begin; });
    const int64_t bytes = round_up(t.bytes, align);
    int64_t at = 0;
    for (const Live& l : live) {
      if (at + bytes <= l.begin) break;
      at = std::max(at, l.end);
    }
    t.place = at;
    total = std::max(total, at + bytes);
    live.push_back({at, at + bytes, until});
  }
  return total;
}

}  // namespace fastconv
