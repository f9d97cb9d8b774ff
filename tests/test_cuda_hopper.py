"""The wgmma convolution: where everything lies, checked by its definition, and the kernel with each of its tiles.

On the host (`shim`) the copy engine, the barriers and the products of a warpgroup are those of
tests/cuda_on_cpu/hopper_on_cpu.cpp. First of all on a GPU: `pytest -m gpu tests/test_cuda_hopper.py -x`; the cases go
from one tile with one step to everything at once, so that the first one to fail says where to look.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import reference
from cases import RESNET50_CONVS
from cuda_backend import rounded
from cuda_raw import BACKENDS, Raw, raw


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Raw:
    return raw(str(request.param), "sm_90")


@pytest.fixture
def hopper() -> Any:
    return raw("shim").module.hopper


# --- shared memory, descriptors, registers ---


def test_swizzle_moves_units_of_16_bytes_within_rows_of_128(hopper: Any) -> None:
    for row in range(64):
        for unit in range(8):
            for byte in (0, 15):
                expected = row * 128 + ((unit ^ (row % 8)) * 16) + byte
                assert hopper.swizzled(row * 128 + unit * 16 + byte) == expected


def test_matrix_descriptor_fields(hopper: Any) -> None:
    for address in (0x400, 0x1_0000, 0x2_5C00, 0x3_8C00):
        for step in range(4):
            d = hopper.advance_k16(hopper.matrix_descriptor(address), step)
            assert (d & 0x3FFF) << 4 == address + 32 * step
            assert (d >> 14) & 3 == 0
            assert (d >> 32) & 0x3FFF == 1024 >> 4  # from 8 rows to the next 8
            assert (d >> 46) & 7 == 0 and (d >> 49) & 7 == 0  # base offset: atoms start at multiples of 1024
            assert d >> 62 == 1  # 128-byte swizzle


def test_rows_of_a_tile_by_descriptor_are_rows_by_swizzle(hopper: Any) -> None:
    """What the products read at (row, k) is what the copy engine wrote there, for every 16-byte unit."""
    base = 0x4400 // 1024 * 1024
    for step in range(4):
        start = (hopper.advance_k16(hopper.matrix_descriptor(base), step) & 0x3FFF) << 4
        for row in range(64):
            for half in range(2):
                address = start + row // 8 * 1024 + row % 8 * 128 + half * 16
                read = address ^ ((address >> 7 & 7) << 4)
                assert read - base == hopper.swizzled(row * 128 + step * 32 + half * 16)


def test_accumulators_cover_a_tile_once(hopper: Any) -> None:
    for n in (32, 64, 128, 256):
        seen = {hopper.accumulator_position(t, i) for t in range(128) for i in range(n // 2)}
        assert seen == {(r, c) for r in range(64) for c in range(n)}
    # A few of the PTX ISA's figure: thread 0 holds (0, 0), (0, 1), (8, 0), (8, 1), (0, 8) ...
    assert [hopper.accumulator_position(0, i) for i in range(5)] == [(0, 0), (0, 1), (8, 0), (8, 1), (0, 8)]
    assert hopper.accumulator_position(33, 2) == (24, 2)
    assert hopper.accumulator_position(127, 7) == (63, 15)


def test_quad_transpose(hopper: Any) -> None:
    """Four lanes in lock-step: lane q ends with what every lane p held for group q, in the order of p."""
    held = [[(lane, group) for group in range(4)] for lane in range(4)]
    for step in range(2):
        sent: dict[tuple[int, int], Any] = {}
        places: dict[tuple[int, int], int] = {}
        for q in range(4):
            for couple in range(2):
                low, high, sends_high = hopper.transpose_step(step, couple, q)
                places[q, couple] = high if sends_high else low
                sent[q, couple] = held[q][places[q, couple]]
        for q in range(4):
            for couple in range(2):
                held[q][places[q, couple]] = sent[q ^ (1 << step), couple]
    assert held == [[(p, q) for p in range(4)] for q in range(4)]


def test_pipeline_never_fills_a_stage_in_use(hopper: Any) -> None:
    """Producer and consumer by the slots of the kernel, barriers as the PTX ISA has them, in many interleavings."""
    rng = np.random.default_rng(0)
    for stages in (1, 3, 4, 8):
        slots = hopper.pipeline_slots(stages, 50)
        for _ in range(20):
            full, empty = [0] * stages, [0] * stages  # completed phases
            content: list[int | None] = [None] * stages
            produced = consumed = 0
            while consumed < len(slots):
                if produced < len(slots) and rng.random() < 0.5:
                    stage, parity = slots[produced]
                    if empty[stage] % 2 != parity ^ 1:  # phase of parity ^ 1 has ended
                        assert content[stage] is None, "a stage is filled that is not free"
                        content[stage] = produced
                        full[stage] += 1
                        produced += 1
                else:
                    stage, parity = slots[consumed]
                    if full[stage] % 2 != parity:
                        assert content[stage] == consumed
                        content[stage] = None
                        empty[stage] += 1
                        consumed += 1


def test_split_ranges_cover_the_reduction(hopper: Any) -> None:
    for steps in (1, 2, 7, 9, 36, 72):
        for split in (1, 2, 4, 8):
            if split > steps:
                continue
            ranges = [hopper.split_range(steps, split, rank) for rank in range(split)]
            assert ranges[0][0] == 0 and ranges[-1][1] == steps
            assert all(begin < end for begin, end in ranges)
            assert all(a[1] == b[0] for a, b in pairwise(ranges))


def test_workaround_of_old_drivers(hopper: Any) -> None:
    assert hopper.clears_large_tensor_mark(13010, 131071)
    assert not hopper.clears_large_tensor_mark(13010, 131072)
    assert not hopper.clears_large_tensor_mark(13020, 1)


# --- the copy engine's coordinates ---


@dataclass(frozen=True)
class Geometry:
    n: int
    ih: int
    iw: int
    ic: int
    kh: int
    kw: int
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)


GEOMETRIES = [
    Geometry(1, 5, 7, 64, 3, 3, pads=(1, 1, 1, 1)),
    Geometry(3, 6, 5, 8, 3, 3, (2, 2), (1, 1, 1, 1)),
    Geometry(2, 7, 7, 72, 3, 3, (2, 2), (1, 1, 1, 1)),
    Geometry(5, 9, 4, 64, 1, 1, (2, 2)),
    Geometry(2, 8, 11, 16, 5, 3, (1, 2), (2, 1, 0, 2)),
    Geometry(2, 10, 9, 128, 3, 2, (3, 1), (0, 2, 1, 0), (2, 3)),
    Geometry(1, 20, 20, 64, 7, 7, (2, 2), (3, 3, 3, 3)),
    # One output row or column of an image with room for more: the stride no longer says that the others are left out.
    Geometry(3, 2, 2, 64, 3, 3, (2, 2), (1, 1, 1, 1)),
    Geometry(3, 2, 2, 64, 1, 1, (2, 2)),
    Geometry(3, 4, 3, 64, 1, 1, (1, 4)),
    Geometry(3, 3, 8, 64, 2, 2, (2, 1), (1, 0, 0, 0)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_im2col_loads_bring_the_patches(hopper: Any, geometry: Geometry) -> None:
    """The pixels that an im2col load visits, by the PTX ISA's rules, are those of the convolution's definition."""
    g = geometry
    image = (g.n, g.ih, g.iw, g.ic)
    kernel = (8, g.kh, g.kw, g.ic)
    engine, loads = hopper.im2col(image, kernel, g.stride, g.pads, g.dilation, 1)
    assert engine["extent"] == [g.ic, g.iw, g.ih, g.n]
    assert engine["bytes"] == [2 * g.ic, 2 * g.ic * g.iw, 2 * g.ic * g.iw * g.ih]
    oh = reference.conv_output_size(g.ih, g.kh, g.stride[0], g.pads[:2], g.dilation[0])
    ow = reference.conv_output_size(g.iw, g.kw, g.stride[1], g.pads[2:], g.dilation[1])
    assert engine["stride"][1] in (g.stride[1], 1) if ow == 1 else engine["stride"][1] == g.stride[1]
    assert engine["stride"][2] in (g.stride[0], 1) if oh == 1 else engine["stride"][2] == g.stride[0]
    assert engine["stride"][::3] == [1, 1]
    (low_w, low_h), (up_w, up_h) = engine["lower"], engine["upper"]
    taps = [(c, s, r) for r in range(g.kh) for s in range(g.kw) for c in range(0, g.ic, 64)]
    for tile, steps in enumerate(loads):
        assert len(steps) == len(taps)
        for (channel, s, r), (c, w, h, n, offset_w, offset_h) in zip(taps, steps, strict=True):
            assert c == channel and 0 <= offset_w < 256 and 0 <= offset_h < 256
            for i in range(engine["pixels"]):
                pixel = tile * engine["pixels"] + i
                image_at, y, x = pixel // (oh * ow), pixel // ow % oh, pixel % ow
                if image_at < g.n:
                    assert (n, h + offset_h, w + offset_w) == (
                        image_at,
                        y * g.stride[0] - g.pads[0] + r * g.dilation[0],
                        x * g.stride[1] - g.pads[2] + s * g.dilation[1],
                    )
                else:
                    assert n >= g.n
                w += engine["stride"][1]
                if w > g.iw - 1 + up_w:
                    w, h = low_w, h + engine["stride"][2]
                    if h > g.ih - 1 + up_h:
                        h, n = low_h, n + 1


# --- which tile ---


@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("case", [c for c in RESNET50_CONVS if c.ic % 8 == 0], ids=lambda c: c.name)
def test_every_layer_of_resnet50_has_a_tile(hopper: Any, case: Any, batch: int) -> None:
    rows, columns = case.sides
    image, kernel = (batch, case.ih, case.iw, case.ic), (case.oc, case.kh, case.kw, case.ic)
    variant, split, blocks, tiles, steps = hopper.choice(image, kernel, case.stride, (*rows, *columns))
    tile = hopper.tiles()[variant]
    oh, ow = case.output_size
    assert tiles == -(-batch * oh * ow // tile["m"]) * -(-case.oc // tile["n"])
    assert steps == case.kh * case.kw * -(-case.ic // 64)
    assert split in (1, 2, 4, 8) and split <= steps and (split == 1 or tile["groups"] == 1)
    assert blocks == tiles * split if split > 1 else blocks == min(tiles, 132 * tile["blocks_per_sm"])
    if batch == 1:
        assert blocks >= 48  # no layer leaves most of the device idle
    if batch == 256:
        assert split == 1 and tile["m"] == 128


def test_tiles_fit_the_device(hopper: Any) -> None:
    for tile in hopper.tiles():
        assert tile["m"] == 64 * tile["groups"] and tile["n"] % 32 == 0 and tile["n"] <= 256
        assert tile["threads"] == 128 * tile["groups"] + 32
        assert tile["stage_bytes"] % 1024 == 0 and tile["m"] * 128 % 1024 == 0
        assert tile["shared_bytes"] <= 227 << 10
        assert tile["blocks_per_sm"] * (tile["shared_bytes"] + 1024) <= 228 << 10
        # A split tile's sums lie over the stages.
        assert tile["m"] * tile["partial_row"] * 4 <= tile["stages"] * tile["stage_bytes"] or tile["groups"] > 1
        assert tile["partial_row"] % 32 == 8


# --- the kernel ---


@dataclass(frozen=True)
class Run:
    name: str
    geometry: Geometry
    oc: int
    bias: bool = False
    residual: bool = False
    activation: str | None = None


RUNS = [
    Run("one_step", Geometry(1, 8, 8, 64, 1, 1), 32),
    Run("matrix_tails", Geometry(3, 5, 5, 72, 1, 1), 40),
    Run("taps", Geometry(1, 8, 8, 64, 3, 3, pads=(1, 1, 1, 1)), 32),
    Run("images_strided", Geometry(3, 9, 7, 72, 3, 3, (2, 2), (1, 1, 1, 1)), 40, True),
    Run("subsampled", Geometry(3, 9, 9, 192, 1, 1, (2, 2)), 24, True, True, "relu"),
    Run("uneven", Geometry(2, 10, 9, 16, 3, 2, (3, 1), (0, 2, 1, 0), (2, 3)), 264, True, True, "relu"),
    Run("one_pixel_of_four", Geometry(5, 2, 2, 64, 1, 1, (2, 2)), 32),
    Run("one_window_of_four", Geometry(5, 2, 2, 64, 3, 3, (2, 2), (1, 1, 1, 1)), 32),
    Run("many_tiles", Geometry(2, 12, 13, 136, 2, 2, pads=(1, 0, 0, 1)), 72, True, True, "relu"),
]
# (variant, split): every tile, and every number of parts that it takes.
TILES = [(v, s) for v in range(3) for s in (1, 2, 4, 8)] + [(v, 1) for v in range(3, 6)]


def convolve(
    device: Raw, run: Run, dtype: str, rng: np.random.Generator, call: Any, integers: bool = True
) -> tuple[Any, Any]:
    """(result, float64 reference) of one run on values that `dtype` holds exactly."""
    g = run.geometry
    image, kernel = (g.n, g.ih, g.iw, g.ic), (run.oc, g.kh, g.kw, g.ic)
    make = (lambda shape: rng.integers(-2, 3, shape)) if integers else rng.standard_normal
    x, w = rounded(make(image), dtype), rounded(make(kernel), dtype)
    if integers:  # sums small enough to be stored exactly
        x[rng.random(image) < 0.9] = 0
    bias = rounded(make((run.oc,)), dtype) if run.bias else None
    oh = reference.conv_output_size(g.ih, g.kh, g.stride[0], g.pads[:2], g.dilation[0])
    ow = reference.conv_output_size(g.iw, g.kw, g.stride[1], g.pads[2:], g.dilation[1])
    shape = (g.n, oh, ow, run.oc)
    residual = rounded(make(shape), dtype) if run.residual else None
    expected = reference.conv2d(
        x,
        w,
        bias,
        stride=g.stride,
        padding=((g.pads[0], g.pads[1]), (g.pads[2], g.pads[3])),
        dilation=g.dilation,
        residual=residual,
        activation=run.activation,
        layout="NHWC",
        weight_layout="OHWI",
    )
    out = device.put(np.full(shape, np.nan, np.float32), dtype)
    call(
        device.put(x, dtype),
        device.put(w, "float32"),
        None if bias is None else device.put(bias, "float32"),
        None if residual is None else device.put(residual, dtype),
        out,
    )
    return device.get(out), expected


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"tile{t[0]}_split{t[1]}")
@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.name)
def test_kernel_on_integers(device: Raw, rng: np.random.Generator, run: Run, tile: tuple[int, int]) -> None:
    g, (variant, split) = run.geometry, tile
    if split > g.kh * g.kw * -(-g.ic // 64):
        pytest.skip("fewer steps than parts")
    dtype = "bfloat16" if (variant + split) % 2 else "float16"

    def call(x: Any, w: Any, bias: Any, residual: Any, out: Any) -> None:
        device.module.hopper.conv2d_with_tile(
            x, w, bias, residual, out, g.stride, g.pads, g.dilation, run.activation, device.stream, variant, split
        )

    actual, expected = convolve(device, run, dtype, rng, call)
    reference.assert_exact(actual, rounded(expected, dtype))


def plain_call(device: Raw, run: Run, algorithm: str) -> Any:
    g = run.geometry

    def call(x: Any, w: Any, bias: Any, residual: Any, out: Any) -> None:
        weight = w
        if x.dtype != w.dtype:  # the op takes one dtype
            weight = device.put(device.get(w), x.dtype)
        used = device.module.conv2d(
            x.shape, weight.shape, x, weight, bias, residual, out, g.stride, g.pads, g.dilation, 1, "NHWC", "OHWI",
            [algorithm], run.activation, "float32", device.stream,
        )  # fmt: skip
        assert used == "implicit_gemm_wgmma" or algorithm != "implicit_gemm_wgmma"

    return call


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("run", RUNS, ids=lambda r: r.name)
def test_op_on_random_values(device: Raw, rng: np.random.Generator, run: Run, dtype: str) -> None:
    call = plain_call(device, run, "implicit_gemm_wgmma")
    actual, expected = convolve(device, run, dtype, rng, call, integers=False)
    reference.assert_rel_l2(actual, expected, {"float16": 1e-3, "bfloat16": 5e-3}[dtype])


def test_op_on_arrays_off_16_bytes(device: Raw, rng: np.random.Generator) -> None:
    """The plain kernel behind it, by the same packed weights."""
    run = Run("misaligned", Geometry(2, 6, 5, 24, 3, 3, (2, 1), (1, 0, 1, 1)), 16, True, True, "relu")
    plain = plain_call(device, run, "implicit_gemm_wgmma")

    def call(x: Any, w: Any, bias: Any, residual: Any, out: Any) -> None:
        moved = device.empty_misaligned(out.shape, out.dtype)
        plain(
            device.put_misaligned(device.get(x), x.dtype),
            w,
            bias,
            device.put_misaligned(device.get(residual), x.dtype),
            moved,
        )
        device.module.copy(moved, out, device.stream)

    actual, expected = convolve(device, run, "bfloat16", rng, call)
    reference.assert_exact(actual, rounded(expected, "bfloat16"))


def test_values_that_are_no_numbers(device: Raw, rng: np.random.Generator) -> None:
    """Infinite weights meet none of the zeros beyond the last channel; NaN passes the ReLU."""
    x = np.ones((1, 4, 4, 8), np.float32)
    w = np.zeros((8, 3, 3, 8), np.float32)
    w[0, 1, 1, 0] = np.inf
    w[1, 1, 1, 1] = np.nan
    w[2, 1, 1, :] = -1
    out = device.put(np.zeros((1, 4, 4, 8), np.float32), "bfloat16")
    pads = (1, 1, 1, 1)
    device.module.hopper.conv2d_with_tile(
        device.put(x, "bfloat16"), device.put(w), None, None, out, (1, 1), pads, (1, 1), "relu", device.stream, 0, 1
    )
    result = device.get(out)
    assert np.isposinf(result[..., 0]).all() and np.isnan(result[..., 1]).all()
    assert (result[..., 2:] == 0).all()


@pytest.mark.parametrize("split", [1, 4])
def test_repeats_bit_for_bit(device: Raw, rng: np.random.Generator, split: int) -> None:
    run = RUNS[-1]
    g = run.geometry

    def call(x: Any, w: Any, bias: Any, residual: Any, out: Any) -> None:
        results = []
        for _ in range(3):
            device.module.hopper.conv2d_with_tile(
                x, w, bias, residual, out, g.stride, g.pads, g.dilation, run.activation, device.stream, 1, split
            )
            results.append(device.get(out))
        assert all(np.array_equal(results[0], r) for r in results)

    convolve(device, run, "bfloat16", rng, call, integers=False)


def test_weights_in_every_layout(device: Raw, rng: np.random.Generator) -> None:
    x, w = rng.integers(-2, 3, (1, 6, 6, 16)), rng.integers(-2, 3, (8, 3, 2, 16))
    expected = reference.conv2d(x, w, layout="NHWC", weight_layout="OHWI")
    for layout, axes in {"OIHW": (0, 3, 1, 2), "OHWI": (0, 1, 2, 3), "HWIO": (1, 2, 3, 0)}.items():
        out = device.empty(expected.shape, "float16")
        weight = np.ascontiguousarray(w.transpose(axes))
        device.module.conv2d(
            x.shape, weight.shape, device.put(x, "float16"), device.put(weight, "float16"), None, None, out,
            (1, 1), (0, 0, 0, 0), (1, 1), 1, "NHWC", layout, ["implicit_gemm_wgmma"], None, "float32", device.stream,
        )  # fmt: skip
        reference.assert_exact(device.get(out), expected)


def explain(module: Any, dtype: str = "bfloat16", **changes: Any) -> Any:
    task: dict[str, Any] = {
        "input_shape": (2, 14, 14, 64), "weight_shape": (64, 3, 3, 64), "bias": True, "residual": False,
        "stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1, "layout": "NHWC",
        "weight_layout": "OHWI", "algorithms": ["auto"], "activation": "relu", "compute": "float32", "device": 1,
    }  # fmt: skip
    return module.explain_conv2d(**{**task, **changes}, dtype=dtype)


def test_who_is_refused_and_why() -> None:
    module = raw("shim").module
    # "auto" leaves it alone until it has run on a device.
    assert explain(module)["algorithm"] == "implicit_gemm"
    assert explain(module, algorithms=["implicit_gemm_wgmma", "auto"])["algorithm"] == "implicit_gemm_wgmma"
    only = {"algorithms": ["implicit_gemm_wgmma"]}
    for words, changes in [
        ("compute capability 9.0", {"device": 0}),
        ("float16 and bfloat16", {"dtype": "float32"}),
        ("NHWC", {"layout": "NCHW", "input_shape": (2, 64, 14, 14)}),
        ("multiple of 8", {"input_shape": (2, 14, 14, 12), "weight_shape": (64, 3, 3, 12)}),
        ("multiple of 8", {"weight_shape": (60, 3, 3, 64)}),
        ("groups", {"groups": 2, "weight_shape": (64, 3, 3, 32)}),
        ("strides up to 8", {"stride": (9, 1)}),
        ("taps up to 255", {"input_shape": (2, 200, 14, 64), "dilation": (128, 1), "padding": (0, 128, 1, 1)}),
    ]:
        with pytest.raises(NotImplementedError, match=words):
            explain(module, **{**only, **changes})


@pytest.mark.gpu
def test_one_resnet_layer_under_a_captured_graph(rng: np.random.Generator) -> None:
    """Two programmatic launches, recorded once and replayed: the second reads what the first wrote."""
    if os.environ.get("FASTCONV_SKIP_GRAPH"):
        pytest.skip("FASTCONV_SKIP_GRAPH is set")
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
    import fastconv as fc

    raw("gpu", "sm_90")
    x = torch.from_numpy(rng.integers(-1, 2, (1, 14, 14, 64)).astype(np.float32)).cuda().bfloat16()
    w = torch.from_numpy((rng.random((64, 3, 3, 64)) < 0.05).astype(np.float32)).cuda().bfloat16()
    options: dict[str, Any] = {
        "padding": 1,
        "layout": "NHWC",
        "weight_layout": "OHWI",
        "algorithm": "implicit_gemm_wgmma",
    }
    middle = fc.conv2d(x, w, **options)
    plain = fc.conv2d(middle, w, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = fc.conv2d(fc.conv2d(x, w, **options), w, **options)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(recorded, plain)
