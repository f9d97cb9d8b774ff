"""softmax: every ISA level, every axis, rows of special values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import F32, fenced, integers, normal

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 1000, 4099])
def test_rows(length: int, isa: str, rng: np.random.Generator) -> None:
    for scale in (0.1, 1.0, 10.0):
        x = normal(rng, 5, length) * np.float32(scale)
        out, intact = fenced(np.zeros_like(x), fence=7.0)
        assert fc.softmax(fenced(x)[0], out=out) is out
        ref.assert_softmax_close(out, x, -1)
        assert intact()


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 9, 4), (2, 17, 3, 5), (1, 40, 3, 3), (2, 2, 3, 2, 18)], ids=str)
def test_every_axis(shape: tuple[int, ...], isa: str, rng: np.random.Generator) -> None:
    x = normal(rng, *shape) * np.float32(4)
    for dim in range(-len(shape), len(shape)):
        y = fc.softmax(x, dim)
        ref.assert_softmax_close(y, x, dim)
        ref.assert_exact(fc.softmax(x, dim=dim % len(shape)), y)


@pytest.mark.parametrize("length", [2, 4, 8, 64, 512])
def test_equal_values_are_exact(length: int, isa: str) -> None:
    """exp(0) = 1 and a sum that is a power of two: no rounding."""
    for value in (0.0, -3.25, 1e30, -1e30):
        assert (fc.softmax(np.full((3, length), value, np.float32)) == np.float32(1 / length)).all()


def test_large_values_do_not_overflow(isa: str) -> None:
    x = np.array([[3e38, 3e38, -3e38], [1e4, 1e4 - 1, 0], [-1e4, -1e4 - 1, -2e4]], np.float32)
    ref.assert_softmax_close(fc.softmax(x), x, -1)


@pytest.mark.parametrize("fill", [1, 6, 15, 16, 33, 100])
@pytest.mark.parametrize("dim", [-1, 0])
def test_special_rows(fill: int, dim: int, isa: str) -> None:
    """Each special value in front, in the middle and at the end of rows of any length; the other rows must not
    notice."""
    rows: list[list[float]] = []
    for special, where in (
        (NAN, 0),
        (NAN, fill // 2),
        (NAN, fill),
        (INF, 0),
        (INF, fill),
        (-INF, 0),
        (-INF, fill // 2),
        (-INF, fill),
    ):
        row = [float(i % 5) for i in range(fill + 1)]
        row[where] = special
        rows.append(row)
    rows += [
        [-INF] * (fill + 1),
        [INF] * (fill + 1),
        [NAN] + [INF] * fill,
        [-INF] * fill + [NAN],
        [-INF] * fill + [2.0],
        [1.0] * (fill + 1),
    ]
    x = np.array(rows, np.float32)
    y = fc.softmax(np.ascontiguousarray(x.T), 0).T if dim == 0 else fc.softmax(x)
    expected = ref.softmax(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(y == 0, expected == 0)
    finite = ~np.isnan(expected).any(axis=1)
    with np.errstate(invalid="ignore"):
        allowed = (ref.SOFTMAX_UNITS + 5 + np.log(fill + 1) + np.sqrt(fill + 1) / 4) * ref.UNIT_ROUNDOFF
    np.testing.assert_allclose(y[finite], expected[finite], rtol=allowed)


def test_small_results_are_subnormal_not_zero(isa: str) -> None:
    x: F32 = np.array([[0, -85, -88, -90, -95, -100, -103]] * 3, np.float32)
    y = fc.softmax(x)
    assert (y > 0).all()
    ref.assert_softmax_close(y, x, -1)
    assert fc.softmax(np.array([0, -110], np.float32))[1] == 0


def test_two_extents_away_from_the_row(isa: str, rng: np.random.Generator) -> None:
    """Outer and inner extents at once: a row's neighbours in memory are other rows."""
    x = integers(rng, 3, 21, 19)
    x[1, 4, 7] = NAN
    y = fc.softmax(x, 1)
    assert np.isnan(y[1, :, 7]).all()
    assert np.count_nonzero(np.isnan(y)) == 21


def test_empty_batch() -> None:
    assert fc.softmax(np.zeros((0, 5), np.float32)).shape == (0, 5)
    assert fc.softmax(np.zeros((0, 5, 2), np.float32), 1).shape == (0, 5, 2)


def test_against_torch(torch: Any, rng: np.random.Generator) -> None:
    x = normal(rng, 9, 1000) * np.float32(3)
    theirs = torch.softmax(torch.from_numpy(x), -1).numpy()
    ref.assert_softmax_close(theirs, x, -1)
    ref.assert_softmax_close(fc.softmax(x), x, -1)
