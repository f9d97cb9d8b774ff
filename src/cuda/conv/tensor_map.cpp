#include "cuda/conv/tensor_map.h"

#include <stdexcept>
#include <string>

#include "cuda/conv/gather.cuh"
#include "cuda/conv/wgmma_layout.h"

#ifndef FASTCONV_CUDA_ON_CPU
#include <cudaTypedefs.h>
#endif

namespace fastconv::cuda {

bool reads_flat(const Problem& p) {
  return reads_every_pixel(p);
}

int64_t packed_channels(const Problem& p) {
  return (p.ic + kWgmmaK - 1) / kWgmmaK * kWgmmaK;
}

namespace {

// What holds for any tensor: strides below 2^40 bytes, extents and coordinates that fit into 31 bits.
bool too_large(const Problem& p) {
  const auto d = [](int64_t v) { return static_cast<double>(v); };
  const double limit = 2147483648.0 - 1024, pixels = d(p.n) * d(p.oh) * d(p.ow);
  const double reduction = d(packed_channels(p)) * d(p.kh) * d(p.kw);
  return pixels > limit || pixels * d(p.oc) > 137438953472.0 || d(p.n) * d(p.ih) * d(p.iw) > limit ||
         reduction > limit || d(p.oc) > limit || d(p.ic) * d(p.ih) * d(p.iw) * 2 > 1099511627776.0 - 16 ||
         reduction * 2 > 1099511627776.0 - 16;
}

// How far behind the image's last pixel the last output's first tap starts. Counted from the outputs, so that the engine makes exactly those:
// one output in an image with room for more has no stride that would say so.
int64_t upper_corner(int64_t out, int64_t stride, int64_t before, int64_t in) {
  return (out - 1) * stride - before - (in - 1);
}

}  // namespace

const char* tensor_map_refuses(const Problem& p) {
  if (p.ic % 8 != 0)
    return "the copy engine reads channels in units of 16 bytes: input channels must be a multiple of 8";
  if (too_large(p)) return "more pixels, channels or bytes than the copy engine counts";
  if (reads_flat(p)) return nullptr;
  const int64_t below = (p.kh - 1) * p.dh, right = (p.kw - 1) * p.dw;
  if (p.sh > 8 || p.sw > 8) return "the copy engine takes strides up to 8";
  if (p.pt > 128 || p.pl > 128) return "the copy engine takes padding up to 128";
  const int64_t up_h = upper_corner(p.oh, p.sh, p.pt, p.ih), up_w = upper_corner(p.ow, p.sw, p.pl, p.iw);
  if (up_h > 127 || up_h < -128 || up_w > 127 || up_w < -128)
    return "the copy engine takes a last window that starts up to 128 pixels from the image's last";
  if (below > 255 || right > 255) return "the copy engine takes taps up to 255 from the first";
  return nullptr;
}

TiledMap flat_source_map(const Problem& p, int box_rows) {
  return {static_cast<uint64_t>(p.ic), static_cast<uint64_t>(p.n * p.ih * p.iw), static_cast<uint64_t>(p.ic * 2),
          static_cast<uint32_t>(box_rows)};
}

Im2colMap im2col_source_map(const Problem& p, int pixels) {
  Im2colMap m;
  const auto u = [](int64_t v) { return static_cast<uint64_t>(v); };
  const auto i = [](int64_t v) { return static_cast<int32_t>(v); };
  m.extent[0] = u(p.ic), m.extent[1] = u(p.iw), m.extent[2] = u(p.ih), m.extent[3] = u(p.n);
  m.bytes[0] = u(p.ic * 2), m.bytes[1] = u(p.iw * p.ic * 2), m.bytes[2] = u(p.ih * p.iw * p.ic * 2);
  m.lower[0] = i(-p.pl), m.lower[1] = i(-p.pt);
  m.upper[0] = i(upper_corner(p.ow, p.sw, p.pl, p.iw)), m.upper[1] = i(upper_corner(p.oh, p.sh, p.pt, p.ih));
  m.stride[0] = 1, m.stride[1] = static_cast<uint32_t>(p.sw), m.stride[2] = static_cast<uint32_t>(p.sh),
  m.stride[3] = 1;
  m.pixels = static_cast<uint32_t>(pixels);
  return m;
}

TiledMap weight_map(const Problem& p, int box_rows) {
  const int64_t columns = p.kh * p.kw * packed_channels(p);
  return {static_cast<uint64_t>(columns), static_cast<uint64_t>(p.oc), static_cast<uint64_t>(columns * 2),
          static_cast<uint32_t>(box_rows)};
}

bool clears_large_tensor_mark(int driver_version, uint64_t tensor_bytes) {
  return driver_version <= 13010 && tensor_bytes < 131072;
}

#ifndef FASTCONV_CUDA_ON_CPU
namespace {

void* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t status = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr)
    throw std::runtime_error(std::string("the NVIDIA driver has no ") + name);
  return function;
}

CUtensorMapDataType data_type(Dtype dtype) {
  return dtype == Dtype::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

void finish(CUtensorMap& map, CUresult result, const char* name, uint64_t tensor_bytes) {
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(std::string(name) + " failed with CUresult " + std::to_string(static_cast<int>(result)));
  static const int version = [] {
    int v = 0;
    return cudaDriverGetVersion(&v) == cudaSuccess ? v : 0;
  }();
  if (clears_large_tensor_mark(version, tensor_bytes)) map.opaque[1] &= ~(uint64_t{1} << 21);
}

}  // namespace

CUtensorMap encode(const TiledMap& m, Dtype dtype, const void* address) {
  static const auto function =
      reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(driver_function("cuTensorMapEncodeTiled"));
  CUtensorMap map;
  const cuuint64_t extent[2] = {m.columns, m.rows}, bytes[1] = {m.row_bytes};
  const cuuint32_t box[2] = {kWgmmaK, m.box_rows}, stride[2] = {1, 1};
  const CUresult result = function(&map, data_type(dtype), 2, const_cast<void*>(address), extent, bytes, box, stride,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  finish(map, result, "cuTensorMapEncodeTiled", m.rows * m.row_bytes);
  return map;
}

CUtensorMap encode(const Im2colMap& m, Dtype dtype, const void* address) {
  static const auto function =
      reinterpret_cast<PFN_cuTensorMapEncodeIm2col_v12000>(driver_function("cuTensorMapEncodeIm2col"));
  CUtensorMap map;
  const cuuint64_t extent[4] = {m.extent[0], m.extent[1], m.extent[2], m.extent[3]};
  const cuuint64_t bytes[3] = {m.bytes[0], m.bytes[1], m.bytes[2]};
  const cuuint32_t stride[4] = {m.stride[0], m.stride[1], m.stride[2], m.stride[3]};
  const CUresult result =
      function(&map, data_type(dtype), 4, const_cast<void*>(address), extent, bytes, m.lower, m.upper, kWgmmaK,
               m.pixels, stride, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  finish(map, result, "cuTensorMapEncodeIm2col", m.extent[3] * m.bytes[2]);
  return map;
}
#endif

}  // namespace fastconv::cuda
