// 1x1 convolution on planes (NCHW) by Strassen's seven products (strassen.cpp), with pixels in pairs as rows: for planes that do not fill
// vectors (14x14) and for stride 2. dst[oc, p] = act(bias[oc] + residual[oc, p] + sum_c src[c, p] wei[oc, c]).
// Operands: weights packed as strassen.cpp's. Scratch: the sums of a block of pixels in register tiles, [tile][product][ic / 2][mr].
// Preconditions: NCHW, no padding, one group, even numbers of channels and of output pixels, at most every other column.
// Pairs (Runs): pixel p and p + plane / 2; with a stride, pixels of two rows or of the two halves of a row. Bits depend neither on the batch
// nor on the threads.
// Blocking: tiles that fill 7/8 of the L2; panels outside, tiles inside. The first panel's tiles make their sums while they multiply them;
// all ask for the lines of the output, or of the residual, that they will end in, and ends transpose. The last panel's tiles, which have no
// weights to fetch, fetch a share of the next image: what the L2 does not keep of it waits in the L3.
// Tails: those of the leaf. Numerics: as strassen.cpp's; relative L2 1.1e-6 at 1024 channels. A value that is not finite reaches both pixels
// of its pair.
// Measured (two cores of a Zen 5, AVX-512, in ResNet-50, batch 1, two threads, of direct's time): 0.91 to 0.95 for 256 to 1024 and 1024 to 512
// at 14x14, 0.95 to 0.97 for 1024 to 256 and the strided ones; one thread 0.86 to 0.94; batch 16 256 to 1024 0.72, most of it for asking.
// Tried: sums made before the products, 1024 to 256 7 % slower; blocks of half the L2, 3 %; 56x56 this way, 1.1 to 1.2 of direct's time.
#include <algorithm>

#include "cpu/conv/strassen.h"

namespace fastconv {
namespace {

constexpr int64_t kMaxScratchBytes = 64 << 20;

// Pairs of output pixels, as runs of neighbours in an image.
struct Runs {
  int64_t count, length;     // of an image, in pairs
  int64_t src_odd, dst_odd;  // from a pair's even pixel to its odd one
  int64_t src_run, dst_run;  // from run to run
};

// With stride 1 the upper half of a plane is paired with the lower. Else a row with the next one, or where their number is odd its left half
// with its right.
Runs runs_of(const Problem& p) {
  const int64_t row = p.sh * p.iw;
  if (is_flat(p)) return {1, p.oh * p.ow / 2, p.oh * p.ow / 2, p.oh * p.ow / 2, 0, 0};
  const bool halves = p.ow % 2 == 0 && (p.oh % 2 || p.ow >= 28);
  if (halves) return {p.oh, p.ow / 2, p.ow / 2 * p.sw, p.ow / 2, row, p.ow};
  return {p.oh / 2, p.ow, row, p.ow, 2 * row, 2 * p.ow};
}

int64_t tile_of(const Problem& p, int64_t mr) {
  return odd_lines(kStrassenProducts * (p.ic / 2) * mr);
}

// Pairs of one block at least, and the bytes of their sums.
int64_t least_pairs(const Problem& p, int64_t mr) {
  return is_flat(p) ? mr : runs_of(p).length;
}
int64_t least_bytes(const Problem& p, int64_t mr) {
  return div_up(least_pairs(p, mr), mr) * tile_of(p, mr) * 4;
}

const char* refuses(const Problem& p, const Machine& machine) {
  if (p.layout != Layout::nchw) return "the layout is not NCHW";
  if (p.kh != 1 || p.kw != 1) return "the kernel is not 1x1";
  if (p.padded()) return "the input is padded";
  if (p.groups != 1) return "the channels are grouped";
  if (p.ic % 2 || p.oc % 2) return "a number of channels is odd";
  if (p.oh * p.ow % 2) return "the number of output pixels is odd";
  if (p.sw > 2) return "a column stride above 2";
  if (p.ic > kMostStrassenChannels) return "more than 1024 input channels";
  if (least_bytes(p, find_ukernel<StrassenUkernel>(machine.isa)->mr) > kMaxScratchBytes)
    return "the sums of an output row exceed 64 MiB of scratch";
  return nullptr;
}

void configure(Plan& plan, const Machine& machine) {
  const Problem& p = plan.problem;
  Blocking& b = plan.blocking;
  configure_strassen_weights(plan, machine);
  const Runs r = runs_of(p);
  const int64_t width = least_pairs(p, b.mr), bytes = least_bytes(p, b.mr);
  int64_t blocks = std::max<int64_t>(1, machine.l2_bytes / 8 * 7 / bytes);
  if (plan.packed_bytes <= machine.l2_bytes / 2) blocks = std::min<int64_t>(blocks, 2);
  b.mc = std::min(blocks * width, round_up(r.count * r.length, width));
  plan.scratch_bytes = b.mc / width * bytes;
}

void run(const Plan& plan, const Operands& args, Worker& worker) {
  const Problem& p = plan.problem;
  const Blocking& b = plan.blocking;
  const Runs r = runs_of(p);
  const int64_t src_plane = p.ih * p.iw, dst_plane = p.oh * p.ow;
  const int64_t image = r.count * r.length, total = p.n * image, size = kStrassenProducts * b.seg_k * b.nr;
  float* a = reinterpret_cast<float*>(worker.scratch);
  // Half register tiles: 98 pairs of a 14x14 image are 7 whole ones.
  const int64_t unit = b.flat ? div_up(b.mr, 2) : r.length;
  const Rectangle mine = split_work(plan, div_up(total, unit), b.panels, worker);
  const int64_t begin = mine.pixels.begin * unit, end = std::min(total, mine.pixels.end * unit);
  const auto count_at = [&](int64_t at) { return std::min({b.mc, end - at, image - at % image}); };
  StrassenPanel t{};
  t.a = t.a_made = a, t.a_tile = tile_of(p, b.mr), t.half = b.seg_k;
  t.a_from_k = src_plane, t.a_from_outer = r.src_run, t.a_from_pair = p.sw, t.a_from_odd = r.src_odd;
  t.dst_pair = 1, t.dst_odd = r.dst_odd, t.dst_right = p.oc / 2 * dst_plane, t.bias_right = p.oc / 2;
  t.dst_outer = r.dst_run, t.dst_column = dst_plane;
  t.relu = p.activation == Activation::relu;
  FetchList fetch(kStrassenProducts * b.seg_k);
  // Where a share of the next image ends, as large as that of the pairs before `at` in theirs. Past what this thread reads there is none.
  const int64_t planes = p.ic * src_plane, beyond = div_up(end, image) * planes;
  const auto next_image = [&](int64_t at) {
    return std::min(beyond, (at / image + 1) * planes + at % image * planes / image);
  };
  for (int64_t at = begin; at < end;) {
    const int64_t count = count_at(at), next = at + count, in_image = at % image;
    t.outer = b.flat ? 1 : count / r.length, t.inner = b.flat ? count : r.length;
    const int64_t row = in_image / r.length, x = in_image % r.length;
    const float* src = args.src + at / image * p.ic * src_plane + row * r.src_run + x * p.sw;
    const int64_t tiles = t.outer * div_up(t.inner, b.mr), place = at / image * p.oc * dst_plane + row * r.dst_run + x;
    for (int64_t u = mine.panels.begin; u < mine.panels.end; ++u) {
      const int64_t channel = u * b.nr, first = place + channel * dst_plane;
      t.b = static_cast<const float*>(args.packed) + u * size;
      t.a_from = u == mine.panels.begin ? src : nullptr;
      t.dst = args.dst + first;
      t.residual = p.residual ? args.residual + first : nullptr;
      t.bias = p.bias ? args.bias + channel : nullptr;
      t.n = std::min(b.nr, p.oc / 2 - channel);
      fetch.clear();
      if (u + 1 < mine.panels.end) {
        fetch.add_spread(t.b + size, size, tiles);
      } else if (b.flat && next_image(at) < next_image(next)) {
        fetch.add_spread(args.src + next_image(at), next_image(next) - next_image(at), tiles);
      }
      fetch.give(t);
      strassen_of(plan).panel(&t);
    }
    at = next;
  }
}

// Tiles end in turning themselves, which weighs more where sums are short than in NHWC. Measured on two cores of a Zen 5 with AVX-512.
bool prefers_not(const Problem& p, const Machine& machine) {
  if (p.ic < 64 || p.oh * p.ow < 128) return true;
  return strassen_share(p, *find_ukernel<StrassenUkernel>(machine.isa), 6) > 0.94;
}

}  // namespace

extern const Algorithm conv_strassen_tiles = {Op::conv2d,
                                              "strassen",
                                              "conv_strassen_tiles",
                                              "cpu",
                                              refuses,
                                              configure,
                                              pack_strassen_weights,
                                              run,
                                              leaves_of<StrassenUkernel>,
                                              prefers_not,
                                              true};

}  // namespace fastconv
