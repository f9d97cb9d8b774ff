// Runs the blocks of a kernel on the host, one after the other (the blocks of a cluster together), each thread as a fiber that gives way
// only where it waits for others. Threads start, and go on behind a barrier, in an order shuffled by FASTCONV_SHIM_SEED, so that a missing
// barrier shows as a wrong result under some seed. Shared memory is fresh for every block, of exactly the size asked for and full of NaN.
// One launch at a time in the process: what a kernel sees of itself are plain variables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Of the thread that runs.
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace shim {

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  int cluster = 1;                                // blocks that run together; divides grid.x
  std::string name;                               // for messages
  void (*body)(const void* arguments) = nullptr;  // what one thread does
  const void* arguments = nullptr;
};

// Throws std::runtime_error that names the kernel, block and threads when threads wait for each other for ever, meet at different
// instructions, or write past their shared memory.
void run(const Launch& launch);

// --- for host versions of device instructions; only inside of a kernel ---

// Ends the kernel with that error.
[[noreturn]] void fail(const std::string& message);

// What the running thread keeps from one instruction to a later one; gone when its block begins anew.
std::shared_ptr<void>& belongings();

int lane();          // 0 to 31
int rank();          // of this block in its cluster
int cluster_size();  // blocks of it
unsigned char* dynamic_shared();

// Shared memory by the 32-bit addresses that instructions take: plus an int is so many bytes further, in bits 24 and up the rank of the
// block in the cluster. A pointer for `bytes` from there on, which must lie in what the launch asked for and be aligned to `alignment`.
uint32_t shared_address(const void* pointer);
void* shared_pointer(uint32_t address, size_t bytes, size_t alignment);

// Until `threads` of the block are at barrier `number` (0 to 15); __syncthreads is number 0 and all threads, ended ones included.
void sync_block(int number = 0, int threads = 0);
// Until all threads of all blocks of the cluster are here.
void sync_cluster();
// Until ready() holds. Others run meanwhile.
template <class F>
void wait_until(F ready);
// Somebody else's turn.
void give_way();

// The lanes of `mask` meet, all with the same instruction; the last one to come computes for all of them: whole(operands, mask) with
// operands[l] what lane l passed (null outside of the mask), which stays where it is until then. Shuffles and matrix products are this.
void meet(uint32_t mask, void* operand, void (*whole)(void* const* operands, uint32_t mask));

// --- the rest is for the templates above ---
void poll();
void made_progress();

template <class F>
void wait_until(F ready) {
  if (ready()) return;
  made_progress();
  do {
    poll();
  } while (!ready());
  made_progress();
}

}  // namespace shim
