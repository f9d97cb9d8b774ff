// The border inside the CUDA backend: what a GPU algorithm must answer. The counterpart of common/algorithm.h; an algorithm here owns its
// launches, works on the caller's stream, allocates nothing and never waits for the device.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/problem.h"

namespace fastconv::cuda {

enum class Dtype : uint8_t {
  f32,
  f16,
  bf16
};  // how src, dst, residual and packed weights are stored; bias, scale and shift are float32
enum class Compute : uint8_t {
  f32,
  tf32,
  tf32x3
};  // how products of float32 are formed; 16-bit storage always sums in float32

// A Problem on a GPU. `then_max_pool`: the convolution's activation is followed by the 3x3 max-pool with stride 2 and padding 1 of a ResNet
// stem, and dst holds the pooled image.
struct Task {
  Problem problem;
  Dtype dtype = Dtype::f32;
  Compute compute = Compute::f32;
  bool then_max_pool = false;

  auto operator<=>(const Task&) const = default;
};

// What planning may know of the device. Constants, so that a plan is a pure function, tested without a GPU.
struct DeviceLimits {
  int ordinal = 0;
  int sm = 80;                                // compute capability, 10 * major + minor
  int sm_count = 108;                         // streaming multiprocessors
  int64_t shared_bytes_per_block = 99 << 10;  // the opt-in limit
  int64_t shared_bytes_per_sm = 100 << 10;
  int64_t l2_bytes = 40 << 20;
  bool operator==(const DeviceLimits&) const = default;
};

struct Algorithm;

// Numbers that `configure` sets and `run` obeys; an algorithm uses those it needs.
struct Tile {
  int m = 0, n = 0, k = 0;    // one block's output pixels, output channels, and step of the reduction
  int warps = 0, stages = 0;  // warps of a block; buffers of shared memory in flight
  int split_k = 1;  // parts of the reduction, each by its own blocks, summed through the workspace in a fixed order
  int variant = 0;  // the algorithm's own: which instantiation
  bool operator==(const Tile&) const = default;
};

struct Plan {
  Task task;
  DeviceLimits device;
  const Algorithm* algorithm = nullptr;
  const char* ukernel_name = "";
  Tile tile;
  int64_t packed_bytes = 0;     // weights as this plan wants them, on the device
  int64_t workspace_bytes = 0;  // one call's, on the device; 256-byte aligned
  std::string pack_tag;         // plans with equal tags share packed weights
  std::vector<std::pair<std::string, std::string>> refused;
};

// Device pointers of one execution; which are set follows from the Task. All contiguous in the problem's layout, aligned to 16 bytes
// unless the caller's array was not: an algorithm that needs alignment looks at the pointers in `run` and takes its unaligned variant.
struct Operands {
  const void* src = nullptr;
  const void* packed = nullptr;
  const float* bias = nullptr;   // also batch_norm's shift
  const float* scale = nullptr;  // batch_norm
  const void* residual = nullptr;
  void* dst = nullptr;
  int64_t* indices = nullptr;  // max_pool2d
  void* workspace = nullptr;
};

// A constant of plain data.
struct Algorithm {
  Op op;
  const char* name;    // public: "direct", "im2col", "implicit_gemm", ...
  const char* kernel;  // unique, e.g. "conv_implicit_gemm_mma_sm80"
  // nullptr: accepts. Else the reason, a constant sentence without the algorithm's name.
  const char* (*refuses)(const Task&, const DeviceLimits&);
  void (*configure)(Plan&);
  // Weights on the device, float32, lying as problem.weight_layout says, into the packed form of plan.task.dtype. Null when nothing is packed.
  void (*pack)(const Plan&, const float* wei, void* packed, cudaStream_t);
  void (*run)(const Plan&, const Operands&, cudaStream_t);
};

// All algorithms of an op, best first (LIST 3: conv/algorithms.inc and the op files).
const std::vector<const Algorithm*>& algorithms(Op);

inline int64_t element_bytes(Dtype d) {
  return d == Dtype::f32 ? 4 : 2;
}

}  // namespace fastconv::cuda
