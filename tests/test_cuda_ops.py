"""Pooling, ReLU, softmax, batch norm, layout conversion and copies on the CUDA backend against the float64 oracle, in
every dtype and both layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from cases import POOL_CASES, PoolCase, case_id
from cuda_backend import DTYPES, empty, get, put, rounded, strided
from fastconv.cuda import _backend
from helpers import F32, integers

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> F32:
    """Random values that `dtype` holds exactly."""
    return rounded(rng.standard_normal(shape), dtype)


def image(rng: np.random.Generator, layout: str, n: int, c: int, h: int, w: int) -> F32:
    """Small integers, many of them equal; every dtype holds them."""
    return np.ascontiguousarray(ref.from_nchw(integers(rng, n, c, h, w), layout))


def assert_same(actual: Any, expected: Any, dtype: str) -> None:
    """Bit for bit what `dtype` makes of the oracle's values."""
    assert actual._view.dtype == dtype
    ref.assert_exact(get(actual), rounded(expected, dtype).astype(np.float64))


# --- element by element -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 7, 8, 255, 4096, 5003])
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
def test_relu(rng: np.random.Generator, dtype: str, elements: int, misaligned: bool) -> None:
    x = normal(rng, (elements,), dtype)
    x[::5] = np.nan
    x[3::7] = -np.inf
    x[4::7] = np.inf
    out = empty(x.shape, dtype, misaligned=misaligned)
    assert fc.relu(put(x, dtype, misaligned=misaligned), out=out) is out
    assert_same(out, ref.relu(x), dtype)


@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
def test_relu_of_a_sum(rng: np.random.Generator, dtype: str, misaligned: bool) -> None:
    x, residual = (normal(rng, (3, 347), dtype) for _ in range(2))
    residual[1, 5] = np.nan
    out = empty(x.shape, dtype, misaligned=misaligned)
    views = [a._view for a in (put(x, dtype), out, put(residual, dtype))]
    _backend.backend().relu(views[0], views[1], 0, views[2])
    assert_same(out, ref.relu(x.astype(np.float64) + residual), dtype)


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (1, 24, 5, 5), (3, 5, 7, 3), (2, 3, 1, 1), (1, 640, 3, 2)])
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_batch_norm(
    rng: np.random.Generator, dtype: str, layout: str, shape: tuple[int, ...], misaligned: bool, affine: bool
) -> None:
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, shape, dtype), layout))
    mean, var = normal(rng, (shape[1],), "float32"), rng.uniform(0.5, 2, shape[1]).astype(np.float32)
    weight, bias = (normal(rng, (shape[1],), "float32") for _ in range(2)) if affine else (None, None)
    extra = [None if v is None else put(v) for v in (weight, bias)]
    out = empty(x.shape, dtype, misaligned=misaligned)
    fc.batch_norm(put(x, dtype, misaligned=misaligned), put(mean), put(var), *extra, layout=layout, out=out)
    ref.assert_batch_norm_close(get(out), x, mean, var, weight, bias, 1e-5, layout, dtype)


def test_batch_norm_walks_on_in_large_arrays(rng: np.random.Generator, layout: str) -> None:
    """More elements than one pass of the grid takes, channels that are no multiple of anything."""
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, (5, 37, 65, 77), "float32"), layout))
    mean, var = normal(rng, (37,), "float32"), rng.uniform(0.5, 2, 37).astype(np.float32)
    actual = get(fc.batch_norm(put(x), put(mean), put(var), layout=layout))
    ref.assert_batch_norm_close(actual, x, mean, var, None, None, 1e-5, layout)


# --- layouts and copies -----------------------------------------------------------------------------------------------

IMAGES = [(2, 3, 40, 27), (1, 16, 33, 33), (2, 64, 8, 8), (1, 130, 9, 10), (1, 72, 7, 7), (3, 20, 16, 4), (1, 1, 3, 2)]


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
def test_convert_layout(
    rng: np.random.Generator, dtype: str, layout: str, shape: tuple[int, ...], misaligned: bool
) -> None:
    target = "NHWC" if layout == "NCHW" else "NCHW"
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, shape, dtype), layout))
    expected = ref.convert_layout(x, layout, target)
    out = empty(expected.shape, dtype, misaligned=misaligned)
    fc.convert_layout(put(x, dtype, misaligned=misaligned), layout, target, out=out)
    assert_same(out, expected, dtype)


def test_convert_layout_to_itself(rng: np.random.Generator, dtype: str, layout: str) -> None:
    x = normal(rng, (2, 3, 4, 5), dtype)
    assert_same(fc.convert_layout(put(x, dtype), layout, layout), x, dtype)


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("elements", [1, 9, 4099])
def test_dtypes_are_rounded_to_nearest_even(rng: np.random.Generator, dtype: str, target: str, elements: int) -> None:
    x = rounded(rng.standard_normal(elements) * 10.0 ** rng.integers(-8, 5, elements), dtype)
    x[0] = np.nan
    x[5::9] = -np.inf
    assert_same(
        fc.cuda.asarray(put(x, dtype).numpy(), target) if dtype == "float32" else cast(x, dtype, target), x, target
    )


def cast(x: F32, dtype: str, target: str) -> Any:
    """A copy in another dtype, by the module's own copy."""
    src, dst = put(x, dtype), empty(x.shape, target)
    _backend.backend().copy(src._view, dst._view, 0)
    return dst


STRIDED = [
    ((4, 6), (1, 4), 0),  # transposed
    ((3, 5), (-5, 1), 10),  # from the last row on
    ((7,), (3,), 1),
    ((2, 3, 4), (0, 4, 1), 0),  # the same rows twice
    ((2, 2, 2, 2, 2, 2, 2, 2), (1, 2, 4, 8, 16, 32, 64, 128), 0),
    ((3, 40, 33), (1, 99, 3), 0),  # NHWC seen as NCHW
    ((2, 5, 33, 31), (5 * 31 * 33, 1, 5, 5 * 33), 0),  # two tiles that are not whole, an axis beside them
    ((65, 3), (1, 70), 1),
]


@pytest.mark.parametrize("case", STRIDED, ids=lambda case: "x".join(map(str, case[0])))
def test_any_strides_of_input(rng: np.random.Generator, dtype: str, case: Any) -> None:
    shape, strides, first = case
    whole = normal(rng, (12000,), dtype)
    expected = np.lib.stride_tricks.as_strided(whole[first:], shape, [4 * s for s in strides])
    assert_same(fc.relu(strided(put(whole, dtype), shape, strides, first)), ref.relu(expected), dtype)


def test_any_strides_of_out(rng: np.random.Generator, dtype: str) -> None:
    x = normal(rng, (5, 7), dtype)
    whole = put(np.full(200, -1, np.float32), dtype)
    fc.relu(put(x, dtype), out=strided(whole, (5, 7), (2, 20), 3))
    expected = np.full(200, -1, np.float32)
    np.lib.stride_tricks.as_strided(expected[3:], (5, 7), (8, 80))[:] = ref.relu(x)
    assert_same(whole, expected, dtype)


# --- pooling ----------------------------------------------------------------------------------------------------------

every_case = pytest.mark.parametrize("case", POOL_CASES, ids=case_id)
undilated = pytest.mark.parametrize("case", [c for c in POOL_CASES if c.dilation == (1, 1)], ids=case_id)


@every_case
def test_max_pool(case: PoolCase, dtype: str, layout: str, rng: np.random.Generator) -> None:
    x = image(rng, layout, case.n, case.c, case.ih, case.iw)
    for ceil_mode in (False, True):
        arguments = (case.kernel, case.stride, case.padding, case.dilation, ceil_mode)
        values, indices = ref.max_pool2d(x, *arguments, layout=layout)
        assert_same(fc.max_pool2d(put(x, dtype), *arguments, layout=layout), values, dtype)
        got, where = fc.max_pool2d(put(x, dtype), *arguments, return_indices=True, layout=layout)
        assert_same(got, values, dtype)
        np.testing.assert_array_equal(where.numpy(), indices)


@pytest.mark.parametrize("width", [4, 8, 16, 24])
@pytest.mark.parametrize("rows", [(1, 1), (2, 0), (3, 1)], ids=["step1", "step2", "step3"])
def test_max_pool_by_rows(width: int, rows: tuple[int, int], dtype: str, layout: str, rng: np.random.Generator) -> None:
    """3x3 with columns in steps of two, rows of whole vectors; misaligned, where they are not."""
    x = image(rng, layout, 2, 5, 7, width)
    x[rng.random(x.shape) < 0.02] = np.nan
    arguments = (3, (rows[0], 2), ((rows[1], 1), (1, 0)))
    expected = ref.max_pool2d(x, *arguments, layout=layout)[0]
    assert_same(fc.max_pool2d(put(x, dtype), *arguments, layout=layout), expected, dtype)
    assert_same(fc.max_pool2d(put(x, dtype, misaligned=True), *arguments, layout=layout), expected, dtype)


@pytest.mark.parametrize("channels", [16, 19])
def test_max_pool_nan_sticks(dtype: str, layout: str, channels: int, rng: np.random.Generator) -> None:
    """Wherever a NaN lies in a window it is the maximum, and the first one is."""
    x = integers(rng, 2, channels, 9, 11)
    x[rng.random(x.shape) < 0.05] = np.nan
    x[:, :, 5:] = np.where(np.isnan(x[:, :, 5:]), np.nan, -np.inf)
    x = np.ascontiguousarray(ref.from_nchw(x, layout))
    for kernel, stride, padding in ((3, 2, 1), (2, 1, 0), (5, 3, 2)):
        values, indices = ref.max_pool2d(x, kernel, stride, padding, layout=layout)
        got, where = fc.max_pool2d(put(x, dtype), kernel, stride, padding, return_indices=True, layout=layout)
        assert_same(got, values, dtype)
        np.testing.assert_array_equal(where.numpy(), indices)
        assert_same(fc.max_pool2d(put(x, dtype), kernel, stride, padding, layout=layout), values, dtype)


@undilated
def test_avg_pool(case: PoolCase, dtype: str, layout: str, rng: np.random.Generator) -> None:
    x = image(rng, layout, case.n, case.c, case.ih, case.iw)
    for ceil_mode, count_include_pad, divisor in (
        (False, True, None),
        (True, True, None),
        (True, False, None),
        (False, True, 7),
    ):
        arguments = (case.kernel, case.stride, case.padding, ceil_mode, count_include_pad, divisor)
        with np.errstate(invalid="ignore"):
            expected = ref.avg_pool2d(x, *arguments, layout=layout)
        actual = get(fc.avg_pool2d(put(x, dtype), *arguments, layout=layout))
        ref.assert_avg_pool_close(actual, expected, integers=True, dtype=dtype)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (5, 9)], ids=str)
@pytest.mark.parametrize("channels", [1, 24, 300])
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
def test_adaptive_avg_pool(
    size: tuple[int, int], channels: int, misaligned: bool, dtype: str, layout: str, rng: np.random.Generator
) -> None:
    for extent in (7, 8):
        x = np.ascontiguousarray(ref.from_nchw(normal(rng, (3, channels, extent, extent), dtype), layout))
        expected = ref.adaptive_avg_pool2d(x, size, layout=layout)
        out = empty(expected.shape, dtype, misaligned=misaligned)
        fc.adaptive_avg_pool2d(put(x, dtype, misaligned=misaligned), size, layout=layout, out=out)
        ref.assert_avg_pool_close(get(out), expected, integers=False, dtype=dtype)


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_pooling_of_misaligned_arrays(op: str, dtype: str, layout: str, rng: np.random.Generator) -> None:
    x = image(rng, layout, 2, 16, 6, 8)
    expected = getattr(ref, op)(x, 2, layout=layout)
    expected = expected[0] if op == "max_pool2d" else expected
    out = empty(expected.shape, dtype, misaligned=True)
    getattr(fc, op)(put(x, dtype, misaligned=True), 2, layout=layout, out=out)
    assert_same(out, expected, dtype)


# --- softmax ----------------------------------------------------------------------------------------------------------

SOFTMAX = [((5, 1), 1), ((7, 10), 1), ((3, 100), 1), ((9, 512), 1), ((2, 1000), 1), ((3, 1025), 1), ((2, 5003), 1)]
SOFTMAX += [((2, 21, 5, 7), 1), ((4, 3, 300), 1), ((600, 2), 0)]


@pytest.mark.parametrize("case", SOFTMAX, ids=str)
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
def test_softmax(case: Any, misaligned: bool, dtype: str, rng: np.random.Generator) -> None:
    shape, dim = case
    x = rounded(rng.standard_normal(shape) * 3, dtype)
    out = empty(shape, dtype, misaligned=misaligned)
    fc.softmax(put(x, dtype, misaligned=misaligned), dim, out=out)
    ref.assert_softmax_close(get(out), x, dim, dtype)


@pytest.mark.parametrize("length", [5, 900, 3000])
@pytest.mark.parametrize("dim", [0, 1])
def test_softmax_of_what_is_not_finite(length: int, dim: int, dtype: str) -> None:
    x = np.zeros((6, length), np.float32)
    x[0, 3] = np.nan
    x[1, 2] = np.inf
    x[2, :] = -np.inf
    x[3, 1:] = -np.inf
    x[4, :] = 11.0
    x[5, 0], x[5, 1] = 3e4, -3e4
    with np.errstate(invalid="ignore"):
        expected = rounded(ref.softmax(x, 1), dtype)
    x, expected = (x, expected) if dim == 1 else (x.T, expected.T)
    actual = get(fc.softmax(put(rounded(np.ascontiguousarray(x), dtype), dtype), dim))
    np.testing.assert_allclose(actual, expected, rtol=1e-6 + ref.STORED_ROUNDOFF[dtype], atol=0)


# --- repeats ----------------------------------------------------------------------------------------------------------


def test_ten_repeats_are_equal_bit_for_bit(dtype: str, layout: str, rng: np.random.Generator) -> None:
    x = put(normal(rng, (2, 24, 15, 15), dtype), dtype)
    for op in (
        lambda: fc.softmax(x, -1),
        lambda: fc.adaptive_avg_pool2d(x, 1, layout=layout),
        lambda: fc.avg_pool2d(x, 3, 2, 1, layout=layout),
    ):
        first = get(op())
        for _ in range(9):
            np.testing.assert_array_equal(get(op()), first)
