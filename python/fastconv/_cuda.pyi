"""The compiled CUDA backend. `fastconv.cuda` loads it, judges arguments and keeps arrays alive.

Streams are handles: 0 and 1 the legacy default stream, 2 that of each thread, else a `cudaStream_t`. Nothing waits for
the device but `copy_host`, `synchronize`, what packs weights for the first time, and what measures. Errors are the
contract's; those of CUDA are RuntimeError, and MemoryError where device memory runs out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]

# --- arrays and streams

class View:
    """An array in device memory; keeps the memory. Strides in elements."""

    device: int
    read_only: bool
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def pointer(self) -> int: ...
    @property
    def contiguous(self) -> bool: ...
    def reshaped(self, shape: Sequence[int]) -> View:
        """Of a contiguous one, the same memory."""
    def dlpack(self, versioned: bool) -> Any:
        """A capsule over the same memory."""

class Stream:
    """Does not wait for the default stream. Destroyed with the object; its work is done first."""

    def __init__(self, device: int) -> None: ...
    @property
    def device(self) -> int: ...
    @property
    def handle(self) -> int: ...
    def synchronize(self) -> None: ...

def from_dlpack(capsule: Any, name: str) -> View: ...
def from_pointer(
    data: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: str,
    device: int | None,
    read_only: bool,
    owner: Any,
    name: str,
) -> View:
    """device None: asked of the pointer, which must be one to device memory."""

def empty(shape: Sequence[int], dtype: str, device: int, stream: int) -> View: ...
def copy(src: View, dst: View, stream: int) -> None:
    """Any strides; floating-point dtypes are converted."""

def copy_host(view: View, host: Any, to_device: bool, stream: int) -> None:
    """A contiguous array from or to a buffer of as many bytes; waits."""

def wait(device: int, stream: int, producer: int) -> None:
    """`stream` waits, on the device, for what `producer` has in its queue now."""

def hand_over(view: View, stream: int, known: bool) -> None:
    """Another library will use the memory on `stream`, which is never destroyed if `known`."""

def hold(device: int, stream: int, objects: Any) -> None:
    """Keeps the objects until `stream` has done what it has in its queue now."""

def is_capturing(stream: int) -> bool: ...
def synchronize(device: int) -> None: ...

# --- introspection

def why_unavailable() -> str: ...
def device_count() -> int: ...
def current_device() -> int: ...
def devices() -> list[dict[str, Any]]: ...
def kernels(op: str | None = None) -> list[dict[str, Any]]: ...
def kernel_names() -> set[str]:
    """Algorithms and drivers of all ops. Starts no driver."""

def explain_conv2d(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias: bool,
    residual: bool,
    stride: Pair,
    padding: Pads,
    dilation: Pair,
    groups: int,
    layout: str,
    weight_layout: str,
    algorithms: Sequence[str],
    activation: str | None,
    dtype: str,
    compute: str,
    device: int | None = None,
    then_max_pool: bool = False,
) -> dict[str, Any]: ...
def explain_op(
    op: str, input_shape: Sequence[int], options: dict[str, Any], dtype: str, device: int | None = None
) -> dict[str, Any]: ...

# --- ops: shapes as the core takes them (four-dimensional), arrays as the caller has them

def conv2d(
    shape: Sequence[int],
    weight_shape: Sequence[int],
    input: View,
    weight: View,
    bias: View | None,
    residual: View | None,
    out: View,
    stride: Pair,
    padding: Pads,
    dilation: Pair,
    groups: int,
    layout: str,
    weight_layout: str,
    algorithms: Sequence[str],
    activation: str | None,
    compute: str,
    cuda_stream: int,
    then_max_pool: bool = False,
) -> str:
    """Returns the name of the algorithm that ran. then_max_pool: 3x3, stride 2, padding 1 behind the activation."""

def conv2d_prepared(
    shape: Sequence[int],
    weights: ConvWeights,
    input: View,
    residual: View | None,
    out: View,
    stride: Pair,
    padding: Pads,
    dilation: Pair,
    layout: str,
    algorithms: Sequence[str],
    activation: str | None,
    compute: str,
    cuda_stream: int,
    then_max_pool: bool = False,
) -> str: ...
def max_pool2d(
    shape: Sequence[int],
    input: View,
    out: View,
    indices: View | None,
    kernel: Pair,
    stride: Pair,
    padding: Pads,
    dilation: Pair,
    ceil_mode: bool,
    layout: str,
    cuda_stream: int,
) -> None: ...
def avg_pool2d(
    shape: Sequence[int],
    input: View,
    out: View,
    kernel: Pair,
    stride: Pair,
    padding: Pads,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    layout: str,
    cuda_stream: int,
) -> None: ...
def adaptive_avg_pool2d(
    shape: Sequence[int], input: View, out: View, output_size: Pair, layout: str, cuda_stream: int
) -> None: ...
def relu(input: View, out: View, cuda_stream: int) -> None: ...
def softmax(input: View, out: View, dim: int, cuda_stream: int) -> None: ...
def batch_norm(
    shape: Sequence[int],
    input: View,
    running_mean: View,
    running_var: View,
    weight: View | None,
    bias: View | None,
    eps: float,
    out: View,
    layout: str,
    cuda_stream: int,
) -> None: ...
def convert_layout(
    shape: Sequence[int], input: View, out: View, source: str, target: str, cuda_stream: int
) -> None: ...

# --- weights and programs

class ConvWeights:
    """Float32 weights in host memory and what plans made of them on each device."""

    def __init__(
        self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, weight_layout: str, groups: int
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def packed_bytes(self) -> int: ...

class Program:
    """Planned steps over an arena of activations, run as one CUDA graph. As `_core.Program`, with dtypes."""

    def __init__(self, device: int, compute: str = "float32") -> None: ...
    def input(self, shape: Sequence[int], dtype: str) -> int: ...
    def conv2d(
        self,
        x: int,
        weights: ConvWeights,
        stride: Pair,
        padding: Pads,
        dilation: Pair,
        layout: str,
        algorithms: Sequence[str],
        activation: str | None = None,
        residual: int = -1,
        then_max_pool: bool = False,
    ) -> int: ...
    def linear(self, x: int, weights: ConvWeights, activation: str | None = None) -> int: ...
    def cast(self, x: int, dtype: str) -> int: ...
    def max_pool2d(
        self, x: int, kernel: Pair, stride: Pair, padding: Pads, dilation: Pair, ceil_mode: bool, layout: str
    ) -> int: ...
    def adaptive_avg_pool2d(self, x: int, output_size: Pair, layout: str) -> int: ...
    def output(self, x: int) -> None: ...
    def finalize(self) -> None: ...
    def shape(self, x: int) -> tuple[int, ...]: ...
    def run(self, inputs: Sequence[View], outputs: Sequence[View], stream: int) -> None: ...
    def run_profiled(self, inputs: Sequence[View], outputs: Sequence[View], stream: int) -> list[float]: ...
    def time(self, inputs: Sequence[View], outputs: Sequence[View], stream: int, count: int) -> list[float]:
        """Milliseconds of each of `count` runs back to back."""
    def use_graphs(self, on: bool) -> None: ...
    @property
    def graph_refusal(self) -> str: ...
    def steps(self) -> list[dict[str, Any]]: ...
    @property
    def device(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...

# --- measurement

class Recording:
    """What is called on `stream` between begin and end, as a graph to be replayed."""

    def __init__(self, device: int) -> None: ...
    @property
    def stream(self) -> int: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def time(self, count: int) -> list[float]: ...
    def synchronize(self) -> None: ...

def copy_bandwidth(device: int, bytes: int, count: int = 10) -> float: ...
def fma_peak(device: int, count: int = 5) -> float: ...
