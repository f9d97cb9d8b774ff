"""Winograd convolution, stride 1 and 2: tails of tiles, vectors and panels, paddings, borders, when "auto" may take it,
the same bits however the work is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import F32, adds_beside, fenced, integers, max_isa, normal, run_python, usable_levels

ALGORITHMS = ["winograd_f23", "winograd_f43", "winograd_f23_fip", "winograd_f43_fip"]
KERNELS = {
    "conv_winograd_f23": (2, 1),
    "conv_winograd_f43": (4, 1),
    "conv_winograd_f23_stride2": (2, 2),
    "conv_winograd_f43_stride2": (4, 2),
    "conv_winograd_f23_fip": (2, 1),
    "conv_winograd_f43_fip": (4, 1),
    "conv_winograd_f23_fip_stride2": (2, 2),
    "conv_winograd_f43_fip_stride2": (4, 2),
}
"""Side of the output tile, and the stride."""

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def check(
    rng: np.random.Generator,
    kernel: str,
    layout: str,
    sizes: tuple[int, int, int, int, int],
    padding: Any = 1,
    weight_layout: str = "OIHW",
    epilogue: bool = False,
) -> None:
    """sizes: n, ic, ih, iw, oc. Exact for F(2,3), near float64 for F(4,3)."""
    n, ic, ih, iw, oc = sizes
    _, stride = KERNELS[kernel]
    x, w = integers(rng, n, ic, ih, iw), integers(rng, oc, ic, 3, 3)
    more: dict[str, Any] = {}
    plain = ref.conv2d(x, w, stride=stride, padding=padding)
    if epilogue:
        residual = integers(rng, *plain.shape)
        more = {"bias": integers(rng, oc), "residual": residual, "activation": "relu"}
    expected = ref.from_nchw(ref.conv2d(x, w, stride=stride, padding=padding, **more), layout)
    if epilogue:
        more["residual"] = np.ascontiguousarray(ref.from_nchw(more["residual"], layout))
    actual = fc.conv2d(
        np.ascontiguousarray(ref.from_nchw(x, layout)),
        np.ascontiguousarray(ref.weight_from_oihw(w, weight_layout)),
        stride=stride,
        padding=padding,
        layout=layout,
        weight_layout=weight_layout,
        algorithm=kernel,
        **more,
    )
    if np.any(expected):
        ref.assert_conv(actual, expected, kernel)


@every_kernel
@pytest.mark.parametrize("height", range(1, 14))
def test_heights_and_widths(kernel: str, height: int, isa: str, layout: str, rng: np.random.Generator) -> None:
    for width in range(1, 14):
        check(rng, kernel, layout, (1, 5, height, width, 9), epilogue=width % 2 == 1)


@every_kernel
@pytest.mark.parametrize("ic", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 70])
def test_channels(kernel: str, ic: int, isa: str, layout: str, rng: np.random.Generator) -> None:
    for oc, weight_layout in zip((1, 4, 8, 16, 31, 33, 64, 70), itertools.cycle(("OIHW", "OHWI", "HWIO"))):
        check(rng, kernel, layout, (1, ic, 5, 6, oc), weight_layout=weight_layout, epilogue=oc % 2 == 1)


@every_kernel
def test_paddings(kernel: str, isa: str, layout: str, rng: np.random.Generator) -> None:
    for top, bottom, left, right in itertools.product(range(3), repeat=4):
        check(rng, kernel, layout, (1, 3, 4, 6, 5), ((top, bottom), (left, right)))
    check(rng, kernel, layout, (1, 3, 4, 6, 5), ((7, 9), (13, 8)))
    check(rng, kernel, layout, (2, 3, 1, 1, 5), ((40, 1), (1, 70)))


@every_kernel
@pytest.mark.parametrize("width", [27, 28, 29, 30, 31, 32, 33, 34, 55, 56, 57, 58, 64, 66, 70])
def test_strips(kernel: str, width: int, isa: str, layout: str, rng: np.random.Generator) -> None:
    """Around the output columns that are transformed together: 28, with stride 2 14 and 16."""
    for pads in (((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (0, 2))):
        check(rng, kernel, layout, (1, 17, 9, width, 18), pads, epilogue=True)


@every_kernel
def test_batches(kernel: str, isa: str, layout: str, rng: np.random.Generator) -> None:
    """Groups of tiles that span images and begin inside of a row."""
    check(rng, kernel, layout, (5, 6, 7, 7, 33), epilogue=True)
    check(rng, kernel, layout, (5, 64, 14, 13, 40))
    check(rng, kernel, layout, (33, 16, 3, 3, 16))


@every_kernel
def test_reads_and_writes_nothing_outside(kernel: str, isa: str, layout: str, rng: np.random.Generator) -> None:
    _, stride = KERNELS[kernel]
    for n, ic, size, oc in ((1, 5, 7, 9), (2, 16, 14, 33), (1, 33, 29, 16)):
        x, w = integers(rng, n, ic, size, size), integers(rng, oc, ic, 3, 3)
        expected = ref.from_nchw(ref.conv2d(x, w, stride=stride, padding=1), layout)
        out, intact = fenced(np.full(expected.shape, np.nan, np.float32), fence=7.0)
        fc.conv2d(
            fenced(np.ascontiguousarray(ref.from_nchw(x, layout)))[0],
            fenced(w)[0],
            stride=stride,
            padding=1,
            layout=layout,
            weight_layout="OIHW",
            algorithm=kernel,
            out=out,
        )
        ref.assert_conv(out, expected, kernel)
        assert intact()


# --- numerics ---------------------------------------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize(("size", "channels"), [(28, 64), (14, 256), (7, 512)])
def test_error_against_float64(kernel: str, size: int, channels: int, layout: str, rng: np.random.Generator) -> None:
    """Normal input, and as behind a ReLU without its negative half; at each ISA level but the slow one."""
    _, stride = KERNELS[kernel]
    size *= stride
    w = normal(rng, 64, channels, 3, 3)
    for x in (normal(rng, 1, channels, size, size), np.maximum(normal(rng, 1, channels, size, size), 0)):
        expected = ref.from_nchw(ref.conv2d(x, w, stride=stride, padding=1), layout)
        view = np.ascontiguousarray(ref.from_nchw(x, layout))
        for level in [level for level in usable_levels() if level != "scalar"]:
            with max_isa(level):
                y = fc.conv2d(view, w, stride=stride, padding=1, layout=layout, weight_layout="OIHW", algorithm=kernel)
            ref.assert_rel_l2(y, expected, ref.conv_tolerance(kernel))


@every_kernel
@pytest.mark.parametrize(("size", "row", "column"), [(16, 6, 9), (14, 12, 9), (14, 13, 13), (10, 4, 8)])
def test_a_value_that_is_not_finite_stays_in_its_tiles(
    kernel: str, size: int, row: int, column: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    """It may reach any output of the tiles whose input holds it, and no other; the rest keeps its bits."""
    out, stride = KERNELS[kernel]
    x, w = normal(rng, 1, 5, size, size), normal(rng, 7, 5, 3, 3)
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    options: dict[str, Any] = {
        "stride": stride,
        "padding": 1,
        "layout": layout,
        "weight_layout": "OIHW",
        "algorithm": kernel,
    }
    clean = ref.to_nchw(np.asarray(fc.conv2d(view, w, **options)), layout)
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[0, 2, row, column] = value
        y = ref.to_nchw(np.asarray(fc.conv2d(np.ascontiguousarray(ref.from_nchw(bad, layout)), w, **options)), layout)
        pixels = range(size // stride)
        touched = np.zeros((len(pixels), len(pixels)), bool)
        for i, j in itertools.product(pixels[::out], repeat=2):
            reads = [range(stride * first - 1, stride * (first + out - 1) + 2) for first in (i, j)]
            if row in reads[0] and column in reads[1]:
                touched[i : i + out, j : j + out] = True
        assert np.array_equal(y[:, :, ~touched], clean[:, :, ~touched])
        for i, j in itertools.product(pixels, repeat=2):
            if abs(stride * i - row) <= 1 and abs(stride * j - column) <= 1:
                assert not np.isfinite(y[:, :, i, j]).any()


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.endswith("stride2")])
def test_what_no_window_holds_changes_nothing(kernel: str, isa: str, layout: str, rng: np.random.Generator) -> None:
    """With stride 2 the last row and column may be read by nothing, and the last tile may be cut."""
    for size in (6, 8, 10, 12, 34):
        x, w = normal(rng, 1, 5, size, size), normal(rng, 7, 5, 3, 3)
        view = np.ascontiguousarray(ref.from_nchw(x, layout))
        options: dict[str, Any] = {"stride": 2, "layout": layout, "weight_layout": "OIHW", "algorithm": kernel}
        clean = fc.conv2d(view, w, **options)
        x[:, :, -1] = x[:, :, :, -1] = np.nan
        _same(fc.conv2d(np.ascontiguousarray(ref.from_nchw(x, layout)), w, **options), clean)


# --- the same bits ----------------------------------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize(
    ("n", "ic", "size", "oc"), [(3, 64, 14, 40), (2, 40, 29, 70), (3, 128, 7, 130), (1, 16, 56, 32)]
)
def test_same_bits_for_any_threads_and_batch(
    kernel: str, n: int, ic: int, size: int, oc: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    x, w, b = normal(rng, n, ic, size, size), normal(rng, oc, ic, 3, 3), normal(rng, oc)
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    _, stride = KERNELS[kernel]
    conv = fc.Conv2d(w, b, stride, padding=1, layout=layout, weight_layout="OIHW", algorithm=kernel, activation="relu")
    with fc.threads(1):
        expected = conv(view)
    for threads in (2, 3, 4):
        with fc.threads(threads):
            _same(conv(view), expected)
    for image in range(n):
        _same(conv(view[image : image + 1])[0], expected[image])
    _same(conv(np.concatenate([view[:1], view]))[1:], expected)


@every_kernel
@pytest.mark.parametrize(
    ("height", "width"),
    [(14, 16), (16, 14), (13, 14), (14, 15), (2, 14), (14, 1), (7, 8), (8, 7), (1, 9), (9, 2), (2, 2)],
)
def test_tiles_ragged_in_one_direction_or_both(
    kernel: str, height: int, width: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    """Heights and widths are those of the output. Groups of tiles are sorted by kind, and begin and end anywhere."""
    _, stride = KERNELS[kernel]
    h, w = height * stride, width * stride
    check(rng, kernel, layout, (5, 17, h, w, 35), epilogue=True)
    x, weight = normal(rng, 9, 48, h, w), normal(rng, 70, 48, 3, 3)
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    conv = fc.Conv2d(weight, stride=stride, padding=1, layout=layout, weight_layout="OIHW", algorithm=kernel)
    with fc.threads(1):
        expected = conv(view)
    for threads in (2, 3, 4, 8):
        with fc.threads(threads):
            _same(conv(view), expected)
            for image in (0, 8):
                _same(conv(view[image : image + 1])[0], expected[image])


def test_ragged_tiles_have_no_larger_error_than_whole_ones(layout: str, rng: np.random.Generator) -> None:
    """F(4,3): the last two rows and columns of 14 are computed at fewer points."""
    x, w = normal(rng, 1, 256, 14, 14), normal(rng, 64, 256, 3, 3)
    expected = ref.conv2d(x, w, padding=1)
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    y = fc.conv2d(view, w, padding=1, layout=layout, weight_layout="OIHW", algorithm="conv_winograd_f43")
    error = np.square(ref.to_nchw(np.asarray(y), layout) - expected).mean((0, 1))
    assert error[12:, :12].mean() < error[:12, :12].mean()
    assert error[:12, 12:].mean() < error[:12, :12].mean()
    assert error[12:, 12:].mean() < error[:12, :12].mean()


def _same(actual: F32, expected: F32) -> None:
    assert np.array_equal(actual.view(np.uint32), expected.view(np.uint32))


# --- choice -----------------------------------------------------------------------------------------------------------

LARGE = ((1, 64, 56, 56), (64, 64, 3, 3))


def chosen(winograd: bool = True, algorithm: Any = "auto", stride: int = 1) -> str:
    shape, weight = LARGE
    conv = fc.Conv2d(np.zeros(weight, np.float32), stride=stride, padding=1, algorithm=algorithm, winograd=winograd)
    return str(conv.explain(shape)["algorithm"])


def test_auto_takes_winograd_where_it_pays() -> None:
    """By the inner product where additions go beside products: test_fip.py."""
    with adds_beside(False):
        assert chosen() == "winograd_f43"
        assert chosen(stride=2) == "winograd_f43"
    assert chosen(stride=3) == "direct"
    few = fc.Conv2d(np.zeros((4, 3, 3, 3), np.float32), padding=1).explain((1, 3, 56, 56))
    assert few["algorithm"] == "direct"
    assert any("winograd" in name and "faster" in reason for name, reason in few["refused"].items())


@pytest.mark.parametrize("stride", [1, 2])
def test_the_choice_does_not_depend_on_the_batch(stride: int) -> None:
    for ic, size in ((64, 56), (128, 28), (256, 14), (512, 7), (32, 9), (16, 30), (128, 56), (256, 28), (512, 14)):
        conv = fc.Conv2d(np.zeros((ic, ic, 3, 3), np.float32), stride=stride, padding=1)
        assert len({str(conv.explain((n, ic, size, size))["algorithm"]) for n in (1, 2, 16, 100)}) == 1


def test_kernels_of_one_name_share_out_the_strides() -> None:
    """With one output the stride means nothing; with one row only that of the columns does."""
    w = np.zeros((4, 4, 3, 3), np.float32)
    for (kernel, (_, own)), stride in itertools.product(KERNELS.items(), (1, 2)):
        name = kernel.removeprefix("conv_").removesuffix("_stride2")
        for shape in ((1, 4, 9, 9), (1, 4, 3, 9), (1, 4, 9, 3)):
            plan = fc.explain("conv2d", shape, w.shape, stride=stride, algorithm=name)
            assert (plan["kernel"] == kernel) == (stride == own)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stride": 3}, "the stride is not 1.*the stride is not 2"),
        ({"stride": (1, 2)}, "the stride is not 1.*the stride is not 2"),
        ({"stride": (2, 1)}, "the stride is not 1.*the stride is not 2"),
        ({"dilation": 2}, "dilation"),
        ({"dilation": 2, "stride": 2}, "dilation"),
        ({"groups": 2}, "grouped"),
        ({"groups": 2, "stride": 2}, "grouped"),
    ],
)
@every_algorithm
def test_refusals(algorithm: str, options: dict[str, Any], reason: str) -> None:
    x, w = np.zeros((1, 4, 9, 9), np.float32), np.zeros((4, 4 // options.get("groups", 1), 3, 3), np.float32)
    with pytest.raises(NotImplementedError, match=reason):
        fc.conv2d(x, w, algorithm=algorithm, **options)
    with pytest.raises(NotImplementedError, match="3x3"):
        fc.conv2d(x, np.zeros((4, 4, 3, 1), np.float32), algorithm=algorithm)


def test_winograd_may_be_forbidden_to_auto() -> None:
    assert chosen(winograd=False) == "direct"
    assert chosen(winograd=False, stride=2) == "direct"
    assert chosen(winograd=False, algorithm="winograd_f23") == "winograd_f23"
    shape, weight = LARGE
    plan = fc.explain("conv2d", shape, weight, padding=1, winograd=False)
    assert plan["algorithm"] == "direct"
    assert any("winograd" in name and "not wanted" in text for name, text in plan["refused"].items())
    net = fc.models.resnet18(winograd=False)
    assert not net.winograd
    assert not any("winograd" in row["kernel"] for row in net.summary().rows)
    assert any("winograd" in row["kernel"] for row in fc.models.resnet18().summary().rows)


def test_winograd_must_be_a_bool() -> None:
    x, w = np.zeros((1, 4, 9, 9), np.float32), np.zeros((4, 4, 3, 3), np.float32)
    with pytest.raises(TypeError, match="winograd"):
        fc.conv2d(x, w, winograd=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="winograd"):
        fc.Conv2d(w, winograd="no")  # type: ignore[arg-type]


def test_environment() -> None:
    code = (
        "import numpy as np, fastconv as fc\n"
        "w = np.zeros((64, 64, 3, 3), np.float32)\n"
        "for a in ('auto', 'winograd_f43'):\n"
        "    for s in (1, 2):\n"
        "        plan = fc.Conv2d(w, stride=s, padding=1, algorithm=a).explain((1, 64, 56, 56))\n"
        "        print(plan['algorithm'].removesuffix('_fip'))\n"
    )
    for value, expected in (("0", "direct"), ("1", "winograd_f43"), ("", "winograd_f43")):
        done = run_python(code, env={"FASTCONV_WINOGRAD": value})
        assert done.stdout.split() == [expected] * 2 + ["winograd_f43"] * 2, done.stderr
    done = run_python(code, env={"FASTCONV_WINOGRAD": "off"})
    assert done.returncode != 0
    assert "FASTCONV_WINOGRAD" in done.stderr
