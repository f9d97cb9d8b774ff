// Where a window of pooling lies, for the kernels of max and mean. Plain 32-bit arithmetic: a launch takes as many images as that holds.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/algorithm.h"
#include "cuda/conv/gather.cuh"
#include "cuda/tile.cuh"

namespace fastconv::cuda {

struct Pool {
  int ic, ih, iw, oh, ow;
  int kh, kw, sh, sw, dh, dw, pt, pl, pb, pr;
  Divisor by_vectors, by_ow,
      by_oh;    // output number -> channels, column, row; the rest is the image (NHWC) or the plane (NCHW)
  int outputs;  // vectors of them
};

inline const char* pool_refuses(const Task& task, const DeviceLimits&) {
  const Problem& p = task.problem;
  const auto d = [](int64_t v) { return static_cast<double>(v); };
  const double limit = static_cast<double>(int64_t{1} << 30);
  const double rows = d(p.ih) + d(p.pt) + d(p.pb) + d(p.dh) * d(p.kh),
               columns = d(p.iw) + d(p.pl) + d(p.pr) + d(p.dw) * d(p.kw);
  if (rows * columns > limit || d(p.ic) * d(p.ih) * d(p.iw) > limit || d(p.ic) * d(p.oh) * d(p.ow) > limit ||
      d(p.kh) * d(p.kw) > limit || d(p.oh) * d(p.sh) > limit || d(p.ow) * d(p.sw) > limit)
    return "an image of more than 2^30 elements";
  return nullptr;
}

// Calls f(first image, images, Pool) until the batch is done; a thread makes `width` channels (NHWC) or one output (NCHW).
template <class F>
void for_image_ranges(const Problem& p, int width, F&& f) {
  const int64_t per_image = std::max(p.ic * p.ih * p.iw, p.ic * p.oh * p.ow);
  const int64_t images = std::clamp<int64_t>(kLaunchElements / per_image, 1, p.n);
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  const bool nhwc = p.layout == Layout::nhwc;
  Pool g{};
  g.ic = i(p.ic), g.ih = i(p.ih), g.iw = i(p.iw), g.oh = i(p.oh), g.ow = i(p.ow);
  g.kh = i(p.kh), g.kw = i(p.kw), g.sh = i(p.sh), g.sw = i(p.sw), g.dh = i(p.dh), g.dw = i(p.dw);
  g.pt = i(p.pt), g.pl = i(p.pl), g.pb = i(p.pb), g.pr = i(p.pr);
  g.by_vectors = Divisor(nhwc ? p.ic / width : 1);
  g.by_ow = Divisor(p.ow), g.by_oh = Divisor(p.oh);
  for (int64_t first = 0; first < p.n; first += images) {
    const int64_t count = std::min(images, p.n - first);
    g.outputs = i(count * p.oh * p.ow * p.ic / (nhwc ? width : 1));
    f(first, g);
  }
}

// Output i of the launch: its row and column, where its window's channel starts in src and how far rows and columns of src are apart.
template <bool nhwc>
struct PoolPlace {
  int row, column, src, row_stride, column_stride;

  __device__ PoolPlace(const Pool& g, int i, int width) {
    int channel = 0;
    int rest = nhwc ? g.by_vectors.split(i, channel) : i;
    rest = g.by_ow.split(rest, column);
    const int outer = g.by_oh.split(rest, row);
    column_stride = nhwc ? g.ic : 1;
    row_stride = g.iw * column_stride;
    src = outer * g.ih * row_stride + channel * width;
  }
};

}  // namespace fastconv::cuda
