// Depthwise convolution: dst[n,oc,oh,ow] = act(bias[oc] + sum_{r,s} src[n, oc/m, oh*sh-pt+r*dh, ow*sw-pl+s*dw]
// * wei[oc,r,s] + residual) with groups == ic, m = oc / ic. The image is read in place in both layouts.
// Operands: packed weights NHWC [oc / lanes][kh*kw][lanes], zero-padded channels; NCHW [oc][kh*kw].
// Leaves: DepthwiseUkernel.
// Division of work: NHWC by rows of all images, or by vectors of channels where that is more even; NCHW by rows of all
// planes. Each thread writes outputs of its own. NHWC hands rows to the leaf in bands of blocking.mc. Scratch: none.
// Numerics: one sequential sum per output in the order bias, taps (r, s), residual, wherever the output lies.
// Tried: bands of 1, 2, 8 rows for large NHWC images (4 is as good or better).
#include <algorithm>
#include <string>

#include "common/buffer.h"
#include "cpu/registry.h"

namespace fastconv {
namespace {

constexpr int64_t kBandRows = 4;  // NHWC, images larger than the L2

const DepthwiseUkernel& leaf_of(const Plan& plan) {
  return *static_cast<const DepthwiseUkernel*>(plan.ukernel);
}

const char* refuses(const Problem& p, const Machine&) {
  if (p.groups != p.ic) return "groups differ from the input channels";
  return p.groups == 1 ? "a single channel is an ordinary convolution" : nullptr;
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  const DepthwiseUkernel& leaf = *find_ukernel<DepthwiseUkernel>(machine.isa);
  const int64_t taps = p.kh * p.kw;
  Blocking& b = plan.blocking;
  plan.ukernel = &leaf;
  plan.ukernel_name = leaf.name;
  plan.isa = static_cast<Isa>(leaf.isa);
  const std::string shape = std::to_string(p.oc) + "x" + std::to_string(p.kh) + "x" + std::to_string(p.kw);
  if (p.layout == Layout::nhwc) {
    // A vector of channels walks a whole image where that and its output stay in the L2: its taps are then loaded once.
    // Larger images go by bands of a few rows over all channels, so that memory is read in order.
    const int64_t image_bytes = (p.ic * p.ih * p.iw + p.oc * p.oh * p.ow) * 4;
    b.mr = leaf.pixels;
    b.nr = leaf.lanes;
    b.mc = image_bytes <= machine.l2_bytes ? p.oh : std::min<int64_t>(p.oh, kBandRows);
    plan.packed_bytes = round_up(p.oc, leaf.lanes) * taps * 4;
    plan.pack_tag = "depthwise channels" + std::to_string(leaf.lanes) + " " + shape;
  } else {
    b.mr = leaf.rows * leaf.lanes;
    b.nr = 1;
    b.mc = p.oh;
    plan.packed_bytes = p.oc * taps * 4;
    plan.pack_tag = "depthwise planes " + shape;
  }
}

void pack(const Plan& plan, const float* wei, void* packed, Worker& worker) {
  const Problem& p = plan.problem;
  const int64_t taps = p.kh * p.kw, lanes = p.layout == Layout::nhwc ? leaf_of(plan).lanes : 1;
  // hwio is [tap][oc]; the other two are [oc][tap], since one input channel makes them equal.
  const bool taps_first = p.weight_layout == WeightLayout::hwio;
  const int64_t channel_step = taps_first ? 1 : taps, tap_step = taps_first ? p.oc : 1;
  const Range mine = share(div_up(p.oc, lanes), worker.tid, worker.nthr);
  for (int64_t block = mine.begin; block < mine.end; ++block) {
    float* out = static_cast<float*>(packed) + block * taps * lanes;
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t l = 0; l < lanes; ++l) {
        const int64_t c = block * lanes + l;
        out[t * lanes + l] = c < p.oc ? wei[c * channel_step + t * tap_step] : 0.0f;
      }
  }
}

DepthwisePart part_of(const Problem& p, const Operands& args) {
  DepthwisePart d{};
  d.w = static_cast<const float*>(args.packed);
  d.bias = p.bias ? args.bias : nullptr;
  d.ic = p.ic, d.ih = p.ih, d.iw = p.iw, d.oc = p.oc, d.oh = p.oh, d.ow = p.ow;
  d.kh = p.kh, d.kw = p.kw, d.sh = p.sh, d.sw = p.sw, d.dh = p.dh, d.dw = p.dw, d.pt = p.pt, d.pl = p.pl;
  d.src_plane = args.src_plane_of(p), d.dst_plane = args.dst_plane_of(p);
  d.multiplier = p.ocg();
  d.relu = p.activation == Activation::relu;
  return d;
}

void set_image(DepthwisePart& d, const Problem& p, const Operands& args, int64_t image) {
  const int64_t out = image * p.oc * p.oh * p.ow;
  d.src = args.src + image * p.ic * p.ih * p.iw;
  d.dst = args.dst + out;
  d.residual = p.residual ? args.residual + out : nullptr;
}

// How much longer the longest share is than the mean one.
double imbalance(int64_t units, int64_t nthr) {
  return static_cast<double>(div_up(units, nthr) * nthr) / static_cast<double>(units);
}

void run_channels(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const DepthwiseUkernel& leaf = leaf_of(plan);
  const int64_t all_rows = p.n * p.oh, vectors = div_up(p.oc, leaf.lanes);
  Range rows = {0, all_rows}, channels = {0, vectors};
  if (imbalance(all_rows, worker.nthr) <= imbalance(vectors, worker.nthr) + 0.05) {
    rows = share(all_rows, worker.tid, worker.nthr);
  } else {
    channels = share(vectors, worker.tid, worker.nthr);
  }
  channels = {channels.begin * leaf.lanes, std::min(channels.end * leaf.lanes, p.oc)};
  DepthwisePart d = part_of(p, args);
  for (int64_t at = rows.begin; at < rows.end; at += d.rows) {
    const int64_t image = at / p.oh;
    set_image(d, p, args, image);
    d.row = at % p.oh;
    d.rows = std::min({plan.blocking.mc, rows.end - at, p.oh - d.row});
    d.channel = channels.begin;
    d.channels = channels.end - channels.begin;
    leaf.along_channels(&d);
  }
}

void run_planes(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const DepthwiseUkernel& leaf = leaf_of(plan);
  const Range mine = share(p.n * p.oc * p.oh, worker.tid, worker.nthr);
  DepthwisePart d = part_of(p, args);
  for (int64_t at = mine.begin; at < mine.end; at += d.channels * d.rows) {
    const int64_t plane = at / p.oh, left = mine.end - at;
    set_image(d, p, args, plane / p.oc);
    d.channel = plane % p.oc;
    d.row = at % p.oh;
    d.channels = 1;
    d.rows = std::min({plan.blocking.mc, left, p.oh - d.row});
    // Whole planes side by side in one call.
    if (d.rows == p.oh) d.channels = std::min(left / p.oh, p.oc - d.channel);
    leaf.along_row(&d);
  }
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  if (plan.problem.layout == Layout::nhwc) {
    run_channels(plan, args, worker);
  } else {
    run_planes(plan, args, worker);
  }
}

}  // namespace

extern const Algorithm conv_direct_depthwise = {
    Op::conv2d, "direct", "conv_direct_depthwise",     "cpu",   refuses, configure,
    pack,       run,      leaves_of<DepthwiseUkernel>, nullptr, false,   /*planes_apart=*/true};

}  // namespace fastconv
