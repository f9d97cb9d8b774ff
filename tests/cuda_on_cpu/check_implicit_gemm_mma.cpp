// Every instantiation of the tensor core implicit GEMM, whatever the tile choice would take, on small integers (exact) and on random
// numbers: `check_implicit_gemm_mma float16|bfloat16|tf32|3xtf32` prints a line for every wrong case, then how many ran.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/conv/implicit_gemm_mma.h"
#include "cuda/tile.cuh"

namespace fastconv::cuda {
extern const Algorithm conv_implicit_gemm_mma_sm80;
}

namespace {

using namespace fastconv;
using namespace fastconv::cuda;

struct Window {
  int kernel = 1, stride = 1, padding = 0, dilation = 1;
};

Problem problem(Layout layout, int n, int ic, int ih, int iw, int oc, Window w) {
  Problem p;
  p.layout = layout, p.n = n, p.ic = ic, p.ih = ih, p.iw = iw, p.oc = oc;
  p.kh = w.kernel, p.kw = w.kernel, p.sh = w.stride, p.sw = w.stride, p.dh = w.dilation, p.dw = w.dilation;
  p.pt = p.pb = p.pl = p.pr = w.padding;
  const int reach = w.dilation * (w.kernel - 1) + 1;
  p.oh = (ih + 2 * w.padding - reach) / w.stride + 1;
  p.ow = (iw + 2 * w.padding - reach) / w.stride + 1;
  return p;
}

// Tails in pixels, channels and k; taps inside, outside and partly outside of the image.
std::vector<Problem> problems(const mma::Kernel& k, int64_t element_bytes) {
  const Layout l = k.layout;
  const Window point{}, same{3, 1, 1, 1}, halved{3, 2, 1, 1}, stem{7, 2, 3, 1}, holes{3, 1, 2, 2};
  if (k.load_bytes == element_bytes)
    return {problem(l, 1, 3, 12, 11, 20, stem), problem(l, 2, 5, 9, 9, 72, same), problem(l, 1, 33, 7, 7, 130, point),
            problem(l, 1, 34, 9, 9, 20, holes), problem(l, 3, 18, 9, 8, 32, halved)};
  if (l == Layout::nhwc)
    return {problem(l, 1, 8, 5, 6, 9, same), problem(l, 2, 16, 9, 9, 72, halved), problem(l, 1, 40, 9, 8, 33, point),
            problem(l, 1, 24, 10, 9, 130, holes)};
  return {problem(l, 2, 5, 4, 4, 9, point), problem(l, 1, 33, 8, 16, 72, point), problem(l, 3, 40, 12, 4, 130, point)};
}

double activated(double v) {
  return v < 0 ? 0 : v;
}

template <class T>
struct Case {
  Plan plan;
  std::vector<T> src, residual, dst;
  std::vector<float> wei, bias;
  size_t offset;  // elements from an aligned address

  Case(const Task& task, int variant, int split, size_t offset_, const std::function<float()>& number)
      : offset(offset_) {
    const Problem& p = task.problem;
    plan.task = task;
    plan.algorithm = &conv_implicit_gemm_mma_sm80;
    plan.algorithm->configure(plan);
    plan.tile.variant = variant;
    plan.tile.split_k = split;
    const auto fill = [&](auto& v, int64_t count) {
      v.resize(static_cast<size_t>(count));
      for (auto& x : v) x = number();
    };
    fill(src, p.src_elements() + 8), fill(residual, p.dst_elements() + 8), fill(wei, p.weight_elements());
    fill(bias, p.oc);
    for (float& w : wei) w = static_cast<float>(static_cast<T>(w));
    dst.assign(residual.size(), static_cast<T>(NAN));
  }
  void run() {
    const Problem& p = plan.task.problem;
    const auto room = [](int64_t bytes) {
      return std::aligned_alloc(256, static_cast<size_t>(bytes + 255) / 256 * 256);
    };
    void* packed = room(plan.packed_bytes);
    void* workspace = room(plan.tile.split_k * p.dst_elements() * 4);
    Operands o;
    o.src = src.data() + offset, o.dst = dst.data() + offset, o.packed = packed, o.workspace = workspace;
    if (p.residual) o.residual = residual.data() + offset;
    if (p.bias) o.bias = bias.data();
    plan.algorithm->pack(plan, wei.data(), packed, nullptr);
    plan.algorithm->run(plan, o, nullptr);
    std::free(packed), std::free(workspace);
  }
  // Relative L2 error; `exact`: every value is the nearest to the true one.
  double error(bool& exact) const {
    const Problem& p = plan.task.problem;
    const bool nhwc = p.layout == Layout::nhwc;
    double wrong = 0, all = 0;
    exact = true;
    for (int64_t i = 0; i < p.dst_elements(); ++i) {
      const int64_t plane = p.oh * p.ow;
      const int64_t n = i / (p.oc * plane), oc = nhwc ? i % p.oc : i / plane % p.oc;
      const int64_t pixel = nhwc ? i / p.oc % plane : i % plane, y = pixel / p.ow, x = pixel % p.ow;
      double sum = p.bias ? static_cast<double>(bias[static_cast<size_t>(oc)]) : 0;
      if (p.residual) sum += static_cast<double>(static_cast<float>(residual[offset + static_cast<size_t>(i)]));
      for (int64_t r = 0; r < p.kh; ++r) {
        for (int64_t s = 0; s < p.kw; ++s) {
          const int64_t iy = y * p.sh - p.pt + r * p.dh, ix = x * p.sw - p.pl + s * p.dw;
          if (iy < 0 || iy >= p.ih || ix < 0 || ix >= p.iw) continue;
          for (int64_t c = 0; c < p.ic; ++c) {
            const int64_t at =
                nhwc ? ((n * p.ih + iy) * p.iw + ix) * p.ic + c : ((n * p.ic + c) * p.ih + iy) * p.iw + ix;
            sum += static_cast<double>(static_cast<float>(src[offset + static_cast<size_t>(at)])) *
                   static_cast<double>(wei[static_cast<size_t>(((oc * p.ic + c) * p.kh + r) * p.kw + s)]);
          }
        }
      }
      if (p.activation == Activation::relu) sum = activated(sum);
      const float got = static_cast<float>(dst[offset + static_cast<size_t>(i)]);
      if (!(got == static_cast<float>(static_cast<T>(static_cast<float>(sum))))) exact = false;
      wrong += (static_cast<double>(got) - sum) * (static_cast<double>(got) - sum);
      all += sum * sum;
    }
    return std::sqrt(wrong / all);
  }
};

// The parts that `wanted` really gives: no part may be empty.
int parts_of(const Problem& p, int wanted, int step) {
  const int steps = static_cast<int>((p.ic * p.kh * p.kw + step - 1) / step);
  const int in_part = (steps + wanted - 1) / wanted;
  return (steps + in_part - 1) / in_part;
}

template <class T>
void check(Dtype dtype, Compute compute, const std::vector<mma::Kernel>& kernels, double limit) {
  const int64_t bytes = element_bytes(dtype);
  int cases = 0;
  for (size_t v = 0; v < kernels.size(); ++v) {
    const mma::Kernel& k = kernels[v];
    const auto say = [&](const Problem& p, const char* what, double error) {
      std::printf("%s %dx%d, loads of %d: %s, error %.2e (ic %d, %d taps, oc %d)\n", to_string(p.layout), k.pixels,
                  k.channels, k.load_bytes, what, error, static_cast<int>(p.ic), static_cast<int>(p.kh * p.kw),
                  static_cast<int>(p.oc));
    };
    const std::vector<Problem> all = problems(k, bytes);
    for (size_t i = 0; i < all.size(); ++i) {
      for (int form = 0; form < 4; ++form) {  // bare; bias and ReLU, misaligned; split, with everything; random
        Task t;
        t.problem = all[i], t.dtype = dtype, t.compute = compute;
        if (form == 3 && i != 1) continue;
        t.problem.bias = form == 1 || form == 2;
        t.problem.residual = form == 2;
        t.problem.activation = form == 1 || form == 2 ? Activation::relu : Activation::none;
        const int split = form == 2 ? parts_of(t.problem, 3, static_cast<int>(mma::kStepBytes / bytes)) : 1;
        std::mt19937 random(static_cast<unsigned>(v * 100 + i * 10) + static_cast<unsigned>(form));
        std::uniform_int_distribution<int> integers(-3, 3);
        std::normal_distribution<float> normal;
        Case<T> one(t, static_cast<int>(v), split, form == 1 ? 1 : 0,
                    [&] { return form == 3 ? normal(random) : static_cast<float>(integers(random)); });
        one.run();
        bool exact = false;
        const double error = one.error(exact);
        if (form < 3 && !exact) say(t.problem, "integers are not exact", error);
        if (!(error <= limit)) say(t.problem, "too far off", error);
        ++cases;
      }
    }
  }
  std::printf("%d cases\n", cases);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "";
  if (name == "float16") check<__half>(Dtype::f16, Compute::f32, mma::kernels_f16(), 1e-3);
  if (name == "bfloat16") check<__nv_bfloat16>(Dtype::bf16, Compute::f32, mma::kernels_bf16(), 5e-3);
  if (name == "tf32") check<float>(Dtype::f32, Compute::tf32, mma::kernels_tf32(), 1e-3);
  if (name == "3xtf32") check<float>(Dtype::f32, Compute::tf32x3, mma::kernels_tf32x3(), 2e-6);
  return 0;
}
