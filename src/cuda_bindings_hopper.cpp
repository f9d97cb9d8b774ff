// The border to Python of what only tests and measurements of the wgmma convolution ask for: the functions that say where things lie, and
// a call that names its tile. Submodule `hopper`; no part of the library's contract.
#include "cuda/conv/tensor_map.h"
#include "cuda/conv/tiles_wgmma.h"
#include "cuda/device.h"
#include "cuda_bindings.h"

using namespace py::literals;

namespace fastconv::cuda::bindings {
namespace {

// Of a square or oblong convolution in NHWC, for the functions of tiles and coordinates.
Problem nhwc_problem(const Shape& input, const Shape& weight, Pair stride, Pads padding, Pair dilation) {
  return conv2d_problem(input, weight, -1, false, stride, padding, dilation, 1, Layout::nhwc, WeightLayout::ohwi,
                        Activation::none);
}

py::dict tile_facts(int variant) {
  const WgmmaTile& t = kWgmmaTiles[variant];
  return py::dict("name"_a = wgmma_tile_name(variant), "m"_a = t.m, "n"_a = t.n, "groups"_a = t.groups,
                  "stages"_a = t.stages, "blocks_per_sm"_a = t.blocks_per_sm, "threads"_a = wgmma_threads(t),
                  "stage_bytes"_a = stage_bytes(t), "shared_bytes"_a = wgmma_shared_bytes(t),
                  "partial_row"_a = partial_row(t));
}

py::list tiles() {
  py::list all;
  for (int v = 0; v < kWgmmaTileCount; ++v) all.append(tile_facts(v));
  return all;
}

// (variant, split, blocks of the grid, tiles, steps of the reduction) as planning would choose for an H200.
py::tuple choice(const Shape& input, const Shape& weight, Pair stride, Pads padding) {
  const Problem p = nhwc_problem(input, weight, stride, padding, {1, 1});
  const DeviceLimits device = assumed_limits();
  const Tile tile = choose_wgmma_tile(p, device);
  const WgmmaConv g = wgmma_conv(p, tile);
  return py::make_tuple(tile.variant, tile.split_k, wgmma_blocks(g, tile, device), g.tiles, g.kblocks);
}

// What the copy engine is told for an im2col load, and for each tile of pixels and step of the reduction the load's coordinates
// (c, w, h, n, s, r).
py::tuple im2col(const Shape& input, const Shape& weight, Pair stride, Pads padding, Pair dilation, int variant) {
  const Problem p = nhwc_problem(input, weight, stride, padding, dilation);
  const WgmmaTile& t = kWgmmaTiles[variant];
  const Im2colMap m = im2col_source_map(p, t.m);
  const WgmmaConv g = wgmma_conv(p, wgmma_tile(variant, 1));
  py::list loads;
  for (int tile = 0; tile < g.tiles; tile += g.tiles_n) {
    const PixelStart start = pixel_start(g, tile_origin(g, t, tile).pixel);
    py::list steps;
    Step step = step_at(g, 0);
    for (int k = 0; k < g.kblocks; ++k, step.advance(g)) {
      const Step same = step_at(g, k);
      if (same.channel != step.channel || same.s != step.s || same.r != step.r) bad("the two ways to a step differ");
      steps.append(py::make_tuple(step.channel, start.w, start.h, start.n, step.s * g.dw, step.r * g.dh));
    }
    loads.append(steps);
  }
  const auto list = [](const auto& values) {
    py::list l;
    for (const auto v : values) l.append(v);
    return l;
  };
  return py::make_tuple(py::dict("extent"_a = list(m.extent), "bytes"_a = list(m.bytes), "lower"_a = list(m.lower),
                                 "upper"_a = list(m.upper), "stride"_a = list(m.stride), "pixels"_a = m.pixels),
                        loads);
}

py::list pipeline_slots(int stages, int count) {
  py::list all;
  PipelineSlot slot;
  for (int i = 0; i < count; ++i, slot.advance(stages)) all.append(py::make_tuple(slot.stage, slot.parity));
  return all;
}

py::tuple position(int thread, int i) {
  const TilePosition at = accumulator_position(thread, i);
  return py::make_tuple(at.row, at.column);
}

// (low, high, whether lane q sends the high one) of a couple in a step of the quad's transpose.
py::tuple transpose_step(int step, int couple, int q) {
  return py::make_tuple(couple_low(step, couple), couple_high(step, couple), sends_high(step, q));
}

py::tuple range_of_split(int kblocks, int split, int rank) {
  const StepRange r = split_range(kblocks, split, rank);
  return py::make_tuple(r.begin, r.end);
}

// The convolution by the wgmma kernel with this tile; everything aligned and contiguous.
void conv2d_with_tile(const View& input, const View& weight, const View* bias, const View* residual, const View& out,
                      Pair stride, Pads padding, Pair dilation, const std::optional<std::string>& activation,
                      uintptr_t cuda_stream, int variant, int split) {
  Task task;
  task.problem = conv2d_problem(input.shape, weight.shape, bias ? bias->shape[0] : -1, residual != nullptr, stride,
                                padding, dilation, 1, Layout::nhwc, WeightLayout::ohwi, activation_of(activation));
  task.dtype = dtype_of(input, "input");
  require_shape(out, output_shape(task.problem), "out");
  if (residual) require_shape(*residual, out.shape, "residual");
  if (weight.element != Element::f32 || (bias && bias->element != Element::f32))
    bad("weight and bias must be float32 here");
  Plan plan = *make_plan(task, {"implicit_gemm_wgmma"}, device_limits(input.device));
  if (variant < 0 || variant >= kWgmmaTileCount || !wgmma_split_fits(task.problem, variant, split))
    bad("no such tile: " + std::to_string(variant) + " split " + std::to_string(split));
  plan.tile = wgmma_tile(variant, split);
  const cudaStream_t stream = stream_of(cuda_stream);
  const DeviceGuard guard(input.device);
  const Temporary packed(plan.packed_bytes, stream);
  plan.algorithm->pack(plan, static_cast<const float*>(weight.data), packed.data(), stream);
  Operands o;
  o.src = input.data, o.packed = packed.data(), o.dst = out.data;
  o.bias = bias ? static_cast<const float*>(bias->data) : nullptr;
  o.residual = residual ? residual->data : nullptr;
  plan.algorithm->run(plan, o, stream);
}

}  // namespace

void add_hopper(py::module_& module) {
  py::module_ m = module.def_submodule("hopper", "Internals of the wgmma convolution, for tests.");
  m.def("tiles", tiles);
  m.def("choice", choice, "input_shape"_a, "weight_shape"_a, "stride"_a, "padding"_a);
  m.def("im2col", im2col, "input_shape"_a, "weight_shape"_a, "stride"_a, "padding"_a, "dilation"_a, "variant"_a);
  m.def("swizzled", [](uint32_t offset) { return swizzled(offset); });
  m.def("matrix_descriptor", [](uint32_t address) { return matrix_descriptor(address); });
  m.def("advance_k16", [](uint64_t descriptor, int steps) { return advance_k16(descriptor, steps); });
  m.def("accumulator_position", position);
  m.def("transpose_step", transpose_step);
  m.def("pipeline_slots", pipeline_slots);
  m.def("split_range", range_of_split);
  m.def("clears_large_tensor_mark", clears_large_tensor_mark);
  m.def("conv2d_with_tile", conv2d_with_tile, "input"_a, "weight"_a, "bias"_a.none(true), "residual"_a.none(true),
        "out"_a, "stride"_a, "padding"_a, "dilation"_a, "activation"_a, "cuda_stream"_a, "variant"_a, "split"_a);
}

}  // namespace fastconv::cuda::bindings
