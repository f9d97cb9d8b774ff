"""Prepared layers: plan once, pack once, call often.

A layer keeps its weights and options. For each input shape it meets it makes one program (a bounded number of them is
kept); programs of the same packing share packed weights. Layers are immutable, may be called from many threads at
once, and pickle as weights and options.

A layer with device="cuda" takes arrays on any CUDA device, of its dtype, and packs its weights once for each device and
each form that its plans want; the first call for a new form waits for that, others wait for nothing. `compute` says how
products of float32 are formed there: "float32" on the CUDA cores, "tf32" (10 bits of mantissa) or "3xtf32"
(float32-accurate) on tensor cores.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from . import _core
from ._arguments import (
    Algorithm,
    Compute,
    Device,
    Dtype,
    Layout,
    PaddingLike,
    Pads,
    Pair,
    WeightLayout,
    activation_name,
    algorithm_names,
    batched,
    boolean,
    compute_name,
    device_name,
    dtype_name,
    frozen_padding,
    integer,
    kernel_extents,
    layout_name,
    pads,
    pair,
    spatial,
    weight_layout_name,
)
from ._arrays import F32, Output, as_view, maybe_view, plain, shape_of
from ._calls import check_residual, divisor_argument, no_empty_axis
from ._devices import place
from ._explain import as_linear, require_cpu_compute, require_cpu_dtype, shape_argument
from ._programs import Prepared, ProgramCache, warn_of_fallback

MAX_PROGRAMS = 16  # programs kept a layer; one is a plan and, once run, an arena


class _Layer:
    """Common part: the programs, explaining, pickling."""

    _layout: str

    def __init__(self, device: Any, dtype: Any, compute: Any, names: tuple[str, ...] = ("auto",)) -> None:
        self._programs = ProgramCache(MAX_PROGRAMS, names)
        self._last: _core.Program | None = None  # of the last call that succeeded
        # Likewise, where it has one input and nothing was to be warned of: calls like that one need no Python.
        self._ready: _core.Program | None = None
        self._device, self._dtype, self._compute = device_name(device), dtype_name(dtype), compute_name(compute)
        self._last_cuda: tuple[Any, ...] | None = None  # likewise, what explain needs to know of it
        if self._device == "cpu":
            require_cpu_dtype(self._dtype)
            require_cpu_compute(self._compute)
        else:
            from .cuda import _layers as cuda_layers

            self._cuda = cuda_layers.Backend(self._dtype, self._compute)

    def _options(self) -> dict[str, Any]:
        if self._device == "cpu":
            return {}
        return {"device": self._device, "dtype": self._dtype, "compute": self._compute}

    def _again(self, x: Any, out: Any) -> bool:
        """Runs the last call's program, where `x` and `out` are plain arrays of its shapes; else does nothing."""
        ready = self._ready
        if ready is None or not ready.answer_into(x, out):
            return False
        self._last = ready
        return True

    def _refuse_stream(self, stream: Any) -> None:
        if stream is not None:
            raise ValueError("stream is for layers made with device='cuda'")

    def _asked(self, given: Any) -> Any:
        """What `explain` on a CUDA device is about: `given`, or the last call."""
        asked = self._last_cuda if given is None else given
        if asked is None:
            raise ValueError("explain() needs an input shape: call the layer first, or pass explain(input_shape)")
        return asked

    def _shape_argument(self, x: Any) -> tuple[int, ...]:
        return shape_argument(x, "input_shape", (self._dtype,))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._options())

    def __copy__(self) -> _Layer:
        return self  # immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)(**copy.deepcopy(self._options(), memo))

    def __repr__(self) -> str:
        shown = {k: (v.shape if isinstance(v, np.ndarray) else v) for k, v in self._options().items()}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def _plan(self, program: _core.Program | None) -> dict[str, Any]:
        if program is None:
            raise ValueError("explain() needs an input shape: call the layer first, or pass explain(input_shape)")
        return program.steps()[0]


def _rebuild(kind: type, options: dict[str, Any]) -> Any:
    return kind(**options)


def _fetched(array: Any, name: str) -> F32:
    from .cuda._layers import fetched

    return fetched(array, name)


def _own(array: Any, name: str, device: str) -> F32:
    """A private, read-only copy: later writes of the caller must not reach packed and unpacked weights differently."""
    view = as_view(array, name)[0] if device == "cpu" or place(array) != "cuda" else _fetched(array, name)
    kept = np.array(view, dtype=np.float32, order="C", copy=True, subok=False)
    kept.flags.writeable = False
    return kept


class Conv2d(_Layer):
    """A convolution whose weights are packed once. Arguments as `fastconv.conv2d`.

    Call with ``conv(x, residual=None, out=None)``. `explain` tells the plan: algorithm, ukernel, blocking, packed and
    workspace bytes, conversions, and why other algorithms refused.
    """

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
        winograd: bool = True,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        compute: Compute = "float32",
    ) -> None:
        names = algorithm_names(algorithm, device_name(device))
        super().__init__(device, dtype, compute, names)
        self._layout = layout_name(layout)
        self._weight_layout = weight_layout_name(weight_layout, self._layout)
        self._weight = _own(weight, "weight", self._device)
        if self._weight.ndim != 4:
            shape = self._weight.shape
            raise ValueError(
                f"weight must have 4 dimensions ({self._weight_layout}), got {len(shape)} with shape {shape}"
            )
        if 0 in self._weight.shape:
            raise ValueError(f"weight must have at least 1 in each dimension, got shape {self._weight.shape}")
        outputs = self._weight.shape[3 if self._weight_layout == "HWIO" else 0]
        self._bias = None if bias is None else _own(bias, "bias", self._device)
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
        # Judge the padding now, on any extents, so that a wrong form is told here and not at the first call.
        pads(padding, (1, 1), kernel_extents(self._weight.shape, self._weight_layout), self._stride, self._dilation)
        self._padding = frozen_padding(padding)
        self._names = names
        self._activation = activation_name(activation)
        self._winograd = boolean(winograd, "winograd")
        if self._device == "cuda":
            self._packed = self._cuda.weights(self._weight, self._bias, self._weight_layout, self._groups)
            self._cuda.require_algorithms(names)
        else:
            self._packed = _core.ConvWeights(self._weight, self._bias, self._weight_layout, self._groups)

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
            "algorithm": self._names[0] if len(self._names) == 1 else self._names,
            "activation": self._activation,
            "winograd": self._winograd,
            **super()._options(),
        }

    def _padding4(self, shape: tuple[int, ...]) -> Pads:
        kernel = kernel_extents(self._weight.shape, self._weight_layout)
        return pads(self._padding, spatial(shape, self._layout), kernel, self._stride, self._dilation)

    def _prepare(self, shape: tuple[int, ...], residual: bool) -> Prepared:
        def build() -> _core.Program:
            program = _core.Program()
            padding = self._padding4(shape)
            x, r = program.input(shape), -1
            if residual:
                out = _core.conv2d_output_shape(
                    shape,
                    self._weight.shape,
                    -1,
                    self._stride,
                    padding,
                    self._dilation,
                    self._groups,
                    self._layout,
                    self._weight_layout,
                )
                r = program.input(out)
            y = program.conv2d(
                x,
                self._packed,
                self._stride,
                padding,
                self._dilation,
                self._layout,
                self._names,
                self._activation,
                r,
                self._winograd,
            )
            program.output(y)
            program.finalize()
            return program

        return self._programs.get((shape, residual), build)

    def _conv_options(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """What the CUDA module is told beside arrays and shapes."""
        return self._stride, self._padding4(shape), self._dilation, self._layout, self._names, self._activation

    def _on_cuda(self, x: Any, residual: Any, out: Any, stream: Any) -> Any:
        job = self._cuda.job(x, stream, residual=residual, out=out)
        shape, single = batched(job.shape, "input", self._layout)
        full = _core.conv2d_output_shape(
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
        result = full[1:] if single else full
        r = job.maybe(residual, "residual")
        check_residual(None if r is None else tuple(r.shape), result)
        target = job.output(result, out)
        self._cuda.conv2d(job, shape, self._packed, r, target, self._conv_options(shape))
        self._last_cuda = shape, r is not None
        return job.finish(target)

    def __call__(self, x: Any, residual: Any = None, out: Any = None, *, stream: Any = None) -> Any:
        """input (n, c, h, w) or (n, h, w, c), or without n; of the layer's dtype. Returns the output in the same
        layout. `stream`: of a CUDA layer, as for the ops."""
        if self._device == "cuda":
            return self._on_cuda(x, residual, out, stream)
        if out is not None and residual is None and stream is None and self._again(x, out):
            return out
        self._refuse_stream(stream)
        view, wrap = as_view(x, "input")
        shape, single = batched(view.shape, "input", self._layout)
        program, slow = self._prepare(shape, residual is not None)
        step_shape = program.shape(1 if residual is None else 2)
        caller_shape = step_shape[1:] if single else step_shape
        r = maybe_view(residual, "residual")
        check_residual(shape_of(r), caller_shape)
        target = Output(caller_shape, out, wrap, (("input", view), ("residual", r)))
        inputs = [plain(view).reshape(shape)]
        if r is not None:
            inputs.append(plain(r).reshape(step_shape))
        program.run(inputs, [target.array.reshape(step_shape)])
        self._last = program
        self._ready = None if slow or r is not None else program
        result = target.finish()
        if slow:
            warn_of_fallback("conv2d")
        return result

    def explain(self, input_shape: Any = None, *, residual: bool = False) -> dict[str, Any]:
        """The plan of the last call, or the one that an input of this shape would take, with a residual or without.

        An array stands for its shape. ValueError where there was no call yet and no shape is given.
        """
        with_residual = boolean(residual, "residual")
        if self._device == "cuda":
            given = None
            if input_shape is not None:
                given = batched(self._shape_argument(input_shape), "input_shape", self._layout)[0], with_residual
            asked, with_residual = self._asked(given)
            bias = self._bias is not None
            return self._cuda.explain_conv2d(
                asked,
                self._weight.shape,
                bias,
                with_residual,
                self._stride,
                self._padding4(asked),
                self._dilation,
                self._groups,
                self._layout,
                self._weight_layout,
                self._names,
                self._activation,
            )
        if input_shape is None:
            return self._plan(self._last)
        shape, _ = batched(shape_argument(input_shape, "input_shape"), "input_shape", self._layout)
        return self._plan(self._prepare(shape, with_residual).program)


# A fully connected layer as a 1x1 convolution: stride, padding, dilation, layout, algorithms, activation.
_ROWS = ((1, 1), (0, 0, 0, 0), (1, 1), "NHWC", ("auto",), None)


class Linear(_Layer):
    """A fully connected layer, ``x @ weight.T + bias``, whose weights (out, in) are packed once."""

    def __init__(
        self,
        weight: Any,
        bias: Any = None,
        *,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        compute: Compute = "float32",
    ) -> None:
        super().__init__(device, dtype, compute)
        self._weight = _own(weight, "weight", self._device)
        if self._weight.ndim != 2 or 0 in self._weight.shape:
            raise ValueError(f"weight must have 2 dimensions (out, in) of at least 1, got shape {self._weight.shape}")
        self._bias = None if bias is None else _own(bias, "bias", self._device)
        if self._bias is not None and self._bias.shape != (self._weight.shape[0],):
            raise ValueError(f"bias must have shape ({self._weight.shape[0]},), got {self._bias.shape}")
        self._shape4 = (*self._weight.shape, 1, 1)
        if self._device == "cuda":
            self._packed = self._cuda.weights(self._weight.reshape(self._shape4), self._bias, "OIHW", 1)
        else:
            self._packed = _core.ConvWeights(self._weight.reshape(self._shape4), self._bias, "OIHW", 1)

    def _options(self) -> dict[str, Any]:
        return {"weight": self._weight, "bias": self._bias, **super()._options()}

    def _rows(self, shape: tuple[int, ...], name: str) -> int:
        """Rows of an input of this shape."""
        features = self._weight.shape[1]
        if not shape or shape[-1] != features:
            raise ValueError(f"{name} must have {features} features in its last dimension, got shape {shape}")
        no_empty_axis(shape, name)
        rows = 1
        for extent in shape[:-1]:
            rows *= extent
        return rows

    def _prepare(self, rows: int) -> Prepared:
        def build() -> _core.Program:
            program = _core.Program()
            program.output(program.linear(program.input((rows, self._weight.shape[1])), self._packed))
            program.finalize()
            return program

        return self._programs.get((rows,), build)

    def __call__(self, x: Any, out: Any = None, *, stream: Any = None) -> Any:
        """(..., in_features) to (..., out_features). `stream`: of a CUDA layer, as for the ops."""
        if self._device == "cuda":
            job = self._cuda.job(x, stream, out=out)
            rows = self._rows(job.shape, "input")
            written = job.output((*job.shape[:-1], self._weight.shape[0]), out)
            self._cuda.conv2d(job, (rows, 1, 1, self._weight.shape[1]), self._packed, None, written, _ROWS)
            self._last_cuda = (rows,)
            return job.finish(written)
        self._refuse_stream(stream)
        view, wrap = as_view(x, "input")
        rows = self._rows(view.shape, "input")
        outputs, features = self._weight.shape
        target = Output((*view.shape[:-1], outputs), out, wrap, (("input", view),))
        program, slow = self._prepare(rows)
        program.run([plain(view).reshape(rows, features)], [target.array.reshape(rows, outputs)])
        self._last = program
        result = target.finish()
        if slow:
            warn_of_fallback("linear")
        return result

    def explain(self, input_shape: Any = None) -> dict[str, Any]:
        """The plan of the last call, or the one that an input of this shape (or this array) would take."""
        if self._device == "cuda":
            given = None if input_shape is None else (self._rows(self._shape_argument(input_shape), "input_shape"),)
            (rows,) = self._asked(given)
            stride, padding, dilation, layout, names, activation = _ROWS
            image, bias = (rows, 1, 1, self._weight.shape[1]), self._bias is not None
            return as_linear(
                self._cuda.explain_conv2d(
                    image, self._shape4, bias, False, stride, padding, dilation, 1, layout, "OIHW", names, activation
                )
            )
        if input_shape is None:
            return as_linear(self._plan(self._last))
        rows = self._rows(shape_argument(input_shape, "input_shape"), "input_shape")
        return as_linear(self._plan(self._prepare(rows).program))


class _Pool2d(_Layer):
    """Common part of the pooling layers."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        ceil_mode: Any,
        layout: Any,
        *where: Any,
    ) -> None:
        super().__init__(*where)
        self._layout = layout_name(layout)
        self._kernel = pair(kernel_size, "kernel_size", 1)
        self._stride = self._kernel if stride is None else pair(stride, "stride", 1)
        self._dilation = pair(dilation, "dilation", 1)
        pads(padding, (1, 1), self._kernel, self._stride, self._dilation, allow_full=False)
        self._padding = frozen_padding(padding)
        self._ceil_mode = boolean(ceil_mode, "ceil_mode")

    def _options(self) -> dict[str, Any]:
        return {
            "kernel_size": self._kernel,
            "stride": self._stride,
            "padding": self._padding,
            "ceil_mode": self._ceil_mode,
            "layout": self._layout,
            **super()._options(),
        }

    def _function(self) -> tuple[str, dict[str, Any]]:
        """The op's name, and its options beside those of every pooling."""
        raise NotImplementedError

    def _add(self, program: _core.Program, x: int, padding: Pads) -> int:
        raise NotImplementedError

    def _prepare(self, shape: tuple[int, ...]) -> Prepared:
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

        return self._programs.get((shape,), build)

    def __call__(self, x: Any, out: Any = None, *, stream: Any = None) -> Any:
        """(n, c, h, w) or (n, h, w, c), or without n; of the layer's dtype. `stream`: of a CUDA layer, as for the
        ops."""
        if self._device == "cuda":
            name, options = self._function()
            window = self._kernel, self._stride, self._padding
            result, shape = self._cuda.pool2d(
                name, x, *window, ceil_mode=self._ceil_mode, layout=self._layout, out=out, stream=stream, **options
            )
            self._last_cuda = (shape,)
            return result
        if out is not None and stream is None and self._again(x, out):
            return out
        self._refuse_stream(stream)
        view, wrap = as_view(x, "input")
        shape, single = batched(view.shape, "input", self._layout)
        program = self._prepare(shape).program
        full = program.shape(1)
        target = Output(full[1:] if single else full, out, wrap, (("input", view),))
        program.run([plain(view).reshape(shape)], [target.array.reshape(full)])
        self._last = self._ready = program
        return target.finish()

    def explain(self, input_shape: Any = None) -> dict[str, Any]:
        """The plan of the last call, or the one that an input of this shape (or this array) would take."""
        if self._device == "cuda":
            given = None if input_shape is None else (self._shape_argument(input_shape),)
            (asked,) = self._asked(given)
            name, options = self._function()
            window = self._kernel, self._stride, self._padding
            return self._cuda.explain(name, asked, *window, ceil_mode=self._ceil_mode, layout=self._layout, **options)
        if input_shape is None:
            return self._plan(self._last)
        shape, _ = batched(shape_argument(input_shape, "input_shape"), "input_shape", self._layout)
        return self._plan(self._prepare(shape).program)


class MaxPool2d(_Pool2d):
    """Max-pooling with fixed options; arguments as `fastconv.max_pool2d`."""

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: PaddingLike = 0,
        dilation: int | Pair = 1,
        ceil_mode: bool = False,
        *,
        layout: Layout = "NCHW",
        device: Device = "cpu",
        dtype: Dtype = "float32",
        compute: Compute = "float32",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, layout, device, dtype, compute)

    def _function(self) -> tuple[str, dict[str, Any]]:
        return "max_pool2d", {"dilation": self._dilation}

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "dilation": self._dilation}

    def _add(self, program: _core.Program, x: int, padding: Pads) -> int:
        return program.max_pool2d(x, self._kernel, self._stride, padding, self._dilation, self._ceil_mode, self._layout)


class AvgPool2d(_Pool2d):
    """Average pooling with fixed options; arguments as `fastconv.avg_pool2d`."""

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
        device: Device = "cpu",
        dtype: Dtype = "float32",
        compute: Compute = "float32",
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1, ceil_mode, layout, device, dtype, compute)
        self._count_include_pad = boolean(count_include_pad, "count_include_pad")
        self._divisor_override = None if divisor_override is None else integer(divisor_override, "divisor_override")
        self._divisor = divisor_argument(divisor_override)

    def _function(self) -> tuple[str, dict[str, Any]]:
        return "avg_pool2d", {
            "count_include_pad": self._count_include_pad,
            "divisor_override": self._divisor_override,
        }

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
