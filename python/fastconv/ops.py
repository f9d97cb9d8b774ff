"""The ops as functions: drop-in for `torch.nn.functional` on NumPy and DLPack arrays, in NCHW or NHWC.

All take float32 on the CPU with any strides and give float32 back, as an array of the caller's own library.
Three-dimensional images
(no batch axis) give three-dimensional results. `out` must have the exact shape and dtype, be writable, and overlap
neither itself
nor an input; it is returned. Wrong kinds of things raise TypeError, wrong values ValueError, each naming the argument.
"""

from __future__ import annotations

import warnings
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
from ._arrays import Output, as_view, plain


class PerformanceWarning(UserWarning):
    """The call is right but far from fast: only the reference kernel could do it."""


def warn_if_reference(chosen: str, names: tuple[str, ...], op: str) -> None:
    """The contract: "auto" reaches `reference` only with a warning."""
    if chosen == "reference" and "auto" in names:
        warnings.warn(
            f"{op} runs on the slow reference kernel: no other can do this problem; fastconv.explain says why",
            PerformanceWarning,
            stacklevel=3,
        )


def conv2d(
    input: Any,
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
    residual: Any = None,
    out: Any = None,
) -> Any:
    """Two-dimensional convolution (cross-correlation) with fused bias, residual and activation.

    ``out[n,o,y,x] = act(bias[o] + residual[n,o,y,x] + sum input[n, g*C+c, y*sh-pt+r*dh, x*sw-pl+s*dw] *
    weight[o,c,r,s])``
    as `torch.nn.functional.conv2d` and ONNX Conv define it.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `layout`; or without n.
        weight: (o, c/groups, kh, kw) for NCHW, (o, kh, kw, c/groups) for NHWC, unless `weight_layout` says "OIHW",
            "OHWI" or "HWIO".
        bias: (o,) or None.
        stride, dilation: int or (h, w), at least 1.
        padding: int, (h, w), ((top, bottom), (left, right)), "valid", "same" (TensorFlow's rule at any stride:
            output ceil(in/stride), the
            extra at the bottom right), "same_lower" (extra at the top left) or "full" (dilation * (kernel - 1) on
            every side).
        groups: divides the input and the output channels.
        algorithm: "auto", a name from `fastconv.kernels("conv2d")`, or a sequence in order of preference. A named
            one that cannot do the problem
            raises NotImplementedError with its reason.
        activation: None or "relu".
        residual: array of the output's shape, added before the activation.

    Returns:
        float32 array (n, o, oh, ow) or (n, oh, ow, o), ``oh = floor((h + pads - dilation*(kh-1) - 1) / stride) + 1``.
    """
    layout_word = layout_name(layout)
    weight_word = weight_layout_name(weight_layout, layout_word)
    names = algorithm_names(algorithm)
    act = activation_name(activation)
    x, wrap = as_view(input, "input")
    w, _ = as_view(weight, "weight")
    shape, single = batched(x.shape, "input", layout_word)
    if w.ndim != 4:
        raise ValueError(f"weight must have 4 dimensions ({weight_word}), got {w.ndim} with shape {w.shape}")
    b = None
    if bias is not None:
        b, _ = as_view(bias, "bias")
        if b.ndim != 1:
            raise ValueError(f"bias must have 1 dimension, got {b.ndim} with shape {b.shape}")
    strides, dilations = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    groups = integer(groups, "groups", 1)
    padding4 = pads(padding, spatial(shape, layout_word), kernel_extents(w.shape, weight_word), strides, dilations)
    out_shape = _core.conv2d_output_shape(
        shape, w.shape, -1 if b is None else b.shape[0], strides, padding4, dilations, groups, layout_word, weight_word
    )
    caller_shape = out_shape[1:] if single else out_shape
    r = None
    if residual is not None:
        r, _ = as_view(residual, "residual")
        if r.shape != caller_shape:
            raise ValueError(f"residual must have the output's shape {caller_shape}, got {r.shape}")
    result = Output(caller_shape, out, wrap, (("input", x), ("weight", w), ("bias", b), ("residual", r)))
    chosen = _core.conv2d(
        plain(x).reshape(shape),
        plain(w),
        None if b is None else plain(b),
        None if r is None else plain(r).reshape(out_shape),
        result.array.reshape(out_shape),
        strides,
        padding4,
        dilations,
        groups,
        layout_word,
        weight_word,
        names,
        act,
    )
    warn_if_reference(chosen, names, "conv2d")
    return result.finish()


def _pool_window(
    kernel_size: Any, stride: Any, dilation: Any, padding: Any, extents: Pair
) -> tuple[Pair, Pair, Pads, Pair]:
    kernel = pair(kernel_size, "kernel_size", 1)
    strides = kernel if stride is None else pair(stride, "stride", 1)
    dilations = pair(dilation, "dilation", 1)
    return kernel, strides, pads(padding, extents, kernel, strides, dilations, allow_full=False), dilations


def max_pool2d(
    input: Any,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: PaddingLike = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    layout: Layout = "NCHW",
    out: Any = None,
) -> Any:
    """Maximum over windows, as `torch.nn.functional.max_pool2d`.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `layout`; or without n.
        kernel_size, stride, dilation: int or (h, w). stride None means kernel_size.
        padding: the forms of `conv2d` but "full"; at most half of the effective kernel. Padding is never selected.
        ceil_mode: round the output size up; a window that would start in the padding behind the input is dropped.
        return_indices: also return int64 positions, flat ``h*W + w`` in the unpadded (n, c) plane; the first maximum
            wins, and the first NaN where there is one.

    NaN is a value: a window that holds one gives NaN. Returns the output, or (output, indices).
    """
    word = layout_name(layout)
    x, wrap = as_view(input, "input")
    shape, single = batched(x.shape, "input", word)
    kernel, strides, padding4, dilations = _pool_window(kernel_size, stride, dilation, padding, spatial(shape, word))
    ceil_mode = boolean(ceil_mode, "ceil_mode")
    out_shape = _core.pool2d_output_shape(shape, kernel, strides, padding4, dilations, ceil_mode, word)
    caller_shape = out_shape[1:] if single else out_shape
    result = Output(caller_shape, out, wrap, (("input", x),))
    indices = np.empty(out_shape, np.int64) if boolean(return_indices, "return_indices") else None
    _core.max_pool2d(
        plain(x).reshape(shape),
        result.array.reshape(out_shape),
        indices,
        kernel,
        strides,
        padding4,
        dilations,
        ceil_mode,
        word,
    )
    if indices is None:
        return result.finish()
    return result.finish(), wrap(indices.reshape(caller_shape))


def avg_pool2d(
    input: Any,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    layout: Layout = "NCHW",
    out: Any = None,
) -> Any:
    """Mean over windows, as `torch.nn.functional.avg_pool2d`.

    The divisor is the window's area clipped to the padded input (`count_include_pad`), or to the input itself, or
    `divisor_override` (not 0).
    Other arguments as `max_pool2d`. With padding="same" and count_include_pad=False this is TensorFlow's average
    pooling.
    """
    word = layout_name(layout)
    x, wrap = as_view(input, "input")
    shape, single = batched(x.shape, "input", word)
    kernel, strides, padding4, dilations = _pool_window(kernel_size, stride, 1, padding, spatial(shape, word))
    ceil_mode = boolean(ceil_mode, "ceil_mode")
    divisor = divisor_argument(divisor_override)
    out_shape = _core.pool2d_output_shape(shape, kernel, strides, padding4, dilations, ceil_mode, word)
    result = Output(out_shape[1:] if single else out_shape, out, wrap, (("input", x),))
    include = boolean(count_include_pad, "count_include_pad")
    _core.avg_pool2d(
        plain(x).reshape(shape),
        result.array.reshape(out_shape),
        kernel,
        strides,
        padding4,
        ceil_mode,
        include,
        divisor,
        word,
    )
    return result.finish()


def divisor_argument(value: int | None) -> int:
    """divisor_override as the core takes it: 0 for none."""
    if value is None:
        return 0
    divisor = integer(value, "divisor_override")
    if divisor == 0:
        raise ValueError("divisor_override must not be 0")
    return divisor


def adaptive_avg_pool2d(input: Any, output_size: int | Pair | None, *, layout: Layout = "NCHW", out: Any = None) -> Any:
    """Mean over windows ``floor(i*in/out) .. ceil((i+1)*in/out)``, as `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `layout`; or without n.
        output_size: int or (h, w); None, alone or for one axis, keeps the input's extent. 1 is global average pooling.
    """
    word = layout_name(layout)
    x, wrap = as_view(input, "input")
    shape, single = batched(x.shape, "input", word)
    extents = spatial(shape, word)
    given: Any = (output_size, output_size) if output_size is None else output_size
    if isinstance(given, (tuple, list)) and len(given) == 2:
        given = tuple(e if g is None else g for g, e in zip(given, extents))
    size = pair(given, "output_size", 1)
    out_shape = (*shape[:2], *size) if word == "NCHW" else (shape[0], *size, shape[3])
    result = Output(out_shape[1:] if single else out_shape, out, wrap, (("input", x),))
    _core.adaptive_avg_pool2d(plain(x).reshape(shape), result.array.reshape(out_shape), size, word)
    return result.finish()


def relu(input: Any, *, out: Any = None) -> Any:
    """``max(input, 0)`` on any shape; NaN stays NaN."""
    x, wrap = as_view(input, "input")
    _no_empty_axis(x.shape, "input")
    result = Output(x.shape, out, wrap, (("input", x),))
    _core.relu(plain(x).reshape(-1), result.array.reshape(-1))
    return result.finish()


def softmax(input: Any, dim: int = -1, *, out: Any = None) -> Any:
    """``exp(x - max) / sum exp(x - max)`` along `dim`, any shape.

    -inf beside finite values gives exactly 0; a row that is all -inf, or holds +inf or NaN, is all NaN.
    """
    x, wrap = as_view(input, "input")
    axis = integer(dim, "dim")
    if x.ndim == 0:
        raise ValueError("input must have at least 1 dimension for softmax, got 0")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"dim must lie in {-x.ndim}..{x.ndim - 1} for an input of {x.ndim} dimensions, got {axis}")
    _no_empty_axis(x.shape, "input")
    result = Output(x.shape, out, wrap, (("input", x),))
    _core.softmax(plain(x), result.array, axis)
    return result.finish()


def _no_empty_axis(shape: tuple[int, ...], name: str) -> None:
    if 0 in shape[1:]:
        raise ValueError(f"{name} must have at least 1 in each dimension but the first, got shape {shape}")


def linear(input: Any, weight: Any, bias: Any = None, *, out: Any = None) -> Any:
    """``input @ weight.T + bias``: a 1x1 convolution over rows.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        float32 array (..., out_features).
    """
    x, wrap = as_view(input, "input")
    w, _ = as_view(weight, "weight")
    if x.ndim < 1:
        raise ValueError("input must have at least 1 dimension, got 0")
    if w.ndim != 2:
        raise ValueError(f"weight must have 2 dimensions (out, in), got {w.ndim} with shape {w.shape}")
    if x.shape[-1] != w.shape[1]:
        raise ValueError(f"input has {x.shape[-1]} features in its last dimension, but weight takes {w.shape[1]}")
    if 0 in w.shape:
        raise ValueError(f"weight must have at least 1 in each dimension, got shape {w.shape}")
    b = None
    if bias is not None:
        b, _ = as_view(bias, "bias")
        if b.shape != (w.shape[0],):
            raise ValueError(f"bias must have shape ({w.shape[0]},), got {b.shape}")
    if x.ndim > 1:
        _no_empty_axis(x.shape, "input")
    result = Output((*x.shape[:-1], w.shape[0]), out, wrap, (("input", x), ("weight", w), ("bias", b)))
    rows = x.size // x.shape[-1]
    _core.conv2d(
        plain(x).reshape(rows, 1, 1, x.shape[-1]),
        plain(w).reshape(*w.shape, 1, 1),
        None if b is None else plain(b),
        None,
        result.array.reshape(rows, 1, 1, w.shape[0]),
        (1, 1),
        (0, 0, 0, 0),
        (1, 1),
        1,
        "NHWC",
        "OIHW",
        ("auto",),
        None,
    )
    return result.finish()


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float = 1e-5,
    layout: Layout = "NCHW",
    out: Any = None,
) -> Any:
    """Batch normalisation at inference: ``(input - mean) / sqrt(var + eps) * weight + bias`` per channel.

    Scale and shift are folded in float64 and rounded once, as `torch.nn.functional.batch_norm(training=False)` means
    them.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `layout`; or without n.
        running_mean, running_var, weight, bias: (c,); weight None is 1, bias None is 0.
        eps: added to the variance.
    """
    word = layout_name(layout)
    x, wrap = as_view(input, "input")
    shape, _ = batched(x.shape, "input", word)
    channels = shape[1] if word == "NCHW" else shape[3]
    values = {}
    for name, given in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if given is None and name in ("weight", "bias"):
            continue
        v, _ = as_view(given, name)
        if v.shape != (channels,):
            raise ValueError(
                f"{name} must have shape ({channels},), one value for each channel of input; got {v.shape}"
            )
        values[name] = v
    if isinstance(eps, bool) or not isinstance(eps, (int, float, np.floating, np.integer)):
        raise TypeError(f"eps must be a number, got {type(eps).__name__} {eps!r}")
    result = Output(x.shape, out, wrap, (("input", x), *values.items()))
    with np.errstate(all="ignore"):  # a negative variance is NaN, as in every peer, not a warning
        scale = values.get("weight", np.float32(1)) / np.sqrt(values["running_var"].astype(np.float64) + float(eps))
        shift = values.get("bias", np.float32(0)) - values["running_mean"] * scale
    _core.batch_norm(
        plain(x).reshape(shape), scale.astype(np.float32), shift.astype(np.float32), result.array.reshape(shape), word
    )
    return result.finish()


def convert_layout(input: Any, source: Layout, target: Layout, *, out: Any = None) -> Any:
    """The same image with its axes in another order, e.g. "NCHW" to "NHWC": a copy, by blocked transposes.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `source`; or without n.
    """
    source, target = layout_name(source, "source"), layout_name(target, "target")  # type: ignore[assignment]
    x, wrap = as_view(input, "input")
    shape, single = batched(x.shape, "input", source)
    out_shape: tuple[int, ...] = shape
    if source != target:
        out_shape = (
            (shape[0], shape[2], shape[3], shape[1]) if target == "NHWC" else (shape[0], shape[3], shape[1], shape[2])
        )
    result = Output(out_shape[1:] if single else out_shape, out, wrap, (("input", x),))
    _core.convert_layout(plain(x).reshape(shape), result.array.reshape(out_shape), source, target)
    return result.finish()
