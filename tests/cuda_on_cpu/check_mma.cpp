// cuda/mma.cuh on the host against the fragment layouts as the PTX ISA writes them down: `check_mma NAME` prints "ok" or what is wrong.
#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace {

using namespace fastconv::cuda;

constexpr int kRows = 16, kColumns = 8;

// Small integers that differ in every row and column.
int a_value(int row, int k) {
  return (row * 7 + k * 3) % 11 - 5;
}
int b_value(int k, int column) {
  return (k * 5 + column * 2) % 9 - 4;
}

template <class T>
uint32_t two(float low, float high) {
  const T l = low, h = high;
  return uint32_t{l.bits} | uint32_t{h.bits} << 16;
}

// Fragments element by element, by the formulas of the PTX ISA: "row = groupID for ai where 0 <= i < 2 || 4 <= i < 6, else groupID + 8;
// col = threadID_in_group * 2 + (i & 1), + 8 for i >= 4", and for b "row = threadID_in_group * 2 + (i & 1), + 8 for i >= 2".
template <class T>
__global__ void product_16(float* out, bool identity) {
  const int lane = static_cast<int>(threadIdx.x), group = lane >> 2, in_group = lane % 4;
  const auto a = [&](int row, int k) { return static_cast<float>(identity ? row == k : a_value(row, k)); };
  float av[8], bv[4], sum[4];
  for (int i = 0; i < 8; ++i) {
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8, k = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    av[i] = a(row, k);
  }
  for (int i = 0; i < 4; ++i) bv[i] = static_cast<float>(b_value(in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0), group));
  for (int i = 0; i < 4; ++i) sum[i] = static_cast<float>(i);
  const uint32_t af[4] = {two<T>(av[0], av[1]), two<T>(av[2], av[3]), two<T>(av[4], av[5]), two<T>(av[6], av[7])};
  const uint32_t bf[2] = {two<T>(bv[0], bv[1]), two<T>(bv[2], bv[3])};
  mma_m16n8k16(sum, af, bf, T{});
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
    out[row * kColumns + column] = sum[i] - static_cast<float>(i);
  }
}

// "row = groupID for a0 and a2, groupID + 8 for a1 and a3; col = threadID_in_group for a0 and a1, + 4 for a2 and a3"; b "row =
// threadID_in_group for b0, + 4 for b1".
__global__ void product_tf32(float* out, bool identity) {
  const int lane = static_cast<int>(threadIdx.x), group = lane >> 2, in_group = lane % 4;
  uint32_t af[4], bf[2];
  for (int i = 0; i < 4; ++i) {
    const int row = i % 2 == 0 ? group : group + 8, k = in_group + (i < 2 ? 0 : 4);
    af[i] = float_to_bits(static_cast<float>(identity ? row == k : a_value(row, k)));
  }
  for (int i = 0; i < 2; ++i) bf[i] = float_to_bits(static_cast<float>(b_value(in_group + 4 * i, group)));
  float sum[4] = {};
  mma_m16n8k8_tf32(sum, af, bf);
  for (int i = 0; i < 4; ++i) out[(i < 2 ? group : group + 8) * kColumns + in_group * 2 + (i & 1)] = sum[i];
}

std::string judge_product(const std::vector<float>& out, int extent, bool identity) {
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      int expected = 0;
      for (int k = 0; k < extent; ++k) expected += (identity ? row == k : a_value(row, k)) * b_value(k, column);
      const float got = out[static_cast<size_t>(row * kColumns + column)];
      if (got != static_cast<float>(expected))
        return "row " + std::to_string(row) + ", column " + std::to_string(column) + ": " +
               std::to_string(static_cast<double>(got)) + ", expected " + std::to_string(expected);
    }
  }
  return "ok";
}

// Matrix i lies from byte 256 * i on, its rows 32 bytes apart in reverse order.
template <int matrices>
__global__ void matrix_load(uint32_t* out, bool transposed) {
  FASTCONV_SHARED(bytes);
  const int lane = static_cast<int>(threadIdx.x);
  if (lane == 0) {
    for (int i = 0; i < matrices * 64; ++i) {
      const int matrix = i / 64, row = i / 8 % 8, column = i % 8;
      reinterpret_cast<uint16_t*>(bytes + matrix * 256 + (7 - row) * 32)[column] =
          static_cast<uint16_t>(matrix * 100 + row * 10 + column);
    }
  }
  __syncwarp();
  const SharedAddress row = shared_address(bytes) + lane / 8 % matrices * 256 + (7 - lane % 8) * 32;
  uint32_t r[matrices];
  if constexpr (matrices == 4)
    transposed ? load_matrix_x4_transposed(r, row) : load_matrix_x4(r, row);
  else
    transposed ? load_matrix_x2_transposed(r, row) : load_matrix_x2(r, row);
  for (int i = 0; i < matrices; ++i) out[lane * matrices + i] = r[i];
}

template <int matrices>
std::string judge_load(bool transposed) {
  std::vector<uint32_t> out(32 * matrices);
  launch(matrix_load<matrices>, dim3(1), dim3(32), matrices * 256, nullptr, out.data(), transposed);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < matrices; ++i) {
      for (int half = 0; half < 2; ++half) {
        const int along = lane % 4 * 2 + half, across = lane / 4;
        const int expected = i * 100 + (transposed ? along * 10 + across : across * 10 + along);
        const int got = static_cast<int>(out[static_cast<size_t>(lane * matrices + i)] >> 16 * half & 0xFFFF);
        if (got != expected)
          return "lane " + std::to_string(lane) + ", register " + std::to_string(i) + ": " + std::to_string(got) +
                 ", expected " + std::to_string(expected);
      }
    }
  }
  return "ok";
}

__global__ void lone_lane_multiplies() {
  float sum[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x == 0) mma_m16n8k8_tf32(sum, a, b);
}

// What is in shared memory after each step of copying; NaN is what nobody wrote.
__global__ void copies(const float* in, float* out) {
  FASTCONV_SHARED(bytes);
  const float* values = reinterpret_cast<const float*>(bytes);
  const SharedAddress to = shared_address(bytes);
  copy_async<16>(to, in, true);
  copy_async_commit();
  copy_async<4>(to + 16, in + 5, true);
  copy_async<8>(to + 24, in, false);
  copy_async_commit();
  out[0] = values[0];
  copy_async_wait<1>();
  out[1] = values[3], out[2] = values[4];
  copy_async_wait<0>();
  out[3] = values[4], out[4] = values[5], out[5] = values[6], out[6] = values[7];
}

__global__ void copies_askew(const float* in, int to, int from) {
  FASTCONV_SHARED(bytes);
  copy_async<16>(shared_address(bytes) + to, in + from, true);
}

__global__ void splits(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  uint32_t big, small;
  split_tf32(float_to_bits(in[i]), big, small);
  out[2 * i] = bits_to_float(big), out[2 * i + 1] = bits_to_float(small & 0xFFFFE000u);
}

std::string judge_splits() {
  std::vector<float> in(32), out(64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = (i % 2 ? -1.0f : 1.0f) * (1.0f + 0.037f * static_cast<float>(i * i));
  launch(splits, dim3(1), dim3(32), 0, nullptr, in.data(), out.data());
  for (size_t i = 0; i < in.size(); ++i) {
    const double lost =
        static_cast<double>(in[i]) - static_cast<double>(out[2 * i]) - static_cast<double>(out[2 * i + 1]);
    if (std::fabs(lost) > std::fabs(static_cast<double>(in[i])) * 0x1p-22) return "value " + std::to_string(i);
    if (float_to_bits(out[2 * i]) & 0x1FFFu) return "the big part is no tf32";
  }
  return to_tf32(1.0f + 0x1p-11f) == float_to_bits(1.0f + 0x1p-10f) && to_tf32(-1.0f - 0x1p-12f) == float_to_bits(-1.0f)
             ? "ok"
             : "rounding to tf32";
}

template <class T>
std::string judge_16(bool identity) {
  std::vector<float> out(kRows * kColumns);
  launch(product_16<T>, dim3(1), dim3(32), 0, nullptr, out.data(), identity);
  return judge_product(out, 16, identity);
}

std::string run(const std::string& name) {
  std::vector<float> in(8), out(kRows * kColumns);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i + 1);
  if (name == "f16") return judge_16<__half>(false);
  if (name == "f16_identity") return judge_16<__half>(true);
  if (name == "bf16") return judge_16<__nv_bfloat16>(false);
  if (name == "bf16_identity") return judge_16<__nv_bfloat16>(true);
  if (name == "tf32" || name == "tf32_identity") {
    launch(product_tf32, dim3(1), dim3(32), 0, nullptr, out.data(), name != "tf32");
    return judge_product(out, 8, name != "tf32");
  }
  if (name == "ldmatrix_x4") return judge_load<4>(false);
  if (name == "ldmatrix_x4_trans") return judge_load<4>(true);
  if (name == "ldmatrix_x2") return judge_load<2>(false);
  if (name == "ldmatrix_x2_trans") return judge_load<2>(true);
  if (name == "split") return judge_splits();
  if (name == "lone_lane") {
    launch(lone_lane_multiplies, dim3(1), dim3(32), 0, nullptr);
  } else if (name == "copies") {
    alignas(16) float from[8];
    std::copy(in.begin(), in.end(), from);
    launch(copies, dim3(1), dim3(1), 32, nullptr, static_cast<const float*>(from), out.data());
    std::string said;
    for (int i = 0; i < 7; ++i)
      said += out[static_cast<size_t>(i)] != out[static_cast<size_t>(i)]
                  ? "? "
                  : std::to_string(static_cast<int>(out[static_cast<size_t>(i)])) + " ";
    return said;
  } else if (name == "copy_from_askew" || name == "copy_to_askew" || name == "copy_behind") {
    alignas(16) float from[8] = {};
    launch(copies_askew, dim3(1), dim3(1), 32, nullptr, static_cast<const float*>(from),
           name == "copy_to_askew" ? 8
           : name == "copy_behind" ? 32
                                   : 0,
           name == "copy_from_askew" ? 1 : 0);
  } else {
    throw std::runtime_error("no case " + name);
  }
  return "nothing was found";
}

}  // namespace

int main(int count, char** arguments) {
  try {
    std::printf("%s\n", run(count > 1 ? arguments[1] : "").c_str());
  } catch (const std::runtime_error& e) {
    std::printf("error: %s\n", e.what());
  }
  return 0;
}
