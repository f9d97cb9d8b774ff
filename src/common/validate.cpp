#include "common/validate.h"

#include <stdexcept>

namespace fastconv {
namespace {

using Wide = __int128;  // strides and dilations of 2^62 must not overflow while they are being judged

// Elements of an array, padding and axes without elements counted. Far beyond any memory, and small enough that the byte counts and
// offsets that follow from it fit into 64 bits.
constexpr int64_t kMaxElements = int64_t{1} << 50;

std::string str(Wide value) {
  return value > INT64_MAX ? "more than 2^63" : std::to_string(static_cast<int64_t>(value));
}

[[noreturn]] void bad(const std::string& message) {
  throw std::invalid_argument(message);
}
std::string str(int64_t value) {
  return std::to_string(value);
}

void require_rank4(const Shape& shape, const char* argument) {
  if (shape.size() != 4)
    bad(std::string(argument) + " must have 4 dimensions here, got " + str(static_cast<int64_t>(shape.size())));
}

void require_at_least(Pair value, int64_t least, const char* argument) {
  for (const int64_t v : value)
    if (v < least) bad(std::string(argument) + " must be at least " + str(least) + ", got " + str(v));
}

void set_image(Problem& p, const Shape& input, Layout layout) {
  require_rank4(input, "input");
  p.layout = layout;
  const bool nchw = layout == Layout::nchw;
  p.n = input[0];
  p.ic = input[nchw ? 1 : 3];
  p.ih = input[nchw ? 2 : 1];
  p.iw = input[nchw ? 3 : 2];
  if (p.n < 0) bad("input has a negative batch size " + str(p.n));
  const std::pair<const char*, int64_t> extents[] = {{"channels", p.ic}, {"height", p.ih}, {"width", p.iw}};
  for (const auto& [name, extent] : extents)
    if (extent < 1)
      bad(std::string("input must have at least 1 in each dimension but the batch, got ") + name + " " + str(extent) +
          " in shape " + to_string(input) + " (" + to_string(layout) + ")");
  checked_elements(input);
}

// Positions of a window along one axis.
int64_t windows(const char* argument, const char* axis, int64_t in, int64_t before, int64_t after, int64_t kernel,
                int64_t stride, int64_t dilation, bool ceil_mode) {
  const Wide padded = Wide(in) + before + after, reach = Wide(dilation) * (kernel - 1) + 1;
  if (reach > padded)
    bad(std::string(argument) + " is larger than the padded input in " + axis + ": the kernel spans " + str(reach) +
        ", the padded input has " + str(padded));
  if (padded > kMaxElements)
    throw std::length_error(std::string("padding: the padded input would have more than 2^50 elements in ") + axis);
  const Wide room = padded - reach;
  Wide out = room / stride + 1;
  if (ceil_mode) {
    out = (room + stride - 1) / stride + 1;
    if ((out - 1) * stride >= Wide(in) + before) --out;  // a window that would start in the padding behind is dropped
  }
  return static_cast<int64_t>(out);
}

void set_window(Problem& p, const char* argument, Pair kernel, Pair stride, Pads pads, Pair dilation, bool ceil_mode) {
  require_at_least(kernel, 1, "kernel_size");
  require_at_least(stride, 1, "stride");
  require_at_least(dilation, 1, "dilation");
  for (const int64_t v : pads)
    if (v < 0) bad("padding must be at least 0, got " + str(v));
  p.kh = kernel[0], p.kw = kernel[1], p.sh = stride[0], p.sw = stride[1], p.dh = dilation[0], p.dw = dilation[1];
  p.pt = pads[0], p.pb = pads[1], p.pl = pads[2], p.pr = pads[3];
  p.ceil_mode = ceil_mode;
  p.oh = windows(argument, "height", p.ih, p.pt, p.pb, p.kh, p.sh, p.dh, ceil_mode);
  p.ow = windows(argument, "width", p.iw, p.pl, p.pr, p.kw, p.sw, p.dw, ceil_mode);
  // Coordinates in the padded input are computed in 64 bits.
  checked_elements({p.ic, p.ih + p.pt + p.pb, p.iw + p.pl + p.pr});
  // One window has no step: such strides and dilations, however large, are the same problem, and no kernel computes
  // with them.
  if (p.oh == 1) p.sh = 1;
  if (p.ow == 1) p.sw = 1;
  if (p.kh == 1) p.dh = 1;
  if (p.kw == 1) p.dw = 1;
}

// torch's limit: at most half of the window's reach, so that no window lies in the padding alone.
void require_pool_padding(Pair kernel, Pads pads, Pair dilation) {
  for (int i = 0; i < 4; ++i) {
    const Wide reach = Wide(dilation[i / 2]) * (kernel[i / 2] - 1) + 1;
    if (pads[i] > reach / 2)
      bad("padding must be at most half of the effective kernel size, got padding " + str(pads[i]) +
          " for a kernel that spans " + str(reach));
  }
}

}  // namespace

std::string to_string(const Shape& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}

int64_t checked_elements(const Shape& shape) {
  int64_t product = 1;
  bool none = false;
  for (const int64_t extent : shape) {
    if (extent < 0) bad("a shape has no negative extents, got " + to_string(shape));
    if (extent == 0) {
      none = true;
    } else if (extent > kMaxElements / product) {
      throw std::length_error("an array of shape " + to_string(shape) + " is too large to address");
    } else {
      product *= extent;
    }
  }
  return none ? 0 : product;
}

Problem conv2d_problem(const Shape& input, const Shape& weight, int64_t bias_size, bool residual, Pair stride,
                       Pads padding, Pair dilation, int64_t groups, Layout layout, WeightLayout weight_layout,
                       Activation activation) {
  Problem p;
  p.op = Op::conv2d;
  set_image(p, input, layout);
  require_rank4(weight, "weight");
  p.weight_layout = weight_layout;
  const int o = weight_layout == WeightLayout::hwio ? 3 : 0;
  const int i = weight_layout == WeightLayout::oihw ? 1 : weight_layout == WeightLayout::ohwi ? 3 : 2;
  const int h = weight_layout == WeightLayout::oihw ? 2 : weight_layout == WeightLayout::ohwi ? 1 : 0;
  for (const int64_t extent : weight)
    if (extent < 1) bad("weight must have at least 1 in each dimension, got shape " + to_string(weight));
  if (groups < 1) bad("groups must be at least 1, got " + str(groups));
  p.groups = groups;
  p.oc = weight[o];
  if (p.ic % groups)
    bad("groups must divide the input channels: " + str(groups) + " groups, " + str(p.ic) + " channels");
  if (p.oc % groups)
    bad("groups must divide the output channels: " + str(groups) + " groups, " + str(p.oc) + " channels in weight");
  if (weight[i] != p.icg())
    bad("weight has " + str(weight[i]) + " input channels per group (" + to_string(weight_layout) +
        "), but input has " + str(p.ic) + " channels in " + str(groups) + (groups == 1 ? " group" : " groups") +
        ", which makes " + str(p.icg()));
  if (bias_size >= 0 && bias_size != p.oc)
    bad("bias must have " + str(p.oc) + " elements, one for each output channel; got " + str(bias_size));
  checked_elements(weight);
  set_window(p, "weight", {weight[h], weight[h + 1]}, stride, padding, dilation, false);
  p.bias = bias_size >= 0;
  p.residual = residual;
  p.activation = activation;
  checked_elements(output_shape(p));
  return p;
}

Problem max_pool2d_problem(const Shape& input, Pair kernel, Pair stride, Pads padding, Pair dilation, bool ceil_mode,
                           Layout layout) {
  Problem p;
  p.op = Op::max_pool2d;
  set_image(p, input, layout);
  p.oc = p.ic;
  require_at_least(kernel, 1, "kernel_size");
  require_at_least(dilation, 1, "dilation");
  require_pool_padding(kernel, padding, dilation);
  set_window(p, "kernel_size", kernel, stride, padding, dilation, ceil_mode);
  checked_elements(output_shape(p));
  return p;
}

Problem avg_pool2d_problem(const Shape& input, Pair kernel, Pair stride, Pads padding, bool ceil_mode,
                           bool count_include_pad, int64_t divisor_override, Layout layout) {
  Problem p = max_pool2d_problem(input, kernel, stride, padding, {1, 1}, ceil_mode, layout);
  p.op = Op::avg_pool2d;
  p.count_include_pad = count_include_pad;
  p.divisor_override = divisor_override;
  return p;
}

Problem adaptive_avg_pool2d_problem(const Shape& input, Pair output_size, Layout layout) {
  Problem p;
  p.op = Op::adaptive_avg_pool2d;
  set_image(p, input, layout);
  require_at_least(output_size, 1, "output_size");
  p.oc = p.ic;
  p.oh = output_size[0];
  p.ow = output_size[1];
  // Window borders are products of an input and an output position.
  if (Wide(p.ih) * p.oh > Wide(1) << 62 || Wide(p.iw) * p.ow > Wide(1) << 62)
    throw std::length_error("output_size is too large to compute with");
  checked_elements(output_shape(p));
  return p;
}

Problem relu_problem(const Shape& input) {
  Problem p;
  p.op = Op::relu;
  p.ow = p.iw = checked_elements(input);
  return p;
}

Problem softmax_problem(const Shape& input, int64_t dim) {
  Problem p;
  p.op = Op::softmax;
  const int64_t rank = static_cast<int64_t>(input.size());
  if (rank < 1) bad("input must have at least 1 dimension for softmax, got 0");
  if (dim < -rank || dim >= rank)
    bad("dim must lie in " + str(-rank) + ".." + str(rank - 1) + " for an input of " + str(rank) + " dimensions, got " +
        str(dim));
  if (dim < 0) dim += rank;
  checked_elements(input);
  for (int64_t i = 0; i < rank; ++i) (i < dim ? p.n : i == dim ? p.ic : p.iw) *= input[i];
  p.oc = p.ic, p.ow = p.iw;
  return p;
}

Problem batch_norm_problem(const Shape& input, int64_t scale_size, int64_t shift_size, Layout layout) {
  Problem p;
  p.op = Op::batch_norm;
  set_image(p, input, layout);
  if (scale_size != p.ic)
    bad("running_var must have " + str(p.ic) + " elements, one for each channel of input; got " + str(scale_size));
  if (shift_size != p.ic)
    bad("running_mean must have " + str(p.ic) + " elements, one for each channel of input; got " + str(shift_size));
  p.oc = p.ic, p.oh = p.ih, p.ow = p.iw;
  return p;
}

Problem convert_layout_problem(const Shape& input, Layout source, Layout target) {
  Problem p;
  p.op = Op::convert_layout;
  set_image(p, input, source);
  p.target_layout = target;
  p.oc = p.ic, p.oh = p.ih, p.ow = p.iw;
  return p;
}

Shape output_shape(const Problem& p) {
  const Layout layout = p.op == Op::convert_layout ? p.target_layout : p.layout;
  return layout == Layout::nchw ? Shape{p.n, p.oc, p.oh, p.ow} : Shape{p.n, p.oh, p.ow, p.oc};
}

}  // namespace fastconv
