"""7x7 and 8x8 kernels with stride 2 by F(4x4, 4x4): tails of tiles, vectors and panels, paddings, borders, when "auto"
takes it, the same bits however the work is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import F32, fenced, integers, max_isa, normal, usable_levels

NAME, KERNEL, OUT = "winograd_f44", "conv_winograd_f44_phases", 4


def check(
    rng: np.random.Generator,
    layout: str,
    sizes: tuple[int, int, int, int, int],
    padding: Any = 3,
    kernel: tuple[int, int] = (7, 7),
    weight_layout: str = "OIHW",
    epilogue: bool = False,
) -> None:
    """sizes: n, ic, ih, iw, oc. Small integers, held to the bound of a direct sum."""
    n, ic, ih, iw, oc = sizes
    x, w = integers(rng, n, ic, ih, iw), integers(rng, oc, ic, *kernel)
    more: dict[str, Any] = {}
    plain = ref.conv2d(x, w, stride=2, padding=padding)
    if epilogue:
        more = {"bias": integers(rng, oc), "residual": integers(rng, *plain.shape), "activation": "relu"}
    expected = ref.from_nchw(ref.conv2d(x, w, stride=2, padding=padding, **more), layout)
    if epilogue:
        more["residual"] = np.ascontiguousarray(ref.from_nchw(more["residual"], layout))
    actual = fc.conv2d(
        np.ascontiguousarray(ref.from_nchw(x, layout)),
        np.ascontiguousarray(ref.weight_from_oihw(w, weight_layout)),
        stride=2,
        padding=padding,
        layout=layout,
        weight_layout=weight_layout,
        algorithm=NAME,
        **more,
    )
    if np.any(expected):
        ref.assert_conv(actual, expected, NAME)


@pytest.mark.parametrize("kernel", [(7, 7), (8, 8), (7, 8), (8, 7)])
@pytest.mark.parametrize("height", range(2, 26, 2))
def test_heights_and_widths(
    height: int, kernel: tuple[int, int], isa: str, layout: str, rng: np.random.Generator
) -> None:
    for width in (2, 7, 8, 9, 16, 17, 18, 23, 30):
        check(rng, layout, (1, 3, height, width, 9), kernel=kernel, epilogue=width % 2 == 1)


@pytest.mark.parametrize("ic", range(1, 9))
def test_channels(ic: int, isa: str, layout: str, rng: np.random.Generator) -> None:
    for oc, weight_layout in zip((1, 4, 8, 16, 31, 32, 33, 64, 70), itertools.cycle(("OIHW", "OHWI", "HWIO"))):
        check(rng, layout, (1, ic, 13, 19, oc), weight_layout=weight_layout, epilogue=oc % 2 == 1)


def test_paddings(isa: str, layout: str, rng: np.random.Generator) -> None:
    for top, bottom, left, right in itertools.product((0, 2, 3), repeat=4):
        check(rng, layout, (1, 3, 9, 14, 5), ((top, bottom), (left, right)))
    check(rng, layout, (1, 3, 9, 12, 5), ((9, 11), (13, 8)))
    check(rng, layout, (2, 3, 1, 1, 5), ((40, 1), (1, 70)))


@pytest.mark.parametrize("columns", [27, 28, 29, 55, 56, 57, 111, 112, 113, 115, 226])
def test_strips(columns: int, isa: str, layout: str, rng: np.random.Generator) -> None:
    """Around the tiles that pass through the sums together, 14, and those of a strip, 28."""
    for pads in (((0, 0), (0, 0)), ((3, 3), (3, 3)), ((2, 4), (5, 0))):
        check(rng, layout, (1, 3, 19, 2 * columns + 7 - sum(pads[1]), 18), pads, epilogue=True)


def test_batches(isa: str, layout: str, rng: np.random.Generator) -> None:
    check(rng, layout, (5, 3, 30, 22, 33), epilogue=True)
    check(rng, layout, (3, 4, 24, 41, 64))


def test_reads_and_writes_nothing_outside(isa: str, layout: str, rng: np.random.Generator) -> None:
    for n, ic, size, oc in ((1, 1, 7, 9), (2, 3, 18, 33), (1, 4, 33, 16), (1, 8, 30, 5)):
        x, w = integers(rng, n, ic, size, size), integers(rng, oc, ic, 7, 7)
        expected = ref.from_nchw(ref.conv2d(x, w, stride=2, padding=3), layout)
        out, intact = fenced(np.full(expected.shape, np.nan, np.float32), fence=7.0)
        fc.conv2d(
            fenced(np.ascontiguousarray(ref.from_nchw(x, layout)))[0],
            fenced(w)[0],
            stride=2,
            padding=3,
            layout=layout,
            weight_layout="OIHW",
            algorithm=NAME,
            out=out,
        )
        ref.assert_conv(out, expected, NAME)
        assert intact()


# --- numerics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ic", [1, 3, 8])
def test_error_against_float64(ic: int, layout: str, rng: np.random.Generator) -> None:
    """Normal input, and as behind a ReLU without its negative half; within the bound of a direct sum."""
    w = normal(rng, 64, ic, 7, 7)
    for x in (normal(rng, 1, ic, 64, 64), np.maximum(normal(rng, 1, ic, 64, 64), 0)):
        expected = ref.from_nchw(ref.conv2d(x, w, stride=2, padding=3), layout)
        view = np.ascontiguousarray(ref.from_nchw(x, layout))
        for level in [level for level in usable_levels() if level != "scalar"]:
            with max_isa(level):
                y = fc.conv2d(view, w, stride=2, padding=3, layout=layout, weight_layout="OIHW", algorithm=NAME)
            ref.assert_rel_l2(y, expected, ref.CONV_REL_L2)


@pytest.mark.parametrize("kernel", [7, 8])
def test_a_value_that_is_not_finite_stays_in_its_tiles(
    kernel: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    """It may reach any output of the tiles that read it, and no other; the rest keeps its bits."""
    size, pad = 40, 3
    x, w = normal(rng, 1, 3, size, size), normal(rng, 7, 3, kernel, kernel)
    options: dict[str, Any] = {
        "stride": 2,
        "padding": pad,
        "layout": layout,
        "weight_layout": "OIHW",
        "algorithm": NAME,
    }
    clean = ref.to_nchw(np.asarray(fc.conv2d(np.ascontiguousarray(ref.from_nchw(x, layout)), w, **options)), layout)
    pixels = range(clean.shape[2])
    for (row, column), value in itertools.product([(12, 19), (13, 20), (20, 11), (21, 21)], (np.nan, np.inf)):
        bad = x.copy()
        bad[0, 2, row, column] = value
        y = ref.to_nchw(np.asarray(fc.conv2d(np.ascontiguousarray(ref.from_nchw(bad, layout)), w, **options)), layout)
        touched = np.zeros((len(pixels), len(pixels)), bool)
        for i, j in itertools.product(pixels[::OUT], repeat=2):
            reads = [range(2 * first - pad, 2 * (first + OUT - 1) - pad + kernel) for first in (i, j)]
            if row in reads[0] and column in reads[1]:
                touched[i : i + OUT, j : j + OUT] = True
        assert np.array_equal(y[:, :, ~touched], clean[:, :, ~touched])
        for i, j in itertools.product(pixels, repeat=2):
            if 0 <= row - (2 * i - pad) < kernel and 0 <= column - (2 * j - pad) < kernel:
                assert not np.isfinite(y[:, :, i, j]).any()


def test_what_no_window_holds_changes_nothing(isa: str, layout: str, rng: np.random.Generator) -> None:
    for size in (8, 10, 16, 34):
        x, w = normal(rng, 1, 3, size, size), normal(rng, 7, 3, 7, 7)
        options: dict[str, Any] = {"stride": 2, "layout": layout, "weight_layout": "OIHW", "algorithm": NAME}
        clean = fc.conv2d(np.ascontiguousarray(ref.from_nchw(x, layout)), w, **options)
        x[:, :, -1] = x[:, :, :, -1] = np.nan
        _same(fc.conv2d(np.ascontiguousarray(ref.from_nchw(x, layout)), w, **options), clean)


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size", "oc"), [(3, 31, 40), (2, 60, 70), (1, 224, 64)])
def test_same_bits_for_any_threads_and_batch(
    n: int, size: int, oc: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    x, w, b = normal(rng, n, 3, size, size), normal(rng, oc, 3, 7, 7), normal(rng, oc)
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    conv = fc.Conv2d(w, b, 2, padding=3, layout=layout, weight_layout="OIHW", algorithm=NAME, activation="relu")
    with fc.threads(1):
        expected = conv(view)
    for threads in (2, 3, 4):
        with fc.threads(threads):
            _same(conv(view), expected)
    for image in range(n):
        _same(conv(view[image : image + 1])[0], expected[image])
    _same(conv(np.concatenate([view[:1], view]))[1:], expected)


@pytest.mark.parametrize("kernel", [7, 8])
def test_bands_of_rows_have_the_same_bits(kernel: int, isa: str, layout: str, rng: np.random.Generator) -> None:
    """Output rows 4, 5, ... of an image by themselves: the rows above and below come as input, not as padding."""
    x, w = normal(rng, 1, 3, 64, 30), normal(rng, 9, 3, kernel, kernel)
    options: dict[str, Any] = {"stride": 2, "layout": layout, "weight_layout": "OIHW", "algorithm": NAME}

    def rows_of(first: int, count: int) -> F32:
        begin, end = 2 * first - 3, 2 * (first + count - 1) - 3 + kernel
        part = x[:, :, max(begin, 0) : end]
        pads = ((max(-begin, 0), max(end - x.shape[2], 0)), (3, 3))
        y = fc.conv2d(np.ascontiguousarray(ref.from_nchw(part, layout)), w, padding=pads, **options)
        return ref.to_nchw(np.asarray(y), layout)

    whole = ref.to_nchw(
        np.asarray(fc.conv2d(np.ascontiguousarray(ref.from_nchw(x, layout)), w, padding=3, **options)), layout
    )
    for first, count in ((0, 4), (4, 8), (8, 4), (12, whole.shape[2] - 12)):
        _same(np.ascontiguousarray(rows_of(first, count)), np.ascontiguousarray(whole[:, :, first : first + count]))


def _same(actual: F32, expected: F32) -> None:
    assert np.array_equal(actual.view(np.uint32), expected.view(np.uint32))


# --- choice -----------------------------------------------------------------------------------------------------------


def stem(layout: str, **options: Any) -> fc.Conv2d:
    return fc.Conv2d(
        np.zeros((64, 3, 7, 7), np.float32), None, 2, padding=3, layout=layout, weight_layout="OIHW", **options
    )


def picture(layout: str, n: int = 1) -> tuple[int, ...]:
    return (n, 224, 224, 3) if layout == "NHWC" else (n, 3, 224, 224)


def test_auto_takes_it_for_the_first_layer_of_resnet(layout: str) -> None:
    assert {stem(layout).explain(picture(layout, n))["kernel"] for n in (1, 2, 16, 100)} == {KERNEL}
    assert stem(layout, winograd=False).explain(picture(layout))["algorithm"] == "direct"
    assert stem(layout, winograd=False, algorithm=NAME).explain(picture(layout))["kernel"] == KERNEL
    assert fc.explain("conv2d", (1, 3, 20, 20), (8, 3, 7, 7), stride=2, layout="NCHW")["algorithm"] == "direct"


@pytest.mark.parametrize(
    ("weight", "options", "reason"),
    [
        ((4, 4, 5, 5), {"stride": 2}, "7x7 or 8x8"),
        ((4, 4, 7, 9), {"stride": 2}, "7x7 or 8x8"),
        ((4, 4, 7, 7), {}, "stride is not 2"),
        ((4, 4, 7, 7), {"stride": (2, 1)}, "stride is not 2"),
        ((4, 4, 7, 7), {"stride": 2, "dilation": 2}, "dilation"),
        ((4, 2, 7, 7), {"stride": 2, "groups": 2}, "grouped"),
        ((4, 9, 7, 7), {"stride": 2}, "more than 8 input channels"),
    ],
)
def test_refusals(weight: tuple[int, ...], options: dict[str, Any], reason: str) -> None:
    x = np.zeros((1, weight[1] * options.get("groups", 1), 30, 30), np.float32)
    with pytest.raises(NotImplementedError, match=reason):
        fc.conv2d(x, np.zeros(weight, np.float32), layout="NCHW", weight_layout="OIHW", algorithm=NAME, **options)
