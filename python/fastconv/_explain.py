"""What would run, and why: `explain` and `kernels`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

from . import _calls, _core, ops
from ._arguments import boolean, compute_name, device_name, integer, text
from ._arguments import dtype_name as known_dtype
from ._arrays import dtype_name, not_an_array
from ._devices import place

Plan = dict[str, Any]
Shape = tuple[int, ...]


def shape_argument(x: Any, name: str, dtypes: tuple[str, ...] = ("float32",)) -> Shape:
    """The shape of an array (whose dtype must be one of these, where it says what it is), or a tuple or list as a
    shape."""
    if isinstance(x, np.generic):  # has a shape, but no function takes it
        raise not_an_array(x, name)
    given = getattr(x, "shape", x)
    if given is x and not isinstance(x, (tuple, list)):
        raise TypeError(f"{name} must be an array or a shape, got {type(x).__name__}")
    dtype = dtype_name(x)
    if dtype is not None and dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(dtypes)}, got {dtype}")
    return tuple(integer(v, name, 0) for v in given)


class _Cpu:
    """Whom to ask for plans, and which dtypes arrays may have there."""

    device = "cpu"
    dtypes: tuple[str, ...] = ("float32",)
    small: tuple[str, ...] = ("float32",)  # of a bias and of statistics

    def conv2d(self, *args: Any) -> Plan:
        return _core.explain_conv2d(*args)

    def op(self, name: str, shape: Shape, options: dict[str, Any]) -> Plan:
        return _core.explain_op(name, shape, options)

    def shape(self, x: Any, name: str) -> Shape:
        return shape_argument(x, name, self.dtypes)

    def maybe(self, x: Any, name: str) -> Shape | None:
        return None if x is None else self.shape(x, name)

    def vector(self, x: Any, name: str) -> Shape | None:
        return None if x is None else shape_argument(x, name, self.small)


class _Cuda(_Cpu):
    device = "cuda"

    def __init__(self, dtype: str, compute: str) -> None:
        from .cuda._backend import built

        self._module = built()
        self._dtype, self._compute = dtype, compute
        self.dtypes = (dtype,)
        self.small = ("float32",) if dtype == "float32" else (dtype, "float32")

    def conv2d(self, *args: Any) -> Plan:
        known = args[:12]  # winograd, the last one, is the CPU's
        return dict(self._module.explain_conv2d(*known, self._dtype, self._compute))

    def op(self, name: str, shape: Shape, options: dict[str, Any]) -> Plan:
        return dict(self._module.explain_op(name, shape, options, self._dtype))


def explain(
    op: str, *args: Any, device: str | None = None, dtype: str | None = None, compute: str = "float32", **kwargs: Any
) -> Plan:
    """The plan that ``fastconv.<op>(*args, **kwargs)`` would take; nothing is computed.

    Arrays may be given as they are or as shapes. What the call would refuse is refused here with the same error. The
    dict has at least op, device, layout, dtype, algorithm, kernel, ukernel, isa, blocking, macs, packed_bytes,
    workspace_bytes (on the CPU: a thread), conversions (between layouts; none for a lone op) and refused (algorithm ->
    reason); on the CPU also tuned (whether `fastconv tune` chose the algorithm).

    Args:
        device: "cpu" or "cuda"; None goes by where the first argument lies, and is "cpu" for a shape. "cuda" needs a
            build with the CUDA backend (NotImplementedError else), but no device: without one the plan is that of an
            H200, which `assumed_device` in the dict then says.
        dtype: "float32", "float16" or "bfloat16", on "cuda" only the last two; None goes by the first argument.
        compute: "float32", "tf32" or "3xtf32", on "cuda" only, as a prepared layer would have it.
    """
    if text(op, "op") not in _OPS:
        raise ValueError(f"op must be one of {', '.join(map(repr, _OPS))}; got {op!r}")
    try:
        bound = inspect.signature(getattr(ops, op)).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{op}: {error}") from None
    bound.apply_defaults()
    given = dict(bound.arguments)
    where = _where(given["input"], device, dtype, compute)
    given.pop("stream")
    if "algorithm" in given and where.device != "cpu":
        given["device"] = where.device
    out = where.maybe(given.pop("out"), "out")
    result, plan = _OPS[op](where, **given)
    if out is not None and out != result:
        raise ValueError(f"out must have shape {result}, got {out}")
    return plan() if op != "linear" else as_linear(plan())


def _where(input: Any, device: str | None, dtype: str | None, compute: str) -> _Cpu:
    if device is None:
        device = "cuda" if not isinstance(input, (tuple, list)) and place(input) == "cuda" else "cpu"
    given = dtype if dtype is not None else dtype_name(input) or "float32"
    if device_name(device) == "cpu":
        if dtype is not None:
            require_cpu_dtype(dtype)
        require_cpu_compute(compute)
        return _Cpu()
    return _Cuda(known_dtype(given), compute_name(compute))


def require_cpu_dtype(dtype: Any) -> None:
    if known_dtype(dtype) != "float32":
        raise NotImplementedError(f"dtype must be 'float32' on the CPU for now; got {dtype!r}")


def require_cpu_compute(compute: Any) -> None:
    if compute_name(compute) != "float32":
        raise NotImplementedError(f"compute must be 'float32' on the CPU for now; got {compute!r}")


def as_linear(plan: Plan) -> Plan:
    """A fully connected layer runs as a 1x1 convolution; to the caller it is what they asked for."""
    return {**plan, "op": "linear"}


# Each takes whom to ask and the function's own arguments; it gives the shape of the result, and what makes the plan.
Explained = tuple[Shape, Callable[[], Plan]]


def _conv2d(at: _Cpu, input: Any, weight: Any, bias: Any, residual: Any, **options: Any) -> Explained:
    c = _calls.conv2d(
        at.shape(input, "input"),
        at.shape(weight, "weight"),
        at.vector(bias, "bias"),
        residual=at.maybe(residual, "residual"),
        **options,
    )
    return c.result, lambda: at.conv2d(
        c.shape,
        c.weight,
        bias is not None,
        residual is not None,
        c.stride,
        c.padding,
        c.dilation,
        c.groups,
        c.layout,
        c.weight_layout,
        c.algorithms,
        c.activation,
        c.winograd,
    )


def _linear(at: _Cpu, input: Any, weight: Any, bias: Any) -> Explained:
    c = _calls.linear(at.shape(input, "input"), at.shape(weight, "weight"), at.vector(bias, "bias"))
    return c.result, lambda: _explain_rows(at, c.shape, c.weight, bias is not None, "auto")


def _explain_rows(at: _Cpu, shape: Shape, weight: Shape, bias: bool, algorithm: str) -> Plan:
    pads, ones = (0, 0, 0, 0), (1, 1)
    return at.conv2d(shape, weight, bias, False, ones, pads, ones, 1, "NHWC", "OIHW", (algorithm,), None)


def _pool2d(at: _Cpu, op: str, c: _calls.Pool, return_indices: bool = False) -> Explained:
    options = {
        "kernel": c.kernel,
        "stride": c.stride,
        "padding": c.padding,
        "dilation": c.dilation,
        "ceil_mode": c.ceil_mode,
        "count_include_pad": c.count_include_pad,
        "divisor_override": c.divisor,
        "return_indices": return_indices,
        "layout": c.layout,
    }
    return c.result, lambda: at.op(op, c.shape, options)


def _max_pool2d(at: _Cpu, input: Any, return_indices: Any, **options: Any) -> Explained:
    shape = at.shape(input, "input")
    with_indices = boolean(return_indices, "return_indices")
    return _pool2d(at, "max_pool2d", _calls.pool2d(shape, **options), with_indices)


def _avg_pool2d(at: _Cpu, input: Any, **options: Any) -> Explained:
    return _pool2d(at, "avg_pool2d", _calls.pool2d(at.shape(input, "input"), dilation=1, **options))


def _image(at: _Cpu, op: str, c: _calls.Image) -> Explained:
    options = {"layout": c.layout, "source": c.layout, "target": c.target, "output_size": c.size}
    return c.result, lambda: at.op(op, c.shape, options)


def _adaptive_avg_pool2d(at: _Cpu, input: Any, **options: Any) -> Explained:
    return _image(at, "adaptive_avg_pool2d", _calls.adaptive_avg_pool2d(at.shape(input, "input"), **options))


def _batch_norm(
    at: _Cpu, input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: Any, layout: Any
) -> Explained:
    c = _calls.batch_norm(
        at.shape(input, "input"),
        at.vector(running_mean, "running_mean") or (),
        at.vector(running_var, "running_var") or (),
        at.vector(weight, "weight"),
        at.vector(bias, "bias"),
        eps,
        layout,
    )
    return _image(at, "batch_norm", c)


def _convert_layout(at: _Cpu, input: Any, **options: Any) -> Explained:
    return _image(at, "convert_layout", _calls.convert_layout(at.shape(input, "input"), **options))


def _relu(at: _Cpu, input: Any) -> Explained:
    shape = at.shape(input, "input")
    _calls.no_empty_axis(shape)
    return shape, lambda: at.op("relu", shape, {})


def _softmax(at: _Cpu, input: Any, dim: Any) -> Explained:
    shape = at.shape(input, "input")
    axis = _calls.softmax(shape, dim)
    return shape, lambda: at.op("softmax", shape, {"dim": axis})


_OPS: dict[str, Callable[..., Explained]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "relu": _relu,
    "softmax": _softmax,
    "batch_norm": _batch_norm,
    "convert_layout": _convert_layout,
}


def kernels(op: str | None = None) -> list[dict[str, Any]]:
    """Every kernel of an op (or of all): one dict for each driver and leaf, the caller's own.

    Keys, at least: op, name, device, algorithm, dtype, isa, supported and reason (why it cannot run here; empty where
    it can). `linear` runs on kernels of `conv2d`, which are listed for both. Those with device "cuda" are listed by
    builds that have them, whether or not there is a device.
    """
    if op is not None and text(op, "op") not in _OPS:
        raise ValueError(f"op must be one of {', '.join(map(repr, _OPS))}; got {op!r}")
    rows: list[dict[str, Any]] = []
    if op != "linear":
        rows += _core.kernels(op) + _cuda_kernels(op)
    return rows + (_linear_kernels() if op in (None, "linear") else [])


def _cuda_kernels(op: str | None) -> list[dict[str, Any]]:
    from .cuda._backend import built, why_not_built

    return [] if why_not_built() else [dict(row) for row in built().kernels(op)]


def _linear_kernels() -> list[dict[str, Any]]:
    able = _linear_drivers()
    rows = [row for row in _core.kernels("conv2d") if row["driver"] in able]
    rows += [row for row in _cuda_kernels("conv2d") if _is_linear(row)]
    return [{**row, "op": "linear"} for row in rows]


def _is_linear(row: dict[str, Any]) -> bool:
    """Whether a CUDA kernel can do a 1x1 convolution of one group in that dtype."""
    at = _Cuda(str(row["dtype"]), str(row["compute"]))
    with suppress(NotImplementedError):
        _explain_rows(at, (64, 1, 1, 64), (64, 64, 1, 1), False, str(row["driver"]))
        return True
    return False


@lru_cache(maxsize=1)
def _linear_drivers() -> frozenset[str]:
    """Those that can do a 1x1 convolution of one group."""
    able = set()
    for driver in {str(row["driver"]) for row in _core.kernels("conv2d")}:
        with suppress(NotImplementedError):
            _explain_rows(_Cpu(), (2, 1, 1, 3), (4, 3, 1, 1), False, driver)
            able.add(driver)
    return frozenset(able)
