// implicit_gemm_mma.cu's kernels for float32 with compute="3xtf32". Sums of 64x32 a warp: the parts of both operands and this step's sums need
// registers too.
#include "cuda/conv/implicit_gemm_mma.cuh"

namespace fastconv::cuda::mma {
namespace {

template <Layout layout, int pixels, int channels, int warp_rows, int warp_cols, int load_bytes>
constexpr Kernel of() {
  return kernel_of<Shape<float, Product::tf32x3, layout, pixels, channels, warp_rows, warp_cols, 4, load_bytes>>();
}

}  // namespace

const std::vector<Kernel>& kernels_tf32x3() {
  static const std::vector<Kernel> all = {
      of<Layout::nhwc, 128, 128, 64, 32, 16>(), of<Layout::nhwc, 128, 64, 64, 32, 16>(),
      of<Layout::nhwc, 64, 128, 64, 32, 16>(),  of<Layout::nhwc, 64, 64, 32, 32, 16>(),
      of<Layout::nhwc, 128, 64, 64, 32, 4>(),   of<Layout::nhwc, 64, 64, 32, 32, 4>(),
      of<Layout::nchw, 128, 128, 64, 32, 16>(), of<Layout::nchw, 128, 64, 64, 32, 16>(),
      of<Layout::nchw, 64, 64, 32, 32, 16>(),   of<Layout::nchw, 128, 128, 64, 32, 4>(),
      of<Layout::nchw, 128, 64, 64, 32, 4>(),   of<Layout::nchw, 64, 64, 32, 32, 4>(),
  };
  return all;
}

}  // namespace fastconv::cuda::mma
