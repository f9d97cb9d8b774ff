"""The ops as functions: drop-in for `torch.nn.functional` on NumPy and DLPack arrays, in NCHW or NHWC.

All take float32 on the CPU, and float32, float16 or bfloat16 on a CUDA device, with any strides, and give the same back
as an array of the caller's own library. All arrays of a call lie on one device and have one dtype; a bias, or the
statistics of `batch_norm`, may be float32 beside 16-bit images. On a CUDA device the work is enqueued on the current
stream of the input's library, or on `stream` (an integer handle, or an object with `__cuda_stream__`, `cuda_stream` or
`ptr`), and the call returns before it is done.
Three-dimensional images (no batch axis) give three-dimensional results. `out` must have the exact shape and dtype, be
writable, and overlap neither itself nor an input; it is returned. Wrong kinds of things raise TypeError, wrong values
ValueError, each naming the argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _calls, _core
from ._arguments import Algorithm, Layout, PaddingLike, Pair, WeightLayout, boolean
from ._arrays import Output, as_view, maybe_view, plain, shape_of
from ._devices import on_cuda
from ._programs import PerformanceWarning, fell_back, warn_of_fallback

__all__ = [
    "PerformanceWarning",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "convert_layout",
    "linear",
    "max_pool2d",
    "relu",
    "softmax",
]


def _on_cuda() -> Any:
    """The same functions for arrays on a CUDA device, loaded when there is one."""
    from .cuda import _ops as cuda_ops

    return cuda_ops


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
    winograd: bool = True,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Two-dimensional convolution (cross-correlation) with fused bias, residual and activation.

    ``out[n,o,y,x] = act(bias[o] + residual[n,o,y,x] + sum(input[n, g*C+c, y*sh-pt+r*dh, x*sw-pl+s*dw] * w[o,c,r,s]))``,
    the sum over c, r and s, as `torch.nn.functional.conv2d` and ONNX Conv define it.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `layout`; or without n.
        weight: (o, c/groups, kh, kw) for NCHW, (o, kh, kw, c/groups) for NHWC, unless `weight_layout` says "OIHW",
            "OHWI" or "HWIO".
        bias: (o,) or None.
        stride, dilation: int or (h, w), at least 1.
        padding: int, (h, w), ((top, bottom), (left, right)), "valid", "same" (TensorFlow's rule at any stride:
            output ceil(in/stride), the extra at the bottom right), "same_lower" (extra at the top left) or "full"
            (dilation * (kernel - 1) on every side).
        groups: divides the input and the output channels.
        algorithm: "auto", a name from `fastconv.kernels("conv2d")`, or a sequence in order of preference. A named
            one that cannot do the problem raises NotImplementedError with its reason.
        activation: None or "relu".
        residual: array of the output's shape, added before the activation.
        winograd: whether "auto" may take algorithms with fewer products and more rounding, where it expects them to be
            faster with prepared weights (a lone call transforms them each time). Winograd: 3x3 kernels with stride 1 or
            2, and 7x7 and 8x8 kernels with stride 2 over at most 8 channels, no dilation, one group; an infinity or
            NaN in the input spreads within its tile. Strassen: 1x1 kernels
            without padding, with one group, even channels and even output columns (NCHW: output pixels); it spreads to
            one more pixel, the neighbour (NCHW: half a plane away, or with a stride half a row or a row). Winograd's
            inner product ("fip", and "_fip" behind Winograd's names), on processors that add beside their products: 1x1
            kernels without padding, one group; an output's error goes by the norms of its pixel and its channel, and
            an infinity may become NaN in all outputs of its pixel.
            "winograd_f43" has a relative L2 error of 1e-6 to 2e-6, "winograd_f44" 0.8e-6 to 1.5e-6, "strassen" 0.3e-6
            to 1.3e-6, "fip", "winograd_f23" and the others 0.2e-6 to 1e-6. False, or FASTCONV_WINOGRAD=0 in the
            environment, forbids them to "auto", not to those who name them.

    Returns:
        float32 array (n, o, oh, ow) or (n, oh, ow, o), ``oh = floor((h + pads - dilation*(kh-1) - 1) / stride) + 1``.
    """
    if on_cuda(stream, input=input, weight=weight, bias=bias, residual=residual, out=out):
        return _on_cuda().conv2d(
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            layout=layout,
            weight_layout=weight_layout,
            algorithm=algorithm,
            activation=activation,
            residual=residual,
            winograd=winograd,
            out=out,
            stream=stream,
        )
    x, wrap = as_view(input, "input")
    w, _ = as_view(weight, "weight")
    b, r = maybe_view(bias, "bias"), maybe_view(residual, "residual")
    c = _calls.conv2d(
        x.shape,
        w.shape,
        shape_of(b),
        stride,
        padding,
        dilation,
        groups,
        layout,
        weight_layout,
        algorithm,
        activation,
        shape_of(r),
        winograd,
    )
    target = Output(c.result, out, wrap, (("input", x), ("weight", w), ("bias", b), ("residual", r)))
    chosen = _core.conv2d(
        plain(x).reshape(c.shape),
        plain(w),
        None if b is None else plain(b),
        None if r is None else plain(r).reshape(c.out),
        target.array.reshape(c.out),
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
    result = target.finish()
    if fell_back(chosen, c.algorithms):
        warn_of_fallback("conv2d")
    return result


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
    stream: Any = None,
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
    if on_cuda(stream, input=input, out=out):
        return _on_cuda().max_pool2d(
            input,
            kernel_size,
            stride,
            padding,
            dilation,
            ceil_mode,
            return_indices,
            layout=layout,
            out=out,
            stream=stream,
        )
    x, wrap = as_view(input, "input")
    with_indices = boolean(return_indices, "return_indices")
    c = _calls.pool2d(x.shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
    target = Output(c.result, out, wrap, (("input", x),))
    indices = np.empty(c.out, np.int64) if with_indices else None
    _core.max_pool2d(
        plain(x).reshape(c.shape),
        target.array.reshape(c.out),
        indices,
        c.kernel,
        c.stride,
        c.padding,
        c.dilation,
        c.ceil_mode,
        c.layout,
    )
    if indices is None:
        return target.finish()
    return target.finish(), wrap(indices.reshape(c.result))


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
    stream: Any = None,
) -> Any:
    """Mean over windows, as `torch.nn.functional.avg_pool2d`.

    The divisor is the window's area clipped to the padded input (`count_include_pad`), or to the input itself, or
    `divisor_override` (not 0). Other arguments as `max_pool2d`. With padding="same" and count_include_pad=False this
    is TensorFlow's average pooling.
    """
    if on_cuda(stream, input=input, out=out):
        return _on_cuda().avg_pool2d(
            input,
            kernel_size,
            stride,
            padding,
            ceil_mode,
            count_include_pad,
            divisor_override,
            layout=layout,
            out=out,
            stream=stream,
        )
    x, wrap = as_view(input, "input")
    c = _calls.pool2d(x.shape, kernel_size, stride, padding, 1, ceil_mode, layout, count_include_pad, divisor_override)
    target = Output(c.result, out, wrap, (("input", x),))
    _core.avg_pool2d(
        plain(x).reshape(c.shape),
        target.array.reshape(c.out),
        c.kernel,
        c.stride,
        c.padding,
        c.ceil_mode,
        c.count_include_pad,
        c.divisor,
        c.layout,
    )
    return target.finish()


def _names_layout(word: Any) -> bool:
    return type(word) is str and word in ("NCHW", "NHWC")


def adaptive_avg_pool2d(
    input: Any, output_size: int | Pair | None, *, layout: Layout = "NCHW", out: Any = None, stream: Any = None
) -> Any:
    """Mean over windows ``floor(i*in/out) .. ceil((i+1)*in/out)``, as `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `layout`; or without n.
        output_size: int or (h, w); None, alone or for one axis, keeps the input's extent. 1 is global average pooling.
    """
    quick = out is not None and stream is None and type(output_size) is int and output_size == 1
    if quick and _names_layout(layout) and _core.global_average_into(input, out, layout == "NHWC"):
        return out  # as for relu
    if on_cuda(stream, input=input, out=out):
        return _on_cuda().adaptive_avg_pool2d(input, output_size, layout=layout, out=out, stream=stream)
    x, wrap = as_view(input, "input")
    c = _calls.adaptive_avg_pool2d(x.shape, output_size, layout)
    target = Output(c.result, out, wrap, (("input", x),))
    _core.adaptive_avg_pool2d(plain(x).reshape(c.shape), target.array.reshape(c.out), c.size, c.layout)
    return target.finish()


def relu(input: Any, *, out: Any = None, stream: Any = None) -> Any:
    """``max(input, 0)`` on any shape; NaN stays NaN."""
    if out is not None and stream is None and _core.relu_into(input, out):
        return out  # the way of small tensors, whose checks would take longer than they do
    if on_cuda(stream, input=input, out=out):
        return _on_cuda().relu(input, out=out, stream=stream)
    x, wrap = as_view(input, "input")
    _calls.no_empty_axis(x.shape)
    target = Output(x.shape, out, wrap, (("input", x),))
    _core.relu(plain(x).reshape(-1), target.array.reshape(-1))
    return target.finish()


def softmax(input: Any, dim: int = -1, *, out: Any = None, stream: Any = None) -> Any:
    """``exp(x - max) / sum exp(x - max)`` along `dim`, any shape.

    -inf beside finite values gives exactly 0; a row that is all -inf, or holds +inf or NaN, is all NaN.
    """
    if on_cuda(stream, input=input, out=out):
        return _on_cuda().softmax(input, dim, out=out, stream=stream)
    x, wrap = as_view(input, "input")
    axis = _calls.softmax(x.shape, dim)
    target = Output(x.shape, out, wrap, (("input", x),))
    _core.softmax(plain(x), target.array, axis)
    return target.finish()


def linear(input: Any, weight: Any, bias: Any = None, *, out: Any = None, stream: Any = None) -> Any:
    """``input @ weight.T + bias``: a 1x1 convolution over rows.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        float32 array (..., out_features).
    """
    if on_cuda(stream, input=input, weight=weight, bias=bias, out=out):
        return _on_cuda().linear(input, weight, bias, out=out, stream=stream)
    x, wrap = as_view(input, "input")
    w, _ = as_view(weight, "weight")
    b = maybe_view(bias, "bias")
    c = _calls.linear(x.shape, w.shape, shape_of(b))
    target = Output(c.result, out, wrap, (("input", x), ("weight", w), ("bias", b)))
    chosen = _core.conv2d(
        plain(x).reshape(c.shape),
        plain(w).reshape(c.weight),
        None if b is None else plain(b),
        None,
        target.array.reshape(c.out),
        (1, 1),
        (0, 0, 0, 0),
        (1, 1),
        1,
        "NHWC",
        "OIHW",
        ("auto",),
        None,
    )
    result = target.finish()
    if fell_back(chosen, ("auto",)):
        warn_of_fallback("linear")
    return result


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
    stream: Any = None,
) -> Any:
    """Batch normalisation at inference: ``(input - mean) / sqrt(var + eps) * weight + bias`` per channel.

    Scale and shift are folded in float64 and rounded once; the definition is that of
    `torch.nn.functional.batch_norm(training=False)`.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `layout`; or without n.
        running_mean, running_var, weight, bias: (c,); weight None is 1, bias None is 0.
        eps: added to the variance.
    """
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    if on_cuda(stream, input=input, **given, out=out):
        return _on_cuda().batch_norm(input, **given, eps=eps, layout=layout, out=out, stream=stream)
    x, wrap = as_view(input, "input")
    mean, _ = as_view(running_mean, "running_mean")
    var, _ = as_view(running_var, "running_var")
    w, b = maybe_view(weight, "weight"), maybe_view(bias, "bias")
    c = _calls.batch_norm(x.shape, mean.shape, var.shape, shape_of(w), shape_of(b), eps, layout)
    operands = (("running_mean", mean), ("running_var", var), ("weight", w), ("bias", b))
    target = Output(c.result, out, wrap, (("input", x), *operands))
    with np.errstate(all="ignore"):  # a negative variance is NaN, as in every peer, not a warning
        scale = (np.float32(1) if w is None else w) / np.sqrt(var.astype(np.float64) + float(eps))
        shift = (np.float32(0) if b is None else b) - mean * scale
        folded = scale.astype(np.float32), shift.astype(np.float32)
    _core.batch_norm(plain(x).reshape(c.shape), *folded, target.array.reshape(c.out), c.layout)
    return target.finish()


def convert_layout(input: Any, source: Layout, target: Layout, *, out: Any = None, stream: Any = None) -> Any:
    """The same image with its axes in another order, e.g. "NCHW" to "NHWC": a copy, by blocked transposes.

    Args:
        input: (n, c, h, w) or (n, h, w, c) by `source`; or without n.
    """
    quick = out is not None and stream is None and _names_layout(source) and _names_layout(target)
    if quick and source != target and _core.convert_layout_into(input, out, target == "NHWC"):  # as for relu
        return out
    if on_cuda(stream, input=input, out=out):
        return _on_cuda().convert_layout(input, source, target, out=out, stream=stream)
    x, wrap = as_view(input, "input")
    c = _calls.convert_layout(x.shape, source, target)
    result = Output(c.result, out, wrap, (("input", x),))
    _core.convert_layout(plain(x).reshape(c.shape), result.array.reshape(c.out), c.layout, c.target)
    return result.finish()
