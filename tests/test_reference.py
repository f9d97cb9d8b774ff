"""The oracle itself: against PyTorch in float64 where that is installed, and against numbers worked out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import reference as ref
from cases import CONV_CASES, POOL_CASES, ConvCase, PoolCase, case_id

# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "expected"),
    [(224, 7, 2, 1, (2, 3)), (112, 3, 2, 1, (0, 1)), (5, 3, 1, 2, (2, 2)), (5, 2, 1, 1, (0, 1)), (7, 1, 3, 1, (0, 0))],
)
def test_same_padding(size: int, kernel: int, stride: int, dilation: int, expected: tuple[int, int]) -> None:
    """The first two are the well-known ones of ResNet under TensorFlow."""
    arguments = ((size, size), (kernel, kernel), (stride, stride), (dilation, dilation))
    assert ref.resolve_padding("same", *arguments) == (expected, expected)
    assert ref.resolve_padding("same_lower", *arguments) == (expected[::-1], expected[::-1])
    out = ref.conv_output_size(size, kernel, stride, expected, dilation)
    assert out == -(-size // stride)


def test_conv_by_hand() -> None:
    x = np.arange(9.0).reshape(1, 3, 3)
    w = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert_array_equal(ref.conv2d(x, w)[0], [[27.0, 37.0], [57.0, 67.0]])
    assert_array_equal(ref.conv2d(x, w, padding="full").shape, (1, 4, 4))
    assert ref.conv2d(x, w, padding="full")[0, 0, 0] == 0.0 * 4
    assert ref.conv2d(x, w, padding="full")[0, 3, 3] == 8.0 * 1


def test_average_divisor_is_clipped_to_the_padded_image() -> None:
    """1..16 as 4x4, kernel 3, stride 2, padding 1, ceil_mode: the numbers of pytorch#183528."""
    x = np.arange(1.0, 17.0).reshape(1, 4, 4)
    y = ref.avg_pool2d(x, 3, 2, 1, ceil_mode=True)[0]
    # Rows and columns 0..1 reach the image; the third window starts at 3 and is clipped to the padded image's end, 5.
    assert y.shape == (3, 3)
    assert y[0, 0] == (1 + 2 + 5 + 6) / 9
    assert y[0, 2] == (4 + 8) / 6
    assert y[2, 0] == (13 + 14) / 6
    assert y[2, 2] == 16 / 4


def test_average_same_padding_excludes_padding() -> None:
    """Keras: average_pool([10, 20], 3, strides 2, "same") == 15."""
    x = np.array([[[10.0, 20.0]]])
    assert ref.avg_pool2d(x, (1, 3), (1, 2), "same", count_include_pad=False).ravel() == 15.0


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "expected"), [(5, 2, 2, 0, 3), (4, 3, 2, 1, 3), (3, 2, 2, 1, 2)]
)
def test_ceil_mode_drops_windows_in_the_padding(size: int, kernel: int, stride: int, pad: int, expected: int) -> None:
    assert ref.pool_output_size(size, kernel, stride, (pad, pad), 1, True) == expected


def test_max_pool_ties_and_nan() -> None:
    x = np.array([[[1.0, 3.0, 3.0, np.nan], [3.0, 0.0, np.nan, 9.0]]])
    values, indices = ref.max_pool2d(x, 2)
    assert_array_equal(values[0], [[3.0, np.nan]])
    assert_array_equal(indices[0], [[1, 3]])


def test_adaptive_windows() -> None:
    assert ref.adaptive_windows(5, 3) == [(0, 2), (1, 4), (3, 5)]
    assert ref.adaptive_windows(2, 3) == [(0, 1), (0, 2), (1, 2)]


def test_softmax_special_rows() -> None:
    x = np.array([[-np.inf, -np.inf], [np.inf, 0.0], [np.nan, 0.0], [-np.inf, 5.0]])
    assert_array_equal(ref.softmax(x), [[np.nan] * 2, [np.nan] * 2, [np.nan] * 2, [0.0, 1.0]])


@pytest.mark.parametrize("layout", ["OIHW", "OHWI", "HWIO"])
def test_weight_layouts(layout: str, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((2, 3, 4, 5))
    stored = ref.weight_from_oihw(weight, layout)
    assert stored.shape == tuple({"O": 2, "I": 3, "H": 4, "W": 5}[letter] for letter in layout)
    assert_array_equal(ref.weight_to_oihw(stored, layout), weight)


def test_comparisons_can_fail() -> None:
    one = np.ones(4, dtype=np.float32)
    with pytest.raises(AssertionError, match="1 of 4 values differ"):
        ref.assert_exact(np.array([1, 1, 2, 1], dtype=np.float32), np.ones(4))
    with pytest.raises(AssertionError, match="more than float32"):
        ref.assert_exact(one, np.full(4, 0.1))
    with pytest.raises(AssertionError, match="exceeds"):
        ref.assert_rel_l2(one, np.full(4, 1.0 + 1e-5), ref.CONV_REL_L2)
    with pytest.raises(AssertionError, match="finite"):
        ref.assert_rel_l2(one * np.nan, np.ones(4), ref.CONV_REL_L2)
    with pytest.raises(AssertionError, match="times the allowed"):
        ref.assert_softmax_close(np.full(2, 0.5001, dtype=np.float32), np.zeros(2, dtype=np.float32), 0)


# --- against PyTorch --------------------------------------------------------------------------------------------------


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


@pytest.mark.parametrize("case", CONV_CASES, ids=case_id)
def test_conv_against_torch(case: ConvCase, torch: Any, rng: np.random.Generator) -> None:
    functional = torch.nn.functional
    x = _random(rng, (case.n, case.ic, case.ih, case.iw))
    w = _random(rng, (case.oc, case.ic // case.groups, case.kh, case.kw))
    b = _random(rng, (case.oc,))
    sides = ref.resolve_padding(case.padding, (case.ih, case.iw), (case.kh, case.kw), case.stride, case.dilation)
    padded = functional.pad(torch.from_numpy(x), (*sides[1], *sides[0]))
    expected = functional.conv2d(
        padded, torch.from_numpy(w), torch.from_numpy(b), stride=case.stride, dilation=case.dilation, groups=case.groups
    ).numpy()
    actual = ref.conv2d(x, w, b, case.stride, case.padding, case.dilation, case.groups)
    ref.assert_rel_l2(actual, expected, ref.ORACLE_REL_L2)


@pytest.mark.parametrize("case", [c for c in POOL_CASES if c.torch_can], ids=case_id)
@pytest.mark.parametrize("ceil_mode", [False, True], ids=["floor", "ceil"])
def test_max_pool_against_torch(case: PoolCase, ceil_mode: bool, torch: Any, rng: np.random.Generator) -> None:
    functional = torch.nn.functional
    # Few distinct values make ties; one NaN a plane, because PyTorch gives the index of the last of several.
    x = rng.integers(-3, 4, (case.n, case.c, case.ih, case.iw)).astype(np.float64)
    x[:, 0, case.ih // 2, case.iw // 2] = np.nan
    expected, where = functional.max_pool2d(
        torch.from_numpy(x), case.kernel, case.stride, case.padding, case.dilation, ceil_mode, return_indices=True
    )
    values, indices = ref.max_pool2d(x, case.kernel, case.stride, case.padding, case.dilation, ceil_mode)
    assert_array_equal(values, expected.numpy())
    chosen = indices >= 0
    assert_array_equal(indices[chosen], where.numpy()[chosen])


@pytest.mark.parametrize("case", [c for c in POOL_CASES if c.torch_can and c.dilation == (1, 1)], ids=case_id)
def test_avg_pool_against_torch(case: PoolCase, torch: Any, rng: np.random.Generator) -> None:
    functional = torch.nn.functional
    x = _random(rng, (case.n, case.c, case.ih, case.iw))
    for ceil_mode, include, divisor in itertools.product([False, True], [False, True], [None, 3]):
        arguments = (case.kernel, case.stride, case.padding, ceil_mode, include, divisor)
        expected = functional.avg_pool2d(torch.from_numpy(x), *arguments).numpy()
        ref.assert_rel_l2(ref.avg_pool2d(x, *arguments), expected, ref.ORACLE_REL_L2)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (5, 3), (13, 2), (3, 20)], ids=str)
@pytest.mark.parametrize("out", [1, (2, 3), (7, 7), (4, 1)], ids=str)
def test_adaptive_avg_pool_against_torch(size: tuple[int, int], out: Any, torch: Any, rng: np.random.Generator) -> None:
    functional = torch.nn.functional
    x = _random(rng, (2, 3, *size))
    expected = functional.adaptive_avg_pool2d(torch.from_numpy(x), out).numpy()
    ref.assert_rel_l2(ref.adaptive_avg_pool2d(x, out), expected, ref.ORACLE_REL_L2)


def test_elementwise_against_torch(torch: Any, rng: np.random.Generator) -> None:
    functional = torch.nn.functional
    x = _random(rng, (3, 5, 4, 6))
    x[0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
    assert_array_equal(ref.relu(x), functional.relu(torch.from_numpy(x)).numpy())
    mean, var, weight, bias = (_random(rng, (5,)) for _ in range(4))
    var = var * var
    tensors = [torch.from_numpy(v) for v in (x[1:], mean, var, weight, bias)]
    expected = functional.batch_norm(*tensors, training=False, eps=1e-3).numpy()
    ref.assert_rel_l2(ref.batch_norm(x[1:], mean, var, weight, bias, eps=1e-3), expected, ref.ORACLE_REL_L2)
    plain = functional.batch_norm(*tensors[:3], training=False).numpy()
    ref.assert_rel_l2(ref.batch_norm(x[1:], mean, var), plain, ref.ORACLE_REL_L2)


@pytest.mark.parametrize("dim", [-1, 0, 1, 2, -2])
def test_softmax_against_torch(dim: int, torch: Any, rng: np.random.Generator) -> None:
    x = _random(rng, (4, 5, 6)) * 20
    ref.assert_rel_l2(ref.softmax(x, dim), torch.softmax(torch.from_numpy(x), dim).numpy(), ref.ORACLE_REL_L2)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_linear_against_torch(lead: tuple[int, ...], torch: Any, rng: np.random.Generator) -> None:
    functional = torch.nn.functional
    x, w, b = _random(rng, (*lead, 7)), _random(rng, (5, 7)), _random(rng, (5,))
    expected = functional.linear(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(b)).numpy()
    ref.assert_rel_l2(ref.linear(x, w, b), expected, ref.ORACLE_REL_L2)
