"""max_pool2d with indices, avg_pool2d, adaptive_avg_pool2d: every ISA level, both layouts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from cases import POOL_CASES, PoolCase, case_id
from helpers import F32, adds_beside, fenced, integers, normal, stored_past

every_case = pytest.mark.parametrize("case", POOL_CASES, ids=case_id)
undilated = pytest.mark.parametrize("case", [c for c in POOL_CASES if c.dilation == (1, 1)], ids=case_id)


def pool_input(rng: np.random.Generator, case: PoolCase, layout: str) -> F32:
    """Few distinct values, so that ties are everywhere."""
    return np.ascontiguousarray(ref.from_nchw(integers(rng, case.n, case.c, case.ih, case.iw), layout))


# --- max --------------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("ceil_mode", [False, True], ids=["floor", "ceil"])
def test_max_pool(case: PoolCase, ceil_mode: bool, isa: str, layout: str, rng: np.random.Generator) -> None:
    x = pool_input(rng, case, layout)
    arguments = (case.kernel, case.stride, case.padding, case.dilation, ceil_mode)
    values, indices = ref.max_pool2d(x, *arguments, layout=layout)
    ref.assert_exact(fc.max_pool2d(x, *arguments, layout=layout), values)
    got_values, got_indices = fc.max_pool2d(x, *arguments, return_indices=True, layout=layout)
    ref.assert_exact(got_values, values)
    assert got_indices.dtype == np.int64
    assert got_indices.shape == indices.shape
    chosen = indices >= 0  # a window wholly in the padding has no index
    np.testing.assert_array_equal(got_indices[chosen], indices[chosen])


def test_max_pool_nan_sticks(isa: str, layout: str, rng: np.random.Generator) -> None:
    """Wherever a NaN lies in a window, first, last or between, it is the maximum; elsewhere nothing changes."""
    x = integers(rng, 2, 37, 9, 11)
    for n, c, h, w in [(0, 0, 0, 0), (0, 5, 8, 10), (1, 17, 4, 5), (1, 36, 0, 10), (0, 20, 3, 3), (0, 20, 3, 4)]:
        x[n, c, h, w] = np.nan
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    for kernel, stride, padding in ((3, 2, 1), (2, 1, 0), (3, 1, 1), (5, 3, 2)):
        values, indices = ref.max_pool2d(view, kernel, stride, padding, layout=layout)
        assert np.isnan(values).any()
        got_values, got_indices = fc.max_pool2d(view, kernel, stride, padding, return_indices=True, layout=layout)
        ref.assert_exact(got_values, values)
        np.testing.assert_array_equal(got_indices, indices)
        ref.assert_exact(fc.max_pool2d(view, kernel, stride, padding, layout=layout), values)


def test_max_pool_never_chooses_padding(isa: str, layout: str) -> None:
    """Negative values and -inf beside padding: a padding of zeros, or of the smallest finite number, would win."""
    for fill in (-5.0, -np.inf):
        x = np.full((1, 20, 5, 6), fill, np.float32)
        view = ref.from_nchw(x, layout)
        y, where = fc.max_pool2d(view, 3, 2, 1, return_indices=True, layout=layout)
        assert np.array_equal(y, np.full_like(y, fill))
        np.testing.assert_array_equal(where, ref.max_pool2d(view, 3, 2, 1, layout=layout)[1])


def test_max_pool_keeps_infinities_and_subnormals(isa: str, layout: str) -> None:
    x = np.array([-np.inf, 1e-42, -1.0, 0.0, np.inf, 5.0, -np.inf, -np.inf], np.float32).reshape(1, 1, 2, 4)
    y = fc.max_pool2d(ref.from_nchw(np.repeat(x, 18, axis=1), layout), (1, 2), layout=layout)
    assert np.array_equal(ref.to_nchw(y, layout)[0, 0], np.array([[1e-42, 0.0], [np.inf, -np.inf]], np.float32))


def test_max_pool_first_maximum_wins(isa: str, layout: str) -> None:
    x = np.zeros((1, 33, 6, 6), np.float32)
    _, where = fc.max_pool2d(ref.from_nchw(x, layout), 3, 3, return_indices=True, layout=layout)
    assert np.array_equal(ref.to_nchw(where, layout)[0, 32], [[0, 3], [18, 21]])


def test_indices_are_of_the_unpadded_plane(layout: str) -> None:
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    y, where = fc.max_pool2d(ref.from_nchw(x, layout), 3, 2, 1, return_indices=True, layout=layout)
    y, where = ref.to_nchw(y, layout), ref.to_nchw(where, layout)
    planes = x.reshape(2, 3, 20)
    assert np.array_equal(np.take_along_axis(planes, where.reshape(2, 3, -1), axis=2), y.reshape(2, 3, -1))


def test_max_pool_against_torch(torch: Any, layout: str, rng: np.random.Generator) -> None:
    x = normal(rng, 2, 24, 17, 19)
    theirs = torch.nn.functional.max_pool2d(torch.from_numpy(x), 3, 2, 1, 1, True, return_indices=True)
    ours = fc.max_pool2d(ref.from_nchw(x, layout), 3, 2, 1, 1, True, True, layout=layout)
    for mine, other in zip(ours, theirs, strict=True):
        ref.assert_exact(mine, np.ascontiguousarray(ref.from_nchw(other.numpy(), layout)))


# --- average ----------------------------------------------------------------------------------------------------------


@undilated
@pytest.mark.parametrize("ceil_mode", [False, True], ids=["floor", "ceil"])
def test_avg_pool(case: PoolCase, ceil_mode: bool, isa: str, layout: str, rng: np.random.Generator) -> None:
    x = pool_input(rng, case, layout)
    for include, divisor in itertools.product([True, False], [None, 4, 7]):
        arguments = (case.kernel, case.stride, case.padding, ceil_mode, include, divisor)
        expected = ref.avg_pool2d(x, *arguments, layout=layout)
        actual = fc.avg_pool2d(x, *arguments, layout=layout)
        if divisor == 4:  # a power of two divides without rounding
            ref.assert_exact(actual, expected)
        ref.assert_avg_pool_close(actual, expected, integers=True)


def test_avg_pool_edges_of_ceil_mode(isa: str, layout: str) -> None:
    """The example of pytorch#183528: windows are clipped to the padded image, and the divisor with them."""
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    y = fc.avg_pool2d(ref.from_nchw(x, layout), 3, 2, 1, ceil_mode=True, layout=layout)
    expected = [[14 / 9, 30 / 9, 2.0], [57 / 9, 11.0, 6.0], [4.5, 7.5, 4.0]]
    np.testing.assert_allclose(ref.to_nchw(y, layout)[0, 0], expected, rtol=ref.AVG_POOL_INT_REL)


def test_avg_pool_same_excluding_padding() -> None:
    """Keras: average_pool([10, 20], 3, strides 2, "same") == 15."""
    x = np.array([[[[10.0, 20.0]]]], np.float32)
    y = fc.avg_pool2d(x, (1, 3), (1, 2), "same", count_include_pad=False)
    assert y.tolist() == [[[[15.0]]]]


def test_avg_pool_random(isa: str, layout: str, rng: np.random.Generator) -> None:
    for shape, kernel, stride, padding in (
        ((1, 19, 15, 17), 3, 1, 1),
        ((1, 64, 56, 56), 56, 56, 0),
        ((2, 5, 14, 14), 5, 2, 2),
    ):
        x = np.ascontiguousarray(ref.from_nchw(normal(rng, *shape), layout))
        actual = fc.avg_pool2d(x, kernel, stride, padding, layout=layout)
        ref.assert_avg_pool_close(actual, ref.avg_pool2d(x, kernel, stride, padding, layout=layout), integers=False)


def test_avg_pool_nan_stays_in_its_windows(isa: str, layout: str, rng: np.random.Generator) -> None:
    x = integers(rng, 1, 18, 9, 20)
    x[0, 3, 4, 9] = np.nan
    x[0, 17, 8, 19] = np.inf
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    actual = fc.avg_pool2d(view, 2, 2, 0, divisor_override=4, layout=layout)
    ref.assert_exact(actual, ref.avg_pool2d(view, 2, 2, 0, divisor_override=4, layout=layout))


# --- planes together, small windows -----------------------------------------------------------------------------------

# Sixteen planes at a time and a rest; tall ones in several bands of rows; rows wide enough for pairs of columns.
TOGETHER = [(2, 21, 300, 20), (3, 16, 9, 8), (1, 40, 7, 7), (2, 17, 1, 30), (1, 18, 61, 67), (1, 130, 5, 6)]


@pytest.mark.parametrize("shape", TOGETHER, ids=str)
@pytest.mark.parametrize(
    "window",
    [
        (2, 2, 0),
        (3, 2, 1),
        (3, 1, 1),
        (5, 1, 2),
        ((3, 2), 2, (1, 0)),
        ((1, 3), (3, 1), 0),
        ((2, 8), (2, 3), 1),
        (1, 2, 0),
    ],
    ids=str,
)
def test_planes_together(
    shape: tuple[int, ...], window: tuple[Any, ...], isa: str, layout: str, rng: np.random.Generator
) -> None:
    kernel, stride, padding = window
    rows = kernel if isinstance(kernel, int) else kernel[0]
    if rows > shape[2] + 2 * (padding if isinstance(padding, int) else padding[0]):
        pytest.skip("the window does not fit")
    x = integers(rng, *shape)
    x[0, 3, 0, 4] = np.nan
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    expected = ref.max_pool2d(view, kernel, stride, padding, layout=layout)[0]
    for threads in (1, 3):
        with fc.threads(threads):
            out, intact = fenced(np.zeros(expected.shape, np.float32), fence=7.0)
            fc.max_pool2d(fenced(view, fence=9.0)[0], kernel, stride, padding, layout=layout, out=out)
        ref.assert_exact(out, expected)
        assert intact()
    view = np.ascontiguousarray(ref.from_nchw(normal(rng, *shape), layout))
    for include in (False, True):
        arguments = {"count_include_pad": include, "layout": layout}
        y = fc.avg_pool2d(view, kernel, stride, padding, **arguments)
        ref.assert_avg_pool_close(y, ref.avg_pool2d(view, kernel, stride, padding, **arguments), integers=False)
        with fc.threads(3):  # neither threads nor the batch change a bit
            assert fc.avg_pool2d(view, kernel, stride, padding, **arguments).tobytes() == y.tobytes()
        for image in range(shape[0]):
            alone = fc.avg_pool2d(view[image : image + 1].copy(), kernel, stride, padding, **arguments)
            assert alone.tobytes() == y[image : image + 1].tobytes()


# Rows of whole vectors and one more; planes whose rows end in every lane; rows too long for that; few outputs a row.
SLIDING = [
    (2, 16, 7, 33),
    (1, 80, 6, 9),
    (2, 33, 9, 20),
    (1, 3, 5, 300),
    (3, 2, 11, 16),
    (2, 3, 12, 17),
    (1, 5, 4, 65),
    (1, 64, 2, 64),
]


@pytest.mark.parametrize("shape", SLIDING, ids=str)
@pytest.mark.parametrize(
    "window", [(3, 1, 1), (3, 2, 1), (3, 2, 0), (2, 2, 0), (2, 2, 1), (5, 1, 2), (5, 2, 2)], ids=str
)
def test_windows_slide(
    shape: tuple[int, ...], window: tuple[int, ...], isa: str, layout: str, rng: np.random.Generator
) -> None:
    """Infinities of both signs, whose sum is NaN, and NaN itself, beside values that stay what they are."""
    kernel, stride, padding = window
    if kernel > shape[2] + 2 * padding:
        pytest.skip("the window does not fit")
    x = integers(rng, *shape)
    x[:, :, 0, ::3] = np.inf
    x[:, :, 1, ::2] = -np.inf
    x[-1, 0, -1, -1] = np.nan
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    expected = ref.max_pool2d(view, kernel, stride, padding, layout=layout)[0]
    for threads in (1, 2, 5):
        with fc.threads(threads):
            ref.assert_exact(fc.max_pool2d(view, kernel, stride, padding, layout=layout), expected)
    # A sum of zeros has the sign that it has by itself, wherever its vector begins.
    zeros = np.full_like(view, -0.0)
    with fc.threads(1):
        alone = fc.avg_pool2d(zeros, kernel, stride, padding, layout=layout)
    with fc.threads(5):
        assert fc.avg_pool2d(zeros, kernel, stride, padding, layout=layout).tobytes() == alone.tobytes()
    view = np.ascontiguousarray(ref.from_nchw(integers(rng, *shape), layout))
    for more in ({}, {"count_include_pad": False}, {"divisor_override": 7}, {"ceil_mode": True}):
        y = fc.avg_pool2d(view, kernel, stride, padding, layout=layout, **more)
        ref.assert_avg_pool_close(
            y, ref.avg_pool2d(view, kernel, stride, padding, layout=layout, **more), integers=True
        )


@pytest.mark.parametrize("offset", [0, 4, 5], ids=lambda n: f"offset{n}")
@pytest.mark.parametrize(
    "shape, window",
    [
        ((2, 32, 20, 64), (2, 2, 0)),
        ((2, 80, 7, 48), (3, 1, 1)),
        ((1, 16, 16, 16), (3, 2, 1)),
        ((2, 3, 12, 65), (3, 2, 1)),
        ((1, 48, 8, 20), (5, 1, 2)),
        ((1, 32, 5, 7), (1, 1, 0)),
    ],
    ids=str,
)
def test_past_the_caches(
    shape: tuple[int, ...], window: tuple[int, ...], offset: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    kernel, stride, padding = window
    x = integers(rng, *shape)
    whole, _ = fenced(np.ascontiguousarray(ref.from_nchw(x, layout)), fence=9.0, offset=offset)
    mean = ref.avg_pool2d(whole, kernel, stride, padding, layout=layout)
    x[0, 1, 2, 3] = np.nan
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    given, _ = fenced(view, fence=9.0, offset=offset)
    expected = ref.max_pool2d(view, kernel, stride, padding, layout=layout)[0]
    with stored_past(1):
        stores = fc.explain("max_pool2d", view, kernel, stride, padding, layout=layout)["stores"]
        assert stores == "streaming" or layout == "NCHW" or shape[1] % 16
        for threads in (1, 3):
            out, intact = fenced(np.zeros(expected.shape, np.float32), fence=7.0, offset=offset)
            with fc.threads(threads):
                fc.max_pool2d(given, kernel, stride, padding, layout=layout, out=out)
                ref.assert_exact(out, expected)
                fc.avg_pool2d(whole, kernel, stride, padding, layout=layout, out=out)
            ref.assert_avg_pool_close(out, mean, integers=True)
            assert intact()


@pytest.mark.parametrize("beside", [False, True], ids=["fetched near", "not near"])
@pytest.mark.parametrize("stream_bytes", [1, 1 << 40], ids=["far", "close"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), (5, 1, 2), (2, (1, 2), 0)], ids=str)
@pytest.mark.parametrize("shape", [(3, 17, 14, 14), (1, 70, 17, 17), (2, 9, 8, 35), (1, 5, 36, 66)], ids=str)
def test_many_planes_and_what_is_fetched(
    shape: tuple[int, ...],
    window: tuple[Any, ...],
    stream_bytes: int,
    beside: bool,
    isa: str,
    layout: str,
    rng: np.random.Generator,
) -> None:
    """Planes in groups of sixteen and a rest, some of which join; a NaN in the first group, in the second, in the last
    plane. What is fetched while rows are read changes nothing."""
    x = integers(rng, *shape)
    whole = np.ascontiguousarray(ref.from_nchw(x, layout)).copy()
    planes = x.reshape(-1, *shape[2:])
    planes[3, 2, 5] = planes[-1, -1, -1] = planes[len(planes) // 2, 0, 0] = np.nan
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    expected = ref.max_pool2d(view, *window, layout=layout)[0]
    mean = ref.avg_pool2d(whole, *window, layout=layout, count_include_pad=False)
    with stored_past(stream_bytes), adds_beside(beside):
        for threads in (1, 2, 5):
            out, intact = fenced(np.zeros(expected.shape, np.float32), fence=7.0)
            with fc.threads(threads):
                fc.max_pool2d(fenced(view, fence=9.0)[0], *window, layout=layout, out=out)
                ref.assert_exact(out, expected)
                fc.avg_pool2d(fenced(whole)[0], *window, layout=layout, count_include_pad=False, out=out)
            ref.assert_avg_pool_close(out, mean, integers=True)
            assert intact()


# --- adaptive ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (5, 3), (13, 20), (4, 33)], ids=str)
@pytest.mark.parametrize("out", [1, (1, 1), (2, 3), (7, 7), 5], ids=str)
@pytest.mark.parametrize("channels", [1, 17, 64])
def test_adaptive_avg_pool(
    size: tuple[int, int], out: Any, channels: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    """Windows overlap where the sizes do not divide, and repeat where the output is the larger."""
    x = np.ascontiguousarray(ref.from_nchw(integers(rng, 2, channels, *size), layout))
    actual = fc.adaptive_avg_pool2d(x, out, layout=layout)
    ref.assert_avg_pool_close(actual, ref.adaptive_avg_pool2d(x, out, layout=layout), integers=True)


def test_global_average_random(isa: str, layout: str, rng: np.random.Generator) -> None:
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, 2, 100, 7, 7), layout))
    actual = fc.adaptive_avg_pool2d(x, 1, layout=layout)
    ref.assert_avg_pool_close(actual, ref.adaptive_avg_pool2d(x, 1, layout=layout), integers=False)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (7, 7), (8, 16), (90, 91), (3, 43)], ids=str)
def test_global_average_keeps_its_bits(size: tuple[int, int], isa: str, layout: str, rng: np.random.Generator) -> None:
    """Planes are added up several at a time: how many there are besides changes nothing."""
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, 3, 37, *size), layout))
    with fc.threads(1):
        y = fc.adaptive_avg_pool2d(x, 1, layout=layout)
    ref.assert_avg_pool_close(y, ref.adaptive_avg_pool2d(x, 1, layout=layout), integers=False)
    with fc.threads(3):
        assert fc.adaptive_avg_pool2d(x, 1, layout=layout).tobytes() == y.tobytes()
    alone = fc.adaptive_avg_pool2d(x[1:2].copy(), 1, layout=layout)
    assert alone.tobytes() == y[1:2].tobytes()


# --- forms ------------------------------------------------------------------------------------------------------------


def test_stride_defaults_to_the_kernel(layout: str, rng: np.random.Generator) -> None:
    x = ref.from_nchw(integers(rng, 1, 3, 9, 10), layout)
    for kernel in (2, 3, (2, 3), [3, 2]):
        ref.assert_exact(fc.max_pool2d(x, kernel, layout=layout), ref.max_pool2d(x, kernel, layout=layout)[0])
        ref.assert_avg_pool_close(
            fc.avg_pool2d(x, kernel, layout=layout), ref.avg_pool2d(x, kernel, layout=layout), integers=True
        )


def test_three_dimensional_input(layout: str, rng: np.random.Generator) -> None:
    x = ref.from_nchw(integers(rng, 5, 7, 9), layout)
    values, indices = ref.max_pool2d(x, 3, 2, 1, layout=layout)
    got_values, got_indices = fc.max_pool2d(x, 3, 2, 1, return_indices=True, layout=layout)
    ref.assert_exact(got_values, values)
    np.testing.assert_array_equal(got_indices, indices)
    ref.assert_avg_pool_close(fc.avg_pool2d(x, 3, layout=layout), ref.avg_pool2d(x, 3, layout=layout), integers=True)
    expected = ref.adaptive_avg_pool2d(x, (2, 3), layout=layout)
    ref.assert_avg_pool_close(fc.adaptive_avg_pool2d(x, (2, 3), layout=layout), expected, integers=True)


def test_empty_batch(layout: str) -> None:
    x = np.zeros((0, 3, 8, 10) if layout == "NCHW" else (0, 8, 10, 3), np.float32)
    half = (0, 3, 4, 5) if layout == "NCHW" else (0, 4, 5, 3)
    values, indices = fc.max_pool2d(x, 2, return_indices=True, layout=layout)
    assert (values.shape, values.dtype) == (half, np.float32)
    assert (indices.shape, indices.dtype) == (half, np.int64)
    assert fc.avg_pool2d(x, 2, layout=layout).shape == half
    assert fc.adaptive_avg_pool2d(x, (4, 5), layout=layout).shape == half


def test_out(layout: str, rng: np.random.Generator) -> None:
    x = ref.from_nchw(integers(rng, 2, 3, 8, 8), layout)
    values, indices = ref.max_pool2d(x, 2, layout=layout)
    out = np.full(values.shape, np.nan, np.float32)
    assert fc.max_pool2d(x, 2, layout=layout, out=out) is out
    ref.assert_exact(out, values)
    out[...] = np.nan
    result = fc.max_pool2d(x, 2, return_indices=True, layout=layout, out=out)
    assert result[0] is out
    ref.assert_exact(out, values)
    np.testing.assert_array_equal(result[1], indices)
    assert fc.avg_pool2d(x, 2, layout=layout, out=out) is out
    ref.assert_exact(out, ref.avg_pool2d(x, 2, layout=layout))
    assert fc.adaptive_avg_pool2d(x, 4, layout=layout, out=out) is out
    ref.assert_exact(out, ref.avg_pool2d(x, 2, layout=layout))


@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("channels", [1, 7, 8, 16, 17])
def test_nothing_outside_the_arrays_is_used(
    width: int, channels: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    x = np.ascontiguousarray(ref.from_nchw(integers(rng, 1, channels, 3, width), layout))
    for padding, stride in ((1, 1), (1, 2)):
        expected = ref.max_pool2d(x, 3, stride, padding, layout=layout)[0]
        out, intact = fenced(np.zeros(expected.shape, np.float32), fence=7.0)
        fc.max_pool2d(fenced(x)[0], 3, stride, padding, layout=layout, out=out)
        ref.assert_exact(out, expected)
        assert intact()
        out, intact = fenced(np.zeros(expected.shape, np.float32), fence=7.0)
        fc.avg_pool2d(fenced(x)[0], 3, stride, padding, divisor_override=8, layout=layout, out=out)
        ref.assert_exact(out, ref.avg_pool2d(x, 3, stride, padding, divisor_override=8, layout=layout))
        assert intact()
