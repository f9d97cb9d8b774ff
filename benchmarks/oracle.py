"""What each op and a ResNet must give, in float64 with NumPy alone, to check results before they are timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Array = NDArray[np.floating[Any]]
Pair = tuple[int, int]

#: Relative L2 error that a float32 convolution may have against float64 (the package's own promise for direct and
#: im2col).
MAX_RELATIVE_L2 = 2e-6
#: The same for Winograd's F(4x4, 3x3).
MAX_WINOGRAD_L2 = 5e-6
#: The same for the 54 layers of a network one after the other, each of which adds its own rounding.
MAX_NETWORK_L2 = 2e-5
#: What is added to the variance of a batch norm: PyTorch's default, and what torchvision's networks are trained with.
BATCH_NORM_EPS = 1e-5
#: Blocks of each stage of a ResNet; below 50 layers a block has two convolutions, from there on three.
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class Error:
    """How far a result is from the oracle: the largest difference over the largest value, and the relative L2 norm."""

    max_scaled: float
    relative_l2: float


def compare(result: Array, expected: F64) -> Error:
    """The error of a result of the oracle's shape. Anything not finite is infinitely wrong."""
    if result.shape != expected.shape:
        raise ValueError(f"result: its shape {result.shape} is not the expected {expected.shape}")
    difference = result.astype(np.float64) - expected
    if not np.isfinite(difference).all():
        return Error(float("inf"), float("inf"))
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    norm = float(np.linalg.norm(expected)) or 1.0
    return Error(float(np.abs(difference).max(initial=0.0)) / scale, float(np.linalg.norm(difference)) / norm)


def conv2d_float64(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> F64:
    """Cross-correlation of x (n, ic, ih, iw) with weight (oc, ic / groups, kh, kw): a sum over kernel positions of
    matrix products."""
    n, _, ih, iw = x.shape
    oc, icg, kh, kw = weight.shape
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    oh = (ih + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (iw + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    taps = weight.astype(np.float64).reshape(groups, oc // groups, icg, kh, kw)
    out = np.zeros((n, groups, oc // groups, oh * ow))
    for image in range(n):
        padded = np.pad(x[image].astype(np.float64), ((0, 0), (ph, ph), (pw, pw)))
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
                seen = np.ascontiguousarray(padded[:, rows, columns]).reshape(groups, icg, oh * ow)
                tap = taps[:, :, :, i, j]
                # Depthwise: one product a tap and element, faster without a batch of 1 x 1 matrix products.
                out[image] += tap * seen if icg == 1 else np.matmul(np.ascontiguousarray(tap), seen)
    result: F64 = out.reshape(n, oc, oh, ow)
    if bias is not None:
        result += bias.astype(np.float64)[None, :, None, None]
    return result


def linear_float64(x: Array, weight: Array, bias: Array | None) -> F64:
    """x (n, in) times the transpose of weight (out, in), plus bias (out,)."""
    y: F64 = x.astype(np.float64) @ weight.astype(np.float64).T
    return y if bias is None else np.asarray(y + bias.astype(np.float64))


def max_pool2d_float64(x: Array, kernel: Pair, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)) -> F64:
    """The largest value of each window of x (n, c, h, w), of the input alone: padding is never chosen. A NaN in the
    window is the result, as in torch.nn.functional.max_pool2d."""
    views = _windows(x, kernel, stride, padding, dilation, -np.inf)
    out: F64 = next(views).copy()
    for view in views:
        np.maximum(out, view, out=out)
    return out


def avg_pool2d_float64(x: Array, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> F64:
    """The sum of each window of x (n, c, h, w) over the kernel's area, padding counted as zeros
    (torch.nn.functional.avg_pool2d with count_include_pad=True, its default)."""
    views = _windows(x, kernel, stride, padding, (1, 1), 0.0)
    out = next(views).copy()
    for view in views:
        out += view
    return np.asarray(out / (kernel[0] * kernel[1]))


def global_avg_pool2d_float64(x: Array) -> F64:
    """The mean of each plane of x (n, c, h, w), as (n, c, 1, 1)."""
    return np.asarray(x.astype(np.float64).mean(axis=(2, 3), keepdims=True))


def convert_layout_float64(x: Array) -> F64:
    """x itself: the order of its elements in memory is not part of its value."""
    return x.astype(np.float64)


def relu_float64(x: Array) -> F64:
    """max(x, 0); NaN stays NaN."""
    return np.maximum(x.astype(np.float64), 0.0)


def batch_norm_float64(
    x: Array, mean: Array, variance: Array, weight: Array, bias: Array, *, eps: float = BATCH_NORM_EPS
) -> F64:
    """(x - mean) / sqrt(variance + eps) * weight + bias for each channel of x (n, c, h, w); the others are (c,). Ioffe
    and Szegedy, arXiv:1502.03167, at inference."""
    m, v, w, b = (a.astype(np.float64)[:, None, None] for a in (mean, variance, weight, bias))
    return np.asarray((x.astype(np.float64) - m) / np.sqrt(v + eps) * w + b)


def softmax_float64(x: Array) -> F64:
    """exp(x) over its sum along axis 1, the channels of (n, c, h, w) or the columns of (n, c)."""
    values = x.astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def resnet_float64(depth: int, state: Mapping[str, Array], x: Array) -> F64:
    """Logits (n, classes) of ResNet-18, 34, 50, 101 or 152 for x (n, 3, h, w): He et al., arXiv:1512.03385, table 1,
    with the stride of a bottleneck on its 3x3 (v1.5). `state`: arrays under torchvision's names, batch norm not folded.
    ValueError for another depth."""
    if depth not in _BLOCKS:
        raise ValueError(f"depth: must be one of {', '.join(map(str, _BLOCKS))}, got {depth}")

    def conv_bn(h: Array, conv: str, bn: str, stride: int = 1) -> F64:
        weight = state[f"{conv}.weight"]
        y = conv2d_float64(h, weight, None, (stride, stride), (weight.shape[2] // 2, weight.shape[3] // 2))
        return batch_norm_float64(y, *(state[f"{bn}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    # Which convolution of a block has the stride, and how many there are.
    strided, convs = (1, 2) if depth < 50 else (2, 3)
    h = max_pool2d_float64(relu_float64(conv_bn(x, "conv1", "bn1", 2)), (3, 3), (2, 2), (1, 1))
    for stage, blocks in enumerate(_BLOCKS[depth], start=1):
        for block in range(blocks):
            p = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = h
            for i in range(1, convs + 1):
                y = conv_bn(y, f"{p}.conv{i}", f"{p}.bn{i}", stride if i == strided else 1)
                y = relu_float64(y) if i < convs else y
            if f"{p}.downsample.0.weight" in state:
                h = conv_bn(h, f"{p}.downsample.0", f"{p}.downsample.1", stride)
            h = relu_float64(y + h)
    return linear_float64(global_avg_pool2d_float64(h)[:, :, 0, 0], state["fc.weight"], state["fc.bias"])


def _windows(x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, fill: float) -> Iterator[F64]:
    """For each position in the window what all windows hold there, (n, c, oh, ow), in float64."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    rows = padded.shape[2] - dh * (kh - 1)
    columns = padded.shape[3] - dw * (kw - 1)
    for i in range(kh):
        for j in range(kw):
            yield padded[:, :, i * dh : i * dh + rows : sh, j * dw : j * dw + columns : sw]
