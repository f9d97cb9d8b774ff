"""relu, batch_norm and convert_layout: every ISA level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import LAYOUTS, fenced, integers, normal, stored_past

LENGTHS = [1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 4097]
PLANES = [
    (1, 1, 1, 1),
    (2, 3, 4, 5),
    (1, 7, 3, 3),
    (1, 8, 1, 9),
    (1, 16, 5, 7),
    (3, 17, 2, 2),
    (1, 33, 7, 7),
    (2, 64, 1, 15),
    (1, 1, 30, 31),
]

# --- relu -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_relu(length: int, isa: str, rng: np.random.Generator) -> None:
    x = normal(rng, length)
    x[rng.integers(0, length, 3)] = [np.nan, np.inf, -np.inf]
    out, intact = fenced(np.full(length, 5.0, np.float32), fence=-7.0)
    assert fc.relu(fenced(x, fence=9.0)[0], out=out) is out
    ref.assert_exact(out, ref.relu(x).astype(np.float32))
    assert intact()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("offset", [0, 1, 4, 8, 15])
def test_relu_past_the_caches(length: int, offset: int, isa: str, rng: np.random.Generator) -> None:
    x = normal(rng, length)
    x[rng.integers(0, length, 3)] = [np.nan, np.inf, -np.inf]
    out, intact = fenced(np.full(length, 5.0, np.float32), fence=-7.0, offset=offset)
    with stored_past(1):
        assert fc.explain("relu", x)["stores"] == "streaming"
        fc.relu(fenced(x, fence=9.0, offset=4)[0], out=out)
        ref.assert_exact(out, ref.relu(x).astype(np.float32))
        assert intact()


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 1, 3, 1, 2)], ids=str)
def test_relu_takes_any_rank(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = integers(rng, *shape)
    ref.assert_exact(fc.relu(x), ref.relu(x))


def test_relu_edge_values(isa: str) -> None:
    x = np.array([-0.0, 0.0, 1e-45, -1e-45, 1e-39, np.nan, -np.nan, np.inf, -np.inf, 3.4e38, -3.4e38] * 5, np.float32)
    y = fc.relu(x)
    ref.assert_exact(y, ref.relu(x))
    assert y[2] != 0, "subnormals are kept"


def test_relu_empty_batch() -> None:
    for shape in ((0,), (0, 3, 4, 5)):
        y = fc.relu(np.zeros(shape, np.float32))
        assert (y.shape, y.dtype) == (shape, np.float32)


def test_relu_large(isa: str, rng: np.random.Generator) -> None:
    """Long enough to be split between threads."""
    x = normal(rng, 3, 1_000_003)
    ref.assert_exact(fc.relu(x), np.maximum(x, 0))


# --- batch norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", PLANES, ids=str)
def test_batch_norm(shape: tuple[int, ...], isa: str, layout: str, rng: np.random.Generator) -> None:
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, *shape), layout))
    channels = shape[1]
    mean, weight, bias = (normal(rng, channels) for _ in range(3))
    var = normal(rng, channels) ** 2
    for w, b, eps in ((weight, bias, 1e-5), (None, None, 1e-5), (weight, None, 1e-3), (None, bias, 0.5)):
        y = fc.batch_norm(x, mean, var, w, b, eps=eps, layout=layout)
        ref.assert_batch_norm_close(y, x, mean, var, w, b, eps, layout)
        three = fc.batch_norm(x[0], mean, var, w, b, eps=eps, layout=layout)
        assert three.ndim == 3
        ref.assert_exact(three, y[0])


def test_batch_norm_exact(isa: str, layout: str, rng: np.random.Generator) -> None:
    """Variances that are squares of powers of two, eps 0: no rounding anywhere."""
    x = np.ascontiguousarray(ref.from_nchw(integers(rng, 2, 37, 5, 7), layout))
    mean, weight, bias = (integers(rng, 37) for _ in range(3))
    var = (4.0 ** rng.integers(-2, 3, 37)).astype(np.float32)
    y = fc.batch_norm(x, mean, var, weight, bias, eps=0.0, layout=layout)
    ref.assert_exact(y, ref.batch_norm(x, mean, var, weight, bias, eps=0.0, layout=layout))
    out, intact = fenced(np.zeros_like(y), fence=7.0)
    assert fc.batch_norm(fenced(x)[0], mean, var, weight, bias, eps=0.0, layout=layout, out=out) is out
    ref.assert_exact(out, y)
    assert intact()


def test_batch_norm_default_eps_is_torchs(rng: np.random.Generator) -> None:
    """A variance of 0 leaves only eps: 1/sqrt(1e-5)."""
    y = fc.batch_norm(np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32))
    np.testing.assert_allclose(y.ravel(), [1e5**0.5], rtol=ref.BATCH_NORM_UNITS * ref.UNIT_ROUNDOFF)


def test_batch_norm_against_torch(torch: Any, layout: str, rng: np.random.Generator) -> None:
    x, mean, var, weight, bias = (
        normal(rng, 2, 20, 5, 6),
        normal(rng, 20),
        normal(rng, 20) ** 2,
        normal(rng, 20),
        normal(rng, 20),
    )
    theirs = torch.nn.functional.batch_norm(*map(torch.from_numpy, (x, mean, var, weight, bias))).numpy()
    ours = fc.batch_norm(ref.from_nchw(x, layout), mean, var, weight, bias, layout=layout)
    ref.assert_rel_l2(ours, ref.from_nchw(theirs, layout), ref.CONV_REL_L2)


def test_batch_norm_empty_batch(layout: str) -> None:
    shape = (0, 3, 4, 5) if layout == "NCHW" else (0, 4, 5, 3)
    y = fc.batch_norm(np.zeros(shape, np.float32), np.zeros(3, np.float32), np.ones(3, np.float32), layout=layout)
    assert (y.shape, y.dtype) == (shape, np.float32)


# --- convert_layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*PLANES, (2, 100, 13, 17), (1, 3, 64, 65), (1, 256, 7, 7)], ids=str)
@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_convert_layout(source: str, target: str, shape: tuple[int, ...], isa: str, rng: np.random.Generator) -> None:
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, *shape), source))
    x.ravel()[0] = np.nan
    expected = ref.convert_layout(x, source, target)
    y = fc.convert_layout(x, source, target)
    ref.assert_exact(y, expected)
    assert y.flags.c_contiguous, "the point of converting is the order in memory"
    out, intact = fenced(np.zeros_like(expected), fence=7.0)
    assert fc.convert_layout(fenced(x, fence=9.0)[0], source, target, out=out) is out
    ref.assert_exact(out, expected)
    assert intact()
    ref.assert_exact(fc.convert_layout(y, target, source), x)


# Shapes that reach every way through: few channels; blocks with and without rests, in strips and not; rows a multiple
# of 4 KiB apart on either side; tiles with whole and cut rows; pictures shared by pixels and by channels.
LARGE = [
    (2, 3, 33, 40),
    (2, 4, 33, 40),
    (1, 5, 3, 100),
    (2, 21, 31, 33),
    (1, 64, 20, 40),
    (1, 100, 16, 16),
    (1, 255, 8, 50),
    (2, 320, 7, 9),
    (1, 1024, 7, 7),
    (1, 2048, 3, 5),
    (1, 1024, 1, 3),
    (1, 40, 32, 64),
    (1, 21, 5, 205),
    (1, 2, 32, 64),
]


@pytest.mark.parametrize("stream_bytes", [1, 1 << 40], ids=["past", "into"])
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("source", LAYOUTS)
def test_convert_layout_past_the_caches(
    source: str, shape: tuple[int, ...], stream_bytes: int, isa: str, rng: np.random.Generator
) -> None:
    target = "NHWC" if source == "NCHW" else "NCHW"
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, *shape), source))
    expected = ref.convert_layout(x, source, target)
    with stored_past(stream_bytes):
        plan = fc.explain("convert_layout", x, source=source, target=target)
        run = shape[1] if source == "NCHW" else shape[2] * shape[3]
        past = stream_bytes == 1 and (run % 16 == 0 or run <= 256)
        assert plan["stores"] == ("streaming" if past else "regular")
        for offset in (0, 4, 5):  # floats after a line's beginning
            out, intact = fenced(np.zeros_like(expected), fence=7.0, offset=offset)
            given, _ = fenced(x, fence=9.0, offset=offset)
            with fc.threads(1 if offset == 4 else 3):
                assert fc.convert_layout(given, source, target, out=out) is out
            ref.assert_exact(out, expected)
            assert intact()


def test_convert_layout_other_forms(rng: np.random.Generator) -> None:
    x = integers(rng, 3, 5, 7)
    ref.assert_exact(fc.convert_layout(x, "NCHW", "NHWC"), x.transpose(1, 2, 0))
    assert fc.convert_layout(np.zeros((0, 3, 4, 5), np.float32), "NCHW", "NHWC").shape == (0, 4, 5, 3)
    same = fc.convert_layout(x, "NCHW", "NCHW")
    assert not np.shares_memory(same, x), "a result of its own, whatever the layouts"
