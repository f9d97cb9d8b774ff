// C[m][n] = sum_k A[m][k] * B[k][n] in float32 on the CUDA cores, A gathered from an image by the filler of the layout.
// Operands: A pixels x taps and channels (gather.cuh); B packed [group][packed_k][packed_n], zeros past k, columns past n
//   never stored; bias, residual and ReLU at the end, or bare sums of one part of k.
// Threads: warps of 4 (m) x 8 (n) lanes, 8x8 (or 8x4) sums each as 2x2 runs of 4. Lane bits 0 and 2 are m, 1, 3 and 4 are n, so that
//   neighbouring lanes share an address in each 128-bit shared load and half a warp is one wavefront.
// Shared memory: two buffers of [BK][BM + 4] and [BK][BN], k outside: a step is 4 vector loads for 64 products. The next step's values
//   wait in registers while this one's are multiplied; one barrier a step. 128 registers: 16 warps on an SM.
// Preconditions: what `gather_refuses` asks; Fill::vector: see gemm_f32.h.
// Tails: rows past m and k past the reduction are zeros; columns past n are clamped loads that nobody stores.
// Numerics: one sequential sum over k per output and part; parts are added in order by a second kernel.
// Measured: not measured.
// Reference: the warp tiling of S. Boehm's SGEMM notes; the lane order of S. Gray's maxas.
#pragma once

#include "cuda/conv/gemm_f32.h"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {

template <int M, int N, int WarpsM, int WarpsN, int ThreadN, int BlocksPerSm>
struct TileF32 {
  static constexpr int m = M, n = N, k = 8;
  static constexpr int threads = 32 * WarpsM * WarpsN, blocks_per_sm = BlocksPerSm;
  static constexpr int warps_n = WarpsN, thread_m = 8, thread_n = ThreadN;
  static constexpr int warp_m = 4 * thread_m, warp_n = 8 * thread_n;
  static_assert(warp_m * WarpsM == M && warp_n * WarpsN == N);
  // Stores of 4 channels by neighbouring lanes must fall into different banks: 4 * a_pitch is 16 modulo 32.
  static constexpr int a_pitch = M + 4;
  static constexpr int buffer_floats = k * (a_pitch + N);
  static constexpr int shared_bytes = 2 * (buffer_floats * static_cast<int>(sizeof(float)) + k * 8);
  static constexpr int a_values = M * k / threads, b_values = N * k / threads;  // per thread and step
};

__device__ inline float4 load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ inline void store4(float* p, float4 v) {
  *reinterpret_cast<float4*>(p) = v;
}

// What the k of one step read, computed once for the block, a step ahead of the loads that need it.
struct __align__(8) TapEntry {
  int offset;
  uint32_t bits;
};
template <bool kNhwc>
__device__ void write_tap(const GemmF32& g, TapEntry* entries, int k0) {
  const int k = k0 + static_cast<int>(threadIdx.x);
  // Past the reduction: ask for all bits, which no pixel has. Only a 16x16 kernel could, and its k end with a step.
  TapEntry entry{0, ~0u};
  if (k < g.a.reduction) {
    const Tap tap = kNhwc ? tap_nhwc(g.a, k) : tap_nchw(g.a, k);
    entry = {tap.offset, tap.bits};
  }
  entries[threadIdx.x] = entry;
}

// A from NHWC: a thread brings runs of 4 channels of up to two pixels and stores them as a column of 4 rows of k.
template <class Tile>
struct FillNhwc {
  static constexpr int runs = Tile::a_values / 4, row_step = Tile::threads / 2;
  const float* src;
  int column, row;  // of the first run
  int offset[runs];
  uint32_t mask[runs];
  float4 value[runs];

  __device__ FillNhwc(const GemmF32& g, int m0, int group) {
    const int tid = threadIdx.x;
    column = tid % 2 * 4, row = tid / 2;
    src = g.src + group * g.a.icg;
#pragma unroll
    for (int i = 0; i < runs; ++i) {
      const int pixel = m0 + row + i * row_step;
      const Origin o = origin_of(g.a, pixel);
      offset[i] = origin_offset(g.a, o);
      mask[i] = pixel < g.a.pixels ? tap_mask(g.a, o) : 0;
    }
  }

  __device__ void load(const GemmF32& g, const TapEntry* entries) {
    if (g.fill == Fill::vector) {  // icg is a multiple of 4: the run lies within one tap
      const TapEntry tap = entries[column];
#pragma unroll
      for (int i = 0; i < runs; ++i) {
        value[i] = make_float4(0, 0, 0, 0);
        if (tap_is_inside(mask[i], tap.bits)) value[i] = load4(src + (offset[i] + tap.offset));
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const TapEntry tap = entries[column + j];
#pragma unroll
        for (int i = 0; i < runs; ++i) {
          float v = 0;
          if (tap_is_inside(mask[i], tap.bits)) v = src[offset[i] + tap.offset];
          (j == 0 ? value[i].x : j == 1 ? value[i].y : j == 2 ? value[i].z : value[i].w) = v;
        }
      }
    }
  }

  __device__ void store(const GemmF32&, float* a) const {
#pragma unroll
    for (int i = 0; i < runs; ++i) {
      float* at = a + column * Tile::a_pitch + row + i * row_step;
      at[0] = value[i].x;
      at[Tile::a_pitch] = value[i].y;
      at[2 * Tile::a_pitch] = value[i].z;
      at[3 * Tile::a_pitch] = value[i].w;
    }
  }
};

// A from NCHW: a thread brings runs of 4 pixels (vector), or several k of one pixel (scalar), a warp 32 pixels side by side.
template <class Tile>
struct FillNchw {
  static constexpr int rows = Tile::a_values;                                          // scalar
  static constexpr int run_lanes = Tile::m / 4, run_rows = Tile::threads / run_lanes;  // vector
  static constexpr int runs = Tile::a_values / 4;
  const float* src;
  int offset;
  uint32_t mask;
  float value[Tile::a_values];

  __device__ FillNchw(const GemmF32& g, int m0, int group) {
    const int tid = threadIdx.x;
    src = g.src + group * g.a.icg * g.a.channel_stride;
    const int pixel = m0 + (g.fill == Fill::vector ? tid % run_lanes * 4 : tid % Tile::m);
    const Origin o = origin_of(g.a, pixel);
    offset = origin_offset(g.a, o);
    mask = pixel < g.a.pixels ? tap_mask(g.a, o) : 0;
  }

  __device__ void load(const GemmF32& g, const TapEntry* entries) {
    const int tid = threadIdx.x;
    if (g.fill == Fill::vector) {
#pragma unroll
      for (int i = 0; i < runs; ++i) {
        const TapEntry tap = entries[tid / run_lanes + i * run_rows];
        float4 v = make_float4(0, 0, 0, 0);
        if (tap_is_inside(mask, tap.bits)) v = load4(src + (offset + tap.offset));
        value[4 * i] = v.x, value[4 * i + 1] = v.y, value[4 * i + 2] = v.z, value[4 * i + 3] = v.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        const TapEntry tap = entries[tid / Tile::m * rows + i];
        value[i] = 0;
        if (tap_is_inside(mask, tap.bits)) value[i] = src[offset + tap.offset];
      }
    }
  }

  __device__ void store(const GemmF32& g, float* a) const {
    const int tid = threadIdx.x;
    if (g.fill == Fill::vector) {
#pragma unroll
      for (int i = 0; i < runs; ++i) {
        float* at = a + (tid / run_lanes + i * run_rows) * Tile::a_pitch + tid % run_lanes * 4;
        store4(at, make_float4(value[4 * i], value[4 * i + 1], value[4 * i + 2], value[4 * i + 3]));
      }
    } else {
#pragma unroll
      for (int i = 0; i < rows; ++i) a[(tid / Tile::m * rows + i) * Tile::a_pitch + tid % Tile::m] = value[i];
    }
  }
};

// B: runs of 4 columns of the packed rows.
template <class Tile>
struct FillWeights {
  static constexpr int run_lanes = Tile::n / 4, run_rows = Tile::threads / run_lanes, runs = Tile::b_values / 4;
  const float* from;
  float4 value[runs];

  __device__ FillWeights(const GemmF32& g, int n0, int group, int k_begin) {
    const int tid = threadIdx.x, column = n0 + tid % run_lanes * 4;
    const int clamped = column < g.packed_n ? column : 0;
    from = g.wei + (static_cast<int64_t>(group) * g.packed_k + k_begin + tid / run_lanes) * g.packed_n + clamped;
  }
  __device__ void load(const GemmF32& g) {
#pragma unroll
    for (int i = 0; i < runs; ++i) value[i] = load4(from + i * run_rows * g.packed_n);
    from += Tile::k * g.packed_n;
  }
  __device__ void store(float* b) const {
    const int tid = threadIdx.x;
#pragma unroll
    for (int i = 0; i < runs; ++i)
      store4(b + (tid / run_lanes + i * run_rows) * Tile::n + tid % run_lanes * 4, value[i]);
  }
};

// The sums of one thread and where in the tile they lie.
template <class Tile>
struct Sums {
  float c[Tile::thread_m][Tile::thread_n];
  int row, column;  // of the first run: rows row + i % 4 + 16 * (i / 4), columns column + j % 4 + 32 * (j / 4)

  __device__ Sums() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int lane_m = (lane & 1) | (lane >> 1 & 2), lane_n = (lane >> 1 & 1) | (lane >> 2 & 6);
    row = warp / Tile::warps_n * Tile::warp_m + lane_m * 4;
    column = warp % Tile::warps_n * Tile::warp_n + lane_n * 4;
#pragma unroll
    for (int i = 0; i < Tile::thread_m; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::thread_n; ++j) c[i][j] = 0;
    }
  }

  __device__ void multiply(const float* a, const float* b) {
    a += row, b += column;
#pragma unroll
    for (int k = 0; k < Tile::k; ++k) {
      float x[Tile::thread_m], y[Tile::thread_n];
#pragma unroll
      for (int i = 0; i < Tile::thread_m; i += 4) {
        const float4 v = load4(a + k * Tile::a_pitch + i * 4);
        x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
      }
#pragma unroll
      for (int j = 0; j < Tile::thread_n; j += 4) {
        const float4 v = load4(b + k * Tile::n + j * 8);
        y[j] = v.x, y[j + 1] = v.y, y[j + 2] = v.z, y[j + 3] = v.w;
      }
#pragma unroll
      for (int i = 0; i < Tile::thread_m; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::thread_n; ++j) c[i][j] += x[i] * y[j];
      }
    }
  }
};

// Bias, residual, activation; or nothing, for a part.
template <class T>
struct Finish {
  const float* bias;  // of this group; null: none
  const T* residual;
  T* dst;
  float* partial;
  bool relu;

  __device__ Finish(const GemmF32& g, int group, int part)
      : bias(g.bias ? g.bias + group * g.a.ocg : nullptr),
        residual(static_cast<const T*>(g.residual)),
        dst(static_cast<T*>(g.dst)),
        partial(g.partial ? g.partial + part * g.part_elements : nullptr),
        relu(g.relu) {}

  __device__ float bias_at(int n) const { return bias ? bias[n] : 0.f; }
  __device__ float activate(float v) const { return relu ? relu_keeping_nan(v) : v; }
  __device__ void one(int at, float v, float b) const {
    if (partial) {
      partial[at] = v;
      return;
    }
    v += b;
    if (residual) v += to_float(residual[at]);
    dst[at] = from_float<T>(activate(v));
  }
  // Neighbours in memory: of channels (NHWC) or of pixels (NCHW).
  __device__ void four(int at, float4 v, float4 b) const {
    if (partial) {
      store4(partial + at, v);
      return;
    }
    v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
    if (residual) {
      const float4 r = load_floats4(residual + at);
      v.x += r.x, v.y += r.y, v.z += r.z, v.w += r.w;
    }
    store_floats4(dst + at, make_float4(activate(v.x), activate(v.y), activate(v.z), activate(v.w)));
  }
};

template <class Tile, bool kNhwc, class T>
__device__ void store_sums(const GemmF32& g, const Sums<Tile>& sums, const Finish<T>& finish, int m0, int n0,
                           int group) {
  const int channel0 = group * g.a.ocg;
  if constexpr (kNhwc) {
    float bias[Tile::thread_n];
#pragma unroll
    for (int j = 0; j < Tile::thread_n; ++j) {
      const int n = n0 + sums.column + j % 4 + j / 4 * 32;
      bias[j] = n < g.a.ocg ? finish.bias_at(n) : 0.f;
    }
#pragma unroll
    for (int i = 0; i < Tile::thread_m; ++i) {
      const int m = m0 + sums.row + i % 4 + i / 4 * 16;
      if (m >= g.a.pixels) continue;
      const int base = (g.first_pixel + m) * g.a.oc + channel0;
      const float* c = sums.c[i];
#pragma unroll
      for (int j = 0; j < Tile::thread_n; j += 4) {
        const int n = n0 + sums.column + j * 8;
        if (g.vector_out) {
          if (n < g.a.ocg)
            finish.four(base + n, make_float4(c[j], c[j + 1], c[j + 2], c[j + 3]),
                        make_float4(bias[j], bias[j + 1], bias[j + 2], bias[j + 3]));
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (n + e < g.a.ocg) finish.one(base + n + e, c[j + e], bias[j + e]);
          }
        }
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < Tile::thread_m; i += 4) {
      const int m = m0 + sums.row + i * 4;
      int base[4];  // one is enough where four pixels lie side by side
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        int in_plane;
        const int image = g.by_plane.split(g.first_pixel + m + e, in_plane);
        base[e] = (image * g.a.oc + channel0) * g.plane + in_plane;
      }
#pragma unroll
      for (int j = 0; j < Tile::thread_n; ++j) {
        const int n = n0 + sums.column + j % 4 + j / 4 * 32;
        if (n >= g.a.ocg) continue;
        const float b = finish.bias_at(n);
        if (g.vector_out) {
          if (m < g.a.pixels)
            finish.four(base[0] + n * g.plane,
                        make_float4(sums.c[i][j], sums.c[i + 1][j], sums.c[i + 2][j], sums.c[i + 3][j]),
                        make_float4(b, b, b, b));
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (m + e < g.a.pixels) finish.one(base[e] + n * g.plane, sums.c[i + e][j], b);
          }
        }
      }
    }
  }
}

template <class Tile, bool kNhwc, class T>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks_per_sm) conv_gemm_f32(const __grid_constant__ GemmF32 g) {
  FASTCONV_SHARED(shared_bytes);
  float* const shared = reinterpret_cast<float*>(shared_bytes);
  // Tiles of n inside: blocks that run side by side read the same pixels.
  const int tiles_n = (g.a.ocg + Tile::n - 1) / Tile::n;
  const int tile_m = static_cast<int>(blockIdx.x) / tiles_n, group = blockIdx.y, part = blockIdx.z;
  const int m0 = tile_m * Tile::m, n0 = (static_cast<int>(blockIdx.x) - tile_m * tiles_n) * Tile::n;
  const int k_begin = part * g.part_k;
  const int k_end = k_begin + g.part_k < g.a.reduction ? k_begin + g.part_k : g.a.reduction;

  using FillA = std::conditional_t<kNhwc, FillNhwc<Tile>, FillNchw<Tile>>;
  FillA a(g, m0, group);
  FillWeights<Tile> b(g, n0, group, k_begin);
  Sums<Tile> sums;
  float* buffer = shared;
  float* other = shared + Tile::buffer_floats;
  constexpr int b_at = Tile::k * Tile::a_pitch;
  // The entries of the step that is loaded next, and of the one after it.
  TapEntry* taps = reinterpret_cast<TapEntry*>(shared + 2 * Tile::buffer_floats);
  TapEntry* other_taps = taps + Tile::k;
  const bool writes_taps = threadIdx.x < Tile::k;
  if (writes_taps) {
    write_tap<kNhwc>(g, taps, k_begin);
    write_tap<kNhwc>(g, other_taps, k_begin + Tile::k);
  }
  __syncthreads();
  a.load(g, taps);
  b.load(g);
  a.store(g, buffer);
  b.store(buffer + b_at);
  __syncthreads();
  for (int k = k_begin; k < k_end; k += Tile::k) {
    const bool more = k + Tile::k < k_end;
    if (more) {
      a.load(g, other_taps);
      b.load(g);
      if (writes_taps) write_tap<kNhwc>(g, taps, k + 2 * Tile::k);
    }
    sums.multiply(buffer, buffer + b_at);
    if (more) {
      a.store(g, other);
      b.store(other + b_at);
      __syncthreads();
    }
    float* const last = buffer;
    buffer = other, other = last;
    TapEntry* const last_taps = taps;
    taps = other_taps, other_taps = last_taps;
  }
  store_sums<Tile, kNhwc, T>(g, sums, Finish<T>(g, group, part), m0, n0, group);
}

}  // namespace fastconv::cuda
