#include "common/depth_first.h"

#include <algorithm>

#include "common/environment.h"

namespace fastconv {
namespace {

constexpr int64_t kAlign = 64;

// Of the output; NCHW: in one plane, of which there are plane_count.
int64_t row_elements(const Problem& p) {
  return p.layout == Layout::nhwc ? p.ow * p.oc : p.ow;
}

int64_t plane_count(const Problem& p) {
  return p.layout == Layout::nhwc ? 1 : p.oc;
}

// Elements from a plane of a buffer to the next: an odd number of cache lines, so that they spread over the cache sets.
int64_t plane_stride(int64_t elements) {
  constexpr int64_t kLine = kAlign / 4;
  return round_up(elements, kLine) + (round_up(elements, kLine) / kLine % 2 ? 0 : kLine);
}

// Input rows that output rows `out` read, cut to the image.
Range rows_read(const Problem& p, const Range& out) {
  const int64_t begin = out.begin * p.sh - p.pt, end = (out.end - 1) * p.sh - p.pt + (p.kh - 1) * p.dh + 1;
  return {std::clamp<int64_t>(begin, 0, p.ih), std::clamp<int64_t>(end, 0, p.ih)};
}

// The same computation on output rows `out` alone.
Problem on_rows(const Problem& p, const Range& out) {
  const Range in = rows_read(p, out);
  const int64_t begin = out.begin * p.sh - p.pt, end = (out.end - 1) * p.sh - p.pt + (p.kh - 1) * p.dh + 1;
  Problem q = p;
  q.n = 1;
  q.ih = in.end - in.begin;
  q.oh = out.end - out.begin;
  q.pt = in.begin - begin;
  q.pb = end - in.end;
  return q;
}

// Null where the part would be computed another way than the whole.
PlanPtr plan_part(const Plan& whole, const Problem& q, bool planes_apart = false) {
  if (q.ih < 1 || q.pt < 0 || q.pb < 0) return nullptr;
  PlanPtr plan;
  if (planes_apart) {
    // What an algorithm leaves to others because of a plane's size it does here: its weights are packed already.
    auto made = std::make_shared<Plan>();
    made->problem = q;
    made->algorithm = whole.algorithm;
    whole.algorithm->configure(*made, current_machine());
    plan = std::move(made);
  } else {
    try {
      plan = make_plan(q, {whole.algorithm->kernel});
    } catch (const Unsupported&) {
      return nullptr;
    }
  }
  const bool same = plan->algorithm == whole.algorithm && plan->ukernel == whole.ukernel &&
                    plan->pack_tag == whole.pack_tag && plan->packed_bytes == whole.packed_bytes &&
                    plan->blocking.row_unit == whole.blocking.row_unit;
  return same ? plan : nullptr;
}

struct Bands {
  std::vector<Band> bands;
  std::vector<int64_t> capacity;  // elements of each step's buffer; NCHW: of one plane in it
  int64_t scratch = 0;            // most that a step on a band needs
  bool possible = true;
};

// The bands of `height` rows of the last step's rows `rows`, walked downwards.
Bands cut(const std::vector<PlanPtr>& steps, const Range& rows, int64_t height, bool with_plans) {
  const int count = static_cast<int>(steps.size());
  Bands result;
  result.capacity.assign(count, 0);
  std::vector<int64_t> done(count, -1), base(count, 0);  // rows computed so far, row at the front of the buffer
  for (int64_t at = rows.begin; at < rows.end; at += height) {
    Band band(count);
    Range want = {at, std::min(at + height, rows.end)};
    for (int k = count - 1; k >= 0; --k) {
      const Problem& p = steps[k]->problem;
      const int64_t unit = steps[k]->blocking.row_unit;
      const Range fresh = {std::max(want.begin / unit * unit, done[k]), std::min(round_up(want.end, unit), p.oh)};
      BandStep& step = band[k];
      if (fresh.begin >= fresh.end) break;  // enough is there, so enough is there of all before as well
      if (k + 1 < count) {
        const int64_t front = std::min(want.begin, fresh.begin), row = row_elements(p);
        if (done[k] > front) step.kept_at = (front - base[k]) * row, step.kept = (done[k] - front) * row;
        base[k] = front;
        step.dst = (fresh.begin - front) * row;
        result.capacity[k] = std::max(result.capacity[k], (fresh.end - front) * row);
      } else {
        step.dst = fresh.begin * row_elements(p);
      }
      done[k] = fresh.end;
      step.residual = fresh.begin * row_elements(p);
      want = rows_read(p, fresh);
      // Relative to the buffer's front once that is known, below.
      step.src = want.begin * p.iw * (p.layout == Layout::nhwc ? p.ic : 1);
      if (with_plans) {
        step.plan = plan_part(*steps[k], on_rows(p, fresh), p.layout == Layout::nchw);
        if (!step.plan) result.possible = false;
        if (step.plan) result.scratch = std::max(result.scratch, step.plan->scratch_bytes);
      }
    }
    for (int k = 1; k < count; ++k) band[k].src -= base[k - 1] * row_elements(steps[k - 1]->problem);
    result.bands.push_back(std::move(band));
  }
  return result;
}

// Bytes that bands of `height` rows keep busy: all between, and the rows of source and result.
int64_t busy_bytes(const std::vector<PlanPtr>& steps, const Range& rows, int64_t height) {
  const Bands bands = cut(steps, {rows.begin, std::min(rows.end, rows.begin + 2 * height)}, height, false);
  int64_t total = 0;
  for (size_t k = 0; k < steps.size(); ++k) total += 4 * bands.capacity[k] * plane_count(steps[k]->problem);
  const Problem &first = steps.front()->problem, &last = steps.back()->problem;
  const int64_t source_rows = std::min(first.ih, div_up(height * first.ih, last.oh));
  return total + 4 * (source_rows * first.iw * first.ic + height * last.ow * last.oc * (last.residual ? 2 : 1));
}

bool can_be_banded(const Plan& plan) {
  const Problem& p = plan.problem;
  const int64_t window =
      (p.kh - 1) * p.dh + 1;  // padding below that: each output row reads at least one row that is there
  return (p.op == Op::conv2d || (p.op == Op::max_pool2d && !p.with_indices)) &&
         (p.layout == Layout::nhwc || plan.algorithm->planes_apart) && p.pt < window && p.pb < window;
}

}  // namespace

std::vector<Together> find_chains(const std::vector<Program::Step>& steps, const std::vector<Program::Tensor>& tensors,
                                  int64_t l2_bytes, int threads) {
  if (!depth_first_allowed()) return {};
  std::vector<int> readers(tensors.size(), 0);
  for (const Program::Step& s : steps) {
    ++readers[s.src];
    if (s.residual >= 0) ++readers[s.residual];
  }
  const auto joins = [&](int i) {  // steps i and i + 1
    const Program::Step &a = steps[i], &b = steps[i + 1];
    const Program::Tensor& between = tensors[a.dst];
    if (b.src != a.dst || b.residual == a.dst || readers[a.dst] != 1) return false;
    if (between.home != Program::Tensor::Home::arena || !can_be_banded(*a.plan) || !can_be_banded(*b.plan))
      return false;
    const Problem &p = a.plan->problem, &q = b.plan->problem;
    if (q.layout != p.layout || q.n != p.n || q.ih != p.oh || q.iw != p.ow || q.ic != p.oc || p.n < 1) return false;
    // Its planes would lie another way than those of the buffer that the sum goes to.
    if (p.layout == Layout::nchw && a.residual >= 0) return false;
    // Worth it where a core's share of an image between the two would not stay in its L2 anyway, beside what it is made from. NCHW: bands
    // cut each plane, and vectors of pixels end at each cut, so that more has to be gained.
    return between.bytes / p.n / std::max<int64_t>(1, threads / p.n) >
           l2_bytes / 4 * (p.layout == Layout::nchw ? 3 : 1);
  };
  std::vector<Together> chains;
  const int count = static_cast<int>(steps.size());
  for (int i = 0; i + 1 < count; ++i) {
    const int first = i;
    // Every band walks through the weights of all steps: those have to stay in the L2.
    int64_t weights = steps[i].plan->packed_bytes;
    while (i + 1 < count && joins(i) && weights + steps[i + 1].plan->packed_bytes <= l2_bytes / 4)
      weights += steps[++i].plan->packed_bytes;
    if (i > first) chains.push_back({first, i});
  }
  return chains;
}

std::shared_ptr<const BandSchedule> schedule_bands(const std::vector<PlanPtr>& steps, int threads, int64_t l2_bytes) {
  const Problem& last = steps.back()->problem;
  // The rest: weights, and what is on its way. Longer bands where they cut planes.
  const int64_t room = l2_bytes / 4 * (last.layout == Layout::nchw ? 3 : 2);
  const int64_t unit = steps.back()->blocking.row_unit, units = div_up(last.oh, unit);
  auto schedule = std::make_shared<BandSchedule>();
  schedule->threads.resize(threads);
  std::vector<int64_t> capacity(steps.size(), 0);
  int64_t step_scratch = 0;
  for (int tid = 0; tid < threads; ++tid) {
    const Range mine = share(last.n * units, tid, threads);
    for (int64_t at = mine.begin; at < mine.end;) {
      const int64_t image = at / units, first = at % units, end = std::min(units, first + mine.end - at);
      const Range rows = {first * unit, std::min(end * unit, last.oh)};
      auto [it, made] = schedule->bands.try_emplace({rows.begin, rows.end});
      if (made) {
        int64_t pieces = 1, height = rows.end - rows.begin;
        while (height > unit && busy_bytes(steps, rows, height) > room)
          height = round_up(div_up(rows.end - rows.begin, ++pieces), unit);
        Bands bands = cut(steps, rows, height, true);
        if (!bands.possible) return nullptr;
        it->second = std::move(bands.bands);
        step_scratch = std::max(step_scratch, bands.scratch);
        for (size_t k = 0; k < steps.size(); ++k) capacity[k] = std::max(capacity[k], bands.capacity[k]);
      }
      schedule->threads[tid].push_back({image, &it->second});
      at += end - first;
    }
  }
  for (size_t k = 0; k + 1 < steps.size(); ++k) {
    schedule->buffers.push_back(schedule->scratch_bytes);
    const Problem& p = steps[k]->problem;
    schedule->planes.push_back(p.layout == Layout::nhwc ? 0 : plane_stride(capacity[k]));
    const int64_t elements = p.layout == Layout::nhwc ? capacity[k] : schedule->planes[k] * p.oc;
    schedule->scratch_bytes += round_up(elements * 4, kAlign) + kAlign;  // leaves may read a vector past the last row
  }
  schedule->step_scratch = schedule->scratch_bytes;
  schedule->scratch_bytes += round_up(step_scratch, kAlign);
  return schedule;
}

namespace {

// Whether a step should go image by image: a batch of what it reads and writes leaves the L3, and its weights, which then pass by once an
// image, are less than that of one image.
bool leaves_l3(const Plan& plan, int64_t l3_bytes) {
  const Problem& p = plan.problem;
  if (p.op != Op::conv2d && p.op != Op::max_pool2d && p.op != Op::avg_pool2d && p.op != Op::adaptive_avg_pool2d)
    return false;
  const int64_t moved = 4 * (p.src_elements() + p.dst_elements());
  return p.n > 1 && !p.with_indices && moved > l3_bytes / 2 && plan.packed_bytes <= moved / p.n;
}

// Fills in plans and places; false if the steps can not go image by image after all, or have little between them that would stay.
bool complete(ImageGroup& group, const std::vector<Program::Step>& steps, const std::vector<Program::Tensor>& tensors) {
  std::vector<int> outside_readers(tensors.size(), 0);
  std::vector<char> made_here(tensors.size(), 0);
  for (int i = 0; i < static_cast<int>(steps.size()); ++i) {
    const Program::Step& s = steps[i];
    if (i >= group.first && i <= group.last) {
      made_here[s.dst] = 1;
      continue;
    }
    ++outside_readers[s.src];
    if (s.residual >= 0) ++outside_readers[s.residual];
  }
  std::vector<Program::Tensor> local = tensors;
  for (size_t x = 0; x < local.size(); ++x) {
    if (!made_here[x] || outside_readers[x] || local[x].home != Program::Tensor::Home::arena)
      local[x].home = Program::Tensor::Home::input;  // stays where it is
    else
      local[x].bytes /= group.images;
  }
  std::vector<Program::Step> mine(steps.begin() + group.first, steps.begin() + group.last + 1);
  group.step_scratch = lay_out_arena(local, mine, kAlign, /*in_place=*/true);
  group.places.assign(tensors.size(), -1);
  int64_t kept = 0, written = 0;
  for (size_t x = 0; x < local.size(); ++x) {
    if (made_here[x]) written += tensors[x].bytes;
    if (local[x].home != Program::Tensor::Home::arena) continue;
    group.places[x] = local[x].place;
    kept += tensors[x].bytes;
  }
  if (2 * kept < written) return false;
  int64_t most = 0;
  for (const Program::Step& s : mine) {
    Problem one = s.plan->problem;
    one.n = 1;
    group.plans.push_back(plan_part(*s.plan, one));
    if (!group.plans.back()) return false;
    most = std::max(most, group.plans.back()->scratch_bytes);
  }
  group.scratch_bytes = group.step_scratch + round_up(most, kAlign);
  return true;
}

}  // namespace

std::vector<ImageGroup> find_image_groups(const std::vector<Program::Step>& steps,
                                          const std::vector<Program::Tensor>& tensors,
                                          const std::vector<Together>& chains, int64_t l3_bytes, int threads) {
  if (!depth_first_allowed()) return {};
  const int count = static_cast<int>(steps.size());
  std::vector<char> free(count, 1);
  for (const Together& c : chains) std::fill(free.begin() + c.first, free.begin() + c.last + 1, 0);
  std::vector<ImageGroup> groups;
  for (int i = 0; i < count; ++i) {
    const int64_t n = steps[i].plan->problem.n;
    // Whole images are shared out: one more for some threads must not weigh.
    const bool even = n % threads == 0 || n >= 4 * threads;
    const auto joins = [&](int j) {
      return free[j] && steps[j].plan->problem.n == n && leaves_l3(*steps[j].plan, l3_bytes);
    };
    if (!even || !joins(i)) continue;
    ImageGroup group{i, i, n, {}, {}};
    while (group.last + 1 < count && joins(group.last + 1)) ++group.last;
    i = group.last;
    if (group.last > group.first && complete(group, steps, tensors)) groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace fastconv
