"""What a call asks for, judged and made plain: shapes and options in, the core's arguments and the output's shape out.

The functions in `ops` and `explain` both come through here, so that `explain` cannot say anything else than what the
call would do. Shapes are those of the caller's arrays; nothing here touches their elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._arguments import (
    Pads,
    Pair,
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

Shape = tuple[int, ...]


class Conv(NamedTuple):
    """A convolution. `shape`, `out`: four-dimensional, as the core takes them; `result`: as the caller sees it."""

    shape: Shape
    weight: Shape
    stride: Pair
    padding: Pads
    dilation: Pair
    groups: int
    layout: str
    weight_layout: str
    algorithms: tuple[str, ...]
    activation: str | None
    winograd: bool
    out: Shape
    result: Shape


class Pool(NamedTuple):
    """Max or average pooling; `divisor` 0 means none."""

    shape: Shape
    kernel: Pair
    stride: Pair
    padding: Pads
    dilation: Pair
    ceil_mode: bool
    count_include_pad: bool
    divisor: int
    layout: str
    out: Shape
    result: Shape


class Image(NamedTuple):
    """Any other op on images. `size`: the output's extents, of adaptive pooling only; `target`: its layout."""

    shape: Shape
    layout: str
    target: str
    size: Pair
    out: Shape
    result: Shape


def conv2d(
    input: Shape,
    weight: Shape,
    bias: Shape | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    layout: Any,
    weight_layout: Any,
    algorithm: Any,
    activation: Any,
    residual: Shape | None,
    winograd: Any,
    device: str = "cpu",
) -> Conv:
    word = layout_name(layout)
    weight_word = weight_layout_name(weight_layout, word)
    names = algorithm_names(algorithm, device)
    act = activation_name(activation)
    may_winograd = boolean(winograd, "winograd")
    shape, single = batched(input, "input", word)
    if len(weight) != 4:
        raise ValueError(f"weight must have 4 dimensions ({weight_word}), got {len(weight)} with shape {weight}")
    if bias is not None and len(bias) != 1:
        raise ValueError(f"bias must have 1 dimension, got {len(bias)} with shape {bias}")
    strides, dilations = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    parts = integer(groups, "groups", 1)
    padding4 = pads(padding, spatial(shape, word), kernel_extents(weight, weight_word), strides, dilations)
    bias_size = -1 if bias is None else bias[0]
    out = _core.conv2d_output_shape(shape, weight, bias_size, strides, padding4, dilations, parts, word, weight_word)
    result = out[1:] if single else out
    check_residual(residual, result)
    return Conv(
        shape,
        weight,
        strides,
        padding4,
        dilations,
        parts,
        word,
        weight_word,
        names,
        act,
        may_winograd,
        tuple(out),
        tuple(result),
    )


def check_residual(residual: Shape | None, result: Shape) -> None:
    if residual is not None and residual != result:
        raise ValueError(f"residual must have the output's shape {result}, got {residual}")


def pool2d(
    input: Shape,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    layout: Any,
    count_include_pad: Any = True,
    divisor_override: Any = None,
) -> Pool:
    word = layout_name(layout)
    shape, single = batched(input, "input", word)
    kernel = pair(kernel_size, "kernel_size", 1)
    strides = kernel if stride is None else pair(stride, "stride", 1)
    dilations = pair(dilation, "dilation", 1)
    padding4 = pads(padding, spatial(shape, word), kernel, strides, dilations, allow_full=False)
    ceil = boolean(ceil_mode, "ceil_mode")
    include = boolean(count_include_pad, "count_include_pad")
    divisor = divisor_argument(divisor_override)
    out = tuple(_core.pool2d_output_shape(shape, kernel, strides, padding4, dilations, ceil, word))
    return Pool(
        shape, kernel, strides, padding4, dilations, ceil, include, divisor, word, out, out[1:] if single else out
    )


def divisor_argument(value: Any) -> int:
    """divisor_override as the core takes it: 0 for none."""
    if value is None:
        return 0
    divisor = integer(value, "divisor_override")
    if divisor == 0:
        raise ValueError("divisor_override must not be 0")
    return divisor


def adaptive_avg_pool2d(input: Shape, output_size: Any, layout: Any) -> Image:
    word = layout_name(layout)
    shape, single = batched(input, "input", word)
    extents = spatial(shape, word)
    given: Any = (None, None) if output_size is None else output_size
    if isinstance(given, (tuple, list)) and len(given) == 2:
        given = tuple(e if g is None else g for g, e in zip(given, extents))
    size = pair(given, "output_size", 1)
    out = (*shape[:2], *size) if word == "NCHW" else (shape[0], *size, shape[3])
    return Image(shape, word, word, size, out, out[1:] if single else out)


def batch_norm(
    input: Shape,
    running_mean: Shape,
    running_var: Shape,
    weight: Shape | None,
    bias: Shape | None,
    eps: Any,
    layout: Any,
) -> Image:
    word = layout_name(layout)
    shape, _ = batched(input, "input", word)
    channels = shape[1] if word == "NCHW" else shape[3]
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, got in given.items():
        if got is not None and got != (channels,):
            raise ValueError(f"{name} must have shape ({channels},), one value for each channel of input; got {got}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float, np.floating, np.integer)):
        raise TypeError(f"eps must be a number, got {type(eps).__name__} {eps!r}")
    return Image(shape, word, word, (1, 1), shape, input)


def convert_layout(input: Shape, source: Any, target: Any) -> Image:
    first, second = layout_name(source, "source"), layout_name(target, "target")
    shape, single = batched(input, "input", first)
    out: Shape = shape
    if first != second:
        n, a, b, c = shape
        out = (n, b, c, a) if second == "NHWC" else (n, c, a, b)
    return Image(shape, first, second, (1, 1), out, out[1:] if single else out)


def softmax(input: Shape, dim: Any) -> int:
    axis = integer(dim, "dim")
    rank = len(input)
    if rank == 0:
        raise ValueError("input must have at least 1 dimension for softmax, got 0")
    if not -rank <= axis < rank:
        raise ValueError(f"dim must lie in {-rank}..{rank - 1} for an input of {rank} dimensions, got {axis}")
    no_empty_axis(input)
    return axis


def no_empty_axis(shape: Shape, name: str = "input") -> None:
    if 0 in shape and 0 in shape[1:]:
        raise ValueError(f"{name} must have at least 1 in each dimension but the first, got shape {shape}")


class Rows(NamedTuple):
    """A fully connected layer as a 1x1 convolution: `shape`, `weight` and `out` as the core takes them."""

    shape: Shape
    weight: Shape
    out: Shape
    result: Shape


def linear(input: Shape, weight: Shape, bias: Shape | None) -> Rows:
    if not input:
        raise ValueError("input must have at least 1 dimension, got 0")
    if len(weight) != 2:
        raise ValueError(f"weight must have 2 dimensions (out, in), got {len(weight)} with shape {weight}")
    outputs, features = weight
    if input[-1] != features:
        raise ValueError(f"input has {input[-1]} features in its last dimension, but weight takes {features}")
    if 0 in weight:
        raise ValueError(f"weight must have at least 1 in each dimension, got shape {weight}")
    if bias is not None and bias != (outputs,):
        raise ValueError(f"bias must have shape ({outputs},), got {bias}")
    no_empty_axis(input)
    rows = 1
    for extent in input[:-1]:
        rows *= extent
    return Rows((rows, 1, 1, features), (*weight, 1, 1), (rows, 1, 1, outputs), (*input[:-1], outputs))
