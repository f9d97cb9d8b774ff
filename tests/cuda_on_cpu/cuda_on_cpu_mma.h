// Host versions of cuda/mma.cuh: asynchronous copies, matrix loads and tensor core products, with the fragment layouts of the PTX ISA.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fibers.h"

namespace shim {

struct AsyncCopy {
  uint32_t to;
  const void* from;
  int bytes;
  bool valid;
};

// What a thread has begun to copy and not waited for, in groups.
struct AsyncCopies {
  std::vector<AsyncCopy> open;
  std::vector<std::vector<AsyncCopy>> groups;
};
inline AsyncCopies& async_copies() {
  std::shared_ptr<void>& own = belongings();
  if (!own) own = std::make_shared<AsyncCopies>();
  return *static_cast<AsyncCopies*>(own.get());
}

template <int matrices>
struct MatrixLoad {
  uint32_t row;
  uint32_t (&r)[matrices];
  bool transposed;
};

template <int matrices>
void load_matrices(void* const* operands, uint32_t mask) {
  if (mask != 0xFFFFFFFFu) fail("ldmatrix needs all lanes of a warp");
  for (int i = 0; i < matrices; ++i) {
    uint16_t element[8][8];
    for (int y = 0; y < 8; ++y) {
      const auto* lane = static_cast<const MatrixLoad<matrices>*>(operands[i * 8 + y]);
      std::memcpy(element[y], shared_pointer(lane->row, 16, 16), 16);
    }
    for (int l = 0; l < 32; ++l) {
      const auto* lane = static_cast<MatrixLoad<matrices>*>(operands[l]);
      const int g = l / 4, t = l % 4;
      const uint32_t low = lane->transposed ? element[2 * t][g] : element[g][2 * t];
      const uint32_t high = lane->transposed ? element[2 * t + 1][g] : element[g][2 * t + 1];
      lane->r[i] = low | high << 16;
    }
  }
}

// As tensor cores do (Fasi et al., 2021): the products of a step and the sum so far are added before anything is rounded, and that is
// then rounded towards zero. A kernel whose accuracy needs more than this shows it here.
inline float round_towards_zero(double x) {
  const float f = static_cast<float>(x);
  if (!std::isfinite(x) || std::fabs(static_cast<double>(f)) <= std::fabs(x)) return f;
  return std::nextafterf(f, 0.0f);
}

struct MatrixProduct {
  float (&sum)[4];
  const uint32_t (&a)[4];
  const uint32_t (&b)[2];
};

// sum[16][8] += a[16][k] * b[k][8], k = 8 * `in_register`; number(register, i): the i-th number that it holds.
template <int in_register, double (*number)(uint32_t, int)>
void multiply_matrices(void* const* operands, uint32_t mask) {
  if (mask != 0xFFFFFFFFu) fail("mma needs all lanes of a warp");
  constexpr int extent = 8 * in_register;
  double a[16][extent], b[extent][8];
  for (int l = 0; l < 32; ++l) {
    const auto* lane = static_cast<const MatrixProduct*>(operands[l]);
    const int g = l / 4, t = l % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < in_register; ++i) {
        const int k = half * extent / 2 + t * in_register + i;
        a[g][k] = number(lane->a[2 * half], i);
        a[g + 8][k] = number(lane->a[2 * half + 1], i);
        b[k][g] = number(lane->b[half], i);
      }
    }
  }
  for (int l = 0; l < 32; ++l) {
    const auto* lane = static_cast<const MatrixProduct*>(operands[l]);
    for (int e = 0; e < 4; ++e) {
      const int row = l / 4 + e / 2 * 8, column = l % 4 * 2 + e % 2;
      double sum = static_cast<double>(lane->sum[e]);
      for (int k = 0; k < extent; ++k) sum += a[row][k] * b[k][column];
      lane->sum[e] = round_towards_zero(sum);
    }
  }
}

inline double number_f16(uint32_t r, int i) {
  return static_cast<double>(half_value(static_cast<uint16_t>(r >> 16 * i)));
}
inline double number_bf16(uint32_t r, int i) {
  return static_cast<double>(bfloat_value(static_cast<uint16_t>(r >> 16 * i)));
}
inline double number_tf32(uint32_t r, int) {
  return static_cast<double>(std::bit_cast<float>(r & 0xFFFFE000u));
}

}  // namespace shim

namespace fastconv::cuda {

inline SharedAddress shared_address(const void* pointer) {
  return shim::shared_address(pointer);
}

// A copy is made as late as it may be, when its group is waited for: who reads earlier reads what was there before.
template <int bytes>
void copy_async(SharedAddress to, const void* from, bool valid) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  shim::shared_pointer(to, bytes, bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0)
    shim::fail("cp.async of " + std::to_string(bytes) + " bytes from an address that is not aligned to them");
  shim::async_copies().open.push_back({to, from, bytes, valid});
}

inline void copy_async_commit() {
  shim::AsyncCopies& copies = shim::async_copies();
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}

template <int pending>
void copy_async_wait() {
  std::vector<std::vector<shim::AsyncCopy>>& groups = shim::async_copies().groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    for (const shim::AsyncCopy& c : groups.front()) {
      void* to = shim::shared_pointer(c.to, static_cast<size_t>(c.bytes), static_cast<size_t>(c.bytes));
      if (c.valid)
        std::memcpy(to, c.from, static_cast<size_t>(c.bytes));
      else
        std::memset(to, 0, static_cast<size_t>(c.bytes));
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrix_x4(uint32_t (&r)[4], SharedAddress row) {
  shim::MatrixLoad<4> mine{row, r, false};
  shim::meet(0xFFFFFFFFu, &mine, shim::load_matrices<4>);
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], SharedAddress row) {
  shim::MatrixLoad<4> mine{row, r, true};
  shim::meet(0xFFFFFFFFu, &mine, shim::load_matrices<4>);
}
inline void load_matrix_x2(uint32_t (&r)[2], SharedAddress row) {
  shim::MatrixLoad<2> mine{row, r, false};
  shim::meet(0xFFFFFFFFu, &mine, shim::load_matrices<2>);
}
inline void load_matrix_x2_transposed(uint32_t (&r)[2], SharedAddress row) {
  shim::MatrixLoad<2> mine{row, r, true};
  shim::meet(0xFFFFFFFFu, &mine, shim::load_matrices<2>);
}

inline void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  shim::MatrixProduct mine{sum, a, b};
  shim::meet(0xFFFFFFFFu, &mine, shim::multiply_matrices<2, shim::number_f16>);
}
inline void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  shim::MatrixProduct mine{sum, a, b};
  shim::meet(0xFFFFFFFFu, &mine, shim::multiply_matrices<2, shim::number_bf16>);
}
inline void mma_m16n8k8_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  shim::MatrixProduct mine{sum, a, b};
  shim::meet(0xFFFFFFFFu, &mine, shim::multiply_matrices<1, shim::number_tf32>);
}

inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7FFFE000u;
  return (bits + 0x1000u) & 0xFFFFE000u;  // an infinity stays one
}
inline float bits_to_float(uint32_t bits) {
  return std::bit_cast<float>(bits);
}
inline uint32_t float_to_bits(float x) {
  return std::bit_cast<uint32_t>(x);
}

}  // namespace fastconv::cuda
