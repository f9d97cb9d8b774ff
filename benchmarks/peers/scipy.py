"""What SciPy has of these ops: convolution by Fourier transform, pooling by its image filters, and softmax.

Filters and transforms compute every position; a stride would throw most of them away, so only the pools have one.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import F32, Array, Folded, PeerCall, given, lacks
from .numpy import MAX_WORKSPACE

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem


class SciPy:
    """`scipy.signal`, `scipy.ndimage` and `scipy.special` on arrays in NCHW. Of the two convolutions by transform,
    `fftconvolve` is twice as fast as `oaconvolve` on a layer's small pictures."""

    name: str = "scipy"
    layouts: tuple[str, ...] = ("nchw",)
    dtype: str = "float32"
    settle: float = 0.002

    def __init__(self) -> None:
        self.fft: Any = importlib.import_module("scipy.fft")
        self.signal: Any = importlib.import_module("scipy.signal")
        self.ndimage: Any = importlib.import_module("scipy.ndimage")
        self.special: Any = importlib.import_module("scipy.special")

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        x = np.array(operands.x, order="C")
        if problem.op == "conv2d":
            function = self._conv(problem, x, given(operands.weight), given(operands.bias))
            detail = "signal.fftconvolve"
        elif problem.op in ("max_pool2d", "avg_pool2d"):
            function, detail = self._pool(problem, x), "ndimage, one thread"
        elif problem.op == "softmax":
            function, detail = (lambda: self.special.softmax(x, axis=1)), "special.softmax, one thread"
        else:
            raise lacks("scipy", problem.op, "it would be NumPy's own")
        last: list[Array] = []

        def run() -> None:
            with self.fft.set_workers(threads):
                last[:] = [function()]

        return PeerCall(run, lambda: np.array(last[0], np.float32), detail, (x,))

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        raise lacks("scipy", name, "it has no convolution with a stride")

    def _conv(self, p: Problem, x: F32, weight: F32, bias: F32) -> Callable[[], Array]:
        if (p.sh, p.sw, p.dh, p.dw) != (1, 1, 1, 1):
            raise lacks("scipy", "conv2d with a stride or dilation")
        if (p.kh, p.kw) == (1, 1):
            raise lacks("scipy", "1 x 1 conv2d", "it is a matrix product, NumPy's own")
        oc, icg, kh, kw = weight.shape
        # For each picture a plane for every pair of input and output channel: the weights' transform, the product, and
        # what it is back as real numbers, twice. A transform of real numbers is half as long and complex.
        needed = 16 * oc * icg * (p.ih + 2 * p.ph + kh) * (p.iw + 2 * p.pw + kw)
        if needed > MAX_WORKSPACE:
            raise lacks("scipy", "conv2d of this size", f"its transforms take about {needed >> 20} MiB")
        # Convolution turns the kernel round, the ops here do not. (g, oc / g, ic / g, kh, kw)
        turned = np.ascontiguousarray(weight.reshape(p.g, oc // p.g, icg, kh, kw)[..., ::-1, ::-1])
        widths = ((0, 0), (0, 0), (p.ph, p.ph), (p.pw, p.pw))
        convolve, column = self.signal.fftconvolve, bias[:, None, None]

        def function() -> Array:
            padded = np.pad(x, widths) if p.ph or p.pw else x
            out = np.empty((len(x), oc, p.oh, p.ow), np.float32)
            for picture, result in zip(padded, out, strict=True):
                by_group = picture.reshape(p.g, 1, icg, *picture.shape[1:])
                pairs = convolve(by_group, turned, mode="valid", axes=(-2, -1))
                np.add(pairs.sum(axis=2).reshape(result.shape), column, out=result)
            return out

        return function

    def _pool(self, p: Problem, x: F32) -> Callable[[], Array]:
        reach = ((p.kh - 1) * p.dh + 1, (p.kw - 1) * p.dw + 1)
        if 2 * x.nbytes > MAX_WORKSPACE:
            raise lacks("scipy", f"{p.op} of this size", f"its filters take {2 * x.nbytes >> 20} MiB")
        # A filter's answer for a window sits at its middle, reach // 2 from its start.
        rows = _positions(p.op, p.ih, p.oh, p.sh, reach[0] // 2 - p.ph)
        columns = _positions(p.op, p.iw, p.ow, p.sw, reach[1] // 2 - p.pw)
        if p.op == "avg_pool2d":
            average = self.ndimage.uniform_filter
            size = (1, 1, *reach)
            return lambda: average(x, size, mode="constant", cval=0.0)[:, :, rows, columns]
        footprint = np.zeros((1, 1, *reach), bool)
        footprint[..., :: p.dh, :: p.dw] = True
        # A full rectangle is separable, and SciPy makes use of that if told by size only.
        shape = {"size": (1, 1, *reach)} if footprint.all() else {"footprint": footprint}
        largest = self.ndimage.maximum_filter
        return lambda: largest(x, **shape, mode="constant", cval=-math.inf)[:, :, rows, columns]


def _positions(op: str, size: int, count: int, stride: int, first: int) -> slice:
    """Where a filter's answers lie that a pool with that stride takes. NotImplementedError if one is outside."""
    last = first + (count - 1) * stride
    if first < 0 or last >= size:
        raise lacks("scipy", f"{op} with windows centred on its padding")
    return slice(first, last + 1, stride)
