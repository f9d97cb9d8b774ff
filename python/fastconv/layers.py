"""Prepared layers: plan once, pack once, call often.

A layer keeps its weights and options. For each input shape it meets it makes one program (a bounded number of them
is kept); programs of
the same packing share packed weights. Layers are immutable, may be called from many threads at once, and pickle as
weights and options.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _core
from ._arguments import (
    Algorithm,
    Layout,
    PaddingLike,
    Pads,
    Pair,
    WeightLayout,
    activation_name,
    algorithm_names,
    batched,
    boolean,
    integer,
    kernel_extents,
    layout_name,
    pads,
    pair,
    spatial,
    weight_layout_name,
)
from ._arrays import F32, Output, as_view, plain
from .ops import divisor_argument, warn_if_reference

MAX_PROGRAMS = 16  # programs kept a layer; one is a plan and, once run, an arena

_layers: weakref.WeakSet[_Layer]


class _Layer:
    """Common part: the bounded cache of programs, running, explaining, pickling."""

    _op: str
    _layout: str

    def __init__(self) -> None:
        self._programs: OrderedDict[tuple[Any, ...], _core.Program] = OrderedDict()
        self._lock = threading.Lock()
        self._last: tuple[Any, ...] | None = None
        _layers.add(self)

    def _options(self) -> dict[str, Any]:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._options())

    def __copy__(self) -> _Layer:
        return self  # immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(**copy.deepcopy(self._options(), memo))

    def __repr__(self) -> str:
        shown = {k: (v.shape if isinstance(v, np.ndarray) else v) for k, v in self._options().items()}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def _program(self, key: tuple[Any, ...], build: Callable[[], _core.Program]) -> _core.Program:
        key = (*key, _core.isa())
        with self._lock:
            self._last = key
            found = self._programs.get(key)
            if found is not None:
                self._programs.move_to_end(key)
                return found
        made = build()  # outside the lock: packing takes long, and another shape need not wait for it
        with self._lock:
            self._programs[key] = made
            while len(self._programs) > MAX_PROGRAMS:
                self._programs.popitem(last=False)
        return made

    def _explain(self) -> dict[str, Any]:
        with self._lock:
            program = self._programs.get(self._last) if self._last is not None else None
        if program is None:
            raise ValueError("explain() needs an input shape: call the layer first, or pass explain(input_shape)")
        return program.steps()[0]


_layers = weakref.WeakSet()


def _rebuild(kind: type, options: dict[str, Any]) -> Any:
    return kind(**options)


def _renew_locks() -> None:
    """In a child of fork(): a lock that another thread held stays locked for ever."""
    for layer in list(_layers):
        layer._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _own(array: Any, name: str) -> F32:
    """A private, read-only copy: later writes of the caller must not reach packed and unpacked weights differently."""
    view, _ = as_view(array, name)
    kept = np.array(view, dtype=np.float32, order="C", copy=True, subok=False)
    kept.flags.writeable = False
    return kept


class Conv2d(_Layer):
    """A convolution whose weights are packed once. Arguments as `fastconv.conv2d`; call with `conv(x, residual=None,
    out=None)`.

    `explain()` tells the plan of the last call (or of `explain(input_shape)`): algorithm, ukernel, blocking, packed
    and workspace
    bytes, conversions, and why other algorithms refused.
    """

    _op = "conv2d"

    def __init__(
        self,
        weight: Any,
        bias: Any = None,
        stride: int | Pair = 1,
        padding: PaddingLike = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        *,
        layout: Layout = "NCHW",
        weight_layout: WeightLayout | None = None,
        algorithm: Algorithm = "auto",
        activation: str | None = None,
    ) -> None:
        super().__init__()
        self._layout = layout_name(layout)
        self._weight_layout = weight_layout_name(weight_layout, self._layout)
        self._weight = _own(weight, "weight")
        if self._weight.ndim != 4:
            shape = self._weight.shape
            raise ValueError(
                f"weight must have 4 dimensions ({self._weight_layout}), got {len(shape)} with shape {shape}"
            )
        if 0 in self._weight.shape:
            raise ValueError(f"weight must have at least 1 in each dimension, got shape {self._weight.shape}")
        outputs = self._weight.shape[3 if self._weight_layout == "HWIO" else 0]
        self._bias = None if bias is None else _own(bias, "bias")
        if self._bias is not None and self._bias.shape != (outputs,):
            raise ValueError(
                f"bias must have shape ({outputs},), one value for each output channel; got {self._bias.shape}"
            )
        self._stride = pair(stride, "stride", 1)
        self._dilation = pair(dilation, "dilation", 1)
        self._groups = integer(groups, "groups", 1)
        if outputs % self._groups:
            raise ValueError(
                f"groups must divide the output channels: {self._groups} groups, {outputs} channels in weight"
            )
        self._padding = padding
        # Judge the padding now, on any extents, so that a wrong form is told here and not at the first call.
        pads(padding, (1, 1), kernel_extents(self._weight.shape, self._weight_layout), self._stride, self._dilation)
        self._algorithm = algorithm
        self._names = algorithm_names(algorithm)
        self._check_names()
        self._activation = activation_name(activation)
        self._packed = _core.ConvWeights(self._weight, self._bias, self._weight_layout, self._groups)

    def _check_names(self) -> None:
        known = {"auto"}
        for row in _core.kernels("conv2d"):
            known |= {str(row["algorithm"]), str(row["driver"])}
        for name in self._names:
            if name not in known:
                raise ValueError(f"algorithm must be one of {', '.join(sorted(known))}; got {name!r}")

    def _options(self) -> dict[str, Any]:
        return {
            "weight": self._weight,
            "bias": self._bias,
            "stride": self._stride,
            "padding": self._padding,
            "dilation": self._dilation,
            "groups": self._groups,
            "layout": self._layout,
            "weight_layout": self._weight_layout,
            "algorithm": self._algorithm,
            "activation": self._activation,
        }

    def _padding4(self, shape: tuple[int, ...]) -> Pads:
        kernel = kernel_extents(self._weight.shape, self._weight_layout)
        return pads(self._padding, spatial(shape, self._layout), kernel, self._stride, self._dilation)

    def _prepare(self, shape: tuple[int, ...], residual: bool) -> _core.Program:
        def build() -> _core.Program:
            program = _core.Program()
            x = program.input(shape)
            r = -1
            if residual:
                groups_out = _core.conv2d_output_shape(
                    shape,
                    self._weight.shape,
                    -1,
                    self._stride,
                    self._padding4(shape),
                    self._dilation,
                    self._groups,
                    self._layout,
                    self._weight_layout,
                )
                r = program.input(groups_out)
            y = program.conv2d(
                x,
                self._packed,
                self._stride,
                self._padding4(shape),
                self._dilation,
                self._layout,
                self._names,
                self._activation,
                r,
            )
            program.output(y)
            program.finalize()
            warn_if_reference(str(program.steps()[0]["algorithm"]), self._names, "conv2d")
            return program

        return self._program((shape, residual), build)

    def __call__(self, x: Any, residual: Any = None, out: Any = None) -> Any:
        """input (n, c, h, w) or (n, h, w, c), or without n; float32. Returns the output in the same layout."""
        view, wrap = as_view(x, "input")
        shape, single = batched(view.shape, "input", self._layout)
        program = self._prepare(shape, residual is not None)
        step_shape = program.shape(2 if residual is not None else 1)
        caller_shape = step_shape[1:] if single else step_shape
        r = None
        if residual is not None:
            r, _ = as_view(residual, "residual")
            if r.shape != caller_shape:
                raise ValueError(f"residual must have the output's shape {caller_shape}, got {r.shape}")
        result = Output(caller_shape, out, wrap, (("input", view), ("residual", r)))
        inputs = [plain(view).reshape(shape)]
        if r is not None:
            inputs.append(plain(r).reshape(step_shape))
        program.run(inputs, [result.array.reshape(step_shape)])
        return result.finish()

    def explain(self, input_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
        """The plan of the last call, or the one that an input of this shape would take."""
        if input_shape is not None:
            shape, _ = batched(tuple(integer(v, "input_shape") for v in input_shape), "input_shape", self._layout)
            return self._prepare(shape, False).steps()[0]
        return self._explain()


class Linear(_Layer):
    """A fully connected layer, ``x @ weight.T + bias``, whose weights (out, in) are packed once."""

    _op = "linear"
    _layout = "NHWC"

    def __init__(self, weight: Any, bias: Any = None) -> None:
        super().__init__()
        self._weight = _own(weight, "weight")
        if self._weight.ndim != 2 or 0 in self._weight.shape:
            raise ValueError(f"weight must have 2 dimensions (out, in) of at least 1, got shape {self._weight.shape}")
        self._bias = None if bias is None else _own(bias, "bias")
        if self._bias is not None and self._bias.shape != (self._weight.shape[0],):
            raise ValueError(f"bias must have shape ({self._weight.shape[0]},), got {self._bias.shape}")
        self._packed = _core.ConvWeights(self._weight.reshape(*self._weight.shape, 1, 1), self._bias, "OIHW", 1)

    def _options(self) -> dict[str, Any]:
        return {"weight": self._weight, "bias": self._bias}

    def _prepare(self, rows: int) -> _core.Program:
        def build() -> _core.Program:
            program = _core.Program()
            program.output(program.linear(program.input((rows, self._weight.shape[1])), self._packed))
            program.finalize()
            return program

        return self._program((rows,), build)

    def __call__(self, x: Any, out: Any = None) -> Any:
        """(..., in_features) to (..., out_features)."""
        view, wrap = as_view(x, "input")
        outputs, features = self._weight.shape
        if view.ndim < 1 or view.shape[-1] != features:
            raise ValueError(f"input must have {features} features in its last dimension, got shape {view.shape}")
        if 0 in view.shape[1:]:
            raise ValueError(f"input must have at least 1 in each dimension but the first, got shape {view.shape}")
        result = Output((*view.shape[:-1], outputs), out, wrap, (("input", view),))
        rows = view.size // features
        self._prepare(rows).run([plain(view).reshape(rows, features)], [result.array.reshape(rows, outputs)])
        return result.finish()

    def explain(self, input_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
        """The plan of the last call, or the one that an input of this shape would take."""
        if input_shape is not None:
            rows = 1
            for v in input_shape[:-1]:
                rows *= integer(v, "input_shape", 1)
            return self._prepare(rows).steps()[0]
        return self._explain()


class _Pool2d(_Layer):
    """Common part of the pooling layers."""

    def __init__(self, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, layout: Any) -> None:
        super().__init__()
        self._layout = layout_name(layout)
        self._kernel = pair(kernel_size, "kernel_size", 1)
        self._stride = self._kernel if stride is None else pair(stride, "stride", 1)
        self._dilation = pair(dilation, "dilation", 1)
        self._padding = padding
        pads(padding, (1, 1), self._kernel, self._stride, self._dilation, allow_full=False)
        self._ceil_mode = boolean(ceil_mode, "ceil_mode")

    def _options(self) -> dict[str, Any]:
        return {
            "kernel_size": self._kernel,
            "stride": self._stride,
            "padding": self._padding,
            "ceil_mode": self._ceil_mode,
            "layout": self._layout,
        }

    def _add(self, program: _core.Program, x: int, padding: Pads) -> int:
        raise NotImplementedError

    def _prepare(self, shape: tuple[int, ...]) -> _core.Program:
        def build() -> _core.Program:
            program = _core.Program()
            padding = pads(
                self._padding,
                spatial(shape, self._layout),
                self._kernel,
                self._stride,
                self._dilation,
                allow_full=False,
            )
            program.output(self._add(program, program.input(shape), padding))
            program.finalize()
            return program

        return self._program((shape,), build)

    def __call__(self, x: Any, out: Any = None) -> Any:
        """(n, c, h, w) or (n, h, w, c), or without n; float32."""
        view, wrap = as_view(x, "input")
        shape, single = batched(view.shape, "input", self._layout)
        program = self._prepare(shape)
        full = program.shape(1)
        result = Output(full[1:] if single else full, out, wrap, (("input", view),))
        program.run([plain(view).reshape(shape)], [result.array.reshape(full)])
        return result.finish()

    def explain(self, input_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
        """The plan of the last call, or the one that an input of this shape would take."""
        if input_shape is not None:
            shape, _ = batched(tuple(integer(v, "input_shape") for v in input_shape), "input_shape", self._layout)
            return self._prepare(shape).steps()[0]
        return self._explain()


class MaxPool2d(_Pool2d):
    """Max-pooling with fixed options; arguments as `fastconv.max_pool2d`."""

    _op = "max_pool2d"

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: PaddingLike = 0,
        dilation: int | Pair = 1,
        ceil_mode: bool = False,
        *,
        layout: Layout = "NCHW",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, layout)

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "dilation": self._dilation}

    def _add(self, program: _core.Program, x: int, padding: Pads) -> int:
        return program.max_pool2d(x, self._kernel, self._stride, padding, self._dilation, self._ceil_mode, self._layout)


class AvgPool2d(_Pool2d):
    """Average pooling with fixed options; arguments as `fastconv.avg_pool2d`."""

    _op = "avg_pool2d"

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: PaddingLike = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        layout: Layout = "NCHW",
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1, ceil_mode, layout)
        self._count_include_pad = boolean(count_include_pad, "count_include_pad")
        self._divisor_override = divisor_override
        self._divisor = divisor_argument(divisor_override)

    def _options(self) -> dict[str, Any]:
        return {
            **super()._options(),
            "count_include_pad": self._count_include_pad,
            "divisor_override": self._divisor_override,
        }

    def _add(self, program: _core.Program, x: int, padding: Pads) -> int:
        return program.avg_pool2d(
            x,
            self._kernel,
            self._stride,
            padding,
            self._ceil_mode,
            self._count_include_pad,
            self._divisor,
            self._layout,
        )
