// Where a convolution seen as a GEMM finds its operands: M = output pixels (n, oh, ow), N = output channels of a group, K = taps and input
// channels. Plain host-and-device arithmetic on 32-bit numbers; every GEMM kernel gathers by it, whatever computes the products.
//   NHWC: k = (r * kw + s) * icg + c, so that neighbouring k are neighbouring channels of one pixel.
//   NCHW: k = c * kh * kw + r * kw + s, so that neighbouring k read the same few rows of one plane.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "common/problem.h"

namespace fastconv::cuda {

// n / d by one multiplication, for 0 <= n < 2^31 and 1 <= d < 2^31: with s = 31 + ceil(log2 d) the factor ceil(2^s / d) has 32 bits and its
// excess over 2^s / d is too small to carry a 31-bit n over the next integer (Granlund and Montgomery, 1994).
struct Divisor {
  uint32_t divisor = 1, factor = 0, shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t d) : divisor(static_cast<uint32_t>(d)) {
    uint32_t log2 = 0;
    while ((uint64_t{1} << log2) < divisor) ++log2;
    if (divisor == 1) return;
    factor = static_cast<uint32_t>(((uint64_t{1} << (31 + log2)) + divisor - 1) / divisor);
    shift = log2 - 1;
  }

  __host__ __device__ int quotient(int n) const {
    if (divisor == 1) return n;
    const uint64_t product = static_cast<uint64_t>(static_cast<uint32_t>(n)) * factor;
    return static_cast<int>(static_cast<uint32_t>(product >> 32) >> shift);
  }
  // Returns the quotient, leaves the remainder.
  __host__ __device__ int split(int n, int& remainder) const {
    const int q = quotient(n);
    remainder = n - q * static_cast<int>(divisor);
    return q;
  }
};

// A kernel row or column that leaves the image is one bit of a 32-bit word: 16 for rows, 16 for columns.
constexpr int kMaxKernelExtent = 16;

// One launch's convolution. All numbers fit into 31 bits (see `gather_refuses`); strides are in elements of src.
struct Gather {
  int n, ic, ih, iw;
  int oc, oh, ow;
  int kh, kw, sh, sw, dh, dw, pt, pl;
  int groups, icg, ocg;
  int pixels;     // n * oh * ow: rows of the GEMM
  int reduction;  // icg * kh * kw: its K
  int image_stride, row_stride, column_stride, channel_stride;
  Divisor by_plane, by_ow;           // pixel -> image, row, column
  Divisor by_icg, by_kw, by_kernel;  // k -> tap, channel
};

// Why 32 bits do not hold one image of this problem, or nullptr. Batches of any size are walked in parts:
// `images_per_launch`.
inline const char* index_refuses(const Problem& p) {
  constexpr int64_t limit = std::numeric_limits<int32_t>::max() / 2;
  // In floating point: the products of two extents may themselves not fit.
  const auto over = [](double a, double b, double c) { return a * b * c > static_cast<double>(limit); };
  const auto d = [](int64_t v) { return static_cast<double>(v); };
  if (over(d(p.ic), d(p.ih), d(p.iw)) || over(d(p.oc), d(p.oh), d(p.ow))) return "an image of more than 2^30 elements";
  if (over(d(p.icg()) + 16, d(p.kh) * d(p.kw), d(p.oc) + 128)) return "more than 2^30 weights";
  // Coordinates of taps beyond the border, and offsets from the first tap of a pixel.
  const double rows = d(p.ih) + d(p.pt) + d(p.pb) + d(p.dh) * d(p.kh),
               columns = d(p.iw) + d(p.pl) + d(p.pr) + d(p.dw) * d(p.kw);
  if (over(rows, columns, d(p.ic))) return "a padded image of more than 2^30 elements";
  return nullptr;
}

// The same, and whether `tap_mask` has a bit for each kernel row and column.
inline const char* gather_refuses(const Problem& p) {
  if (p.kh > kMaxKernelExtent || p.kw > kMaxKernelExtent) return "a kernel of more than 16 rows or columns";
  return index_refuses(p);
}

// 1x1 that reads every pixel once, so that src is the GEMM's matrix as it lies. The extents have to say it, not the stride: where there is one
// output row or column a Problem's stride has been set to 1, whatever of the image it leaves out.
inline bool reads_every_pixel(const Problem& p) {
  return p.kh == 1 && p.kw == 1 && !p.padded() && p.oh == p.ih && p.ow == p.iw;
}

// Images that one launch may take so that every offset stays below 2^30 elements.
inline int64_t images_per_launch(const Problem& p) {
  constexpr int64_t limit = std::numeric_limits<int32_t>::max() / 2;
  const int64_t src = p.ic * p.ih * p.iw, dst = p.oc * p.oh * p.ow, largest = src > dst ? src : dst;
  const int64_t images = limit / largest;
  return images < p.n ? images : p.n;
}

inline Gather gather_of(const Problem& p, int64_t images) {
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  const bool nhwc = p.layout == Layout::nhwc;
  Gather g;
  g.n = i(images), g.ic = i(p.ic), g.ih = i(p.ih), g.iw = i(p.iw);
  g.oc = i(p.oc), g.oh = i(p.oh), g.ow = i(p.ow);
  g.kh = i(p.kh), g.kw = i(p.kw), g.sh = i(p.sh), g.sw = i(p.sw), g.dh = i(p.dh), g.dw = i(p.dw), g.pt = i(p.pt),
  g.pl = i(p.pl);
  g.groups = i(p.groups), g.icg = i(p.icg()), g.ocg = i(p.ocg());
  g.pixels = i(images * p.oh * p.ow);
  g.reduction = i(p.icg() * p.kh * p.kw);
  g.image_stride = i(p.ic * p.ih * p.iw);
  g.row_stride = i(nhwc ? p.iw * p.ic : p.iw);
  g.column_stride = i(nhwc ? p.ic : 1);
  g.channel_stride = i(nhwc ? 1 : p.ih * p.iw);
  g.by_plane = Divisor(p.oh * p.ow);
  g.by_ow = Divisor(p.ow);
  g.by_icg = Divisor(p.icg());
  g.by_kw = Divisor(p.kw);
  g.by_kernel = Divisor(p.kh * p.kw);
  return g;
}

// The input coordinates of an output pixel's first tap; may lie outside the image.
struct Origin {
  int image, y, x;
};
__host__ __device__ inline Origin origin_of(const Gather& g, int pixel) {
  int in_plane, ow;
  const int image = g.by_plane.split(pixel, in_plane);
  const int oh = g.by_ow.split(in_plane, ow);
  return {image, oh * g.sh - g.pt, ow * g.sw - g.pl};
}

// Offset in src of an origin's first channel; of use only together with `tap_is_inside`.
__host__ __device__ inline int origin_offset(const Gather& g, const Origin& o) {
  return o.image * g.image_stride + o.y * g.row_stride + o.x * g.column_stride;
}

// Bit r: kernel row r lies in the image; bit 16 + s: kernel column s does. 0: no tap does, as for a pixel past the last one.
__host__ __device__ inline uint32_t tap_mask(const Gather& g, const Origin& o) {
  uint32_t rows = 0, columns = 0;
  for (int r = 0; r < g.kh; ++r)
    rows |= (static_cast<unsigned>(o.y + r * g.dh) < static_cast<unsigned>(g.ih) ? 1u : 0u) << r;
  for (int s = 0; s < g.kw; ++s)
    columns |= (static_cast<unsigned>(o.x + s * g.dw) < static_cast<unsigned>(g.iw) ? 1u : 0u) << s;
  return rows | columns << 16;
}

// What k of the reduction reads: which tap, and how far from the origin. `k` below `reduction`; channels count within the
// group. `bits` are the two bits of `tap_mask` that the tap needs.
struct Tap {
  int r, s, offset;
  uint32_t bits;
};
__host__ __device__ inline bool tap_is_inside(uint32_t mask, uint32_t bits) {
  return (bits & ~mask) == 0;  // one LOP3 that writes a predicate
}
__host__ __device__ inline Tap tap_at(const Gather& g, int r, int s, int c) {
  const int offset = r * g.dh * g.row_stride + s * g.dw * g.column_stride + c * g.channel_stride;
  return {r, s, offset, 1u << r | 0x10000u << s};
}
__host__ __device__ inline Tap tap_nhwc(const Gather& g, int k) {
  int c, s;
  const int tap = g.by_icg.split(k, c);
  const int r = g.by_kw.split(tap, s);
  return tap_at(g, r, s, c);
}
__host__ __device__ inline Tap tap_nchw(const Gather& g, int k) {
  int tap, s;
  const int c = g.by_kernel.split(k, tap);
  const int r = g.by_kw.split(tap, s);
  return tap_at(g, r, s, c);
}

// Offset in dst of an output pixel's first channel, and from there the distance of the next channel.
__host__ __device__ inline int dst_offset_nchw(const Gather& g, int pixel) {
  int in_plane;
  const int image = g.by_plane.split(pixel, in_plane);
  return image * g.oc * g.oh * g.ow + in_plane;
}

}  // namespace fastconv::cuda
