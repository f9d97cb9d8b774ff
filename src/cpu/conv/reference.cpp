// Convolution by its definition, in any layout, for any problem: dst = act(bias + residual + sum src * wei).
// Weights are read from a copy in OIHW order. Sums in double, rounded once. For correctness, not for speed.
#include "common/algorithm.h"

namespace fastconv {
namespace {

void configure(Plan& plan, const Machine&) {
  plan.ukernel_name = "conv_reference_scalar";
  plan.packed_bytes = plan.problem.weight_elements() * 4;
  plan.pack_tag = "oihw";
}

void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const int64_t icg = p.icg();
  float* out = static_cast<float*>(packed);
  const Range mine = share(p.oc, worker.tid, worker.nthr);
  for (int64_t o = mine.begin; o < mine.end; ++o)
    for (int64_t c = 0; c < icg; ++c)
      for (int64_t r = 0; r < p.kh; ++r)
        for (int64_t s = 0; s < p.kw; ++s) {
          int64_t at = ((o * icg + c) * p.kh + r) * p.kw + s;
          const int64_t to = at;
          if (p.weight_layout == WeightLayout::ohwi) at = ((o * p.kh + r) * p.kw + s) * icg + c;
          if (p.weight_layout == WeightLayout::hwio) at = ((r * p.kw + s) * icg + c) * p.oc + o;
          out[to] = wei[at];
        }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const bool nhwc = p.layout == Layout::nhwc;
  const int64_t icg = p.icg();
  const float* wei = static_cast<const float*>(args.packed);
  // Strides of one element step along (n, c, y, x) in each image.
  const int64_t ic_step = nhwc ? 1 : p.ih * p.iw, ix_step = nhwc ? p.ic : 1, iy_step = p.iw * ix_step;
  const int64_t oc_step = nhwc ? 1 : p.oh * p.ow, ox_step = nhwc ? p.oc : 1, oy_step = p.ow * ox_step;
  const Range mine = share(p.n * p.oc * p.oh, worker.tid, worker.nthr);
  for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
    const int64_t y = unit % p.oh, o = unit / p.oh % p.oc, n = unit / p.oh / p.oc;
    const float* src = args.src + n * p.ic * p.ih * p.iw + o / p.ocg() * icg * ic_step;
    for (int64_t x = 0; x < p.ow; ++x) {
      double sum = 0;
      for (int64_t r = 0; r < p.kh; ++r) {
        const int64_t iy = y * p.sh - p.pt + r * p.dh;
        if (iy < 0 || iy >= p.ih) continue;
        for (int64_t s = 0; s < p.kw; ++s) {
          const int64_t ix = x * p.sw - p.pl + s * p.dw;
          if (ix < 0 || ix >= p.iw) continue;
          for (int64_t c = 0; c < icg; ++c)
            sum += static_cast<double>(src[c * ic_step + iy * iy_step + ix * ix_step]) *
                   static_cast<double>(wei[((o * icg + c) * p.kh + r) * p.kw + s]);
        }
      }
      const int64_t at = n * p.oc * p.oh * p.ow + o * oc_step + y * oy_step + x * ox_step;
      if (p.bias) sum += static_cast<double>(args.bias[o]);
      if (p.residual) sum += static_cast<double>(args.residual[at]);
      const float value = static_cast<float>(sum);
      args.dst[at] = p.activation == Activation::relu && value < 0.0f ? 0.0f : value;
    }
  }
}

std::vector<std::pair<Isa, const char*>> leaves() {
  return {{Isa::scalar, "conv_reference_scalar"}};
}

}  // namespace

extern const Algorithm conv_reference = {Op::conv2d,
                                         "reference",
                                         "conv_reference",
                                         "cpu",
                                         [](const Problem&, const Machine&) -> const char* { return nullptr; },
                                         configure,
                                         pack,
                                         run,
                                         leaves};

}  // namespace fastconv
