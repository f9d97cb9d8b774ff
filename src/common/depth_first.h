// Depth-first execution: a chain of steps, of which each is the only reader of the one before, goes band by band of output rows through all
// of its steps, so that what lies between two steps stays in a core's own cache and is never a whole tensor. Rows that neighbouring bands of
// a thread share are kept, not computed again; only where the shares of two threads meet do both compute the few rows between them.
// NHWC: a band of rows is a tensor itself, and a step on a band is an ordinary problem with fewer rows. NCHW: a band is a few rows of each
// channel's plane, and planes lie further apart than a band is long, which an algorithm has to know of (Algorithm::planes_apart).
// Numerics: an algorithm computes an output row from the input rows that it reads, the same way wherever it lies, so that bands have the bits
// of the whole. Where rows are computed together (Blocking::row_unit: Winograd's tiles) bands begin where those do.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "common/program.h"

namespace fastconv {

// The chains that pay with such an L2, in the order of the steps. `threads`: as many as a call would use.
std::vector<Together> find_chains(const std::vector<Program::Step>& steps, const std::vector<Program::Tensor>& tensors,
                                  int64_t l2_bytes, int threads);

// One step on one band. Places count in elements: of the chain's source, its result and residuals from the start of the image, of what lies
// between from the start of the thread's buffer for it; in NCHW they are places in each of the planes.
struct BandStep {
  PlanPtr plan;  // of the rows that this band adds; null: it adds none
  int64_t src = 0, dst = 0, residual = 0;
  int64_t kept_at = 0,
          kept = 0;  // elements of the buffer of dst that move to its front first: rows that this band needs as well
};
using Band = std::vector<BandStep>;

// Who computes what, for one number of threads.
struct BandSchedule {
  struct Segment {
    int64_t image;
    const std::vector<Band>* bands;
  };
  std::vector<std::vector<Segment>> threads;
  std::vector<int64_t> buffers;  // bytes into a thread's scratch: the buffer of each step's dst but the last
  std::vector<int64_t> planes;   // elements from a plane to the next of each of these; NHWC: 0
  int64_t step_scratch = 0;      // bytes into it: what the steps themselves may use
  int64_t scratch_bytes = 0;     // of a thread, in all
  std::map<std::pair<int64_t, int64_t>, std::vector<Band>> bands;  // by the rows of an image that a thread has
};

// Null if the steps can not be done by bands after all. The tensors of a band take half of the L2 together, NCHW three quarters.
std::shared_ptr<const BandSchedule> schedule_bands(const std::vector<PlanPtr>& steps, int threads, int64_t l2_bytes);

// Steps first..last that a thread does for one image after the other, where a whole batch of what lies between them would pass through
// memory: in both layouts, since an image is a tensor in each. A batch as large as the number of threads is wanted.
struct ImageGroup {
  int first, last;
  int64_t images;
  std::vector<PlanPtr> plans;   // of one image, for each step
  std::vector<int64_t> places;  // of each tensor of the program: bytes into the thread's scratch, or -1: whole, outside
  int64_t step_scratch = 0;     // bytes into it: what the steps themselves may use
  int64_t scratch_bytes = 0;    // of a thread, in all
};

// The groups that pay with such an L3, in the order of the steps, apart from `chains`.
std::vector<ImageGroup> find_image_groups(const std::vector<Program::Step>& steps,
                                          const std::vector<Program::Tensor>& tensors,
                                          const std::vector<Together>& chains, int64_t l3_bytes, int threads);

}  // namespace fastconv
