"""What would run, and why: `explain` and `kernels`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

from . import _calls, _core, ops
from ._arguments import boolean, integer, text
from ._arrays import dtype_name, not_an_array

Plan = dict[str, Any]
Shape = tuple[int, ...]


def shape_argument(x: Any, name: str) -> Shape:
    """The shape of an array (which must be float32, where it says what it is), or a tuple or list as a shape."""
    if isinstance(x, np.generic):  # has a shape, but no function takes it
        raise not_an_array(x, name)
    given = getattr(x, "shape", x)
    if given is x and not isinstance(x, (tuple, list)):
        raise TypeError(f"{name} must be an array or a shape, got {type(x).__name__}")
    dtype = dtype_name(x)
    if dtype not in (None, "float32"):
        raise TypeError(f"{name} must be float32, got {dtype}")
    return tuple(integer(v, name, 0) for v in given)


def _maybe(x: Any, name: str) -> Shape | None:
    return None if x is None else shape_argument(x, name)


def explain(op: str, *args: Any, **kwargs: Any) -> Plan:
    """The plan that ``fastconv.<op>(*args, **kwargs)`` would take; nothing is computed.

    Arrays may be given as they are or as shapes. What the call would refuse is refused here with the same error. The
    dict has at least op, layout, algorithm, kernel, ukernel, isa, blocking, macs, packed_bytes, workspace_bytes (a
    thread), conversions (between layouts; none for a lone op) and refused (algorithm -> reason).
    """
    if text(op, "op") not in _OPS:
        raise ValueError(f"op must be one of {', '.join(map(repr, _OPS))}; got {op!r}")
    try:
        bound = inspect.signature(getattr(ops, op)).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{op}: {error}") from None
    bound.apply_defaults()
    given = dict(bound.arguments)
    out = _maybe(given.pop("out"), "out")
    result, plan = _OPS[op](**given)
    if out is not None and out != result:
        raise ValueError(f"out must have shape {result}, got {out}")
    return plan() if op != "linear" else as_linear(plan())


def as_linear(plan: Plan) -> Plan:
    """A fully connected layer runs as a 1x1 convolution; to the caller it is what they asked for."""
    return {**plan, "op": "linear"}


# Each takes the function's own arguments; it gives the shape of the result, and what makes the plan.
Explained = tuple[Shape, Callable[[], Plan]]


def _conv2d(input: Any, weight: Any, bias: Any, residual: Any, **options: Any) -> Explained:
    c = _calls.conv2d(
        shape_argument(input, "input"),
        shape_argument(weight, "weight"),
        _maybe(bias, "bias"),
        residual=_maybe(residual, "residual"),
        **options,
    )
    return c.result, lambda: _core.explain_conv2d(
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


def _linear(input: Any, weight: Any, bias: Any) -> Explained:
    c = _calls.linear(shape_argument(input, "input"), shape_argument(weight, "weight"), _maybe(bias, "bias"))
    return c.result, lambda: _explain_rows(c.shape, c.weight, bias is not None, "auto")


def _explain_rows(shape: Shape, weight: Shape, bias: bool, algorithm: str) -> Plan:
    pads, ones = (0, 0, 0, 0), (1, 1)
    return _core.explain_conv2d(shape, weight, bias, False, ones, pads, ones, 1, "NHWC", "OIHW", (algorithm,), None)


def _pool2d(op: str, c: _calls.Pool, return_indices: bool = False) -> Explained:
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
    return c.result, lambda: _core.explain_op(op, c.shape, options)


def _max_pool2d(input: Any, return_indices: Any, **options: Any) -> Explained:
    shape = shape_argument(input, "input")
    with_indices = boolean(return_indices, "return_indices")
    return _pool2d("max_pool2d", _calls.pool2d(shape, **options), with_indices)


def _avg_pool2d(input: Any, **options: Any) -> Explained:
    return _pool2d("avg_pool2d", _calls.pool2d(shape_argument(input, "input"), dilation=1, **options))


def _image(op: str, c: _calls.Image) -> Explained:
    options = {"layout": c.layout, "source": c.layout, "target": c.target, "output_size": c.size}
    return c.result, lambda: _core.explain_op(op, c.shape, options)


def _adaptive_avg_pool2d(input: Any, **options: Any) -> Explained:
    return _image("adaptive_avg_pool2d", _calls.adaptive_avg_pool2d(shape_argument(input, "input"), **options))


def _batch_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: Any, layout: Any
) -> Explained:
    c = _calls.batch_norm(
        shape_argument(input, "input"),
        shape_argument(running_mean, "running_mean"),
        shape_argument(running_var, "running_var"),
        _maybe(weight, "weight"),
        _maybe(bias, "bias"),
        eps,
        layout,
    )
    return _image("batch_norm", c)


def _convert_layout(input: Any, **options: Any) -> Explained:
    return _image("convert_layout", _calls.convert_layout(shape_argument(input, "input"), **options))


def _relu(input: Any) -> Explained:
    shape = shape_argument(input, "input")
    _calls.no_empty_axis(shape)
    return shape, lambda: _core.explain_op("relu", shape, {})


def _softmax(input: Any, dim: Any) -> Explained:
    shape = shape_argument(input, "input")
    axis = _calls.softmax(shape, dim)
    return shape, lambda: _core.explain_op("softmax", shape, {"dim": axis})


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
    it can). `linear` runs on kernels of `conv2d`, which are listed for both.
    """
    if op is not None and text(op, "op") not in _OPS:
        raise ValueError(f"op must be one of {', '.join(map(repr, _OPS))}; got {op!r}")
    if op == "linear":
        return _linear_kernels()
    return _core.kernels(op) + (_linear_kernels() if op is None else [])


def _linear_kernels() -> list[dict[str, Any]]:
    able = _linear_drivers()
    return [{**row, "op": "linear"} for row in _core.kernels("conv2d") if row["driver"] in able]


@lru_cache(maxsize=1)
def _linear_drivers() -> frozenset[str]:
    """Those that can do a 1x1 convolution of one group."""
    able = set()
    for driver in {str(row["driver"]) for row in _core.kernels("conv2d")}:
        with suppress(NotImplementedError):
            _explain_rows((2, 1, 1, 3), (4, 3, 1, 1), False, driver)
            able.add(driver)
    return frozenset(able)
