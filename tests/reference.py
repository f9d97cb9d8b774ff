"""The float64 oracle of every op, and every tolerance of the tests.

Nothing else in the tests defines what is right: a test compares with a function of this module under a constant of this
module. The oracle follows the public contract and is itself compared with PyTorch in float64 by test_reference.py.

Index
-----
Tolerances (each with its reason at its definition)
    UNIT_ROUNDOFF, SUBNORMAL_QUANTUM, STORED_ROUNDOFF, STORED_QUANTUM
    CONV_REL_L2, LINEAR_REL_L2            dot products
    WINOGRAD_F43_REL_L2                   dot products after a transform
    AVG_POOL_REL_L2, AVG_POOL_INT_REL     averages
    BATCH_NORM_UNITS                      one multiply and one add
    SOFTMAX_UNITS, softmax_tolerance      exponentials
    ORACLE_REL_L2                         this module against PyTorch in float64
Comparisons
    assert_exact, assert_rel_l2, rel_l2, assert_conv, conv_tolerance
    assert_softmax_close, assert_batch_norm_close, assert_avg_pool_close
Geometry
    pair, resolve_padding, conv_output_size, pool_output_size, adaptive_windows
Layouts
    to_nchw, from_nchw, weight_to_oihw, weight_from_oihw, convert_layout
Ops
    conv2d, max_pool2d, avg_pool2d, adaptive_avg_pool2d, relu, softmax, linear, batch_norm

All ops take and return arrays in the caller's layout, with or without the batch axis, and compute in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F64 = NDArray[np.float64]
Sides = tuple[tuple[int, int], tuple[int, int]]

# --- tolerances -------------------------------------------------------------------------------------------------------

UNIT_ROUNDOFF = 2.0**-24
"""Largest relative error of one rounding to float32."""

SUBNORMAL_QUANTUM = 2.0**-149
"""Distance between neighbouring float32 values near zero: the absolute error that a subnormal result may carry."""

STORED_ROUNDOFF = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of the rounding when a float32 result is stored; none more for float32 itself. The constants
below hold for what is computed, before that."""

STORED_QUANTUM = {"float32": 0.0, "float16": 2.0**-24, "bfloat16": 2.0**-133}
"""Distance between neighbouring values near zero of what is stored."""

CONV_REL_L2 = 2e-6
"""Relative L2 error of a convolution in float32 on random normal input against float64; a number of the project's
contract. The rounding errors of a dot product of K terms add up as a random walk of about sqrt(K)/4 units for one
accumulator, 17 units (1e-6) for the longest sum of ResNet-50 (K = 4608); twice that leaves room for the order of the
sum but not for a lost term or for products in half precision (5e-4)."""

WINOGRAD_F43_REL_L2 = 5e-6
"""The same for F(4x4, 3x3); a number of the project's contract. Its transforms multiply by the points 5/8 and 3/2, with
stride 2 by 5/4 and 1/2, and their powers, and what they add cancels in part: 2 to 3 times the error of the plain sum
was measured, 2e-6 at 512 channels. It cannot be exact on integers, since 1 / (a^2 b^2) has no finite binary form.
F(2x2, 3x3) adds, subtracts and halves: small integers come out exactly, and CONV_REL_L2 holds."""

LINEAR_REL_L2 = CONV_REL_L2
"""`linear` is a 1x1 convolution on a 1x1 image: the same sums."""

AVG_POOL_REL_L2 = 2e-6
"""Averages are sums of up to 3136 terms (56x56, global) and one division: the walk of CONV_REL_L2 without the
products."""

AVG_POOL_INT_REL = 2.0**-23 * 1.001
"""Averages of small integers: the sum is exact, then either one division (1 unit) or a product with a rounded
reciprocal (2 units, and their product)."""

BATCH_NORM_UNITS = 8
"""y = x*scale + shift with scale = w/sqrt(var + eps) and shift = b - mean*scale. Computed wholly in float32 that is at
most 5 roundings in the scale, 2 in the shift, 2 in the last step, the worst chain being 7.5 units of the terms'
magnitudes."""

SOFTMAX_UNITS = 8
"""Softmax, each element: 4 units (2 ulp) for each of the exponential and the division with the sum's last rounding.
What grows with the data is added by `softmax_tolerance`."""

ORACLE_REL_L2 = 1e-13
"""The oracle against PyTorch's float64: sums of at most some thousand terms in another order; float64's unit is
1.1e-16."""


def softmax_tolerance(input: Array, dim: int) -> F64:
    """Relative tolerance of each element of a softmax in float32.

    SOFTMAX_UNITS, and three parts that float32 cannot avoid: `x - max` is rounded before the exponential, which turns
    an error of one unit of |x - max| into as many units of the result; the sum carries the same error weighted by the
    probabilities, at most log(n) units; and the n - 1 additions of the sum are a random walk (sqrt(n)/4 units).
    """
    values = np.asarray(input, dtype=np.float64)
    distance = values.max(axis=dim, keepdims=True) - values
    n = values.shape[dim]
    return np.asarray((SOFTMAX_UNITS + distance + np.log(n) + np.sqrt(n) / 4) * UNIT_ROUNDOFF)


# --- comparisons ------------------------------------------------------------------------------------------------------


def assert_exact(actual: Array, expected: Array) -> None:
    """Same shape and equal values (NaN equals NaN). `expected` must be representable in float32, else the test is
    wrong."""
    actual = np.asarray(actual)
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if expected.dtype == np.float64:
        single = expected.astype(np.float32)
        assert np.array_equal(single.astype(np.float64), expected, equal_nan=True), (
            "the oracle's values need more than float32"
        )
        expected = single
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    same = np.array_equal(actual, expected, equal_nan=actual.dtype.kind == "f")
    if not same:
        wrong = actual != expected
        if actual.dtype.kind == "f":
            wrong &= ~(np.isnan(actual) & np.isnan(expected))
        where = np.argwhere(wrong)
        first = tuple(int(i) for i in where[0])
        raise AssertionError(
            f"{len(where)} of {actual.size} values differ, "
            f"first at {first}: {actual[first]!r}, expected {expected[first]!r}"
        )


def rel_l2(actual: Array, expected: Array) -> float:
    """||actual - expected|| / ||expected||, in float64."""
    difference = np.asarray(actual, dtype=np.float64) - np.asarray(expected, dtype=np.float64)
    norm = float(np.linalg.norm(np.asarray(expected, dtype=np.float64)))
    return float(np.linalg.norm(difference)) / norm if norm else float(np.linalg.norm(difference))


def assert_rel_l2(actual: Array, expected: Array, limit: float) -> None:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(actual).all(), "not all values are finite"
    error = rel_l2(actual, expected)
    assert error <= limit, f"relative L2 error {error:.3e} exceeds {limit:.3e}"


def conv_tolerance(algorithm: str) -> float:
    """Relative L2 error that an algorithm may have on random input."""
    return WINOGRAD_F43_REL_L2 if "winograd_f43" in algorithm else CONV_REL_L2


def assert_conv(actual: Array, expected: Array, algorithm: str) -> None:
    """A convolution of small integers: exact by every algorithm but F(4x4, 3x3) and F(4x4, 4x4)."""
    if "winograd_f43" in algorithm or "winograd_f44" in algorithm:
        assert actual.dtype == np.float32, f"dtype {actual.dtype}, expected float32"
        assert_rel_l2(actual, expected, conv_tolerance(algorithm))
    else:
        assert_exact(actual, expected)


def _assert_within(actual: Array, expected: Array, allowed: Array, dtype: str = "float32") -> None:
    """`allowed`: the error of what is computed; `dtype`: how the result, here as float32, was stored."""
    actual = np.asarray(actual)
    allowed = allowed + (np.abs(expected) + allowed) * STORED_ROUNDOFF[dtype] + STORED_QUANTUM[dtype] / 2
    assert actual.dtype == np.float32, f"dtype {actual.dtype}, expected float32"
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual.astype(np.float64) - expected)
    ratio = error / allowed
    assert not np.isnan(ratio).any(), "NaN in the result or in the oracle"
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape)) if ratio.size else ()
    assert ratio.size == 0 or ratio[worst] <= 1.0, (
        f"at {worst}: {actual[worst]!r}, expected {expected[worst]!r}, error is {ratio[worst]:.2f} times the allowed"
    )


def assert_softmax_close(actual: Array, input: Array, dim: int, dtype: str = "float32") -> None:
    """Each element within `softmax_tolerance`, or two quanta where the result is subnormal."""
    expected = softmax(input, dim)
    _assert_within(actual, expected, softmax_tolerance(input, dim) * expected + 2 * SUBNORMAL_QUANTUM, dtype)


def assert_batch_norm_close(
    actual: Array,
    input: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    layout: str,
    dtype: str = "float32",
) -> None:
    """Each element within BATCH_NORM_UNITS of the sum of its terms' magnitudes."""
    expected = batch_norm(input, mean, var, weight, bias, eps=eps, layout=layout)
    magnitude = batch_norm(
        np.abs(input),
        -np.abs(np.asarray(mean)),
        var,
        None if weight is None else np.abs(weight),
        None if bias is None else np.abs(bias),
        eps=eps,
        layout=layout,
    )
    _assert_within(actual, expected, BATCH_NORM_UNITS * UNIT_ROUNDOFF * magnitude + 2 * SUBNORMAL_QUANTUM, dtype)


def assert_avg_pool_close(actual: Array, expected: Array, *, integers: bool, dtype: str = "float32") -> None:
    """Averages: element by element for integer input, by norm for random input."""
    if integers:
        _assert_within(actual, expected, AVG_POOL_INT_REL * np.abs(expected) + 2 * SUBNORMAL_QUANTUM, dtype)
    else:
        assert_rel_l2(actual, expected, AVG_POOL_REL_L2 + STORED_ROUNDOFF[dtype])


# --- geometry ---------------------------------------------------------------------------------------------------------


def pair(value: Any) -> tuple[int, int]:
    """An int or a pair of ints, as a pair (height, width)."""
    if isinstance(value, (tuple, list)):
        first, second = value
        return int(first), int(second)
    return int(value), int(value)


def resolve_padding(
    padding: Any, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Sides:
    """Every form of `padding` as ((top, bottom), (left, right)).

    "same" is TensorFlow's rule: out = ceil(in/s), total = max((out-1)*s + d*(k-1)+1 - in, 0), the smaller half first;
    "same_lower" puts the larger half first; "full" is d*(k-1) on every side.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if isinstance(padding, str):
        sides = []
        for axis in range(2):
            reach = dilation[axis] * (kernel[axis] - 1)
            if padding == "full":
                sides.append((reach, reach))
                continue
            out = -(-size[axis] // stride[axis])
            total = max((out - 1) * stride[axis] + reach + 1 - size[axis], 0)
            small, large = total // 2, total - total // 2
            sides.append({"same": (small, large), "same_lower": (large, small)}[padding])
        return sides[0], sides[1]
    if isinstance(padding, (tuple, list)) and isinstance(padding[0], (tuple, list)):
        return pair(padding[0]), pair(padding[1])
    h, w = pair(padding)
    return (h, h), (w, w)


def conv_output_size(size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int) -> int:
    """floor((in + before + after - d*(k-1) - 1)/s) + 1."""
    return (size + pads[0] + pads[1] - dilation * (kernel - 1) - 1) // stride + 1


def pool_output_size(
    size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int = 1, ceil_mode: bool = False
) -> int:
    """As `conv_output_size`; with `ceil_mode` rounded up, less a last window that would start beyond image and left
    padding."""
    extent = size + pads[0] + pads[1] - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return extent // stride + 1
    out = -(-extent // stride) + 1
    return out - 1 if (out - 1) * stride >= size + pads[0] else out


def adaptive_windows(size: int, out: int) -> list[tuple[int, int]]:
    """[floor(i*in/out), ceil((i+1)*in/out)) for each i."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


# --- layouts ----------------------------------------------------------------------------------------------------------

_WEIGHT_AXES = {"OIHW": (0, 1, 2, 3), "OHWI": (0, 2, 3, 1), "HWIO": (2, 3, 1, 0)}
"""Which axis of OIHW each axis of the layout is."""


def to_nchw(array: Array, layout: str) -> Array:
    """A view in NCHW (or CHW) of an array in `layout`."""
    return array if layout == "NCHW" else np.moveaxis(array, -1, -3)


def from_nchw(array: Array, layout: str) -> Array:
    """A view in `layout` of an array in NCHW (or CHW)."""
    return array if layout == "NCHW" else np.moveaxis(array, -3, -1)


def weight_to_oihw(weight: Array, layout: str) -> Array:
    axes = _WEIGHT_AXES[layout]
    return weight.transpose([axes.index(axis) for axis in range(4)])


def weight_from_oihw(weight: Array, layout: str) -> Array:
    return weight.transpose(_WEIGHT_AXES[layout])


def convert_layout(input: Array, source: str, target: str) -> Array:
    return np.ascontiguousarray(from_nchw(to_nchw(np.asarray(input), source), target))


def _batched(array: Array, layout: str) -> tuple[F64, bool]:
    """The array in NCHW and float64 with a batch axis, and whether it had one."""
    planes = to_nchw(np.asarray(array, dtype=np.float64), layout)
    return (planes, True) if planes.ndim == 4 else (planes[None], False)


def _finish(array: Array, batched: bool, layout: str) -> Array:
    return np.ascontiguousarray(from_nchw(array if batched else array[0], layout))


# --- ops --------------------------------------------------------------------------------------------------------------


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    weight_layout: str | None = None,
    activation: str | None = None,
    residual: Array | None = None,
) -> F64:
    """Cross-correlation, one matrix product (BLAS, float64) for each tap of the kernel; then bias, residual,
    activation."""
    x, batched = _batched(input, layout)
    default = "OIHW" if layout == "NCHW" else "OHWI"
    w = np.ascontiguousarray(weight_to_oihw(np.asarray(weight, dtype=np.float64), weight_layout or default))
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    n, ic, ih, iw = x.shape
    oc, icg, kh, kw = w.shape
    assert icg * groups == ic and oc % groups == 0
    ph, pw = resolve_padding(padding, (ih, iw), (kh, kw), (sh, sw), (dh, dw))
    oh = conv_output_size(ih, kh, sh, ph, dh)
    ow = conv_output_size(iw, kw, sw, pw, dw)
    padded = np.pad(x, ((0, 0), (0, 0), ph, pw)).reshape(n, groups, icg, ih + sum(ph), iw + sum(pw))
    taps = w.reshape(groups, oc // groups, icg, kh, kw)
    out = np.zeros((n, groups, oc // groups, oh * ow))
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
            patch = padded[:, :, :, rows, columns].reshape(n, groups, icg, oh * ow)
            tap = taps[None, :, :, :, i, j]
            # A product with one input channel per group is a scaling; BLAS would be called once a channel.
            out += tap * patch if icg == 1 else np.matmul(tap, patch)
    out = out.reshape(n, oc, oh, ow)
    if bias is not None:
        out += np.asarray(bias, dtype=np.float64).reshape(1, oc, 1, 1)
    if residual is not None:
        out += _batched(residual, layout)[0]
    if activation == "relu":
        out = relu(out)
    return _finish(out, batched, layout)


def max_pool2d(
    input: Array,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    layout: str = "NCHW",
) -> tuple[F64, NDArray[np.int64]]:
    """Values and indices (flat h*W + w in the unpadded plane).

    Padding is never chosen. The first maximum wins; a NaN beats everything and the first NaN wins. (PyTorch lets the
    last NaN of a window win, which only the indices show.)
    """
    x, batched = _batched(input, layout)
    kernel, steps, dil = pair(kernel_size), pair(kernel_size if stride is None else stride), pair(dilation)
    n, c, ih, iw = x.shape
    ph, pw = resolve_padding(padding, (ih, iw), kernel, steps, dil)
    oh = pool_output_size(ih, kernel[0], steps[0], ph, dil[0], ceil_mode)
    ow = pool_output_size(iw, kernel[1], steps[1], pw, dil[1], ceil_mode)
    values = np.full((n, c, oh, ow), -np.inf)
    indices = np.full((n, c, oh, ow), -1, dtype=np.int64)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            h = np.arange(oh) * steps[0] - ph[0] + i * dil[0]
            w = np.arange(ow) * steps[1] - pw[0] + j * dil[1]
            a, b = np.flatnonzero((h >= 0) & (h < ih)), np.flatnonzero((w >= 0) & (w < iw))
            if a.size == 0 or b.size == 0:
                continue
            here = np.ix_(np.arange(n), np.arange(c), a, b)
            candidate = x[:, :, h[a][:, None], w[b][None, :]]
            best, index = values[here], indices[here]
            better = (index < 0) | (candidate > best) | (np.isnan(candidate) & ~np.isnan(best))
            values[here] = np.where(better, candidate, best)
            indices[here] = np.where(better, h[a][:, None] * iw + w[b][None, :], index)
    return _finish(values, batched, layout), _finish(indices, batched, layout)


def avg_pool2d(
    input: Array,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: str = "NCHW",
) -> F64:
    """The divisor is the window clipped to the padded image (not k*k), or its real cells only, or
    `divisor_override`."""
    x, batched = _batched(input, layout)
    kernel, steps = pair(kernel_size), pair(kernel_size if stride is None else stride)
    n, c, ih, iw = x.shape
    ph, pw = resolve_padding(padding, (ih, iw), kernel, steps, (1, 1))
    oh = pool_output_size(ih, kernel[0], steps[0], ph, 1, ceil_mode)
    ow = pool_output_size(iw, kernel[1], steps[1], pw, 1, ceil_mode)
    out = np.zeros((n, c, oh, ow))
    for p in range(oh):
        top = p * steps[0] - ph[0]
        bottom = min(top + kernel[0], ih + ph[1])
        for q in range(ow):
            left = q * steps[1] - pw[0]
            right = min(left + kernel[1], iw + pw[1])
            window = x[:, :, max(top, 0) : min(bottom, ih), max(left, 0) : min(right, iw)]
            divisor = (bottom - top) * (right - left) if count_include_pad else window.shape[2] * window.shape[3]
            out[:, :, p, q] = window.sum(axis=(2, 3)) / (divisor_override or divisor)
    return _finish(out, batched, layout)


def adaptive_avg_pool2d(input: Array, output_size: Any, *, layout: str = "NCHW") -> F64:
    x, batched = _batched(input, layout)
    oh, ow = pair(output_size)
    out = np.zeros((*x.shape[:2], oh, ow))
    for p, (top, bottom) in enumerate(adaptive_windows(x.shape[2], oh)):
        for q, (left, right) in enumerate(adaptive_windows(x.shape[3], ow)):
            out[:, :, p, q] = x[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return _finish(out, batched, layout)


def relu(input: Array) -> F64:
    """max(x, 0); NaN stays NaN."""
    return np.asarray(np.maximum(np.asarray(input, dtype=np.float64), 0.0))


def softmax(input: Array, dim: int = -1) -> F64:
    """exp(x - max)/sum. A row that holds NaN or +inf, or only -inf, is all NaN."""
    x = np.asarray(input, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        shifted = np.exp(x - x.max(axis=dim, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=dim, keepdims=True))


def linear(input: Array, weight: Array, bias: Array | None = None) -> F64:
    """input (..., in) by weight (out, in), transposed, plus bias."""
    out = np.matmul(np.asarray(input, dtype=np.float64), np.asarray(weight, dtype=np.float64).T)
    return np.asarray(out if bias is None else out + np.asarray(bias, dtype=np.float64))


def batch_norm(
    input: Array,
    running_mean: Array,
    running_var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    layout: str = "NCHW",
) -> F64:
    """(x - mean) / sqrt(var + eps) * weight + bias, per channel."""
    x, batched = _batched(input, layout)

    def channel(values: Array | None, default: float) -> F64:
        column = np.full(x.shape[1], default) if values is None else np.asarray(values, dtype=np.float64)
        return column.reshape(1, -1, 1, 1)

    scale = channel(weight, 1.0) / np.sqrt(channel(running_var, 1.0) + eps)
    return _finish((x - channel(running_mean, 0.0)) * scale + channel(bias, 0.0), batched, layout)
