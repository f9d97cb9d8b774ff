"""What every library here has in common: the protocol, a prepared call, and the two orders of an image's axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem

F32 = NDArray[np.float32]
Array = NDArray[Any]
Folded = Mapping[str, tuple[F32, F32]]

#: A relative L2 error above this is not arithmetic in that type. bfloat16 rounds to 8 bits, so each result of a layer
#: is off by up to 2^-9, about 2e-3, and the layer's operands by as much again.
MAX_L2 = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3, "tf32": 4e-3}
#: The same for a whole network, whose layers each add their own rounding.
MAX_NETWORK_L2 = {"float32": 2e-4, "bfloat16": 1e-1, "float16": 2e-2, "tf32": 2e-2}
#: What batch norm adds to the variance, here and in every library: the default of torch and of `fastconv.batch_norm`.
EPSILON = 1e-5

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class PeerCall:
    """One prepared computation.

    `run` is what gets timed. `result` gives the last answer as float32, NCHW or two-dimensional (linear, logits);
    converting to that is not timed. `detail`: what runs inside. `inputs`: NumPy views of the memory that `run` reads as
    its input, to be touched after a cache eviction; empty where that memory is not the CPU's. `device_ms(count)`: on a
    GPU, milliseconds between events around each of so many calls, one behind the other."""

    run: Callable[[], object]
    result: Callable[[], Array]
    detail: str
    inputs: tuple[Array, ...] = ()
    device_ms: Callable[[int], list[float]] | None = None


class Peer(Protocol):
    """What the runner asks of a library.

    `layouts`: the orders of axes that it can be given, "nchw" and "nhwc"; `dtype`: "float32" or "bfloat16"; `settle`:
    seconds that its threads may go on spinning after a call. `layer` is asked with one of `layouts`, or with "-" where
    both are the same memory; it raises NotImplementedError, with the reason, for an op that the library lacks.
    `network` knows "resnet18", "resnet50" and "mobilenet_v2" (else ValueError); `folded` has every layer's weights and
    bias. x is NCHW for both."""

    name: str
    layouts: tuple[str, ...]
    dtype: str
    settle: float

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall: ...
    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall: ...


def lacks(library: str, op: str, reason: str = "") -> NotImplementedError:
    """The error of a library that has no such op."""
    return NotImplementedError(f"{library} has no {op} here" + (f": {reason}" if reason else ""))


def given(array: F32 | None) -> F32:
    """The operand that the op must have. ValueError where it is missing."""
    if array is None:
        raise ValueError("operands: one that this op needs is None")
    return array


def to_layout(x: F32, layout: str) -> F32:
    """A contiguous copy of x (NCHW, or fewer axes, which stay) in the layout's own order."""
    order = _TO_NHWC if layout == "nhwc" and x.ndim == 4 else tuple(range(x.ndim))
    return np.array(x.transpose(order), order="C")


def to_nchw(y: Array, layout: str) -> Array:
    """y (in the layout's own order) as NCHW: a view."""
    return y.transpose(_TO_NCHW) if layout == "nhwc" and y.ndim == 4 else y
