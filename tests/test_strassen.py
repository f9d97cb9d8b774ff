"""Strassen's seven products for 1x1 convolutions, in NHWC and, with channels or pixels as the rows of its matrices, in
NCHW: tails of pairs, vectors and panels, strides, borders, when "auto" may take it, the same bits however the work is
cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import F32, LAYOUTS, adds_beside, fenced, integers, max_isa, normal, usable_levels

FORMS = {
    "conv_strassen": "NHWC",
    "conv_strassen_planes": "NCHW",
    "conv_strassen_tiles": "NCHW",
}
form = pytest.mark.parametrize("form", FORMS)


def laid(x: F32, form: str) -> F32:
    """Of NCHW in the form's layout."""
    return np.ascontiguousarray(ref.from_nchw(x, FORMS[form]))


def check(
    rng: np.random.Generator,
    form: str,
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
    expected = ref.from_nchw(ref.conv2d(x, w, stride=stride, **more), FORMS[form])
    if epilogue:
        more["residual"] = laid(more["residual"], form)
    actual = fc.conv2d(
        laid(x, form),
        np.ascontiguousarray(ref.weight_from_oihw(w, weight_layout)),
        stride=stride,
        layout=FORMS[form],
        weight_layout=weight_layout,
        algorithm=form,
        **more,
    )
    ref.assert_conv(actual, expected, form)


@form
@pytest.mark.parametrize("pairs", range(1, 34))
def test_pairs(pairs: int, form: str, isa: str, rng: np.random.Generator) -> None:
    """All heights of a register tile, and several tiles: of pixels, and of channels."""
    check(rng, form, (1, 1, 2 * pairs, 6, 10), epilogue=pairs % 2 == 1)
    check(rng, form, (1, pairs, 2, 32, 64), epilogue=pairs % 2 == 0)
    check(rng, form, (1, 4, 34, 10, 2 * pairs), epilogue=pairs % 2 == 0)


@form
@pytest.mark.parametrize("ic", [2, 4, 6, 8, 14, 16, 18, 30, 32, 34, 62, 64, 66, 96, 128, 130])
def test_channels(ic: int, form: str, isa: str, rng: np.random.Generator) -> None:
    for oc, weight_layout in zip((2, 8, 16, 18, 32, 62, 64, 66, 130), itertools.cycle(("OIHW", "OHWI", "HWIO"))):
        check(rng, form, (1, 3, 10, ic, oc), weight_layout=weight_layout, epilogue=oc % 4 == 2)


@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2), (2, 1), (5, 4)])
def test_strides(stride: Any, isa: str, rng: np.random.Generator) -> None:
    sw = stride if isinstance(stride, int) else stride[1]
    for width, more in itertools.product((2, 4, 14), range(sw)):
        check(rng, "conv_strassen", (2, 7, (width - 1) * sw + 1 + more, 10, 34), stride=stride, epilogue=True)


@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2), (2, 1), (5, 2)])
def test_strides_of_planes(stride: Any, isa: str, rng: np.random.Generator) -> None:
    """Pairs of rows, and where their number is odd or rows are long of halves of a row; columns cut away at the end."""
    sh, sw = (stride, stride) if isinstance(stride, int) else stride
    if sw > 2:
        with pytest.raises(NotImplementedError, match="stride above 2"):
            check(rng, "conv_strassen_tiles", (1, 7, 10, 8, 8), stride=stride)
        return
    for height, width, more in itertools.product((1, 2, 3, 6), (2, 7, 14, 28, 34), range(sw)):
        if height * width % 2 == 0:
            size = ((height - 1) * sh + 1, (width - 1) * sw + 1 + more)
            check(rng, "conv_strassen_tiles", (2, *size, 10, 34), stride=stride, epilogue=True)


@form
def test_blocks(form: str, isa: str, rng: np.random.Generator) -> None:
    """More pairs than a block holds, with few weights and with many, and blocks that begin inside of a row."""
    check(rng, form, (3, 14, 14, 64, 128), epilogue=True)
    check(rng, form, (2, 9, 22, 256, 96))
    check(rng, form, (1, 14, 14, 1024, 64), epilogue=True)
    if form == "conv_strassen_tiles":
        check(rng, form, (2, 55, 56, 192, 66), stride=2)


@form
def test_reads_and_writes_nothing_outside(form: str, isa: str, rng: np.random.Generator) -> None:
    for n, h, w, ic, oc, stride in ((1, 3, 4, 6, 10, 1), (2, 14, 14, 34, 66, 1), (1, 7, 11, 16, 30, 2)):
        if form == "conv_strassen_planes" and stride > 1:
            continue
        x, weight = integers(rng, n, ic, h, w), integers(rng, oc, ic, 1, 1)
        expected = ref.from_nchw(ref.conv2d(x, weight, stride=stride), FORMS[form])
        out, intact = fenced(np.full(expected.shape, np.nan, np.float32), fence=7.0)
        fc.conv2d(
            fenced(laid(x, form))[0],
            fenced(weight)[0],
            stride=stride,
            layout=FORMS[form],
            weight_layout="OIHW",
            algorithm=form,
            out=out,
        )
        ref.assert_conv(out, expected, form)
        assert intact()


# --- numerics ---------------------------------------------------------------------------------------------------------


@form
@pytest.mark.parametrize("channels", [64, 256, 512, 1024])
def test_error_against_float64(channels: int, form: str, rng: np.random.Generator) -> None:
    """Normal input, and as behind a ReLU without its negative half; at each ISA level but the slow one."""
    w = normal(rng, 128, channels, 1, 1)
    for x in (normal(rng, 2, channels, 14, 14), np.maximum(normal(rng, 2, channels, 14, 14), 0)):
        expected = ref.from_nchw(ref.conv2d(x, w), FORMS[form])
        view = laid(x, form)
        for level in [level for level in usable_levels() if level != "scalar"]:
            with max_isa(level):
                y = fc.conv2d(view, w, layout=FORMS[form], weight_layout="OIHW", algorithm=form)
            ref.assert_rel_l2(y, expected, ref.conv_tolerance(form))


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


@pytest.mark.parametrize("form", ["conv_strassen_planes", "conv_strassen_tiles"])
def test_in_planes_it_stays_in_its_pair_too(form: str, isa: str, rng: np.random.Generator) -> None:
    """The pair of a pixel lies half a plane away; with a stride, half a row or a row."""
    x, w = normal(rng, 1, 10, 4, 8), normal(rng, 6, 10, 1, 1)
    for stride in (1,) if form == "conv_strassen_planes" else (1, 2):
        clean = fc.conv2d(x, w, stride=stride, algorithm=form)
        for value in (np.nan, np.inf):
            bad = x.copy()
            bad[0, 3, 2, 4] = value
            y = fc.conv2d(bad, w, stride=stride, algorithm=form)
            others = np.ones(y.shape[2:], bool)
            pair = ((2, 4), (0, 4)) if stride == 1 else ((1, 2), (0, 2))
            for place in pair:
                others[place] = False
            _same(y[0][:, others], clean[0][:, others])
            assert not np.isfinite(y[(0, slice(None), *pair[0])]).any()


# --- the same bits ----------------------------------------------------------------------------------------------------


@form
@pytest.mark.parametrize(
    ("n", "size", "ic", "oc"), [(3, 14, 64, 130), (2, 14, 512, 160), (3, 6, 34, 70), (1, 56, 64, 256), (2, 28, 64, 66)]
)
def test_same_bits_for_any_threads_and_batch(
    n: int, size: int, ic: int, oc: int, form: str, isa: str, rng: np.random.Generator
) -> None:
    nhwc = FORMS[form] == "NHWC"
    x, b = laid(normal(rng, n, ic, size, size), form), normal(rng, oc)
    w = normal(rng, oc, 1, 1, ic) if nhwc else normal(rng, oc, ic, 1, 1)
    conv = fc.Conv2d(w, b, layout=FORMS[form], algorithm=form, activation="relu")
    with fc.threads(1):
        expected = conv(x)
    for threads in (2, 3, 4):
        with fc.threads(threads):
            _same(conv(x), expected)
    for image in range(n):
        _same(conv(x[image : image + 1])[0], expected[image])
    _same(conv(np.concatenate([x[:1], x]))[1:], expected)
    if nhwc:  # a band of rows has the bits that these rows have in the whole image
        _same(conv(np.ascontiguousarray(x[:, 1:4])), expected[:, 1:4])


def test_same_bits_with_a_stride(isa: str, rng: np.random.Generator) -> None:
    x, w = normal(rng, 3, 64, 28, 56), normal(rng, 130, 64, 1, 1)
    conv = fc.Conv2d(w, stride=2, algorithm="conv_strassen_tiles")
    with fc.threads(1):
        expected = conv(x)
    for threads in (2, 3, 4):
        with fc.threads(threads):
            _same(conv(x), expected)
            _same(conv(x[1:2])[0], expected[1])


def _same(actual: F32, expected: F32) -> None:
    assert np.array_equal(np.ascontiguousarray(actual).view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


# --- choice -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_beside() -> Iterator[None]:
    """Where additions go beside products, "auto" takes the inner product instead: test_fip.py."""
    with adds_beside(False):
        yield


def chosen(shape: tuple[int, ...], oc: int, layout: str = "NHWC", **options: Any) -> dict[str, Any]:
    """shape: of NHWC."""
    n, h, w, c = shape
    if layout == "NCHW":
        return fc.explain("conv2d", (n, c, h, w), (oc, c, 1, 1), layout=layout, **options)
    return fc.explain("conv2d", shape, (oc, 1, 1, c), layout=layout, **options)


@pytest.mark.usefixtures("nothing_beside")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_auto_takes_it_where_it_pays(layout: str) -> None:
    assert chosen((1, 14, 14, 256), 1024, layout)["algorithm"] == "strassen"
    assert chosen((1, 56, 56, 256), 512, layout, stride=2)["algorithm"] == "strassen"
    for shape, oc in (((1, 56, 56, 256), 16), ((1, 56, 56, 32), 256), ((1, 8, 8, 256), 256)):
        plan = chosen(shape, oc, layout)
        assert plan["algorithm"] == "direct"
        assert any("strassen" in name and "faster" in reason for name, reason in plan["refused"].items())


@pytest.mark.usefixtures("nothing_beside")
def test_auto_takes_channels_as_rows_where_planes_fill_vectors() -> None:
    assert chosen((1, 56, 56, 64), 256, "NCHW")["kernel"] == "conv_strassen_planes"
    assert chosen((1, 28, 28, 512), 128, "NCHW")["kernel"] == "conv_strassen_planes"
    with max_isa("avx512" if "avx512" in usable_levels() else None):
        assert chosen((1, 14, 14, 256), 1024, "NCHW")["kernel"] == "conv_strassen_tiles"
    assert chosen((1, 56, 56, 64), 64, "NCHW")["algorithm"] == "direct"


@pytest.mark.usefixtures("nothing_beside")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_choice_does_not_depend_on_the_batch(layout: str) -> None:
    for size, ic, oc in ((56, 64, 256), (28, 512, 128), (14, 256, 1024), (8, 256, 256), (12, 256, 256)):
        assert len({chosen((n, size, size, ic), oc, layout)["kernel"] for n in (1, 2, 16, 100)}) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_may_be_forbidden_to_auto(layout: str) -> None:
    """With Winograd: both trade products for sums, and error."""
    plan = chosen((1, 14, 14, 256), 1024, layout, winograd=False)
    assert plan["algorithm"] == "direct"
    assert any("strassen" in name and "not wanted" in text for name, text in plan["refused"].items())
    forced = chosen((1, 14, 14, 256), 1024, layout, winograd=False, algorithm="strassen")
    assert forced["algorithm"] == "strassen"


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
        fc.conv2d(x, np.zeros((4, shape[1], 1, 1), np.float32), algorithm="conv_strassen")


@pytest.mark.parametrize(
    ("shape", "weight", "options", "reason"),
    [
        ((1, 8, 4, 4), (8, 8, 3, 3), {"padding": 1}, "not 1x1|not a 1x1"),
        ((1, 8, 4, 4), (8, 8, 1, 1), {"padding": 1}, "padded|no padding"),
        ((1, 8, 4, 4), (8, 4, 1, 1), {"groups": 2}, "grouped"),
        ((1, 7, 4, 4), (8, 7, 1, 1), {}, "channels is odd"),
        ((1, 8, 4, 4), (7, 8, 1, 1), {}, "channels is odd"),
        ((1, 8, 3, 5), (8, 8, 1, 1), {}, "output pixels is odd"),
        ((1, 8, 5, 5), (8, 8, 1, 1), {"stride": 2}, "output pixels is odd|stride 1"),
        ((1, 1026, 4, 4), (8, 1026, 1, 1), {}, "1024 input channels"),
    ],
)
@pytest.mark.parametrize("form", ["conv_strassen_planes", "conv_strassen_tiles"])
def test_refusals_of_planes(form: str, shape: Any, weight: Any, options: dict[str, Any], reason: str) -> None:
    x, w = np.zeros(shape, np.float32), np.zeros(weight, np.float32)
    with pytest.raises(NotImplementedError, match=reason):
        fc.conv2d(x, w, algorithm=form, **options)
    with pytest.raises(NotImplementedError, match="NCHW"):
        fc.conv2d(np.zeros((1, 4, 4, 8), np.float32), np.zeros((8, 1, 1, 8), np.float32), layout="NHWC", algorithm=form)
