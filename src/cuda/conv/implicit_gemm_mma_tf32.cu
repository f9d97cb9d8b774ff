// implicit_gemm_mma.cu's kernels for float32 with compute="tf32".
#include "cuda/conv/implicit_gemm_mma.cuh"

namespace fastconv::cuda::mma {
namespace {

template <Layout layout, int pixels, int channels, int warp_rows, int warp_cols, int load_bytes>
constexpr Kernel of() {
  return kernel_of<Shape<float, Product::tf32, layout, pixels, channels, warp_rows, warp_cols, 4, load_bytes>>();
}

}  // namespace

const std::vector<Kernel>& kernels_tf32() {
  static const std::vector<Kernel> all = {
      of<Layout::nhwc, 128, 128, 64, 64, 16>(), of<Layout::nhwc, 128, 64, 64, 32, 16>(),
      of<Layout::nhwc, 64, 128, 64, 32, 16>(),  of<Layout::nhwc, 64, 64, 32, 32, 16>(),
      of<Layout::nhwc, 128, 64, 64, 32, 4>(),   of<Layout::nhwc, 64, 64, 32, 32, 4>(),
      of<Layout::nchw, 128, 128, 64, 64, 16>(), of<Layout::nchw, 128, 64, 64, 32, 16>(),
      of<Layout::nchw, 64, 64, 32, 32, 16>(),   of<Layout::nchw, 128, 128, 64, 64, 4>(),
      of<Layout::nchw, 128, 64, 64, 32, 4>(),   of<Layout::nchw, 64, 64, 32, 32, 4>(),
  };
  return all;
}

}  // namespace fastconv::cuda::mma
