"""Strassen's seven products for 1x1 convolutions in NHWC: tails of pairs, vectors and panels, strides, borders, when
"auto" may take it, the same bits however the work is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import F32, fenced, integers, max_isa, normal, usable_levels


def check(
    rng: np.random.Generator,
    sizes: tuple[int, int, int, int, int],
    stride: Any = 1,
    weight_layout: str = "OHWI",
    epilogue: bool = False,
) -> None:
    """Exact on small integers. sizes: n, ih, iw, ic, oc."""
    n, ih, iw, ic, oc = sizes
    x, w = integers(rng, n, ic, ih, iw), integers(rng, oc, ic, 1, 1)
    more: dict[str, Any] = {}
    if epilogue:
        residual = integers(rng, *ref.conv2d(x, w, stride=stride).shape)
        more = {"bias": integers(rng, oc), "residual": residual, "activation": "relu"}
    expected = ref.from_nchw(ref.conv2d(x, w, stride=stride, **more), "NHWC")
    if epilogue:
        more["residual"] = np.ascontiguousarray(ref.from_nchw(more["residual"], "NHWC"))
    actual = fc.conv2d(
        np.ascontiguousarray(ref.from_nchw(x, "NHWC")),
        np.ascontiguousarray(ref.weight_from_oihw(w, weight_layout)),
        stride=stride,
        layout="NHWC",
        weight_layout=weight_layout,
        algorithm="strassen",
        **more,
    )
    ref.assert_conv(actual, expected, "strassen")


@pytest.mark.parametrize("pairs", range(1, 34))
def test_pairs(pairs: int, isa: str, rng: np.random.Generator) -> None:
    """All heights of a register tile, and several tiles."""
    check(rng, (1, 1, 2 * pairs, 6, 10), epilogue=pairs % 2 == 1)
    check(rng, (1, pairs, 2, 32, 64), epilogue=pairs % 2 == 0)


@pytest.mark.parametrize("ic", [2, 4, 6, 8, 14, 16, 18, 30, 32, 34, 62, 64, 66, 96, 128, 130])
def test_channels(ic: int, isa: str, rng: np.random.Generator) -> None:
    for oc, weight_layout in zip((2, 8, 16, 18, 32, 62, 64, 66, 130), itertools.cycle(("OIHW", "OHWI", "HWIO"))):
        check(rng, (1, 3, 10, ic, oc), weight_layout=weight_layout, epilogue=oc % 4 == 2)


@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2), (2, 1), (5, 4)])
def test_strides(stride: Any, isa: str, rng: np.random.Generator) -> None:
    sw = stride if isinstance(stride, int) else stride[1]
    for width, more in itertools.product((2, 4, 14), range(sw)):
        check(rng, (2, 7, (width - 1) * sw + 1 + more, 10, 34), stride=stride, epilogue=True)


def test_blocks(isa: str, rng: np.random.Generator) -> None:
    """More pairs than a block holds, with few weights and with many, and blocks that begin inside of a row."""
    check(rng, (3, 14, 14, 64, 128), epilogue=True)
    check(rng, (2, 9, 22, 256, 96))
    check(rng, (1, 14, 14, 1024, 64), epilogue=True)


def test_reads_and_writes_nothing_outside(isa: str, rng: np.random.Generator) -> None:
    for n, h, w, ic, oc, stride in ((1, 3, 4, 6, 10, 1), (2, 14, 14, 34, 66, 1), (1, 7, 11, 16, 30, 2)):
        x, weight = integers(rng, n, ic, h, w), integers(rng, oc, ic, 1, 1)
        expected = ref.from_nchw(ref.conv2d(x, weight, stride=stride), "NHWC")
        out, intact = fenced(np.full(expected.shape, np.nan, np.float32), fence=7.0)
        fc.conv2d(
            fenced(np.ascontiguousarray(ref.from_nchw(x, "NHWC")))[0],
            fenced(weight)[0],
            stride=stride,
            layout="NHWC",
            weight_layout="OIHW",
            algorithm="strassen",
            out=out,
        )
        ref.assert_conv(out, expected, "strassen")
        assert intact()


# --- numerics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [64, 256, 512, 1024])
def test_error_against_float64(channels: int, rng: np.random.Generator) -> None:
    """Normal input, and as behind a ReLU without its negative half; at each ISA level but the slow one."""
    w = normal(rng, 128, channels, 1, 1)
    for x in (normal(rng, 2, channels, 14, 14), np.maximum(normal(rng, 2, channels, 14, 14), 0)):
        expected = ref.from_nchw(ref.conv2d(x, w), "NHWC")
        view = np.ascontiguousarray(ref.from_nchw(x, "NHWC"))
        for level in [level for level in usable_levels() if level != "scalar"]:
            with max_isa(level):
                y = fc.conv2d(view, w, layout="NHWC", weight_layout="OIHW", algorithm="strassen")
            ref.assert_rel_l2(y, expected, ref.conv_tolerance("strassen"))


def test_a_value_that_is_not_finite_stays_in_its_pair(isa: str, rng: np.random.Generator) -> None:
    x, w = normal(rng, 1, 4, 8, 10), normal(rng, 6, 1, 1, 10)
    clean = fc.conv2d(x, w, layout="NHWC", algorithm="strassen")
    for value, column in itertools.product((np.nan, np.inf), (4, 5)):
        bad = x.copy()
        bad[0, 2, column, 3] = value
        y = fc.conv2d(bad, w, layout="NHWC", algorithm="strassen")
        others = np.ones((4, 8), bool)
        others[2, 4:6] = False
        _same(y[0][others], clean[0][others])
        assert not np.isfinite(y[0, 2, column]).any()


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "size", "ic", "oc"), [(3, 14, 64, 130), (2, 14, 512, 160), (3, 6, 34, 70), (1, 56, 64, 256)]
)
def test_same_bits_for_any_threads_and_batch(
    n: int, size: int, ic: int, oc: int, isa: str, rng: np.random.Generator
) -> None:
    x, w, b = normal(rng, n, size, size, ic), normal(rng, oc, 1, 1, ic), normal(rng, oc)
    conv = fc.Conv2d(w, b, layout="NHWC", algorithm="strassen", activation="relu")
    with fc.threads(1):
        expected = conv(x)
    for threads in (2, 3, 4):
        with fc.threads(threads):
            _same(conv(x), expected)
    for image in range(n):
        _same(conv(x[image : image + 1])[0], expected[image])
    _same(conv(np.concatenate([x[:1], x]))[1:], expected)
    # A band of rows has the bits that these rows have in the whole image.
    _same(conv(np.ascontiguousarray(x[:, 1:4])), expected[:, 1:4])


def _same(actual: F32, expected: F32) -> None:
    assert np.array_equal(np.ascontiguousarray(actual).view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


# --- choice -----------------------------------------------------------------------------------------------------------


def chosen(shape: tuple[int, ...], oc: int, **options: Any) -> dict[str, Any]:
    return fc.explain("conv2d", shape, (oc, 1, 1, shape[3]), layout="NHWC", **options)


def test_auto_takes_it_where_it_pays() -> None:
    assert chosen((1, 14, 14, 256), 1024)["algorithm"] == "strassen"
    assert chosen((1, 56, 56, 256), 512, stride=2)["algorithm"] == "strassen"
    for shape, oc in (((1, 56, 56, 256), 16), ((1, 56, 56, 32), 256), ((1, 8, 8, 256), 256)):
        plan = chosen(shape, oc)
        assert plan["algorithm"] == "direct"
        assert any("strassen" in name and "faster" in reason for name, reason in plan["refused"].items())


def test_the_choice_does_not_depend_on_the_batch() -> None:
    for size, ic, oc in ((56, 64, 256), (28, 512, 128), (14, 256, 1024), (8, 256, 256), (12, 256, 256)):
        assert len({chosen((n, size, size, ic), oc)["algorithm"] for n in (1, 2, 16, 100)}) == 1


def test_it_may_be_forbidden_to_auto() -> None:
    """With Winograd: both trade products for sums, and error."""
    plan = chosen((1, 14, 14, 256), 1024, winograd=False)
    assert plan["algorithm"] == "direct"
    assert any("strassen" in name and "not wanted" in text for name, text in plan["refused"].items())
    assert chosen((1, 14, 14, 256), 1024, winograd=False, algorithm="strassen")["algorithm"] == "strassen"


@pytest.mark.parametrize(
    ("shape", "weight", "options", "reason"),
    [
        ((1, 4, 4, 8), (8, 3, 3, 8), {"padding": 1}, "not 1x1"),
        ((1, 4, 4, 8), (8, 1, 1, 8), {"padding": 1}, "padded"),
        ((1, 4, 4, 8), (8, 1, 1, 4), {"groups": 2}, "grouped"),
        ((1, 4, 4, 7), (8, 1, 1, 7), {}, "channels is odd"),
        ((1, 4, 4, 8), (7, 1, 1, 8), {}, "channels is odd"),
        ((1, 4, 5, 8), (8, 1, 1, 8), {}, "output columns is odd"),
        ((1, 4, 6, 8), (8, 1, 1, 8), {"stride": 2}, "output columns is odd"),
        ((1, 4, 4, 1026), (8, 1, 1, 1026), {}, "1024 input channels"),
    ],
)
def test_refusals(shape: Any, weight: Any, options: dict[str, Any], reason: str) -> None:
    x, w = np.zeros(shape, np.float32), np.zeros(weight, np.float32)
    with pytest.raises(NotImplementedError, match=reason):
        fc.conv2d(x, w, layout="NHWC", algorithm="strassen", **options)
    with pytest.raises(NotImplementedError, match="NHWC"):
        fc.conv2d(x, np.zeros((4, shape[1], 1, 1), np.float32), algorithm="strassen")
