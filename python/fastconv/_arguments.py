"""Arguments in the forms that the contract allows, made plain: pairs, paddings, algorithm names.

Errors name the argument.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from . import _core

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]  # (top, bottom, left, right)

Layout = Literal["NCHW", "NHWC"]
WeightLayout = Literal["OIHW", "OHWI", "HWIO"]
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "float16", "bfloat16"]
Compute = Literal["float32", "tf32", "3xtf32"]
PaddingLike = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | str
Algorithm = str | Sequence[str]

DTYPES = ("float32", "float16", "bfloat16")
COMPUTES = ("float32", "tf32", "3xtf32")

_INT64_MAX = 2**63 - 1
_WORDS = ("valid", "same", "same_lower", "full")


def integer(value: Any, name: str, least: int | None = None) -> int:
    """A whole number that fits into 64 bits. Booleans and floats are refused: they are mistakes more often than
    numbers."""
    if type(value) is int and (least is None or value >= least) and -_INT64_MAX <= value <= _INT64_MAX:
        return value
    try:
        if type(value).__name__ in ("bool", "bool_"):
            raise TypeError
        number = operator.index(value)
    except TypeError:  # also of arrays, which all have __index__ and refuse unless they hold one integer
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {_short(value)}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if abs(number) > _INT64_MAX:
        raise ValueError(f"{name} must fit into 64 bits, got {number}")
    return number


def _short(value: Any) -> str:
    """The value in one line of an error message."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 100 else f"{line[:97]}..."


def _is_sequence(value: Any) -> bool:
    """Lists, tuples and the like, and arrays with axes; a string is none."""
    if type(value) is int or type(value) is tuple:  # nearly always, and asking abstract classes takes long
        return type(value) is tuple
    if isinstance(value, (str, bytes, Mapping)):
        return False
    ndim = getattr(value, "ndim", 0)
    return isinstance(value, Sequence) or (isinstance(ndim, int) and ndim >= 1)


def pair(value: Any, name: str, least: int) -> Pair:
    """An int for both axes, or (h, w)."""
    if _is_sequence(value):
        if len(value) == 1:  # torch accepts a sequence of one
            value = (value[0], value[0])
        if len(value) != 2:
            raise ValueError(f"{name} must be an int or (h, w), got {len(value)} values")
        return integer(value[0], name, least), integer(value[1], name, least)
    number = integer(value, name, least)
    return number, number


def boolean(value: Any, name: str) -> bool:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {type(value).__name__} {_short(value)}")


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__} {_short(value)}")
    return value


def layout_name(value: Any, name: str = "layout") -> str:
    if text(value, name) not in ("NCHW", "NHWC"):
        raise ValueError(f"{name} must be 'NCHW' or 'NHWC'; got {_short(value)}")
    return str(value)


def weight_layout_name(value: Any, layout: str) -> str:
    """The order of weight's axes; by default the one that goes with the layout."""
    if value is None:
        return "OIHW" if layout == "NCHW" else "OHWI"
    if text(value, "weight_layout") not in ("OIHW", "OHWI", "HWIO"):
        raise ValueError(f"weight_layout must be one of 'OIHW', 'OHWI', 'HWIO'; got {_short(value)}")
    return str(value)


def activation_name(value: Any) -> str | None:
    if value is None:
        return None
    if text(value, "activation") != "relu":
        raise ValueError(f"activation must be None or 'relu'; got {_short(value)}")
    return "relu"


def _one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    if text(value, name) not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {_short(value)}")
    return str(value)


def device_name(value: Any) -> str:
    return _one_of(value, "device", ("cpu", "cuda"))


def dtype_name(value: Any) -> str:
    """A dtype of images and weights by its name, or by what another library calls so (numpy.float32,
    torch.bfloat16)."""
    if isinstance(value, str):
        return _one_of(value, "dtype", DTYPES)
    named = getattr(value, "__name__", None) or getattr(value, "name", None) or str(value).rpartition(".")[2]
    if named not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}; got {_short(value)}")
    return str(named)


def compute_name(value: Any) -> str:
    """How products of float32 are formed on a CUDA device."""
    return _one_of(value, "compute", COMPUTES)


@lru_cache(maxsize=1)
def _known_algorithms() -> tuple[tuple[str, ...], frozenset[str]]:
    """(public names as messages list them, every name that is accepted: those and the drivers')."""
    rows = _core.kernels("conv2d")
    public = ("auto", *dict.fromkeys(str(row["algorithm"]) for row in rows))
    return public, frozenset((*public, *(str(row["driver"]) for row in rows)))


def algorithm_names(value: Any, device: str = "cpu") -> tuple[str, ...]:
    """One name of a convolution algorithm or driver, or several in order of preference, as a tuple.

    Whether one of them can do a problem is for the plan to say; and which there are on a CUDA device.
    """
    if isinstance(value, str):
        names: tuple[str, ...] = (value,)
    elif _is_sequence(value):
        names = tuple(text(v, "algorithm") for v in value)
    else:
        raise TypeError(
            f"algorithm must be a string or a sequence of strings, got {type(value).__name__} {_short(value)}"
        )
    if not names:
        raise ValueError("algorithm must name at least one algorithm, got an empty sequence")
    if device != "cpu":
        return names
    public, known = _known_algorithms()
    for name in names:
        if name not in known:
            raise ValueError(f"algorithm must be one of {', '.join(map(repr, public))}; got {_short(name)}")
    return names


def _same(extent: int, kernel: int, stride: int, dilation: int, extra_first: bool) -> tuple[int, int]:
    """TensorFlow's rule: the output has ceil(extent / stride) positions; an odd padding has its extra at the end
    (SAME) or the start (SAME_LOWER).

    Source: the definition of auto_pad SAME_UPPER / SAME_LOWER in ONNX Conv, which equals tf.nn.convolution's "SAME".
    """
    out = -(-extent // stride)
    total = max((out - 1) * stride + dilation * (kernel - 1) + 1 - extent, 0)
    small, large = total // 2, total - total // 2
    return (large, small) if extra_first else (small, large)


def pads(value: Any, extents: Pair, kernel: Pair, stride: Pair, dilation: Pair, *, allow_full: bool = True) -> Pads:
    """Padding in any form of the contract as (top, bottom, left, right). `extents`: height and width of the input."""
    if isinstance(value, str):
        words = _WORDS if allow_full else _WORDS[:3]
        if value not in words:
            forms = f"an int, (h, w), ((top, bottom), (left, right)) or one of {', '.join(map(repr, words))}"
            raise ValueError(f"padding must be {forms}; got {_short(value)}")
        if value == "valid":
            return (0, 0, 0, 0)
        if value == "full":
            h, w = (d * (k - 1) for d, k in zip(dilation, kernel))
            return _checked((h, h, w, w))
        h2, w2 = (_same(e, k, s, d, value == "same_lower") for e, k, s, d in zip(extents, kernel, stride, dilation))
        return _checked((*h2, *w2))
    if _is_sequence(value) and len(value) == 2 and any(_is_sequence(v) for v in value):
        if not all(_is_sequence(v) and len(v) == 2 for v in value):
            raise ValueError(f"padding must be an int, (h, w) or ((top, bottom), (left, right)), got {_short(value)}")
        (top, bottom), (left, right) = ((integer(a, "padding", 0), integer(b, "padding", 0)) for a, b in value)
        return (top, bottom, left, right)
    h, w = pair(value, "padding", 0)
    return (h, h, w, w)


def frozen_padding(value: Any) -> Any:
    """A padding that `pads` has accepted, in its own form but of plain ints and tuples: nobody can change it later."""
    if isinstance(value, str):
        return str(value)
    return tuple(frozen_padding(v) for v in value) if _is_sequence(value) else integer(value, "padding")


def _checked(values: Pads) -> Pads:
    for v in values:
        integer(v, "padding")
    return values


def batched(shape: tuple[int, ...], name: str, layout: str) -> tuple[tuple[int, int, int, int], bool]:
    """(four-dimensional shape, whether a batch axis was added)."""
    if len(shape) == 4:
        return shape, False
    if len(shape) == 3:
        return (1, *shape), True
    raise ValueError(
        f"{name} must have 4 dimensions ({layout}) or 3 without the batch, got {len(shape)} with shape {shape}"
    )


def spatial(shape: tuple[int, ...], layout: str) -> Pair:
    """Height and width of a four-dimensional shape."""
    return (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])


def kernel_extents(shape: tuple[int, ...], weight_layout: str) -> Pair:
    at = {"OIHW": 2, "OHWI": 1, "HWIO": 0}[weight_layout]
    return shape[at], shape[at + 1]
