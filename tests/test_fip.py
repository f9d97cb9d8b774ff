"""Winograd's inner product, two multiplications for three products: 1x1 convolutions with pixels or channels as rows,
and Winograd's own products (whose tails are those of test_winograd.py). Tails of steps, tiles and panels, scales from
one end of float32 to the other, when "auto" may take it, the same bits however the work is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import F32, LAYOUTS, adds_beside, fenced, integers, max_isa, normal, usable_levels

FORMS = {("conv_fip", "NHWC"), ("conv_fip", "NCHW"), ("conv_fip_planes", "NCHW")}
form = pytest.mark.parametrize(("form", "order"), sorted(FORMS))


def laid(x: F32, order: str) -> F32:
    """Of NCHW in that layout."""
    return np.ascontiguousarray(ref.from_nchw(x, order))


def run(x: F32, w: F32, form: str, order: str, stride: Any = 1, **more: Any) -> F32:
    """x in NCHW, w in OIHW; the result in NCHW."""
    y = fc.conv2d(laid(x, order), w, stride=stride, layout=order, weight_layout="OIHW", algorithm=form, **more)
    return np.asarray(ref.to_nchw(y, order), np.float32)


def check(
    rng: np.random.Generator,
    form: str,
    order: str,
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
    expected = ref.from_nchw(ref.conv2d(x, w, stride=stride, **more), order)
    if epilogue:
        more["residual"] = laid(more["residual"], order)
    actual = fc.conv2d(
        laid(x, order),
        np.ascontiguousarray(ref.weight_from_oihw(w, weight_layout)),
        stride=stride,
        layout=order,
        weight_layout=weight_layout,
        algorithm=form,
        **more,
    )
    ref.assert_conv(actual, expected, form)


@form
@pytest.mark.parametrize("count", range(1, 40))
def test_heights(count: int, form: str, order: str, isa: str, rng: np.random.Generator) -> None:
    """All heights of a register tile, and several tiles: of pixels, and of channels."""
    check(rng, form, order, (1, 1, count, 7, 10), epilogue=count % 2 == 1)
    check(rng, form, order, (1, 3, 17, 10, count), epilogue=count % 2 == 0)


@form
@pytest.mark.parametrize("ic", [1, 2, 3, 4, 5, 15, 16, 17, 31, 47, 48, 49, 50, 51, 64, 95, 96, 97, 128, 145])
def test_channels(ic: int, form: str, order: str, isa: str, rng: np.random.Generator) -> None:
    """Blocks of 48 with a rest of every kind: no third run, a run that ends early, a single value."""
    for oc, weight_layout in zip((1, 8, 16, 17, 31, 32, 33, 64, 70), itertools.cycle(("OIHW", "OHWI", "HWIO"))):
        check(rng, form, order, (1, 3, 10, ic, oc), weight_layout=weight_layout, epilogue=oc % 2 == 1)


@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2), (2, 1), (5, 4)])
@pytest.mark.parametrize("order", LAYOUTS)
def test_strides(order: str, stride: Any, isa: str, rng: np.random.Generator) -> None:
    """Register tiles that cross rows; columns cut away at the end."""
    sh, sw = (stride, stride) if isinstance(stride, int) else stride
    for height, width, more in itertools.product((1, 3, 6), (1, 5, 14), range(sw)):
        size = ((height - 1) * sh + 1, (width - 1) * sw + 1 + more)
        check(rng, "conv_fip", order, (2, *size, 10, 34), stride=stride, epilogue=True)


@form
def test_blocks(form: str, order: str, isa: str, rng: np.random.Generator) -> None:
    """More pixels than a block holds, with few weights and with many, and blocks that begin inside of a row."""
    check(rng, form, order, (3, 14, 14, 64, 128), epilogue=True)
    check(rng, form, order, (2, 9, 22, 256, 96))
    check(rng, form, order, (1, 7, 7, 2048, 64), epilogue=True)
    if form == "conv_fip":
        check(rng, form, order, (2, 55, 56, 192, 66), stride=2)


@form
def test_reads_and_writes_nothing_outside(form: str, order: str, isa: str, rng: np.random.Generator) -> None:
    for n, h, w, ic, oc, stride in ((1, 3, 4, 6, 10, 1), (2, 14, 14, 34, 67, 1), (1, 7, 11, 49, 30, 2)):
        if form == "conv_fip_planes" and stride > 1:
            continue
        x, weight = integers(rng, n, ic, h, w), integers(rng, oc, ic, 1, 1)
        expected = ref.from_nchw(ref.conv2d(x, weight, stride=stride), order)
        out, intact = fenced(np.full(expected.shape, np.nan, np.float32), fence=7.0)
        fc.conv2d(
            fenced(laid(x, order))[0],
            fenced(weight)[0],
            stride=stride,
            layout=order,
            weight_layout="OIHW",
            algorithm=form,
            out=out,
        )
        ref.assert_conv(out, expected, form)
        assert intact()


# --- numerics ---------------------------------------------------------------------------------------------------------


@form
@pytest.mark.parametrize("channels", [64, 256, 512, 1024, 2048])
def test_error_against_float64(channels: int, form: str, order: str, rng: np.random.Generator) -> None:
    """Normal input, as behind a ReLU, and values of one sign, whose squares would add up were it not for the signs."""
    w = normal(rng, 128, channels, 1, 1)
    x = normal(rng, 2, channels, 14, 14)
    for values in (x, np.maximum(x, 0), rng.random(x.shape, np.float32), x + 3):
        expected = ref.conv2d(values, w)
        for level in [level for level in usable_levels() if level != "scalar"]:
            with max_isa(level):
                y = run(values, w, form, order)
            ref.assert_rel_l2(y, expected, ref.conv_tolerance(form))


@form
def test_each_pixel_and_channel_has_a_scale_of_its_own(
    form: str, order: str, isa: str, rng: np.random.Generator
) -> None:
    """From 1e-30 to 1e30, rows and columns alike: the error of each is measured by its own values."""
    x, w = normal(rng, 1, 70, 5, 9), normal(rng, 37, 70, 1, 1)
    x *= np.exp2(np.linspace(-100, 100, 45).round()).reshape(1, 1, 5, 9).astype(np.float32)
    w *= np.exp2(np.linspace(20, -20, 37).round()).reshape(37, 1, 1, 1).astype(np.float32)
    expected, y = ref.conv2d(x, w), run(x, w, form, order)
    size = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(w.astype(np.float64), axis=1)[None]
    error = np.abs(y - expected) / size.reshape(1, 37, 5, 9)
    assert error.max() < 8 * ref.UNIT_ROUNDOFF * np.sqrt(70), error.max()


@form
def test_ends_of_the_range(form: str, order: str, isa: str, rng: np.random.Generator) -> None:
    """Values whose squares are no numbers or nothing, and the smallest ones of all."""
    x, w = normal(rng, 1, 40, 3, 5), normal(rng, 20, 40, 1, 1)
    # No scale is below 2^-126: what is smaller carries the rounding of the other side's values, some of the smallest
    # number's quanta.
    quanta = 40 * ref.SUBNORMAL_QUANTUM
    for power in (-145, -140, -126, -80, -70, 62, 70, 120):
        scaled = np.ldexp(x, power).astype(np.float32)
        expected, y = ref.conv2d(scaled, w), run(scaled, w, form, order)
        size = np.linalg.norm(scaled.astype(np.float64)) * np.linalg.norm(w)
        assert np.abs(y - expected).max() <= 4 * ref.UNIT_ROUNDOFF * size + quanta, power
        tiny = np.ldexp(w, power).astype(np.float32)
        y = run(x, tiny, form, order)
        size = np.linalg.norm(x) * np.linalg.norm(tiny.astype(np.float64))
        limit = 4 * ref.UNIT_ROUNDOFF * size + quanta
        assert np.abs(y - ref.conv2d(x, tiny)).max() <= limit, power


@form
def test_zeros_are_zeros(form: str, order: str, isa: str, rng: np.random.Generator) -> None:
    """A pixel or a filter of nothing gives its bias to the bit, beside others that do not."""
    x, w, b = normal(rng, 1, 33, 4, 6), normal(rng, 19, 33, 1, 1), normal(rng, 19)
    x[0, :, 1, 2] = 0
    w[7] = 0
    y = run(x, w, form, order, bias=b)
    assert np.array_equal(y[0, :, 1, 2], b)
    assert np.array_equal(y[0, 7], np.full((4, 6), b[7]))
    ref.assert_rel_l2(y, ref.conv2d(x, w, b), ref.CONV_REL_L2)


@form
def test_a_value_that_is_not_finite_stays_in_its_pixel(
    form: str, order: str, isa: str, rng: np.random.Generator
) -> None:
    x, w = normal(rng, 1, 50, 6, 7), normal(rng, 20, 50, 1, 1)
    clean = run(x, w, form, order)
    for value, channel in itertools.product((np.nan, np.inf, -np.inf), (0, 17, 40, 49)):
        bad = x.copy()
        bad[0, channel, 2, 4] = value
        y = run(bad, w, form, order)
        others = np.ones((6, 7), bool)
        others[2, 4] = False
        _same(y[0][:, others], clean[0][:, others])
        assert not np.isfinite(y[0, :, 2, 4]).any()


@pytest.mark.parametrize("algorithm", ["winograd_f23_fip", "winograd_f43_fip"])
@pytest.mark.parametrize("stride", [1, 2])
def test_winograd_of_smooth_and_sparse_pictures(stride: int, algorithm: str, rng: np.random.Generator) -> None:
    """A tile's transformed values have one scale, though some are far larger than others where a picture is smooth."""
    line = np.linspace(0, 1, 20)
    smooth = line[:, None] + line[None] ** 2
    w = normal(rng, 40, 100, 3, 3)
    for x in (
        1 + 0.01 * rng.standard_normal((1, 100, 20, 20)),
        smooth * rng.random((1, 100, 1, 1)),
        3 + smooth * rng.standard_normal((1, 100, 1, 1)),
        np.maximum(rng.standard_normal((1, 100, 20, 20)) - 2, 0),
        rng.standard_normal((1, 100, 20, 20)) * np.exp(2 * rng.standard_normal((1, 100, 1, 1))),
    ):
        x = x.astype(np.float32)
        y = fc.conv2d(x, w, stride=stride, padding=1, algorithm=algorithm)
        ref.assert_rel_l2(y, ref.conv2d(x, w, stride=stride, padding=1), ref.conv_tolerance(algorithm))


@pytest.mark.parametrize("algorithm", ["winograd_f23_fip", "winograd_f43_fip"])
def test_winograd_at_the_ends_of_the_range(algorithm: str, isa: str, rng: np.random.Generator) -> None:
    x, w = normal(rng, 1, 20, 9, 10), normal(rng, 12, 20, 3, 3)
    for power in (-110, -70, 60, 110):
        scaled = np.ldexp(x, power).astype(np.float32)
        y = fc.conv2d(scaled, w, padding=1, algorithm=algorithm)
        ref.assert_rel_l2(y, ref.conv2d(scaled, w, padding=1), ref.conv_tolerance(algorithm))
    nothing = fc.conv2d(np.zeros_like(x), w, padding=1, algorithm=algorithm)
    assert not nothing.any()


# --- the same bits ----------------------------------------------------------------------------------------------------


@form
@pytest.mark.parametrize(
    ("n", "size", "ic", "oc"), [(3, 14, 64, 130), (2, 14, 512, 160), (3, 7, 35, 71), (1, 56, 64, 256), (2, 28, 64, 66)]
)
def test_same_bits_for_any_threads_and_batch(
    n: int, size: int, ic: int, oc: int, form: str, order: str, isa: str, rng: np.random.Generator
) -> None:
    x, b = laid(normal(rng, n, ic, size, size), order), normal(rng, oc)
    conv = fc.Conv2d(
        normal(rng, oc, ic, 1, 1), b, layout=order, weight_layout="OIHW", algorithm=form, activation="relu"
    )
    with fc.threads(1):
        expected = conv(x)
    for threads in (2, 3, 4):
        with fc.threads(threads):
            _same(conv(x), expected)
    for image in range(n):
        _same(conv(x[image : image + 1])[0], expected[image])
    _same(conv(np.concatenate([x[:1], x]))[1:], expected)
    rows = (slice(None), slice(1, 4)) if order == "NHWC" else (slice(None), slice(None), slice(1, 4))
    _same(conv(np.ascontiguousarray(x[rows])), expected[rows])  # a band has the bits of these rows in the whole image


@pytest.mark.parametrize("order", LAYOUTS)
def test_same_bits_with_a_stride(order: str, isa: str, rng: np.random.Generator) -> None:
    x = laid(normal(rng, 3, 64, 28, 55), order)
    conv = fc.Conv2d(normal(rng, 130, 64, 1, 1), stride=2, layout=order, weight_layout="OIHW", algorithm="fip")
    with fc.threads(1):
        expected = conv(x)
    for threads in (2, 3, 4):
        with fc.threads(threads):
            _same(conv(x), expected)
            _same(conv(x[1:2])[0], expected[1])


def _same(actual: F32, expected: F32) -> None:
    assert np.array_equal(np.ascontiguousarray(actual).view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


# --- choice -----------------------------------------------------------------------------------------------------------


def chosen(shape: tuple[int, ...], oc: int, layout: str = "NHWC", k: int = 1, **options: Any) -> dict[str, Any]:
    """shape: of NHWC."""
    n, h, w, c = shape
    if layout == "NCHW":
        return fc.explain("conv2d", (n, c, h, w), (oc, c, k, k), layout=layout, padding=k // 2, **options)
    return fc.explain("conv2d", shape, (oc, k, k, c), layout=layout, padding=k // 2, **options)


needs_avx512 = pytest.mark.skipif("avx512" not in usable_levels(), reason="no AVX-512 here: no leaf that auto takes")


@needs_avx512
@pytest.mark.parametrize("layout", LAYOUTS)
def test_auto_takes_it_where_a_core_adds_beside_its_products(layout: str) -> None:
    with adds_beside(True):
        for shape, oc in (((1, 14, 14, 256), 1024), ((1, 7, 7, 2048), 512), ((1, 56, 56, 64), 256)):
            assert chosen(shape, oc, layout)["algorithm"] == "fip"
        assert chosen((1, 56, 56, 256), 512, layout, stride=2)["algorithm"] == "fip"
        assert chosen((1, 56, 56, 16), 96, layout)["algorithm"] == ("direct" if layout == "NHWC" else "fip")
        assert chosen((1, 56, 56, 16), 64, layout)["algorithm"] == "direct"
        assert chosen((1, 28, 28, 128), 128, layout, k=3)["algorithm"] == "winograd_f43_fip"
        assert chosen((1, 7, 7, 512), 512, layout, k=3)["algorithm"] == "winograd_f23_fip"
        assert chosen((1, 28, 28, 256), 256, layout, k=3, stride=2)["algorithm"] == "winograd_f23_fip"
        with max_isa("avx2"):
            assert chosen((1, 14, 14, 256), 1024, layout)["algorithm"] == "strassen"
            assert chosen((1, 28, 28, 128), 128, layout, k=3)["algorithm"] == "winograd_f43"
    with adds_beside(False):
        plan = chosen((1, 14, 14, 256), 1024, layout)
        assert plan["algorithm"] == "strassen"
        assert any("fip" in name and "faster" in reason for name, reason in plan["refused"].items())
        assert chosen((1, 28, 28, 128), 128, layout, k=3)["algorithm"] == "winograd_f43"


@needs_avx512
def test_auto_takes_channels_as_rows_where_planes_fill_vectors() -> None:
    with adds_beside(True):
        for size, ic, oc, kernel in (
            (56, 64, 64, "conv_fip_planes"),
            (28, 512, 128, "conv_fip_planes"),
            (14, 64, 384, "conv_fip_planes"),
            (14, 256, 1024, "conv_fip"),
            (7, 512, 2048, "conv_fip"),
        ):
            assert chosen((1, size, size, ic), oc, "NCHW")["kernel"] == kernel


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_choice_does_not_depend_on_the_batch(layout: str) -> None:
    with adds_beside(True):
        for size, ic, oc, k in (
            (56, 64, 256, 1),
            (28, 512, 128, 1),
            (14, 256, 1024, 1),
            (7, 160, 960, 1),
            (14, 256, 256, 3),
        ):
            assert len({chosen((n, size, size, ic), oc, layout, k)["kernel"] for n in (1, 2, 16, 100)}) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_may_be_forbidden_to_auto(layout: str) -> None:
    """With Winograd: it trades multiplications for additions, and each value's own error for that of its row."""
    with adds_beside(True):
        plan = chosen((1, 14, 14, 256), 1024, layout, winograd=False)
        assert plan["algorithm"] == "direct"
        assert any("fip" in name and "not wanted" in text for name, text in plan["refused"].items())
        assert chosen((1, 28, 28, 128), 128, layout, k=3, winograd=False)["algorithm"] == "direct"
        forced = chosen((1, 14, 14, 256), 1024, layout, winograd=False, algorithm="fip")
        assert forced["algorithm"] == "fip"


@pytest.mark.parametrize(
    ("shape", "weight", "options", "reason"),
    [
        ((1, 8, 4, 4), (8, 8, 3, 3), {"padding": 1}, "not 1x1|not a 1x1"),
        ((1, 8, 4, 4), (8, 8, 1, 1), {"padding": 1}, "padded|no padding"),
        ((1, 8, 4, 4), (8, 4, 1, 1), {"groups": 2}, "grouped"),
    ],
)
@pytest.mark.parametrize("form", ["conv_fip", "conv_fip_planes"])
def test_refusals(form: str, shape: Any, weight: Any, options: dict[str, Any], reason: str) -> None:
    x, w = np.zeros(shape, np.float32), np.zeros(weight, np.float32)
    with pytest.raises(NotImplementedError, match=reason):
        fc.conv2d(x, w, algorithm=form, **options)


def test_refusals_of_planes() -> None:
    x, w = np.zeros((1, 8, 4, 4), np.float32), np.zeros((8, 8, 1, 1), np.float32)
    with pytest.raises(NotImplementedError, match="stride 1"):
        fc.conv2d(x, w, stride=2, algorithm="conv_fip_planes")
    with pytest.raises(NotImplementedError, match="NCHW"):
        fc.conv2d(x.transpose(0, 2, 3, 1), w, layout="NHWC", weight_layout="OIHW", algorithm="conv_fip_planes")
