#include "common/problem.h"

#include <array>
#include <stdexcept>

namespace fastconv {
namespace {

template <class E, size_t N>
E parse(const std::string& text, const char* argument, const std::array<const char*, N>& names) {
  std::string known;
  for (size_t i = 0; i < N; ++i) {
    if (text == names[i]) return static_cast<E>(i);
    known += (i ? ", \"" : "\"") + std::string(names[i]) + "\"";
  }
  throw std::invalid_argument(std::string(argument) + " must be one of " + known + "; got \"" + text + "\"");
}

constexpr std::array kOps = {"conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
                             "relu",   "softmax",    "batch_norm", "convert_layout"};
constexpr std::array kLayouts = {"NCHW", "NHWC"};
constexpr std::array kWeightLayouts = {"OIHW", "OHWI", "HWIO"};
constexpr std::array kActivations = {"none", "relu"};

}  // namespace

const char* to_string(Op op) {
  return kOps[static_cast<size_t>(op)];
}
const char* to_string(Layout layout) {
  return kLayouts[static_cast<size_t>(layout)];
}
const char* to_string(WeightLayout layout) {
  return kWeightLayouts[static_cast<size_t>(layout)];
}
const char* to_string(Activation activation) {
  return kActivations[static_cast<size_t>(activation)];
}

Layout parse_layout(const std::string& text, const char* argument) {
  return parse<Layout>(text, argument, kLayouts);
}
WeightLayout parse_weight_layout(const std::string& text) {
  return parse<WeightLayout>(text, "weight_layout", kWeightLayouts);
}
Activation parse_activation(const std::string& text) {
  return parse<Activation>(text, "activation", kActivations);
}

std::string to_string(const Problem& p) {
  std::string s;
  const auto put = [&s](const char* letter, int64_t value) {
    s += (s.empty() ? "" : " ") + std::string(letter) + std::to_string(value);
  };
  put("n", p.n), put("ic", p.ic), put("ih", p.ih), put("iw", p.iw);
  if (p.op == Op::convert_layout || p.op == Op::batch_norm) return s;
  if (p.op == Op::relu || p.op == Op::softmax) return s;
  put("oc", p.oc), put("oh", p.oh), put("ow", p.ow);
  if (p.op == Op::adaptive_avg_pool2d) return s;
  put("kh", p.kh), put("kw", p.kw), put("sh", p.sh), put("sw", p.sw);
  if (p.padded()) put("pt", p.pt), put("pb", p.pb), put("pl", p.pl), put("pr", p.pr);
  if (p.dh != 1 || p.dw != 1) put("dh", p.dh), put("dw", p.dw);
  if (p.groups != 1) put("g", p.groups);
  return s;
}

}  // namespace fastconv
