// Threads of the CPU backend. The only file that knows OpenMP (parallel.cpp).
#pragma once

#include <atomic>
#include <cstdint>

namespace fastconv {

// Meeting point of the threads of one region. Spins briefly, then sleeps: with more threads than cores a spinning
// thread would keep the one it waits for from running.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait();
  void set_count(int count) { count_.store(count, std::memory_order_relaxed); }

 private:
  std::atomic<int> count_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

// Number of threads a call from this thread would use.
int num_threads();
void set_num_threads(int n);     // process-wide
int set_thread_override(int n);  // this thread only; 0: none. Returns the value before
int default_num_threads();       // FASTCONV_NUM_THREADS, OMP_NUM_THREADS, affinity and container quota, in this order

// Threads that work of so many cycles is worth, at most num_threads().
int useful_threads(double cycles);

// Call once, early. LLVM's OpenMP runtime reads its settings at its first call; and from then on a child of fork() whose parent
// had threads computes on one: an OpenMP runtime does not survive a fork, and a region started in such a child would wait for ever
// for threads that are not there.
void prepare_threads();

// fn(context, tid, nthr, barrier) on every thread of a region, in the default floating-point environment (round to nearest,
// subnormals kept), whatever the caller has set; the caller's is put back. Runs inline for nthr == 1 and in such a child.
using RegionFn = void (*)(void* context, int tid, int nthr, Barrier& barrier);
void run_region(int nthr, RegionFn fn, void* context);

template <class Fn>
void parallel(int nthr, Fn&& fn) {
  run_region(
      nthr, [](void* context, int tid, int n, Barrier& barrier) { (*static_cast<Fn*>(context))(tid, n, barrier); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace fastconv
