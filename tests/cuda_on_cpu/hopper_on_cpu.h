// Hopper's instructions (cuda/hopper.cuh) on the host, as late as their rules allow: a copy happens when some thread can go no further
// without it, the last issued first; a product reads its operands and its sums when its batch is waited for. What uses a result too
// early, or gives a buffer back too early, computes something wrong.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fastconv::cuda::hopper {

inline uint32_t shared_address(const void* pointer) {
  return shim::shared_address(pointer);
}

void barrier_init(uint32_t barrier, uint32_t count);
inline void barrier_init_done() {}
void barrier_arrive(uint32_t barrier);
void barrier_arrive_expecting(uint32_t barrier, uint32_t bytes);
void barrier_wait(uint32_t barrier, uint32_t parity);
template <int number, int threads>
void sync_threads_of() {
  shim::sync_block(number, threads);
}

inline void prefetch_map(const CUtensorMap*) {}
void load_tile(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y);
void load_im2col(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c, int w, int h, int n, int s, int r);

inline void prefetch_line(const void*) {}

enum class Half : uint8_t { bf16, f16 };
void products_begin();
void enqueue_product(float* d, int n, uint64_t a, uint64_t b, Half type);
void products_commit();
void wait_for_products(int pending);
template <int pending>
void products_wait() {
  wait_for_products(pending);
}
template <int count>
void pin(float (&)[count]) {}
template <int count>
void products(float (&d)[count], uint64_t a, uint64_t b, const __nv_bfloat16*) {
  enqueue_product(d, 2 * count, a, b, Half::bf16);
}
template <int count>
void products(float (&d)[count], uint64_t a, uint64_t b, const __half*) {
  enqueue_product(d, 2 * count, a, b, Half::f16);
}

inline void cluster_sync() {
  shim::sync_cluster();
}
float4 load_from_block(uint32_t address, int rank);
inline void fence_async() {}

inline void let_next_grid_start() {}
inline void wait_for_grid_before() {}

}  // namespace fastconv::cuda::hopper
