"""The compiled core. Arrays that cross this border are float32, C-contiguous NumPy arrays in the stated layout.

`ops`, `layers` and `models` see to that. Everything here raises the contract's errors (ValueError, TypeError,
NotImplementedError, MemoryError).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

__version__: str

# --- machine and settings

def machine() -> dict[str, Any]:
    """What was found: isa (the level in use), isa_found, cpu, l1d_bytes, l2_bytes, l3_bytes, cpus_affinity,
    cpu_quota, ..."""

def listed_caches(folder: str, cpu: int) -> tuple[int, int, int]:
    """Bytes of L1 data, L2 and L3 cache by the files below ``folder/cpu<cpu>/cache``; 0 where they do not tell. For
    tests of what `machine` reads from the kernel."""

def isa() -> str:
    """The ISA level in use."""

def set_max_isa(level: str | None) -> None:
    """Cap the ISA level at run time ("scalar", "avx2", "avx512", "amx").

    None: what the machine has and FASTCONV_MAX_ISA allows. For tests and benchmarks; plans made before stay as they
    are.
    """

def set_tuned(choices: Sequence[tuple[str, str, str, str]]) -> None:
    """Replace the tuned choices: (ISA level, layout, problem as a plan tells it less its n, driver) each.

    Later plans with "auto" go by them; programs made before stay as they are. ValueError for an unknown driver.
    """

def set_tuned_source(source: Callable[[], object]) -> None:
    """What is called once before the first plan that may be tuned, and calls `set_tuned`; not where FASTCONV_TUNE is
    0."""

def plan_epoch() -> int:
    """A number that changes when equal problems may be planned otherwise: another ISA level, other tuned choices,
    another answer of `set_adds_beside`."""

def set_adds_beside(answer: bool | None) -> None:
    """Whether plans count on additions beside products, for which Winograd's inner product is made; None: as this
    machine does. For tests. Plans made before stay as they are.
    """

def set_stream_bytes(bytes: int | None) -> None:
    """Outputs of more bytes are stored past the caches, where an op does that; None: of more than half of the L3.

    For tests: results are the same either way. Plans made before stay as they are.
    """

def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def set_thread_override(n: int) -> int:
    """Number of threads for calls from this Python thread only (0: none). Returns the value before. Behind
    `fastconv.threads`."""

def set_verbose(level: int) -> None: ...
def kernels(op: str | None = None) -> list[dict[str, Any]]: ...
def gemm_by_leaf(ukernel: str, a: F32, b: F32, parts: int, sums: bool = False) -> F32:
    """a (m, k) times b (k, n) by one GEMM leaf, its sum cut into so many parts. For tests of the leaf itself."""

def measure_fma_peak(isa: str, threads: int, milliseconds: int) -> float:
    """FLOP/s of a register-only FMA loop of that ISA on so many threads."""

def measure_read_bandwidth(array: F32, threads: int, repeats: int) -> float:
    """Bytes per second that `threads` threads read from the array, best of `repeats` passes."""

def copy_bytes(source: F32, out: F32, threads: int, streaming: bool = False) -> None:
    """Reads all of `source` and writes all of `out`, evenly mixed, with the package's own vector loop: a copy where
    both have one size, else sums of what was read. streaming: stores go past the caches."""

# --- weights

class ConvWeights:
    """Convolution weights and what plans made of them.

    The plain array is kept by reference; packed forms are made once per plan tag and shared by every program that uses
    the same tag.
    """

    def __init__(self, weight: F32, bias: F32 | None, weight_layout: str, groups: int) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def packed_bytes(self) -> int: ...

# --- programs

class Program:
    """Planned steps over an arena of activations.

    Build: input, ops (each returns a tensor id), output, then `finalize`. `run` executes all steps in one call with
    the GIL released and without allocating (arenas are kept and reused; every call in flight has its own).
    """

    def __init__(self) -> None: ...
    def input(self, shape: Sequence[int]) -> int:
        """A tensor that the caller passes to `run`; shape as the caller sees it."""
    def conv2d(
        self,
        x: int,
        weights: ConvWeights,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        layout: str,
        algorithms: Sequence[str],
        activation: str | None = None,
        residual: int = -1,
        winograd: bool = True,
    ) -> int:
        """padding is (top, bottom, left, right). `algorithms` in order of preference; ("auto",) leaves the choice to
        the plan, `winograd` says whether that may be Winograd."""
    def max_pool2d(
        self,
        x: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        ceil_mode: bool,
        layout: str,
    ) -> int: ...
    def avg_pool2d(
        self,
        x: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int,
        layout: str,
    ) -> int:
        """divisor_override: 0 means none."""
    def adaptive_avg_pool2d(self, x: int, output_size: tuple[int, int], layout: str) -> int: ...
    def relu(self, x: int) -> int: ...
    def softmax(self, x: int, dim: int) -> int: ...
    def linear(self, x: int, weights: ConvWeights, activation: str | None = None) -> int:
        """x: any shape; the first axis stays, the others are flattened in memory order. weights: (out, in, 1, 1)
        OIHW."""
    def batch_norm(self, x: int, scale: F32, shift: F32, layout: str) -> int:
        """y = x * scale[c] + shift[c]."""
    def convert_layout(self, x: int, source: str, target: str) -> int: ...
    def output(self, x: int) -> None: ...
    def finalize(self, l2_bytes: int = 0, l3_bytes: int = 0) -> None:
        """Packs weights and lays the arena out. After this the program is immutable and may be called from many
        threads. l2_bytes, l3_bytes: decide, with the number of threads, which steps run depth-first; 0: this
        machine's."""
    def shape(self, x: int) -> tuple[int, ...]: ...
    def run(self, inputs: Sequence[F32], outputs: Sequence[F32]) -> None: ...
    def answer(self, x: Any) -> F32 | None:
        """The one output for the one input, a new array. None, and nothing is run, where `x` is no NumPy array of plain
        float32 of exactly the input's shape, or where plans would be others now (`plan_epoch`)."""
    def answer_into(self, x: Any, out: Any) -> bool:
        """`answer` written to `out`. False, and nothing is run, where `answer` gives None, and where `out` is no
        writeable array of plain float32 of exactly the output's shape, or shares memory with `x`."""
    def run_profiled(self, inputs: Sequence[F32], outputs: Sequence[F32]) -> list[float]:
        """As `run`; returns seconds per step."""
    def steps(self) -> list[dict[str, Any]]:
        """One dict a step, the plan's own words: op, layout, shapes, algorithm, kernel, ukernel, isa, blocking, macs,
        packed_bytes, workspace_bytes, conversions, refused (algorithm -> reason), tuned (whether `fastconv tune` chose
        the algorithm)."""
    def chains(self) -> list[tuple[int, int]]:
        """First and last step of each run of steps that goes through the network by bands of rows, together."""
    def image_groups(self) -> list[tuple[int, int]]:
        """First and last step of each run of steps that a thread does for one image after the other."""
    @property
    def arena_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...

# --- lone ops: one-step programs with cached plans

def conv2d(
    input: F32,
    weight: F32,
    bias: F32 | None,
    residual: F32 | None,
    out: F32,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    layout: str,
    weight_layout: str,
    algorithms: Sequence[str],
    activation: str | None,
    winograd: bool = True,
) -> str:
    """Returns the name of the algorithm that ran."""

def max_pool2d(
    input: F32,
    out: F32,
    indices: NDArray[np.int64] | None,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
    layout: str,
) -> None: ...
def avg_pool2d(
    input: F32,
    out: F32,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    layout: str,
) -> None: ...
def adaptive_avg_pool2d(input: F32, out: F32, output_size: tuple[int, int], layout: str) -> None: ...
def global_average_into(input: Any, out: Any, nhwc: bool) -> bool:
    """`adaptive_avg_pool2d` to one pixel, between NumPy arrays of plain float32 that lie apart. False, and nothing is
    done, where they are not that."""

def relu(input: F32, out: F32) -> None: ...
def relu_into(input: Any, out: Any) -> bool:
    """`relu` between NumPy arrays of plain float32, one shape of any axes, that lie apart. False, and nothing is done,
    where they are not that."""

def softmax(input: F32, out: F32, dim: int) -> None: ...
def batch_norm(input: F32, scale: F32, shift: F32, out: F32, layout: str) -> None: ...
def convert_layout(input: F32, out: F32, source: str, target: str) -> None: ...
def convert_layout_into(input: Any, out: Any, to_nhwc: bool) -> bool:
    """`convert_layout` from NCHW to NHWC, or back, between NumPy arrays of plain float32 that lie apart. False, and
    nothing is done, where they are not that."""

def explain_conv2d(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias: bool,
    residual: bool,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    layout: str,
    weight_layout: str,
    algorithms: Sequence[str],
    activation: str | None,
    winograd: bool = True,
) -> dict[str, Any]: ...
def explain_op(op: str, input_shape: Sequence[int], options: dict[str, Any]) -> dict[str, Any]: ...

# shapes, from the one validator (raise as the op itself would)
def conv2d_output_shape(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_size: int,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    layout: str,
    weight_layout: str,
) -> tuple[int, ...]:
    """bias_size: -1 for none."""

def pool2d_output_shape(
    input_shape: Sequence[int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
    layout: str,
) -> tuple[int, ...]: ...
