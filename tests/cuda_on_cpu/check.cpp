// What the shim must catch and what it must get right, case by case: `check NAME` prints what happened.
#include <cstdio>
#include <numeric>
#include <vector>

#include "cuda/launch.cuh"

namespace {

using fastconv::cuda::launch;

__global__ void writes_behind(int at) {
  FASTCONV_SHARED(bytes);
  if (threadIdx.x == 0) bytes[at] = 1;
  __syncthreads();
}

__global__ void some_end_early() {
  if (threadIdx.x % 2) return;
  __syncthreads();
}

__global__ void lanes_disagree(int* out) {
  if (threadIdx.x % 2) {
    __syncwarp();
  } else {
    out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, 1, 1);
  }
}

__global__ void waits_for_ever() {
  FASTCONV_SHARED(bytes);
  shim::wait_until([bytes] { return bytes[0] == 1; });
}

__global__ void reads_fresh_shared(float* out) {
  FASTCONV_SHARED(bytes);
  out[blockIdx.x] = reinterpret_cast<float*>(bytes)[threadIdx.x];
  reinterpret_cast<float*>(bytes)[threadIdx.x] = 1;
}

// The sum of a block's values, by halves.
__global__ void sums(const int* in, int* out, bool with_barrier) {
  FASTCONV_SHARED(bytes);
  int* part = reinterpret_cast<int*>(bytes);
  const unsigned t = threadIdx.x;
  part[t] = in[blockIdx.x * blockDim.x + t];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (with_barrier || half == 1) __syncthreads();
    if (t < half) part[t] += part[t + half];
  }
  if (t == 0) out[blockIdx.x] = part[0];
}

__global__ void shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x), at = static_cast<int>(threadIdx.x) * 5;
  out[at] = __shfl_sync(0xFFFFFFFFu, lane, 7);
  out[at + 1] = __shfl_xor_sync(0xFFFFFFFFu, lane, 16);
  out[at + 2] = __shfl_down_sync(0xFFFFFFFFu, lane, 3);
  out[at + 3] = __shfl_up_sync(0xFFFFFFFFu, lane, 3, 8);
  out[at + 4] = static_cast<int>(__ballot_sync(0xFFFFFFFFu, lane % 3 == 0));
}

// A producer and its consumers hand a byte back and forth; blocks of a cluster read each other.
__global__ void hand_over(int* out) {
  FASTCONV_SHARED(bytes);
  if (threadIdx.x == 0) bytes[0] = 0;
  shim::sync_cluster();
  const auto* next = static_cast<unsigned char*>(shim::shared_pointer(
      static_cast<uint32_t>((shim::rank() + 1) % shim::cluster_size()) << 24 | (shim::shared_address(bytes) & 0xFFFFFF),
      1, 1));
  for (int turn = 0; turn < 5; ++turn) {
    if (threadIdx.x == 0) bytes[0] = static_cast<unsigned char>(turn + 1);
    shim::wait_until([next, turn] { return *next > turn; });
  }
  shim::sync_cluster();
  out[blockIdx.x * blockDim.x + threadIdx.x] = *next;
}

void show(const std::vector<int>& values) {
  for (const int v : values) std::printf("%d ", v);
  std::printf("\n");
}

void run(const std::string& name) {
  const dim3 one(1), warp(32), block(256);
  std::vector<int> out(1024, -1);
  if (name == "write_behind") {
    launch(writes_behind, one, warp, 100, nullptr, 100);
  } else if (name == "write_before") {
    launch(writes_behind, one, warp, 100, nullptr, -1);
  } else if (name == "deadlock") {
    launch(some_end_early, one, block, 0, nullptr);
  } else if (name == "different_instructions") {
    launch(lanes_disagree, one, warp, 0, nullptr, out.data());
  } else if (name == "wait") {
    launch(waits_for_ever, one, warp, 16, nullptr);
  } else if (name == "too_much_shared") {
    launch(writes_behind, one, warp, 1 << 20, nullptr, 0);
  } else if (name == "fresh_shared") {
    float first[4] = {};
    launch(reads_fresh_shared, dim3(4), one, 4, nullptr, first);
    for (const float f : first) std::printf("%f ", static_cast<double>(f));
    std::printf("\n");
  } else if (name == "sums" || name == "missing_barrier") {
    std::vector<int> in(256 * 3);
    std::iota(in.begin(), in.end(), 0);
    launch(sums, dim3(3), block, 1024, nullptr, in.data(), out.data(), name == "sums");
    out.resize(3);
    show(out);
  } else if (name == "shuffles") {
    launch(shuffles, one, warp, 0, nullptr, out.data());
    out.resize(160);
    show(out);
  } else if (name == "cluster") {
    cudaSetDevice(1);
    fastconv::cuda::LaunchOptions options;
    options.cluster = 4;
    launch(options, hand_over, dim3(8), warp, 8, nullptr, out.data());
    out.resize(256);
    show(out);
  } else if (name == "after_failure") {
    try {
      run("deadlock");
    } catch (const std::runtime_error&) {
      run("sums");
    }
  } else if (name == "capture") {
    cudaStream_t a = nullptr, b = nullptr;
    cudaEvent_t e = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    std::vector<int> in(256, 1);
    cudaStreamCreate(&a), cudaStreamCreate(&b), cudaEventCreate(&e);
    cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal);
    cudaEventRecord(e, a), cudaStreamWaitEvent(b, e);
    launch(sums, one, block, 1024, b, in.data(), out.data(), true);
    cudaStreamEndCapture(a, &graph);
    cudaGraphInstantiate(&exec, graph);
    std::printf("%d ", out[0]);
    cudaGraphLaunch(exec, a);
    std::printf("%d ", out[0]);
    in.assign(256, 2);
    cudaGraphLaunch(exec, a);
    std::printf("%d\n", out[0]);
  } else {
    throw std::runtime_error("no case " + name);
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run(count > 1 ? arguments[1] : "");
  } catch (const std::runtime_error& e) {
    std::printf("error: %s\n", e.what());
  }
  return 0;
}
