// A Problem says what to compute: shapes, strides, padding, dilation, groups, layout, epilogue. Plain data, no
// pointers.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

namespace fastconv {

enum class Op : uint8_t {
  conv2d,
  max_pool2d,
  avg_pool2d,
  adaptive_avg_pool2d,
  relu,
  softmax,
  batch_norm,
  convert_layout
};
enum class Layout : uint8_t { nchw, nhwc };
enum class WeightLayout : uint8_t { oihw, ohwi, hwio };
enum class Activation : uint8_t { none, relu };

// One struct for every op; an op leaves the fields it does not know at their defaults, so that Problems compare by value.
//
//   conv2d               dst[n,oc,oh,ow] = act(bias[oc] + residual[n,oc,oh,ow]
//                          + sum_{c,r,s} src[n, g*icg + c, oh*sh - pt + r*dh, ow*sw - pl + s*dw] * wei[oc,c,r,s])
//   max/avg pooling      the same letters with oc == ic and the window kh x kw
//   adaptive_avg_pool2d  window of row i: floor(i*ih/oh) .. ceil((i+1)*ih/oh)
//   relu                 elements = ow
//   softmax              n = outer, ic = axis length, ow = inner (elements after the axis)
//   batch_norm           dst = src * scale[c] + shift[c];  n, ic, ih*iw
//   convert_layout       layout -> target_layout;  n, ic, ih, iw
struct Problem {
  Op op = Op::conv2d;
  Layout layout = Layout::nchw;
  Layout target_layout = Layout::nchw;
  WeightLayout weight_layout = WeightLayout::oihw;  // how the caller's weights lie; packing reads them so
  int64_t n = 1, ic = 1, ih = 1, iw = 1;
  int64_t oc = 1, oh = 1, ow = 1;
  int64_t kh = 1, kw = 1, sh = 1, sw = 1, dh = 1, dw = 1;
  int64_t pt = 0, pb = 0, pl = 0, pr = 0;
  int64_t groups = 1;
  int64_t divisor_override = 0;  // average pooling; 0: none
  bool bias = false, residual = false;
  bool ceil_mode = false, count_include_pad = true, with_indices = false;
  Activation activation = Activation::none;

  auto operator<=>(const Problem&) const = default;

  int64_t icg() const { return ic / groups; }  // input channels that one output channel sees
  int64_t ocg() const { return oc / groups; }
  bool padded() const { return (pt | pb | pl | pr) != 0; }
  int64_t src_elements() const { return n * ic * ih * iw; }
  int64_t dst_elements() const { return n * oc * oh * ow; }
  int64_t weight_elements() const { return oc * icg() * kh * kw; }
  // Multiply-accumulates of the definition; those that fall on padding are counted, as every benchmark in this field does.
  // In floating point: the product of two arrays that each fit into memory may not fit into 64 bits.
  double macs() const {
    if (op != Op::conv2d) return 0;
    return static_cast<double>(dst_elements()) * static_cast<double>(icg() * kh * kw);
  }
};

const char* to_string(Op);
const char* to_string(Layout);
const char* to_string(WeightLayout);
const char* to_string(Activation);
std::string to_string(const Problem&);  // one line, in the letters above

// Parse the contract's words; ValueError (std::invalid_argument) that lists the known ones.
Layout parse_layout(const std::string& text, const char* argument);
WeightLayout parse_weight_layout(const std::string& text);
Activation parse_activation(const std::string& text);

}  // namespace fastconv
