// Asynchronous copies into shared memory, matrix loads from it and tensor core products, one wrapper an instruction, so that no
// kernel writes assembly. Under FASTCONV_CUDA_ON_CPU each has a host version with the fragment layouts of the PTX ISA: the lanes
// of a warp meet, see each other's operands and compute their own part of the result.
//
// A fragment's element (row, column), with g = lane / 4 and t = lane % 4; 16-bit operands hold two neighbours of k in a register:
//   m16n8k16  a[0] (g, 2t..)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)   b[0] k 2t.., n g   b[1] k 2t+8.., n g
//   m16n8k8   a[0] (g, t)     a[1] (g+8, t)     a[2] (g, t+4)     a[3] (g+8, t+4)      b[0] k t, n g      b[1] k t+4, n g
//   sums      c[0], c[1] (g, 2t..)   c[2], c[3] (g+8, 2t..)
// Reference: PTX ISA, "Matrix fragments for mma.m16n8k16" and following; "ldmatrix"; "cp.async".
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace fastconv::cuda {

// A place in shared memory as these instructions take it; plus an int is so many bytes further.
using SharedAddress = uint32_t;

}  // namespace fastconv::cuda

#ifdef FASTCONV_CUDA_ON_CPU
#include "cuda_on_cpu_mma.h"
#endif

namespace fastconv::cuda {

#ifndef FASTCONV_CUDA_ON_CPU

__device__ inline SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// bytes (4, 8 or 16; both sides aligned to them) from global memory; where !valid nothing is read and zeros are written.
template <int bytes>
__device__ inline void copy_async(SharedAddress to, const void* from, bool valid) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  const int source_bytes = valid ? bytes : 0;
  if constexpr (bytes == 16) {  // .cg: past the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(source_bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(to), "l"(from), "n"(bytes), "r"(source_bytes)
                 : "memory");
  }
}

// The copies since the last commit become a group.
__device__ inline void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Until at most `pending` of this thread's groups are under way. What other threads copied is there after a barrier.
template <int pending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16 bits: lane l gives the address (16-byte aligned) of row l % 8 of matrix l / 8, and gets in r[i] elements
// (g, 2t) and (g, 2t + 1) of matrix i. Rows of four 32-bit words work as well: lane gets word (g, t).
__device__ inline void load_matrix_x4(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// The same of the transposed matrices: elements (2t, g) and (2t + 1, g).
__device__ inline void load_matrix_x4_transposed(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// Two matrices; lanes 0 to 15 give the rows, the others' addresses are not used.
__device__ inline void load_matrix_x2(uint32_t (&r)[2], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}

__device__ inline void load_matrix_x2_transposed(uint32_t (&r)[2], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}

// sum[16][8] += a[16][16] * b[16][8]
__device__ inline void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sum[16][8] += a[16][8] * b[8][8]; of each operand the upper 19 bits count (tf32).
__device__ inline void mma_m16n8k8_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest tf32, ties away from zero, with its lower bits zero.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(r) : "f"(x));
  return r;
}

__device__ inline float bits_to_float(uint32_t bits) {
  return __uint_as_float(bits);
}

__device__ inline uint32_t float_to_bits(float x) {
  return __float_as_uint(x);
}

#endif

// x = big + small as two tf32: big is x without its lower 13 bits, small the rest, rounded to the nearest. What is lost is at most
// 2^-22 of x. An infinity splits into infinity and NaN, so that products with it are NaN.
__device__ inline void split_tf32(uint32_t x, uint32_t& big, uint32_t& small) {
  constexpr uint32_t kept = 0xffffe000u, half_unit = 0x1000u;
  big = x & kept;
  small = float_to_bits(bits_to_float(x) - bits_to_float(big)) + half_unit;  // the tensor core drops what is below
}

}  // namespace fastconv::cuda
