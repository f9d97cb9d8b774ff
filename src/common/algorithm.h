// The border between the front door (common/) and the backends (cpu/, cuda/): what an algorithm must answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/problem.h"

namespace fastconv {

enum class Isa : uint8_t { scalar, avx2, avx512, amx };
const char* to_string(Isa);

// What planning may know of the machine. `isa` is the level in use: found, then capped.
struct Machine {
  Isa isa = Isa::scalar;
  int64_t l1d_bytes = 32 << 10;
  int64_t l2_bytes = 512 << 10;
  int64_t l3_bytes = 8 << 20;      // the one L3 that a core can fill, with its neighbours
  int64_t stream_bytes = 4 << 20;  // an output of more will have left the caches before it is read: it may go past them
  bool adds_beside = false;        // as many vectors are added in a cycle, beside products, as are multiplied
};

Machine current_machine();  // defined in cpu/

struct Algorithm;
class Barrier;

// Numbers that `configure` sets and `run` obeys. An algorithm uses the ones it needs.
struct Blocking {
  int64_t mr = 0, nr = 0;  // register tile: output pixels x output channels
  int64_t mc = 0;          // output pixels (im2col) or output rows (direct) of one cache block
  int64_t band = 0;        // output rows that planes of a pooling are turned for
  int64_t segs = 1;        // the reduction is walked as segs runs of seg_k products each
  int64_t seg_k = 0;
  bool channels_first = false;  // order of the reduction in packed weights: (c, r, s) instead of (r, s, c)
  bool flat = false;            // 1x1, stride 1, no padding: all pixels of an image form one row
  // Register tiles of a block from which on its pixels are copied before any product, not during the first panel.
  int64_t at_once = 0;
  bool near = false;       // what comes soon in rows that are read is fetched
  bool ahead = false;      // a block's inputs and outputs are fetched while the block before is computed
  bool expect = false;     // a register tile asks for the lines of its results before it computes them
  bool streaming = false;  // outputs are stored past the caches
  int64_t panels = 0;      // packed weight panels per group
  int64_t row_unit = 1;    // output rows that are computed together, so that their bits depend on where the first lies
};

// Immutable once made. Pointers point at constant descriptors of this library.
struct Plan {
  Problem problem;
  const Algorithm* algorithm = nullptr;
  const void* ukernel = nullptr;  // the leaf descriptor; its type is the algorithm's own business
  const char* ukernel_name = "";
  Isa isa = Isa::scalar;
  Blocking blocking;
  int64_t packed_bytes = 0;                                  // weights as this plan wants them
  int64_t scratch_bytes = 0;                                 // per thread, private
  std::string pack_tag;                                      // plans with equal tags share packed weights
  bool tuned = false;                                        // `fastconv tune` chose the algorithm
  std::vector<std::pair<std::string, std::string>> refused;  // algorithm, reason: those asked before this one
};

// One thread of a running parallel region. Scratch is private and 64-byte aligned; `common` is the scratch of thread 0, for what
// threads make together between barriers.
struct Worker {
  int tid = 0;
  int nthr = 1;
  std::byte* scratch = nullptr;
  Barrier* barrier = nullptr;
  std::byte* common = nullptr;
};

// Pointers of one execution; which of them are set follows from the Problem.
struct Operands {
  const float* src = nullptr;
  const void* packed = nullptr;  // as `pack` wrote it
  const float* bias = nullptr;   // also batch_norm's shift
  const float* scale = nullptr;  // batch_norm
  const float* residual = nullptr;
  float* dst = nullptr;
  int64_t* indices = nullptr;  // max_pool2d, optional
  // NCHW, one image: elements from a channel's plane to the next, where planes are bands of rows of larger ones; 0: as many as a plane has.
  // Only an algorithm that says `planes_apart` is given others. The residual's planes lie as dst's.
  int64_t src_plane = 0, dst_plane = 0;
  int64_t src_plane_of(const Problem& p) const { return src_plane ? src_plane : p.ih * p.iw; }
  int64_t dst_plane_of(const Problem& p) const { return dst_plane ? dst_plane : p.oh * p.ow; }
};

// An algorithm is a constant of plain data. `run` and `pack` are bodies that every thread of a region executes on its
// share; they allocate nothing and check nothing.
struct Algorithm {
  Op op;
  const char* name;    // public: "direct", "im2col", ... Several may share one; the first that accepts wins
  const char* kernel;  // unique: the stem of the driver's name, e.g. "conv_direct_depthwise"
  const char* device;  // "cpu"
  // nullptr: accepts. Else the reason, a constant sentence without the algorithm's name.
  const char* (*refuses)(const Problem&, const Machine&);
  void (*configure)(Plan&, const Machine&);
  // Both null when nothing is packed. `wei` lies as problem.weight_layout says.
  void (*pack)(const Plan&, const float* wei, void* packed, Worker&);
  void (*run)(const Plan&, const Operands&, Worker&);
  // ISA levels it has leaves for, best first, with the leaf's name. Listed by `kernels`.
  std::vector<std::pair<Isa, const char*>> (*leaves)();
  // "auto" asks those that return true last, though they could do the problem. May be null: never.
  bool (*prefers_not)(const Problem&, const Machine&) = nullptr;
  // Fewer products, more rounding (Winograd, its inner product, Strassen): "auto" may be told to leave these out.
  bool winograd = false;
  bool planes_apart = false;  // `run` obeys Operands::src_plane and dst_plane
};

// All algorithms of an op on the CPU, best first (LIST 2). Defined in cpu/.
const std::vector<const Algorithm*>& cpu_algorithms(Op);

// The half-open share of `total` units that belongs to worker `tid` of `nthr`.
struct Range {
  int64_t begin, end;
};
inline Range share(int64_t total, int64_t tid, int64_t nthr) {
  const int64_t base = total / nthr, extra = total % nthr;
  const int64_t begin = tid * base + (tid < extra ? tid : extra);
  return {begin, begin + base + (tid < extra ? 1 : 0)};
}

}  // namespace fastconv
