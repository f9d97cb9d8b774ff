"""Every op that a layer can be: its operands, what it must give, and ours prepared to be called."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import fastconv

from . import oracle
from .problem import Problem, format_problem

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Plan = dict[str, Any]
_Layout = Literal["NCHW", "NHWC"]
_OTHER: dict[_Layout, _Layout] = {"NCHW": "NHWC", "NHWC": "NCHW"}

#: Pictures of a batch that differ. The others repeat them, so the oracle has little to do and yet every output can be
#: checked.
DISTINCT = 4
#: The op of `fastconv.kernels` and `fastconv.explain`, where its name is another one.
_OURS = {"global_avg_pool2d": "adaptive_avg_pool2d"}
#: Float32s of a cache line.
_LINE = 16
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Operands:
    """What goes into a layer: float32, C-contiguous, NCHW and OIHW; None where the op has no such thing.

    x: (n, ic, ih, iw), or (n, ic) if the problem is `flat`. weight: (oc, ic / g, kh, kw) of a convolution, (oc, ic) of
    a linear layer, (ic,) of a batch norm. bias: (oc,). mean, variance: (ic,), batch norm only.
    """

    x: F32
    weight: F32 | None = None
    bias: F32 | None = None
    mean: F32 | None = None
    variance: F32 | None = None


@dataclass(frozen=True)
class Prepared:
    """One layer of ours, ready to be called. `call` reads `x` and writes `out`, both in the layout's own order; `plan`
    is what `explain` says of it. `result`: what lies in `out` as (n, oc, oh, ow), or (n, oc) if the problem is
    `flat`."""

    call: Callable[[], object]
    out: F32
    x: F32
    plan: Plan
    result: F32


def operands(problem: Problem) -> Operands:
    """Operands of a layer, the same numbers for the same problem; one picture where it names no batch.

    Normal numbers, for a softmax three times as wide; weights so that the output has a variance of about one; a
    variance between 0.5 and 1.5. Only the first DISTINCT pictures differ.
    """
    p = problem
    rng = np.random.default_rng(zlib.crc32(format_problem(p).encode()))
    n, *rest = p.input_shape
    distinct = rng.standard_normal((min(n, DISTINCT), *rest), np.float32)
    if p.op == "softmax":
        distinct *= np.float32(3.0)
    x = np.resize(distinct, p.input_shape)
    if p.op in ("conv2d", "linear"):
        shape = (p.oc, p.ic) if p.op == "linear" else (p.oc, p.ic // p.g, p.kh, p.kw)
        weight = rng.standard_normal(shape, np.float32)
        weight *= np.float32(1.0 / math.sqrt(math.prod(shape[1:])))
        return Operands(x, weight, rng.standard_normal(p.oc, np.float32))
    if p.op == "batch_norm":
        weight, bias, mean = rng.standard_normal((3, p.ic), np.float32)
        return Operands(x, weight, bias, mean, rng.random(p.ic, np.float32) + np.float32(0.5))
    return Operands(x)


def expected(problem: Problem, operands: Operands) -> F64:
    """What the first DISTINCT pictures must give, in float64 by NumPy alone: (.., oc, oh, ow), or (.., oc) if `flat`.
    ValueError if an operand that the op needs is None."""
    p, x = problem, operands.x[:DISTINCT]
    kernel, stride, padding, dilation = (p.kh, p.kw), (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw)
    if p.op == "conv2d":
        weight = _given(operands, "weight")
        return oracle.conv2d_float64(x, weight, operands.bias, stride, padding, dilation, p.g)
    if p.op == "linear":
        return oracle.linear_float64(x, _given(operands, "weight"), operands.bias)
    if p.op == "max_pool2d":
        return oracle.max_pool2d_float64(x, kernel, stride, padding, dilation)
    if p.op == "avg_pool2d":
        return oracle.avg_pool2d_float64(x, kernel, stride, padding)
    if p.op == "global_avg_pool2d":
        return oracle.global_avg_pool2d_float64(x)
    if p.op == "relu":
        return oracle.relu_float64(x)
    if p.op == "convert_layout":
        return oracle.convert_layout_float64(x)
    if p.op == "softmax":
        return oracle.softmax_float64(x)
    vectors = (_given(operands, name) for name in ("mean", "variance", "weight", "bias"))
    return oracle.batch_norm_float64(x, *vectors)


def max_relative_l2(problem: Problem, algorithm: str = "direct") -> float:
    """The relative L2 error against float64 that float32 may cost this op; 0 where nothing is rounded.

    Convolutions, linear layers and averages: 2e-6, the package's promise, twice what the longest sums of ResNet-50
    reach by a random walk; 5e-6 by Winograd's F(4,3), whose transforms add rounding of their own. Batch norm: eight
    roundings (of 2^-24, relative to its two terms) and as much again for what cancels between the terms. Softmax: eight
    for the exponential and the division, eight for the rounding of `x - max`
    (elements further than that below the maximum hardly count), log(n) and sqrt(n) / 4 for the sum over n channels.
    """
    if problem.op in ("max_pool2d", "relu", "convert_layout"):
        return 0.0
    if problem.op == "batch_norm":
        return 16 * 2.0**-24
    if problem.op == "softmax":
        return (16 + math.log(problem.ic) + math.sqrt(problem.ic) / 4) * 2.0**-24
    return oracle.MAX_WINOGRAD_L2 if algorithm.startswith("winograd_f43") else oracle.MAX_RELATIVE_L2


def kernels(op: str) -> list[dict[str, Any]]:
    """What `fastconv.kernels` lists of a layer's op."""
    return fastconv.kernels(_OURS.get(op, op))


def algorithms(op: str) -> list[str]:
    """Names of the op's algorithms that this processor can run, best first, without the reference."""
    found = [row["algorithm"] for row in kernels(op) if row["supported"] and row["device"] == "cpu"]
    return [name for name in dict.fromkeys(found) if name != "reference"]


def drivers(op: str) -> list[str]:
    """Names of the op's drivers, of which an algorithm may have several, best first, without the reference."""
    rows = fastconv.kernels(_OURS.get(op, op))
    found = [row["driver"] for row in rows if row["device"] == "cpu" and row["algorithm"] != "reference"]
    return list(dict.fromkeys(found))


def aligned(values: F32) -> F32:
    """A C-contiguous copy that begins with a cache line, as results do that fastconv allocates; NumPy's large arrays
    begin 16 bytes after one."""
    room = np.empty(values.size + _LINE, np.float32)
    first = -(room.ctypes.data // 4) % _LINE
    copy = room[first : first + values.size].reshape(values.shape)
    copy[...] = values
    return copy


def prepare(problem: Problem, operands: Operands, layout: str, algorithm: str) -> Prepared:
    """The layer, planned for its input's shape, but not called yet. Threads are the caller's (`fastconv.threads`).
    Converting the layout starts from the one named.

    `layout`: "nchw" or "nhwc", and "-" where `problem.has_layout` is false: then arrays have the shapes of NCHW, and
    the NHWC kernel runs on the same memory. `algorithm`: "auto" or one of `algorithms(op)` or `drivers(op)`; an op that
    offers no choice has the one that "auto" takes. Weights are always given as OIHW.

    ValueError for a layout that does not fit, or if an operand is None; NotImplementedError, with the reason, where
    the op or the algorithm cannot do this problem.
    """
    words: dict[str, _Layout] = {"nchw": "NCHW", "nhwc": "NHWC"} if problem.has_layout else {"-": "NHWC"}
    if layout not in words:
        raise ValueError(f"layout: {problem.name} has {' or '.join(map(repr, words))}, got {layout!r}")
    x, shape = operands.x, problem.output_shape
    x = aligned(x.transpose(_TO_NHWC) if layout == "nhwc" else x)
    if problem.result_layout(layout) == "nhwc":
        out = aligned(np.empty([shape[i] for i in _TO_NHWC], np.float32))
        result = out.transpose(_TO_NCHW)
    else:
        result = out = aligned(np.empty(shape, np.float32))
    seen, target = x, out
    if layout == "-" and not problem.flat:  # one pixel: the same memory under the shapes of NHWC
        seen, target = x.reshape(-1, 1, 1, problem.ic), out.reshape(-1, 1, 1, problem.oc)
    call, plan = _planned(problem, operands, words[layout], algorithm, seen, target)
    if algorithm not in ("auto", plan["algorithm"], plan["kernel"]):
        if algorithm in (*algorithms(problem.op), *drivers(problem.op), "reference"):
            reason = f"{_function(problem.op)} takes no algorithm, and by itself it chooses {plan['algorithm']} here"
        else:
            reason = f"{problem.op} has no algorithm {algorithm!r}"
        raise NotImplementedError(reason)
    return Prepared(call, out, x, plan, result)


def _planned(
    p: Problem, given: Operands, layout: _Layout, algorithm: str, x: F32, out: F32
) -> tuple[Callable[[], object], Plan]:
    """The call and its plan; prepared layers of the package where it has some, else functions that write to `out`."""
    if p.op in ("conv2d", "linear", "max_pool2d", "avg_pool2d"):
        layer = _layer(p, given, layout, algorithm)
        return lambda: layer(x, out=out), layer.explain(x.shape)
    if p.op == "global_avg_pool2d":
        return (
            lambda: fastconv.adaptive_avg_pool2d(x, 1, layout=layout, out=out),
            fastconv.explain("adaptive_avg_pool2d", x, 1, layout=layout),
        )
    if p.op == "relu":
        return lambda: fastconv.relu(x, out=out), fastconv.explain("relu", x)
    if p.op == "convert_layout":
        other = _OTHER[layout]
        return (
            lambda: fastconv.convert_layout(x, layout, other, out=out),
            fastconv.explain("convert_layout", x, source=layout, target=other),
        )
    if p.op == "softmax":
        dim = 1 if layout == "NCHW" else -1
        return lambda: fastconv.softmax(x, dim, out=out), fastconv.explain("softmax", x, dim)
    vectors = [_given(given, name) for name in ("mean", "variance", "weight", "bias")]
    options: dict[str, Any] = {"eps": oracle.BATCH_NORM_EPS, "layout": layout}
    return (
        lambda: fastconv.batch_norm(x, *vectors, **options, out=out),
        fastconv.explain("batch_norm", x, *vectors, **options),
    )


def _layer(p: Problem, given: Operands, layout: _Layout, algorithm: str) -> Any:
    """One of the package's prepared layers."""
    kernel, stride, padding, dilation = (p.kh, p.kw), (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw)
    if p.op == "linear":
        return fastconv.Linear(_given(given, "weight"), given.bias)
    if p.op == "max_pool2d":
        return fastconv.MaxPool2d(kernel, stride, padding, dilation, layout=layout)
    if p.op == "avg_pool2d":
        return fastconv.AvgPool2d(kernel, stride, padding, layout=layout)
    return fastconv.Conv2d(
        _given(given, "weight"), given.bias, stride, padding, dilation, p.g,
        layout=layout, weight_layout="OIHW", algorithm=algorithm,
    )  # fmt: skip


def _function(op: str) -> str:
    """What the package calls the op."""
    layers = {"linear": "Linear", "max_pool2d": "MaxPool2d", "avg_pool2d": "AvgPool2d"}
    return f"fastconv.{layers.get(op, _OURS.get(op, op))}"


def _given(operands: Operands, name: str) -> F32:
    array: F32 | None = getattr(operands, name)
    if array is None:
        raise ValueError(f"operands: {name} is None, and this op needs one")
    return array
