// implicit_gemm_mma.cu's kernels for bfloat16: 64x64 sums a warp where the tile allows, since ldmatrix then brings each operand four times only.
// The kernels that gather single values hold them in registers beside the sums: 64x32.
#include "cuda/conv/implicit_gemm_mma.cuh"

namespace fastconv::cuda::mma {
namespace {

template <Layout layout, int pixels, int channels, int warp_rows, int warp_cols, int load_bytes>
constexpr Kernel of() {
  return kernel_of<
      Shape<__nv_bfloat16, Product::whole, layout, pixels, channels, warp_rows, warp_cols, 4, load_bytes>>();
}

}  // namespace

const std::vector<Kernel>& kernels_bf16() {
  static const std::vector<Kernel> all = {
      of<Layout::nhwc, 128, 128, 64, 64, 16>(), of<Layout::nhwc, 128, 64, 64, 32, 16>(),
      of<Layout::nhwc, 64, 128, 64, 32, 16>(),  of<Layout::nhwc, 64, 64, 32, 32, 16>(),
      of<Layout::nhwc, 128, 64, 64, 32, 2>(),   of<Layout::nhwc, 64, 64, 32, 32, 2>(),
      of<Layout::nchw, 128, 128, 64, 64, 16>(), of<Layout::nchw, 128, 64, 64, 32, 16>(),
      of<Layout::nchw, 64, 64, 32, 32, 16>(),   of<Layout::nchw, 128, 128, 64, 64, 8>(),
      of<Layout::nchw, 64, 64, 32, 32, 8>(),    of<Layout::nchw, 128, 64, 64, 32, 2>(),
      of<Layout::nchw, 64, 128, 64, 32, 2>(),   of<Layout::nchw, 64, 64, 32, 32, 2>(),
  };
  return all;
}

}  // namespace fastconv::cuda::mma
