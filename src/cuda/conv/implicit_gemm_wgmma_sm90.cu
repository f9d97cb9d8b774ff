// dst[pixel, oc] = act(bias[oc] + residual[pixel, oc] + sum_{r,s,c} src[pixel's (r, s), c] * wei[oc, (r, s, c)]), NHWC, 16-bit storage,
// as a matrix product on Hopper: pixels x oc, K = taps and channels in steps of 64 channels of one tap.
// Operands: src brought by the copy engine in im2col mode (a matrix as it is for 1x1 with stride 1), weights packed [oc][r][s][ic to 64],
// rest zero. Both K-major in shared memory under the 128-byte swizzle, products m64nNk16 read them there; sums in registers.
// Threads: 1 or 2 warpgroups of consumers, 64 rows each, and one warp of which one lane feeds the copy engine. Without setmaxnreg: a
// lone producer warp costs so few registers that up to 224 a thread are left for 128 sums. 8 to 3 stages, 96 KB for two blocks a
// multiprocessor, 192 KB for one (wgmma_layout.h). A block walks over tiles; the producer runs ahead into the next one, so that its
// loads go on during the stores.
// Split: 2 to 8 blocks of a cluster share the reduction of a 64-row tile; each sums its slice of rows over the others' partial sums in
// the order of the blocks, through distributed shared memory. No workspace, no second kernel, the same bits each time.
// Hand-over between grids: launched programmatically; weights of the first stages are fetched before the grid before has ended.
// Preconditions: sm_90; NHWC, groups 1, ic and oc multiples of 8; strides, padding and taps within the copy engine's fields
// (tensor_map_refuses); 16-byte aligned arrays, else a plain kernel takes the call.
// Tails: pixels past the last arrive as zeros and are not stored; channels are stored in eights.
// Numerics: products of 16-bit values exact, sums in float32; one rounding to 16 bits after bias, residual and activation.
// Measured: not measured; never run on a device.
// Reference: CUTLASS sm90 implicit GEMM (sm90_implicit_gemm_gmma_ss_warpspecialized.hpp) for the structure; PTX ISA.
#include <algorithm>

#include "cuda/algorithm.h"
#include "cuda/conv/tensor_map.h"
#include "cuda/conv/tiles_wgmma.h"
#include "cuda/conv/wgmma_layout.h"
#include "cuda/hopper.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
namespace {

// act(v + bias + residual) of `count` (4 or 8) neighbouring channels of one pixel, stored. NaN stays NaN.
template <class T, int count>
__device__ inline void store_channels(float (&v)[count], const float* bias, const T* residual, T* dst, bool relu) {
  float w[count];
  if (bias != nullptr) {
    load_floats<count>(w, bias);
#pragma unroll
    for (int i = 0; i < count; ++i) v[i] += w[i];
  }
  if (residual != nullptr) {
    load_floats<count>(w, residual);
#pragma unroll
    for (int i = 0; i < count; ++i) v[i] += w[i];
  }
  if (relu) {
#pragma unroll
    for (int i = 0; i < count; ++i) v[i] = relu_keeping_nan(v[i]);
  }
  store_floats<count>(dst, v);
}

#ifdef FASTCONV_SM90A

// Lane q of a quad: pair j of columns 8j + 2q of one row becomes all eight columns of group q (`sends_high`).
__device__ inline void transpose_quad(float (&v)[4][2], int q) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const bool high = sends_high(step, q);
#pragma unroll
    for (int couple = 0; couple < 2; ++couple) {
      float (&a)[2] = v[couple_low(step, couple)];
      float (&b)[2] = v[couple_high(step, couple)];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float got = __shfl_xor_sync(0xFFFFFFFFu, high ? b[e] : a[e], 1 << step);
        if (high)
          b[e] = got;
        else
          a[e] = got;
      }
    }
  }
}

// A tile's residual, on its way while the tile before is worked on: in the stores its latency would show 8 rows at a time.
template <class T, int n>
__device__ inline void prefetch_residual(const WgmmaConv& g, const WgmmaTile& t, int tile, int group,
                                         const T* residual) {
  if (residual == nullptr || tile >= g.tiles) return;
  constexpr int lines = n < 64 ? 1 : n / 64;  // of a row: 64 channels each
  const TileOrigin origin = tile_origin(g, t, tile);
  for (int i = threadIdx.x % 128; i < 64 * lines; i += 128) {
    const int row = origin.pixel + group * 64 + i / lines, c = origin.channel + i % lines * 64;
    if (row < g.pixels && c < g.oc) hopper::prefetch_line(residual + static_cast<int64_t>(row) * g.oc + c);
  }
}

// A warpgroup's 64 rows of a tile from the registers to dst: a warp stores 8 rows of 64 bytes at a time.
template <class T, int n>
__device__ inline void store_tile(const float (&sum)[n / 2], const WgmmaConv& g, int pixel, int channel,
                                  const float* bias, const T* residual, T* dst) {
  const int q = threadIdx.x % 4, row = pixel + accumulator_position(threadIdx.x % 128, 0).row, c = channel + 8 * q;
#pragma unroll
  for (int first = 0; first < n; first += 32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float v[4][2];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) v[j][e] = sum[(first / 8 + j) * 4 + 2 * half + e];
      transpose_quad(v, q);
      if (row + 8 * half < g.pixels && c + first < g.oc) {
        float eight[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) eight[j] = v[j / 2][j % 2];
        const int64_t at = static_cast<int64_t>(row + 8 * half) * g.oc + c + first;
        store_channels<T, 8>(eight, bias != nullptr ? bias + c + first : nullptr,
                             residual != nullptr ? residual + at : nullptr, dst + at, g.relu != 0);
      }
      __syncwarp();
    }
  }
}

// A split tile: partial sums into this block's shared memory; then, when all blocks of the cluster have done so, this block's slice of
// rows from all of them. The one warpgroup of consumers; all other warps of the block meet the cluster twice as well.
template <class T, int n>
__device__ inline void store_split_tile(const float (&sum)[n / 2], const WgmmaConv& g, const WgmmaTile& t, int rank,
                                        int pixel, int channel, unsigned char* partial, uint32_t partial_at,
                                        const float* bias, const T* residual, T* dst) {
  hopper::sync_threads_of<1, 128>();  // every warp's products have read the stages
  hopper::fence_async();
  const int thread = threadIdx.x % 128, stride = partial_row(t);
  float* const sums = reinterpret_cast<float*>(partial);
#pragma unroll
  for (int i = 0; i < n / 2; i += 2) {
    const TilePosition at = accumulator_position(thread, i);
    *reinterpret_cast<float2*>(sums + at.row * stride + at.column) = float2{sum[i], sum[i + 1]};
  }
  hopper::cluster_sync();
  const int rows = 64 / g.split;
  for (int i = thread; i < rows * (n / 4); i += 128) {
    const int row = rank * rows + i / (n / 4), column = i % (n / 4) * 4, c = channel + column;
    if (pixel + row >= g.pixels || c >= g.oc) continue;
    float v[4] = {0, 0, 0, 0};
    for (int part = 0; part < g.split; ++part) {
      const float4 w = hopper::load_from_block(partial_at + 4 * (row * stride + column), part);
      v[0] += w.x, v[1] += w.y, v[2] += w.z, v[3] += w.w;
    }
    const int64_t at = static_cast<int64_t>(pixel + row) * g.oc + c;
    store_channels<T, 4>(v, bias != nullptr ? bias + c : nullptr, residual != nullptr ? residual + at : nullptr,
                         dst + at, g.relu != 0);
  }
  hopper::cluster_sync();  // no block ends while another reads its sums
}

#endif  // FASTCONV_SM90A

template <class T, int variant>
__global__ void __launch_bounds__(wgmma_threads(kWgmmaTiles[variant]), kWgmmaTiles[variant].blocks_per_sm)
    conv_wgmma_kernel(const __grid_constant__ CUtensorMap src_map, const __grid_constant__ CUtensorMap wei_map,
                      const WgmmaConv g, const float* bias, const T* residual, T* dst) {
#ifdef FASTCONV_SM90A
  constexpr WgmmaTile t = kWgmmaTiles[variant];
  constexpr int consumer_warps = 4 * t.groups;
  FASTCONV_SHARED(raw);
  const uint32_t raw_at = hopper::shared_address(raw);
  const uint32_t stages_at = (raw_at + kSwizzleAtom - 1) / kSwizzleAtom * kSwizzleAtom;
  const uint32_t full_at = stages_at + t.stages * stage_bytes(t), empty_at = full_at + 8 * t.stages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < t.stages; ++s) {
      hopper::barrier_init(full_at + 8 * s, 1);                // the producer, and the bytes it announces
      hopper::barrier_init(empty_at + 8 * s, consumer_warps);  // a lane of each consumer warp
    }
    hopper::barrier_init_done();
  }
  __syncthreads();
  hopper::let_next_grid_start();

  const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int rank = blockIdx.x % g.split, first_tile = blockIdx.x / g.split, tile_step = gridDim.x / g.split;
  const StepRange range = split_range(g.kblocks, g.split, rank);
  PipelineSlot slot;

  if (warp == consumer_warps) {
    if (lane == 0) {
      hopper::prefetch_map(&src_map);
      hopper::prefetch_map(&wei_map);
      int ahead = range.end - range.begin < t.stages ? range.end - range.begin : t.stages;
      const TileOrigin first = tile_origin(g, t, first_tile);
      for (int s = 0; s < ahead; ++s) {
        hopper::barrier_arrive_expecting(full_at + 8 * s, stage_bytes(t));
        hopper::load_tile(stages_at + s * stage_bytes(t) + t.m * kSwizzleRow, &wei_map, full_at + 8 * s,
                          (range.begin + s) * kWgmmaK, first.channel);
      }
      hopper::wait_for_grid_before();
      for (int tile = first_tile; tile < g.tiles; tile += tile_step) {
        const TileOrigin origin = tile_origin(g, t, tile);
        const PixelStart start = pixel_start(g, origin.pixel);
        Step step = step_at(g, range.begin);
        for (int k = range.begin; k < range.end; ++k) {
          const uint32_t full = full_at + 8 * slot.stage, to = stages_at + slot.stage * stage_bytes(t);
          if (ahead > 0) {
            --ahead;
          } else {
            hopper::barrier_wait(empty_at + 8 * slot.stage, slot.parity ^ 1);
            hopper::barrier_arrive_expecting(full, stage_bytes(t));
            hopper::load_tile(to + t.m * kSwizzleRow, &wei_map, full, k * kWgmmaK, origin.channel);
          }
          if (g.flat != 0)
            hopper::load_tile(to, &src_map, full, step.channel, origin.pixel);
          else
            hopper::load_im2col(to, &src_map, full, step.channel, start.w, start.h, start.n, step.s * g.dw,
                                step.r * g.dh);
          step.advance(g);
          slot.advance(t.stages);
        }
      }
    }
    __syncwarp();
    if constexpr (t.groups == 1) {
      if (g.split > 1) {
        hopper::cluster_sync();
        hopper::cluster_sync();
      }
    }
  } else {
    const int group = warp / 4;
    hopper::wait_for_grid_before();
    prefetch_residual<T, t.n>(g, t, first_tile, group, residual);
    for (int tile = first_tile; tile < g.tiles; tile += tile_step) {
      prefetch_residual<T, t.n>(g, t, tile + tile_step, group, residual);
      float sum[t.n / 2];
#pragma unroll
      for (int i = 0; i < t.n / 2; ++i) sum[i] = 0;
      int before = -1;  // the stage whose products are under way
      for (int k = range.begin; k < range.end; ++k) {
        hopper::barrier_wait(full_at + 8 * slot.stage, slot.parity);
        const uint32_t from = stages_at + slot.stage * stage_bytes(t);
        const uint64_t a = matrix_descriptor(from + group * 64 * kSwizzleRow),
                       b = matrix_descriptor(from + t.m * kSwizzleRow);
        hopper::pin(sum);
        hopper::products_begin();
#pragma unroll
        for (int part = 0; part < kWgmmaK / 16; ++part)
          hopper::products(sum, advance_k16(a, part), advance_k16(b, part), static_cast<const T*>(nullptr));
        hopper::products_commit();
        hopper::pin(sum);
        if (before >= 0) {
          hopper::products_wait<1>();
          if (lane == 0) hopper::barrier_arrive(empty_at + 8 * before);
        }
        before = slot.stage;
        slot.advance(t.stages);
      }
      hopper::products_wait<0>();
      hopper::pin(sum);
      if (lane == 0) hopper::barrier_arrive(empty_at + 8 * before);
      const TileOrigin origin = tile_origin(g, t, tile);
      if constexpr (t.groups == 1) {
        if (g.split > 1) {
          store_split_tile<T, t.n>(sum, g, t, rank, origin.pixel, origin.channel, raw + (stages_at - raw_at), stages_at,
                                   bias, residual, dst);
          continue;
        }
      }
      store_tile<T, t.n>(sum, g, origin.pixel + group * 64, origin.channel, bias, residual, dst);
    }
  }
#else
  __trap();  // `refuses` admits sm_90 only, and every build has its code for that one
#endif
}

// One output a thread, for arrays whose addresses are no multiple of 16. Same packed weights.
template <class T>
__global__ void conv_unaligned_kernel(const T* src, const T* packed, const WgmmaConv g, int ic, int ih, int iw, int kh,
                                      int64_t outputs, const float* bias, const T* residual, T* dst) {
  for (int64_t i = grid_thread(); i < outputs; i += grid_threads()) {
    const int oc = static_cast<int>(i % g.oc);
    const PixelStart at = pixel_start(g, static_cast<int>(i / g.oc));
    float sum = 0;
    for (int r = 0; r < kh; ++r)
      for (int s = 0; s < g.kw; ++s) {
        const int y = at.h + r * g.dh, x = at.w + s * g.dw;
        if (y < 0 || y >= ih || x < 0 || x >= iw) continue;
        const T* const from = src + ((static_cast<int64_t>(at.n) * ih + y) * iw + x) * ic;
        const T* const w = packed + ((static_cast<int64_t>(oc) * kh + r) * g.kw + s) * (g.cblocks * kWgmmaK);
        for (int c = 0; c < ic; ++c) sum += to_float(from[c]) * to_float(w[c]);
      }
    if (bias != nullptr) sum += bias[oc];
    if (residual != nullptr) sum += to_float(residual[i]);
    dst[i] = from_float<T>(g.relu != 0 ? relu_keeping_nan(sum) : sum);
  }
}

// packed[oc][r][s][c], channels from ic on zero, so that a step that reaches past them adds nothing whatever lies beyond.
template <class T>
__global__ void pack_wgmma_kernel(const float* wei, T* packed, int64_t elements, int ic, int channels, int kh, int kw,
                                  int64_t of_oc, int64_t of_c, int64_t of_r, int64_t of_s) {
  for (int64_t i = grid_thread(); i < elements; i += grid_threads()) {
    const int64_t c = i % channels, s = i / channels % kw, r = i / channels / kw % kh, oc = i / channels / kw / kh;
    packed[i] = from_float<T>(c < ic ? wei[oc * of_oc + c * of_c + r * of_r + s * of_s] : 0.0f);
  }
}

// Ends the packing: it starts when the weights are in memory, so that a convolution which follows in the stream may read them before it
// waits for the grid before.
__global__ void weights_are_there_kernel() {}

int64_t packed_elements(const Problem& p) {
  return p.oc * p.kh * p.kw * packed_channels(p);
}

int blocks_for(int64_t elements) {
  return static_cast<int>(std::min<int64_t>((elements + 255) / 256, 1 << 16));
}

template <class T>
void pack_as(const Problem& p, const float* wei, T* packed, cudaStream_t stream) {
  const int64_t elements = packed_elements(p), taps = p.kh * p.kw;
  if (elements == 0) return;
  int64_t of_oc = p.ic * taps, of_c = taps, of_r = p.kw, of_s = 1;  // oihw
  if (p.weight_layout == WeightLayout::ohwi) of_c = 1, of_r = p.kw * p.ic, of_s = p.ic;
  if (p.weight_layout == WeightLayout::hwio) of_oc = 1, of_c = p.oc, of_r = p.kw * p.ic * p.oc, of_s = p.ic * p.oc;
  launch(pack_wgmma_kernel<T>, dim3(blocks_for(elements)), dim3(256), 0, stream, wei, packed, elements,
         static_cast<int>(p.ic), static_cast<int>(packed_channels(p)), static_cast<int>(p.kh), static_cast<int>(p.kw),
         of_oc, of_c, of_r, of_s);
  launch(weights_are_there_kernel, dim3(1), dim3(32), 0, stream);
}

template <class T, int variant>
void launch_tile(const Plan& plan, const WgmmaConv& g, const CUtensorMap& src_map, const CUtensorMap& wei_map,
                 const Operands& o, cudaStream_t stream) {
  if (plan.tile.variant != variant) {
    if constexpr (variant + 1 < kWgmmaTileCount) launch_tile<T, variant + 1>(plan, g, src_map, wei_map, o, stream);
    return;
  }
  constexpr WgmmaTile t = kWgmmaTiles[variant];
  const LaunchOptions options{.cluster = g.split, .programmatic = true};
  launch(options, conv_wgmma_kernel<T, variant>, dim3(wgmma_blocks(g, plan.tile, plan.device)), dim3(wgmma_threads(t)),
         wgmma_shared_bytes(t), stream, src_map, wei_map, g, o.bias, static_cast<const T*>(o.residual),
         static_cast<T*>(o.dst));
}

template <class T>
void run_as(const Plan& plan, const Operands& o, cudaStream_t stream) {
  const Problem& p = plan.task.problem;
  const WgmmaConv g = wgmma_conv(p, plan.tile);
  if (p.dst_elements() == 0) return;
  if (!is_aligned(o.src, 16) || !is_aligned(o.dst, 16) || !is_aligned(o.residual, 16) || !is_aligned(o.bias, 16)) {
    launch(conv_unaligned_kernel<T>, dim3(blocks_for(p.dst_elements())), dim3(256), 0, stream,
           static_cast<const T*>(o.src), static_cast<const T*>(o.packed), g, static_cast<int>(p.ic),
           static_cast<int>(p.ih), static_cast<int>(p.iw), static_cast<int>(p.kh), p.dst_elements(), o.bias,
           static_cast<const T*>(o.residual), static_cast<T*>(o.dst));
    return;
  }
  const Dtype dtype = plan.task.dtype;
  const CUtensorMap src_map = g.flat != 0 ? encode(flat_source_map(p, plan.tile.m), dtype, o.src)
                                          : encode(im2col_source_map(p, plan.tile.m), dtype, o.src);
  launch_tile<T, 0>(plan, g, src_map, encode(weight_map(p, plan.tile.n), dtype, o.packed), o, stream);
}

const char* refuses(const Task& task, const DeviceLimits& device) {
  const Problem& p = task.problem;
  if (device.sm != 90) return "needs the tensor cores of compute capability 9.0";
  if (task.dtype == Dtype::f32) return "stores float16 and bfloat16 only";
  if (task.then_max_pool) return "does not pool";
  if (p.layout != Layout::nhwc) return "reads NHWC only";
  if (p.groups != 1) return "has no groups";
  if (p.oc % 8 != 0) return "stores channels in eights: output channels must be a multiple of 8";
  if (const char* reason = tensor_map_refuses(p)) return reason;
  if (device.shared_bytes_per_block < wgmma_shared_bytes(kWgmmaTiles[kWgmmaTileCount - 1]))
    return "needs 193 KB of shared memory";
  return nullptr;
}

void configure(Plan& plan) {
  const Problem& p = plan.task.problem;
  plan.tile = choose_wgmma_tile(p, plan.device);
  plan.ukernel_name = wgmma_tile_name(plan.tile.variant);
  plan.packed_bytes = packed_elements(p) * 2;
  plan.pack_tag = plan.task.dtype == Dtype::bf16 ? "wgmma_bf16_k64" : "wgmma_f16_k64";
}

void pack(const Plan& plan, const float* wei, void* packed, cudaStream_t stream) {
  if (plan.task.dtype == Dtype::bf16)
    pack_as(plan.task.problem, wei, static_cast<__nv_bfloat16*>(packed), stream);
  else
    pack_as(plan.task.problem, wei, static_cast<__half*>(packed), stream);
}

void run(const Plan& plan, const Operands& o, cudaStream_t stream) {
  if (plan.task.dtype == Dtype::bf16)
    run_as<__nv_bfloat16>(plan, o, stream);
  else
    run_as<__half>(plan, o, stream);
}

}  // namespace

extern const Algorithm conv_implicit_gemm_wgmma;
const Algorithm conv_implicit_gemm_wgmma{
    Op::conv2d, "implicit_gemm_wgmma", "conv_implicit_gemm_wgmma_sm90", refuses, configure, pack, run};

}  // namespace fastconv::cuda
