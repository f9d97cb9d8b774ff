// Every tile of the float32 GEMM with one and several parts of the reduction, whatever the tile choice would take, on small
// integers: `check_gemm_f32 implicit_gemm|im2col` prints a line for every wrong case, then how many ran.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/conv/tiles.h"

namespace fastconv::cuda {
extern const Algorithm conv_implicit_gemm_f32, conv_im2col_gemm_f32;
}

namespace {

using namespace fastconv;
using namespace fastconv::cuda;

// A window in both directions; the image follows from the pixels wanted.
struct Window {
  int kernel, stride, padding, dilation;
};
constexpr Window kPoint{1, 1, 0, 1}, kSame{3, 1, 1, 1}, kHalved{3, 2, 1, 1}, kPointHalved{1, 2, 0, 1},
    kHoles{2, 1, 1, 2};

Problem problem(Layout layout, int n, int icg, int oh, int ow, int ocg, Window w, int groups) {
  Problem p;
  p.layout = layout, p.n = n, p.groups = groups, p.ic = icg * groups, p.oc = ocg * groups, p.oh = oh, p.ow = ow;
  p.kh = p.kw = w.kernel, p.sh = p.sw = w.stride, p.dh = p.dw = w.dilation;
  p.pt = p.pb = p.pl = p.pr = w.padding;
  p.ih = (oh - 1) * w.stride + w.dilation * (w.kernel - 1) + 1 - 2 * w.padding;
  p.iw = (ow - 1) * w.stride + w.dilation * (w.kernel - 1) + 1 - 2 * w.padding;
  return p;
}

struct Numbers {
  std::vector<float> src, wei, bias, residual;
};

Numbers numbers_for(const Problem& p) {
  std::minstd_rand random(static_cast<unsigned>(p.src_elements() + p.weight_elements()));
  const auto draw = [&](int64_t count) {
    std::vector<float> v(static_cast<size_t>(count));
    for (float& x : v) x = static_cast<float>(static_cast<int>(random() % 7) - 3);
    return v;
  };
  return {draw(p.src_elements()), draw(p.weight_elements()), draw(p.oc), draw(p.dst_elements())};
}

std::vector<float> expected(const Problem& p, const Numbers& in) {
  const bool nhwc = p.layout == Layout::nhwc;
  const auto at = [nhwc](int64_t n, int64_t c, int64_t y, int64_t x, int64_t channels, int64_t h, int64_t w) {
    return static_cast<size_t>(nhwc ? ((n * h + y) * w + x) * channels + c : ((n * channels + c) * h + y) * w + x);
  };
  std::vector<float> out(static_cast<size_t>(p.dst_elements()));
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t o = 0; o < p.oc; ++o)
      for (int64_t y = 0; y < p.oh; ++y)
        for (int64_t x = 0; x < p.ow; ++x) {
          const size_t to = at(n, o, y, x, p.oc, p.oh, p.ow);
          float sum = in.bias[static_cast<size_t>(o)] + in.residual[to];
          for (int64_t c = 0; c < p.icg(); ++c)
            for (int64_t r = 0; r < p.kh; ++r)
              for (int64_t s = 0; s < p.kw; ++s) {
                const int64_t iy = y * p.sh - p.pt + r * p.dh, ix = x * p.sw - p.pl + s * p.dw;
                if (iy < 0 || iy >= p.ih || ix < 0 || ix >= p.iw) continue;
                sum += in.src[at(n, o / p.ocg() * p.icg() + c, iy, ix, p.ic, p.ih, p.iw)] *
                       in.wei[static_cast<size_t>(((o * p.icg() + c) * p.kh + r) * p.kw + s)];
              }
          out[to] = sum < 0 ? 0 : sum;
        }
  return out;
}

// A block of device memory that ends where the sanitizer looks, `shift` elements behind an aligned address.
template <class T>
struct Block {
  T* base;
  T* data;
  Block(size_t count, size_t shift)
      : base(static_cast<T*>(std::aligned_alloc(256, size_of(count + shift)))), data(base + shift) {
    std::memset(base, 0xFF, size_of(count + shift));
  }
  Block(const std::vector<T>& v, size_t shift) : Block(v.size(), shift) { std::copy(v.begin(), v.end(), data); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { std::free(base); }
  static size_t size_of(size_t count) { return (count * sizeof(T) + 255) / 256 * 256 + 256; }
};

int wrong = 0, ran = 0;

void check(const Algorithm& algorithm, Problem p, int variant, int split, size_t shift) {
  p.bias = p.residual = true;
  p.activation = Activation::relu;
  Plan plan;
  plan.task.problem = p;
  plan.algorithm = &algorithm;
  if (algorithm.refuses(plan.task, plan.device)) return;
  algorithm.configure(plan);
  const int64_t k = p.icg() * p.kh * p.kw;
  const TileShape& tile = tiles_f32()[static_cast<size_t>(variant)];
  const int64_t part = part_of_reduction(k, split, tile.k);
  if ((k + part - 1) / part != split) return;
  if (plan.tile.split_k > 1) plan.workspace_bytes -= plan.tile.split_k * p.dst_elements() * 4;
  if (split > 1) plan.workspace_bytes += split * p.dst_elements() * 4;
  plan.tile.variant = variant, plan.tile.m = tile.m, plan.tile.n = tile.n, plan.tile.split_k = split;

  const Numbers in = numbers_for(p);
  const std::vector<float> right = expected(p, in);
  const Block<float> src(in.src, shift), wei(in.wei, 0), bias(in.bias, 0), residual(in.residual, shift),
      dst(right.size(), shift);
  const Block<float> packed(static_cast<size_t>(plan.packed_bytes / 4), 0);
  const Block<float> workspace(static_cast<size_t>(plan.workspace_bytes / 4), 0);
  algorithm.pack(plan, wei.data, packed.data, nullptr);
  Operands args;
  args.src = src.data, args.packed = packed.data, args.bias = bias.data, args.residual = residual.data;
  args.dst = dst.data, args.workspace = workspace.data;
  algorithm.run(plan, args, nullptr);
  ++ran;
  for (size_t i = 0; i < right.size(); ++i) {
    if (dst.data[i] == right[i]) continue;
    ++wrong;
    std::printf("%s %s, tile %dx%d, %d parts, shifted by %d: element %d is %g, not %g\n", to_string(p).c_str(),
                to_string(p.layout), tile.m, tile.n, split, static_cast<int>(shift), static_cast<int>(i),
                static_cast<double>(dst.data[i]), static_cast<double>(right[i]));
    return;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  const Algorithm& algorithm = name == "im2col" ? conv_im2col_gemm_f32 : conv_implicit_gemm_f32;
  for (const Layout layout : {Layout::nchw, Layout::nhwc}) {
    // Pixels and channels below, at and above the edges of the tiles; runs of 4 that adjoin, and that do not.
    const Problem problems[] = {
        problem(layout, 1, 12, 8, 16, 128, kPoint, 1),    problem(layout, 1, 9, 9, 15, 132, kPoint, 1),
        problem(layout, 3, 8, 6, 7, 65, kSame, 1),        problem(layout, 1, 5, 7, 9, 31, kSame, 1),
        problem(layout, 2, 20, 4, 16, 33, kHalved, 1),    problem(layout, 1, 36, 1, 1, 260, kPoint, 1),
        problem(layout, 1, 3, 5, 27, 36, kHoles, 2),      problem(layout, 1, 4, 10, 13, 64, kHoles, 2),
        problem(layout, 2, 17, 8, 8, 4, kPointHalved, 1), problem(layout, 1, 1, 2, 3, 1, kPoint, 1),
    };
    for (const Problem& p : problems)
      for (int variant = 0; variant < static_cast<int>(tiles_f32().size()); ++variant)
        for (const int split : {1, 2, 3})
          for (const size_t shift : {0, 1}) check(algorithm, p, variant, split, shift);
  }
  std::printf("%d cases, %d wrong\n", ran, wrong);
  return wrong != 0;
}
