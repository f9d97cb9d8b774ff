"""What a NumPy user writes: windows by `sliding_window_view`, copied into a matrix, and one matrix product a picture.

Only the matrix products run on several threads, those of NumPy's BLAS.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .base import EPSILON, F32, Array, Folded, PeerCall, given, lacks, to_layout, to_nchw
from .networks import build_of

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem

#: The most bytes that a NumPy or SciPy call may take for what lies between its input and its output.
MAX_WORKSPACE = 1 << 30


class NumPy:
    """Plain NumPy in both layouts. A call allocates its result."""

    name: str = "numpy"
    layouts: tuple[str, ...] = ("nchw", "nhwc")
    dtype: str = "float32"
    # OpenBLAS's workers spin 2^28 cycles after a product, about 0.1 s, before they sleep.
    settle: float = 0.12

    def __init__(self) -> None:
        self.libraries: list[Any] = []
        try:
            control = importlib.import_module("threadpoolctl").ThreadpoolController()
        except ImportError:
            self.detail = "NumPy, BLAS threads not limited (threadpoolctl is missing)"
            return
        self.libraries = list(control.select(user_api="blas").lib_controllers)
        names = sorted({f"{lib.internal_api} {lib.version}" for lib in self.libraries})
        self.detail = f"NumPy, {', '.join(names) or 'a BLAS whose threads are not limited'}"

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        x = to_layout(operands.x, layout)
        return self._prepared(_layer_function(problem, operands, x, layout), x, problem.result_layout(layout), threads)

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        build, builder, own = build_of(name), _NumPyBuilder(folded, layout), to_layout(x, layout)
        return self._prepared(lambda: build(builder, own), own, layout, threads)

    def _prepared(self, function: Callable[[], Array], x: F32, layout: str, threads: int) -> PeerCall:
        last: list[Array] = []

        def run() -> None:
            # threadpoolctl's own context manager looks every library up again; these calls cost about 1 us.
            before = [lib.num_threads for lib in self.libraries]
            for lib in self.libraries:
                lib.set_num_threads(threads)
            try:
                last[:] = [function()]
            finally:
                for lib, number in zip(self.libraries, before, strict=True):
                    lib.set_num_threads(number)

        return PeerCall(run, lambda: np.array(to_nchw(last[0], layout), np.float32), self.detail, (x,))


def _layer_function(p: Problem, o: Operands, x: F32, layout: str) -> Callable[[], Array]:
    nhwc = layout == "nhwc" and x.ndim == 4
    if p.op == "conv2d":
        conv = _conv(p, given(o.weight), given(o.bias), nhwc)
        return lambda: conv(x)
    if p.op == "linear":
        weight, bias = given(o.weight), given(o.bias)
        return lambda: x @ weight.T + bias
    if p.op in ("max_pool2d", "avg_pool2d"):
        best = p.op == "max_pool2d"
        settings = ((p.kh, p.kw), (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw))

        def pool() -> Array:
            seen = _windows(x, nhwc, *settings, -math.inf if best else 0.0)
            return np.asarray(seen.max(axis=(-2, -1)) if best else seen.mean(axis=(-2, -1)))

        return pool
    if p.op == "global_avg_pool2d":
        return lambda: np.asarray(x.mean(axis=(1, 2) if nhwc else (2, 3), keepdims=True))
    if p.op == "relu":
        return lambda: np.maximum(x, np.float32(0.0))
    if p.op == "softmax":
        axis = -1 if nhwc else 1

        def softmax() -> Array:
            powers = np.exp(x - x.max(axis=axis, keepdims=True))
            return np.asarray(powers / powers.sum(axis=axis, keepdims=True))

        return softmax
    if p.op == "convert_layout":
        return lambda: to_layout(x, "nhwc") if layout == "nchw" else np.array(to_nchw(x, "nhwc"), order="C")
    if p.op == "batch_norm":
        scale = given(o.weight) / np.sqrt(given(o.variance) + np.float32(EPSILON))
        shift = given(o.bias) - given(o.mean) * scale
        if not nhwc:
            axes = (-1,) + (1,) * (x.ndim - 2)
            scale, shift = scale.reshape(axes), shift.reshape(axes)
        return lambda: x * scale + shift
    raise lacks("numpy", p.op)


def _windows(
    x: Array,
    nhwc: bool,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    fill: float = 0.0,
) -> Array:
    """A view of all windows, (n, c, oh, ow, kh, kw) or (n, oh, ow, c, kh, kw)."""
    axes = (1, 2) if nhwc else (2, 3)
    if any(padding):
        widths = [(0, 0)] * 4
        for axis, pad in zip(axes, padding, strict=True):
            widths[axis] = (pad, pad)
        x = np.pad(x, widths, constant_values=fill)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    seen: Array = sliding_window_view(x, reach, axis=axes)
    steps = [slice(None)] * 4 + [slice(None, None, step) for step in dilation]
    for axis, step in zip(axes, stride, strict=True):
        steps[axis] = slice(None, None, step)
    return np.asarray(seen[tuple(steps)])


def _conv(p: Problem, weight: F32, bias: F32, nhwc: bool) -> Callable[[Array], Array]:
    """A picture's windows as a matrix, times the weights as a matrix; a batch of products where there are groups.
    NotImplementedError if the matrix of windows is larger than MAX_WORKSPACE."""
    oc, icg, kh, kw = weight.shape
    taps, pixels, ocg = icg * kh * kw, p.oh * p.ow, oc // p.g
    if 4 * p.g * taps * pixels > MAX_WORKSPACE:
        raise lacks("numpy", p.op, f"the matrix of windows takes {4 * p.g * taps * pixels >> 20} MiB")
    settings = ((kh, kw), (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw))
    if nhwc:
        # (g, taps, oc / g), the taps in the order (kh, kw, c) in which a window of NHWC is copied.
        by_group = weight.reshape(p.g, ocg, icg, kh * kw).transpose(0, 3, 2, 1).reshape(p.g, taps, ocg)
        matrix = np.ascontiguousarray(by_group)

        def channels_last(x: Array) -> Array:
            out = np.empty((len(x), p.oh, p.ow, oc), np.float32)
            for picture, result in zip(_windows(x, True, *settings), out, strict=True):
                by_pixel = picture.reshape(p.oh, p.ow, p.g, icg, kh, kw)
                columns = by_pixel.transpose(2, 0, 1, 4, 5, 3).reshape(p.g, pixels, taps)
                result[...] = np.matmul(columns, matrix).transpose(1, 0, 2).reshape(result.shape)
            out += bias
            return out

        return channels_last
    rows = weight.reshape(p.g, ocg, taps)
    column = bias[:, None, None]

    def channels_first(x: Array) -> Array:
        out = np.empty((len(x), oc, p.oh, p.ow), np.float32)
        for picture, result in zip(_windows(x, False, *settings), out, strict=True):
            columns = picture.transpose(0, 3, 4, 1, 2).reshape(p.g, taps, pixels)
            np.matmul(rows, columns, out=result.reshape(p.g, ocg, pixels))
        out += column
        return out

    return channels_first


class _NumPyBuilder:
    """Runs each step at once; brings a layer's weights into the layout's order when it first meets it."""

    def __init__(self, folded: Folded, layout: str) -> None:
        self.folded, self.nhwc = folded, layout == "nhwc"
        self.made: dict[str, Callable[[Array], Array]] = {}

    def conv(
        self, h: Array, name: str, stride: int, padding: int, relu: bool, add: Array | None = None, groups: int = 1
    ) -> Array:
        if name not in self.made:
            weight, bias = self.folded[name]
            size = h.shape[1:3] if self.nhwc else h.shape[2:4]
            self.made[name] = _conv(_square(weight, size, stride, padding, groups), weight, bias, self.nhwc)
        y = self.made[name](h)
        if add is not None:
            y += add
        return np.maximum(y, np.float32(0.0), out=y) if relu else y

    def max_pool(self, h: Array) -> Array:
        return np.asarray(_windows(h, self.nhwc, (3, 3), (2, 2), (1, 1), (1, 1), -math.inf).max(axis=(-2, -1)))

    def classify(self, h: Array) -> Array:
        weight, bias = self.folded["fc"]
        return np.asarray(h.mean(axis=(1, 2) if self.nhwc else (2, 3)) @ weight.T + bias)


def _square(weight: F32, size: tuple[int, ...], stride: int, padding: int, groups: int) -> Problem:
    """The problem of one of a network's convolutions."""
    from ..problem import Problem

    oc, icg, kh, kw = weight.shape
    return Problem(
        name="layer", ic=icg * groups, ih=size[0], iw=size[1], oc=oc, kh=kh, kw=kw, sh=stride, sw=stride, ph=padding,
        pw=padding, g=groups,
    )  # fmt: skip
