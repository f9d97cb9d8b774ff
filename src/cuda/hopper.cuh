// Hopper's own instructions, one wrapper each: barriers in shared memory, the copy engine (TMA), products of a warpgroup (wgmma),
// clusters, and the hand-over between grids. Kernels write no assembly. Places in shared memory are byte addresses of this block's
// window, which is part of the cluster's.
// Preconditions: a kernel that uses them is compiled for sm_90a; elsewhere its body must be left out (FASTCONV_SM90A).
// Under FASTCONV_CUDA_ON_CPU the tests bring a host version of each.
// Reference: PTX ISA: "mbarrier", "cp.async.bulk.tensor", "wgmma.mma_async", "griddepcontrol", "mapa", "barrier.cluster"; the memory order
// of the pieces as in CUTLASS's sm90 pipelines (include/cutlass/arch/barrier.h, include/cute/arch/copy_sm90_tma.hpp).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FASTCONV_CUDA_ON_CPU)
#define FASTCONV_SM90A 1
#endif

#ifdef FASTCONV_CUDA_ON_CPU
#include "hopper_on_cpu.h"
#else
#include <cuda.h>  // CUtensorMap; nothing of the driver is linked

namespace fastconv::cuda::hopper {

#ifdef FASTCONV_SM90A

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- barriers of 8 bytes in shared memory: a phase ends when `count` threads have arrived and the expected bytes have come ---

__device__ inline void barrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory");
}

// After the thread's inits and before the block's barrier: the copy engine sees them too.
__device__ inline void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Arrives, and has the phase wait for so many bytes of the copy engine.
__device__ inline void barrier_arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

// Until the phase of this parity has ended. A fresh barrier is in phase 0, and the one "before" it, of parity 1, counts as ended.
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (ended == 0);
}

// A barrier of so many of the block's threads (a multiple of 32) under a number from 1 to 15; 0 is __syncthreads.
template <int number, int threads>
__device__ inline void sync_threads_of() {
  asm volatile("bar.sync %0, %1;\n" ::"n"(number), "n"(threads) : "memory");
}

// --- the copy engine: one thread issues, the bytes of the whole box arrive at `barrier`, those outside the tensor as zeros ---

__device__ inline void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}

// Box at element x of the inner, y of the outer dimension.
__device__ inline void load_tile(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];\n" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

// Consecutive pixels from (w, h, n), each shifted by the tap (s, r), channels from c.
__device__ inline void load_im2col(uint32_t to, const CUtensorMap* map, uint32_t barrier, int c, int w, int h, int n,
                                   int s, int r) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};\n" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n), "h"(static_cast<uint16_t>(s)),
      "h"(static_cast<uint16_t>(r))
      : "memory");
}

// The line of 128 bytes around an address, into the second-level cache.
__device__ inline void prefetch_line(const void* address) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(address));
}

// --- products of a warpgroup ---

// Before the first product of a batch: registers and shared memory written so far are seen by it.
__device__ inline void products_begin() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
// The products since the last commit become a batch.
__device__ inline void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most `pending` batches are under way.
template <int pending>
__device__ inline void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}
// The compiler must neither move these registers' uses across this point nor keep copies of them.
template <int count>
__device__ inline void pin(float (&d)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define FASTCONV_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define FASTCONV_D16(i) FASTCONV_D4(i), FASTCONV_D4((i) + 4), FASTCONV_D4((i) + 8), FASTCONV_D4((i) + 12)
#define FASTCONV_D32(i) FASTCONV_D16(i), FASTCONV_D16((i) + 16)

#define FASTCONV_WGMMA_N32(type)                                                          \
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                \
               " "                                                                        \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, " \
               "%16, %17, 1, 1, 1, 0, 0;\n"                                               \
               : FASTCONV_D16(0)                                                          \
               : "l"(a), "l"(b))

#define FASTCONV_WGMMA_N64(type)                                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                         \
               " "                                                                                 \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " \
               "%32, %33, 1, 1, 1, 0, 0;\n"                                                        \
               : FASTCONV_D32(0)                                                                   \
               : "l"(a), "l"(b))

#define FASTCONV_WGMMA_N128(type)                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                        \
               " "                                                                                 \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
               "%64, %65, 1, 1, 1, 0, 0;\n"                                                        \
               : FASTCONV_D32(0), FASTCONV_D32(32)                                                 \
               : "l"(a), "l"(b))

#define FASTCONV_WGMMA_N256(type)                                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                        \
               " "                                                                                                 \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                           \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                  \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                  \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                  \
               "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                  \
               "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                  \
               "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "      \
               "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
               "%128, %129, 1, 1, 1, 0, 0;\n"                                                                      \
               : FASTCONV_D32(0), FASTCONV_D32(32), FASTCONV_D32(64), FASTCONV_D32(96)                             \
               : "l"(a), "l"(b))

// d (64 x n, float32) += a (64 x 16) * b (n x 16, transposed), both K-major in shared memory and given by descriptors; the last argument
// says their type. Asynchronous: d is not to be touched before products_wait.
#define FASTCONV_WGMMA(n, type, name)                                                         \
  __device__ inline void products(float (&d)[(n) / 2], uint64_t a, uint64_t b, const type*) { \
    FASTCONV_WGMMA_N##n(name);                                                                \
  }
FASTCONV_WGMMA(32, __nv_bfloat16, "bf16")
FASTCONV_WGMMA(64, __nv_bfloat16, "bf16")
FASTCONV_WGMMA(128, __nv_bfloat16, "bf16")
FASTCONV_WGMMA(256, __nv_bfloat16, "bf16")
FASTCONV_WGMMA(32, __half, "f16")
FASTCONV_WGMMA(64, __half, "f16")
FASTCONV_WGMMA(128, __half, "f16")
FASTCONV_WGMMA(256, __half, "f16")
#undef FASTCONV_WGMMA
#undef FASTCONV_WGMMA_N32
#undef FASTCONV_WGMMA_N64
#undef FASTCONV_WGMMA_N128
#undef FASTCONV_WGMMA_N256
#undef FASTCONV_D4
#undef FASTCONV_D16
#undef FASTCONV_D32

// --- clusters ---

// All threads of all blocks of the cluster meet; what each wrote before, the others see after.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}

// Four values at this block's `address`, but in block `rank` of the cluster.
__device__ inline float4 load_from_block(uint32_t address, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(rank));
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(there)
               : "memory");
  return v;
}

// Orders this thread's ordinary accesses to shared memory with those of the copy engine and the products.
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// --- from grid to grid (no effect in a grid launched without the programmatic attribute, or before one) ---

// The next grid of the stream may be set up once every block of this one has said so.
__device__ inline void let_next_grid_start() {
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}
// Until the grids before this one have ended and what they wrote is seen.
__device__ inline void wait_for_grid_before() {
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

#endif  // FASTCONV_SM90A

}  // namespace fastconv::cuda::hopper
#endif  // FASTCONV_CUDA_ON_CPU
