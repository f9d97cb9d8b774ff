"""The ops on CUDA arrays. Arguments were judged by `ops`' own signatures; shapes and options are by `_calls`, as on the
CPU.

Everything is enqueued on one stream, nothing waits for the host.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _calls
from .._arguments import boolean
from .._arrays import _overlaps_itself, _share_memory
from ._backend import backend, usable, why_unavailable
from ._producers import Library, library_of, view_of
from ._streams import handle_of

View = Any
_SHADOW = {"float32": "<f4", "float16": "<u2", "bfloat16": "<u2", "int64": "<i8"}


class Job:
    """One call: its stream, the views of its arrays, its results."""

    def __init__(self, input: Any, stream: Any = None, name: str = "input") -> None:
        reason = "" if usable() else why_unavailable()
        if reason:
            raise ValueError(f"{name} lies on a CUDA device, but CUDA is not available: {reason}")
        self.module = backend()
        self.producer: Library = library_of(input)
        current = self.producer.stream(input)
        self.handle = current if stream is None else handle_of(stream)
        self._same = self.handle == current
        self._arrays: list[Any] = []
        self._views: list[tuple[str, View]] = []
        self.x = self.view(input, name)
        self.shape: tuple[int, ...] = tuple(self.x.shape)
        self.dtype: str = self.x.dtype
        self.device: int = self.x.device
        if self.dtype == "int64":
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got int64")

    def view(self, x: Any, name: str) -> View:
        view = view_of(x, name, self.handle)
        self._arrays.append(x)
        self._views.append((name, view))
        return view

    def maybe(self, x: Any, name: str) -> View | None:
        return None if x is None else self.view(x, name)

    def contiguous(self, view: View, name: str = "input") -> View:
        """The array in C order: itself, or a copy made on the call's stream."""
        if view.contiguous:
            return view
        if self.module.is_capturing(self.handle):
            raise ValueError(f"{name} must be contiguous while a CUDA graph is captured here")
        copied = self.module.empty(view.shape, view.dtype, view.device, self.handle)
        self.module.copy(view, copied, self.handle)
        return copied

    def output(self, shape: tuple[int, ...], out: Any = None, dtype: str | None = None) -> Target:
        """Where a result goes: `out`, judged, or a new array of the input's library."""
        kind = self.dtype if dtype is None else dtype
        if out is None:
            made, view = self.producer.empty(shape, kind, self.device, self.handle, self._same)
            return Target(view, None, made)
        view = view_of(out, "out", self.handle)
        if view.dtype != kind:
            raise TypeError(f"out must be {kind}, as input is; got {view.dtype}")
        if tuple(view.shape) != tuple(shape):
            raise ValueError(f"out must have shape {tuple(shape)}, got {tuple(view.shape)}")
        if view.read_only:
            raise ValueError("out is read-only")
        _require_apart(view, self._views)
        self._arrays.append(out)
        return Target(view, out, None)

    def finish(self, target: Target) -> Any:
        """What the caller gets, when the work is enqueued."""
        if self._arrays:
            self.producer.keep(self.device, self.handle, self._same, self._arrays)
            self._arrays = []
        return target.out if target.made is None else self.producer.finish(target.made)


class Target(NamedTuple):
    """A result to be written: its view; the caller's array, or the one that becomes theirs."""

    view: View
    out: Any
    made: Any


class _Shadow:
    """Addresses without memory: NumPy judges overlaps by them and reads nothing."""

    def __init__(self, view: View) -> None:
        self.__array_interface__ = {
            "shape": tuple(view.shape),
            "typestr": _SHADOW[view.dtype],
            "data": (view.pointer, False),
            "strides": tuple(s * view.itemsize for s in view.strides),
            "version": 3,
        }


def _require_apart(out: View, inputs: list[tuple[str, View]]) -> None:
    if 0 in out.shape:
        return
    target = np.asarray(_Shadow(out))
    if _overlaps_itself(target):
        raise ValueError(f"out overlaps itself: two of its elements share memory (strides {target.strides})")
    for name, view in inputs:
        if 0 not in view.shape and view.device == out.device and _share_memory(target, np.asarray(_Shadow(view))):
            raise ValueError(f"out overlaps {name} in memory")


def _shape(view: View | None) -> tuple[int, ...] | None:
    return None if view is None else tuple(view.shape)


def conv2d(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    *,
    layout: Any,
    weight_layout: Any,
    algorithm: Any,
    activation: Any,
    residual: Any,
    winograd: Any,
    out: Any,
    stream: Any,
) -> Any:
    job = Job(input, stream)
    w = job.view(weight, "weight")
    b, r = job.maybe(bias, "bias"), job.maybe(residual, "residual")
    c = _calls.conv2d(
        job.shape,
        tuple(w.shape),
        _shape(b),
        stride,
        padding,
        dilation,
        groups,
        layout,
        weight_layout,
        algorithm,
        activation,
        _shape(r),
        winograd,
        device="cuda",
    )
    target = job.output(c.result, out)
    job.module.conv2d(
        c.shape,
        c.weight,
        job.x,
        w,
        b,
        r,
        target.view,
        c.stride,
        c.padding,
        c.dilation,
        c.groups,
        c.layout,
        c.weight_layout,
        c.algorithms,
        c.activation,
        "float32",
        job.handle,
    )
    return job.finish(target)


def max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    return_indices: Any,
    *,
    layout: Any,
    out: Any,
    stream: Any,
    job: Job | None = None,
) -> Any:
    job = Job(input, stream) if job is None else job
    with_indices = boolean(return_indices, "return_indices")
    c = _calls.pool2d(job.shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
    target = job.output(c.result, out)
    indices = job.output(c.result, dtype="int64") if with_indices else None
    job.module.max_pool2d(
        c.shape,
        job.x,
        target.view,
        None if indices is None else indices.view,
        c.kernel,
        c.stride,
        c.padding,
        c.dilation,
        c.ceil_mode,
        c.layout,
        job.handle,
    )
    result = job.finish(target)
    return result if indices is None else (result, job.finish(indices))


def avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
    divisor_override: Any,
    *,
    layout: Any,
    out: Any,
    stream: Any,
    job: Job | None = None,
) -> Any:
    job = Job(input, stream) if job is None else job
    c = _calls.pool2d(
        job.shape, kernel_size, stride, padding, 1, ceil_mode, layout, count_include_pad, divisor_override
    )
    target = job.output(c.result, out)
    job.module.avg_pool2d(
        c.shape,
        job.x,
        target.view,
        c.kernel,
        c.stride,
        c.padding,
        c.ceil_mode,
        c.count_include_pad,
        c.divisor,
        c.layout,
        job.handle,
    )
    return job.finish(target)


def adaptive_avg_pool2d(input: Any, output_size: Any, *, layout: Any, out: Any, stream: Any) -> Any:
    job = Job(input, stream)
    c = _calls.adaptive_avg_pool2d(job.shape, output_size, layout)
    target = job.output(c.result, out)
    job.module.adaptive_avg_pool2d(c.shape, job.x, target.view, c.size, c.layout, job.handle)
    return job.finish(target)


def relu(input: Any, *, out: Any, stream: Any) -> Any:
    job = Job(input, stream)
    _calls.no_empty_axis(job.shape)
    target = job.output(job.shape, out)
    job.module.relu(job.x, target.view, job.handle)
    return job.finish(target)


def softmax(input: Any, dim: Any, *, out: Any, stream: Any) -> Any:
    job = Job(input, stream)
    axis = _calls.softmax(job.shape, dim)
    target = job.output(job.shape, out)
    job.module.softmax(job.x, target.view, axis, job.handle)
    return job.finish(target)


def linear(input: Any, weight: Any, bias: Any, *, out: Any, stream: Any) -> Any:
    job = Job(input, stream)
    w, b = job.view(weight, "weight"), job.maybe(bias, "bias")
    c = _calls.linear(job.shape, tuple(w.shape), _shape(b))
    target = job.output(c.result, out)
    ones = (1, 1)
    job.module.conv2d(
        c.shape,
        c.weight,
        job.x,
        w,
        b,
        None,
        target.view,
        ones,
        (0, 0, 0, 0),
        ones,
        1,
        "NHWC",
        "OIHW",
        ("auto",),
        None,
        "float32",
        job.handle,
    )
    return job.finish(target)


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    *,
    eps: Any,
    layout: Any,
    out: Any,
    stream: Any,
) -> Any:
    job = Job(input, stream)
    mean, var = job.view(running_mean, "running_mean"), job.view(running_var, "running_var")
    w, b = job.maybe(weight, "weight"), job.maybe(bias, "bias")
    c = _calls.batch_norm(job.shape, tuple(mean.shape), tuple(var.shape), _shape(w), _shape(b), eps, layout)
    target = job.output(c.result, out)
    job.module.batch_norm(c.shape, job.x, mean, var, w, b, float(eps), target.view, c.layout, job.handle)
    return job.finish(target)


def convert_layout(input: Any, source: Any, target: Any, *, out: Any, stream: Any) -> Any:
    job = Job(input, stream)
    c = _calls.convert_layout(job.shape, source, target)
    result = job.output(c.result, out)
    job.module.convert_layout(c.shape, job.x, result.view, c.layout, c.target, job.handle)
    return job.finish(result)
