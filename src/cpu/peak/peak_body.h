// Loops that measure the machine, written once over simd/.
#pragma once

#include "cpu/ukernel.h"

namespace fastconv {
namespace {

using simd::F;

// Twelve chains: more than latency times ports of any x86 core needs, fewer than the registers of AVX2.
constexpr int kChains = 12;
constexpr int64_t kFlopsPerRound = 2 * kChains * simd::kLanes;

float fma_loop(int64_t rounds) {
  F acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = simd::set1(static_cast<float>(i) * 0.01f);
  const F scale = simd::set1(0.999f), shift = simd::set1(0.001f);
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = simd::fma(acc[i], scale, shift);
  for (int i = 1; i < kChains; ++i) acc[0] = simd::add(acc[0], acc[i]);
  return simd::sum(acc[0]);
}

float read(const float* src, int64_t count) {
  F acc[4] = {simd::zero(), simd::zero(), simd::zero(), simd::zero()};
  for (int64_t i = 0; i < count; i += 4 * simd::kLanes)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) acc[v] = simd::add(acc[v], simd::load(src + i + v * simd::kLanes));
  return simd::sum(simd::add(simd::add(acc[0], acc[1]), simd::add(acc[2], acc[3])));
}

void copy(const float* src, float* dst, int64_t count) {
  for (int64_t i = 0; i < count; i += 4 * simd::kLanes)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) simd::store(dst + i + v * simd::kLanes, simd::load(src + i + v * simd::kLanes));
}

}  // namespace
}  // namespace fastconv
