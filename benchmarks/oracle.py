"""What a convolution and a ResNet must give, in float64 with NumPy alone, to check results before they are timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .problem import Problem

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

#: Relative L2 error that a float32 convolution may have against float64 (the package's own promise for direct and
#: im2col).
MAX_RELATIVE_L2 = 2e-6
#: The same for the 54 layers of a network one after the other, each of which adds its own rounding.
MAX_NETWORK_L2 = 2e-5


@dataclass(frozen=True)
class Error:
    """How far a result is from the oracle: the largest difference over the largest value, and the relative L2 norm."""

    max_scaled: float
    relative_l2: float


def compare(result: NDArray[np.floating], expected: F64) -> Error:
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
    x: NDArray[np.floating],
    weight: NDArray[np.floating],
    bias: NDArray[np.floating] | None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
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


def problem_float64(problem: Problem, x: F32, weight: F32, bias: F32) -> F64:
    """The oracle's answer for a layer; x and weight as NCHW and OIHW."""
    return conv2d_float64(
        x, weight, bias, (problem.sh, problem.sw), (problem.ph, problem.pw), (problem.dh, problem.dw), problem.g
    )


def resnet50_float64(state: Mapping[str, NDArray[np.floating]], x: F32, eps: float = 1e-5) -> F64:
    """Logits (n, classes) of ResNet-50 v1.5 for x (n, 3, h, w) from arrays under torchvision's names, batch norm not
    folded."""

    def conv_bn(h: NDArray[np.floating], conv: str, bn: str, stride: int = 1, padding: int = 0) -> F64:
        y = conv2d_float64(h, state[f"{conv}.weight"], None, (stride, stride), (padding, padding))
        scale = state[f"{bn}.weight"].astype(np.float64) / np.sqrt(state[f"{bn}.running_var"].astype(np.float64) + eps)
        shift = state[f"{bn}.bias"].astype(np.float64) - state[f"{bn}.running_mean"].astype(np.float64) * scale
        return np.asarray(y * scale[:, None, None] + shift[:, None, None])

    h: F64 = _max_pool_3x3_stride_2(np.maximum(conv_bn(x, "conv1", "bn1", 2, 3), 0.0))
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            p = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = np.maximum(conv_bn(h, f"{p}.conv1", f"{p}.bn1"), 0.0)
            y = np.maximum(conv_bn(y, f"{p}.conv2", f"{p}.bn2", stride, 1), 0.0)
            y = conv_bn(y, f"{p}.conv3", f"{p}.bn3")
            skip = conv_bn(h, f"{p}.downsample.0", f"{p}.downsample.1", stride) if block == 0 else h
            h = np.maximum(y + skip, 0.0)
    pooled = h.mean(axis=(2, 3))
    logits: F64 = pooled @ state["fc.weight"].astype(np.float64).T + state["fc.bias"].astype(np.float64)
    return logits


def _max_pool_3x3_stride_2(x: F64) -> F64:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    oh, ow = (x.shape[2] - 1) // 2 + 1, (x.shape[3] - 1) // 2 + 1
    out = np.full((*x.shape[:2], oh, ow), -np.inf)
    for i in range(3):
        for j in range(3):
            np.maximum(out, padded[:, :, i : i + 2 * oh - 1 : 2, j : j + 2 * ow - 1 : 2], out=out)
    return out
