// Loops that measure the machine, written once over simd/.
#pragma once

#include "cpu/simd/runs.h"
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

constexpr int kL = simd::kLanes;
constexpr int64_t kStep = 4 * kL;

// Each step of values written takes its share of the steps read: what was read is summed up, so that none of it is left out.
template <bool kStream, bool kEven>
void move_by(const float* src, int64_t reads, float* dst, int64_t writes) {
  const int64_t misplaced = kStream ? to_line(dst) : 0;
  const int64_t head = smaller(misplaced, smaller(reads, writes));
  for (int64_t i = 0; i < head; ++i) dst[i] = src[i];
  src += head, reads -= head, dst += head, writes -= head;
  const int64_t sources = reads / kStep, steps = writes / kStep;
  for (int64_t i = 0, owed = 0; i < steps; ++i, dst += kStep) {
    F v[4] = {simd::zero(), simd::zero(), simd::zero(), simd::zero()};
    for (owed += sources; owed >= steps; owed -= steps, src += kStep)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const F x = simd::load(src + k * kL);
        v[k] = kEven ? x : simd::add(v[k], x);
      }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) put<kStream>(dst + k * kL, v[k]);
  }
  for (int64_t i = 0; i < writes % kStep; ++i) dst[i] = i < reads % kStep ? src[i] : 0.0f;
  if (kStream) simd::stream_end();
}

void move(const float* src, int64_t reads, float* dst, int64_t writes, int32_t streaming) {
  if (reads == writes) {
    streaming ? move_by<true, true>(src, reads, dst, writes) : move_by<false, true>(src, reads, dst, writes);
  } else {
    streaming ? move_by<true, false>(src, reads, dst, writes) : move_by<false, false>(src, reads, dst, writes);
  }
}

}  // namespace
}  // namespace fastconv
