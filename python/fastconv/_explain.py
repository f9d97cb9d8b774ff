"""What would run, and why: `explain` and `kernels`."""

from __future__ import annotations

from typing import Any

from . import _core
from ._arguments import (
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
    text,
    weight_layout_name,
)

_IMAGE_OPS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "convert_layout")
_OPS = ("conv2d", "linear", *_IMAGE_OPS, "relu", "softmax")


def _shape(x: Any, name: str) -> tuple[int, ...]:
    """Arrays stand for their shapes; a tuple is a shape."""
    given = getattr(x, "shape", x)
    if not isinstance(given, (tuple, list)) and not hasattr(given, "__iter__"):
        raise TypeError(f"{name} must be an array or a shape, got {type(x).__name__}")
    return tuple(integer(v, name) for v in given)


def explain(op: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The plan that ``fastconv.<op>(*args, **kwargs)`` would take; nothing is computed.

    Arrays may be given as they are or as shapes. The dict has at least op, layout, algorithm, kernel, ukernel, isa,
    blocking, macs, packed_bytes,
    workspace_bytes (a thread), conversions (between layouts; none for a lone op) and refused (algorithm -> reason).
    """
    if text(op, "op") not in _OPS:
        raise ValueError(f"op must be one of {', '.join(_OPS)}; got {op!r}")
    return (
        _explain_conv2d(*args, **kwargs)
        if op == "conv2d"
        else _explain_linear(*args, **kwargs)
        if op == "linear"
        else _explain_plain(op, *args, **kwargs)
    )


def _explain_conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    layout: str = "NCHW",
    weight_layout: str | None = None,
    algorithm: Any = "auto",
    activation: str | None = None,
    residual: Any = None,
    out: Any = None,
) -> dict[str, Any]:
    word = layout_name(layout)
    weight_word = weight_layout_name(weight_layout, word)
    shape, _ = batched(_shape(input, "input"), "input", word)
    w = _shape(weight, "weight")
    if len(w) != 4:
        raise ValueError(f"weight must have 4 dimensions ({weight_word}), got {len(w)} with shape {w}")
    strides, dilations = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    padding4 = pads(padding, spatial(shape, word), kernel_extents(w, weight_word), strides, dilations)
    return _core.explain_conv2d(
        shape,
        w,
        bias is not None,
        residual is not None,
        strides,
        padding4,
        dilations,
        integer(groups, "groups", 1),
        word,
        weight_word,
        algorithm_names(algorithm),
        activation_name(activation),
    )


def _explain_linear(input: Any, weight: Any, bias: Any = None, *, out: Any = None) -> dict[str, Any]:
    shape, w = _shape(input, "input"), _shape(weight, "weight")
    if len(w) != 2:
        raise ValueError(f"weight must have 2 dimensions (out, in), got {len(w)} with shape {w}")
    rows = 1
    for extent in shape[:-1]:
        rows *= extent
    return _core.explain_conv2d(
        (rows, 1, 1, shape[-1]),
        (*w, 1, 1),
        bias is not None,
        False,
        (1, 1),
        (0, 0, 0, 0),
        (1, 1),
        1,
        "NHWC",
        "OIHW",
        ("auto",),
        None,
    )


_POSITIONAL = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "adaptive_avg_pool2d": ("output_size",),
    "batch_norm": ("running_mean", "running_var", "weight", "bias"),
    "convert_layout": ("source", "target"),
    "relu": (),
    "softmax": ("dim",),
}


def _explain_plain(op: str, input: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    names = _POSITIONAL[op]
    if len(args) > len(names):
        raise TypeError(f"{op} takes at most {len(names) + 1} positional arguments, got {len(args) + 1}")
    given = {**dict(zip(names, args)), **kwargs}
    given.pop("out", None)
    unknown = set(given) - {*names, "layout", "eps"}
    if unknown:
        raise TypeError(f"{op} has no argument {sorted(unknown)[0]!r}")
    shape = _shape(input, "input")
    options: dict[str, Any] = {}
    if op in _IMAGE_OPS:
        source = given.get("source", "NCHW") if op == "convert_layout" else given.get("layout", "NCHW")
        word = layout_name(source)
        shape, _ = batched(shape, "input", word)
        options["layout"] = options["source"] = word
        if op == "convert_layout":
            options["target"] = layout_name(given.get("target", word), "target")
        if op in ("max_pool2d", "avg_pool2d"):
            kernel = pair(given.get("kernel_size"), "kernel_size", 1)
            stride = given.get("stride")
            strides = kernel if stride is None else pair(stride, "stride", 1)
            dilations = pair(given.get("dilation", 1), "dilation", 1)
            options |= {
                "kernel": kernel,
                "stride": strides,
                "dilation": dilations,
                "padding": pads(
                    given.get("padding", 0), spatial(shape, word), kernel, strides, dilations, allow_full=False
                ),
                "ceil_mode": boolean(given.get("ceil_mode", False), "ceil_mode"),
                "count_include_pad": boolean(given.get("count_include_pad", True), "count_include_pad"),
                "return_indices": boolean(given.get("return_indices", False), "return_indices"),
                "divisor_override": integer(given.get("divisor_override") or 0, "divisor_override"),
            }
        if op == "adaptive_avg_pool2d":
            options["output_size"] = pair(given.get("output_size"), "output_size", 1)
    if op == "softmax":
        options["dim"] = integer(given.get("dim", -1), "dim")
    return _core.explain_op(op, shape, options)


def kernels(op: str | None = None) -> list[dict[str, Any]]:
    """Every kernel of an op (or of all): one dict for each driver and leaf, with at least op, name, device,
    algorithm, dtype, isa, supported
    and reason (why it cannot run here; empty where it can)."""
    if op is not None:
        text(op, "op")
    return _core.kernels("conv2d" if op == "linear" else op)
