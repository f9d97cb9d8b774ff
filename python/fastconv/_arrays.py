"""Arrays at the border: what a caller may pass, and what comes back to them.

NumPy arrays are taken as they are. Any other object with `__dlpack__` on the CPU (torch, JAX, CuPy's pinned memory,
...) is viewed through NumPy without a copy, and results go back through its own library. The compiled core reads
C-contiguous, aligned float32; anything else of the right dtype is copied once into that form, which changes strides
and nothing else.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from numpy.exceptions import TooHardError
except ImportError:  # NumPy before 1.25
    from numpy import TooHardError  # type: ignore[no-redef, attr-defined]

F32 = NDArray[np.float32]

_FLOAT32 = np.dtype(np.float32)
_LINE = 16  # float32 values in a cache line
_WORTH_ALIGNING = 4096  # values; below, the slicing costs more than it saves
Wrap = Callable[[NDArray[Any]], Any]

_CPU_DEVICES = {1: "CPU", 3: "CUDA pinned host memory", 11: "ROCm pinned host memory"}
_DEVICE_NAMES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA managed memory", 14: "oneAPI"}


# An output through DLPack takes a NumPy that believes the producer: older ones mark all such arrays read-only, and any
# version does so to those of producers before DLPack 1.0, which cannot say.
_READ_ONLY_DLPACK = (
    f", as NumPy {np.__version__} reads it through DLPack (writing takes NumPy 2.2.5 and a producer of DLPack 1.0); "
    "pass a NumPy array over the same memory"
)


def _unchanged(result: NDArray[Any]) -> NDArray[Any]:
    return result


def _libraries(x: Any) -> list[str]:
    """Root modules of the classes of `x`, its own first: an array of a subclass belongs to its base's library."""
    return list(dict.fromkeys(cls.__module__.partition(".")[0] for cls in type(x).__mro__))


def _is_torch(x: Any) -> bool:
    return "torch" in sys.modules and "torch" in _libraries(x)


def _producer_wrap(x: Any) -> Wrap:
    """Gives results to the library that `x` came from, without a copy where it can import one."""
    if _is_torch(x):
        return sys.modules["torch"].from_numpy  # type: ignore[no-any-return]
    namespace = getattr(x, "__array_namespace__", None)
    candidates = [namespace()] if callable(namespace) else []
    candidates += [sys.modules.get(name) for name in _libraries(x)]
    for candidate in candidates:
        from_dlpack = getattr(candidate, "from_dlpack", None)
        if callable(from_dlpack):
            return from_dlpack  # type: ignore[no-any-return]
    return _unchanged


def dtype_name(x: Any) -> str | None:
    """What a dtype is called, of any library ("torch.bfloat16" is "bfloat16"); None where `x` has none."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return None
    return str(dtype) if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]


def not_an_array(x: Any, name: str) -> TypeError:
    return TypeError(f"{name} must be a NumPy array or an object with __dlpack__ on the CPU, got {type(x).__name__}")


def _view(x: Any, name: str, *, writable: bool = False) -> NDArray[Any]:
    """`x` as a NumPy array over the same memory."""
    if isinstance(x, np.ndarray):
        return x
    if not hasattr(x, "__dlpack__"):
        raise not_an_array(x, name)
    device = getattr(x, "__dlpack_device__", None)
    if callable(device):
        try:
            kind = int(device()[0])
        # Whatever the other library raises for memory that it cannot share, e.g. torch for meta tensors.
        except Exception as error:
            raise ValueError(f"{name} cannot be shared through DLPack: {error}") from None
        if kind not in _CPU_DEVICES:
            place = _DEVICE_NAMES.get(kind, kind)
            raise ValueError(f"{name} lies on device {place}; this function computes on the CPU")
    gradients = bool(getattr(x, "requires_grad", False))
    try:
        if writable and not gradients and _is_torch(x):
            return x.detach().numpy()  # type: ignore[no-any-return]  # writable under any NumPy, DLPack is not
        return np.from_dlpack(x)
    except Exception as error:
        # torch refuses to export tensors that carry gradients, and any library a dtype that NumPy does not know.
        if gradients:
            raise ValueError(f"{name} carries gradients and cannot be shared; pass {name}.detach()") from None
        dtype = dtype_name(x)
        if dtype not in (None, "float32"):
            raise TypeError(f"{name} must be float32, got {dtype}") from None
        raise TypeError(f"{name} cannot be read through DLPack: {error}") from None


def _check_dtype(a: NDArray[Any], name: str) -> None:
    if a.dtype is not _FLOAT32 and a.dtype != _FLOAT32:
        raise TypeError(f"{name} must be float32, got {a.dtype}")


def _is_plain(a: NDArray[Any]) -> bool:
    flags = a.flags  # made anew each time it is asked for
    return flags.c_contiguous and flags.aligned and a.dtype.isnative


def plain(a: NDArray[Any]) -> F32:
    """C-contiguous, aligned, native float32: `a` itself where it is that already."""
    if _is_plain(a):
        return a.view(np.ndarray) if type(a) is not np.ndarray else a
    # asarray first: subclasses such as masked arrays and matrices would keep their own rules of indexing.
    return np.array(a, dtype=np.float32, order="C", copy=True, subok=False)


def as_view(x: Any, name: str) -> tuple[NDArray[Any], Wrap]:
    """(float32 array over the caller's memory, any strides; wrap for results)."""
    a = _view(x, name)
    _check_dtype(a, name)
    return a, (_unchanged if a is x else _producer_wrap(x))


def maybe_view(x: Any, name: str) -> NDArray[Any] | None:
    """As `as_view`, without the wrap, for an argument that may be None."""
    return None if x is None else as_view(x, name)[0]


def shape_of(a: NDArray[Any] | None) -> tuple[int, ...] | None:
    return None if a is None else a.shape


def as_input(x: Any, name: str) -> tuple[F32, Wrap]:
    """(plain float32 array, wrap): `wrap(result)` gives an array of the caller's own library.

    Raises TypeError for anything but float32 on the CPU (naming the dtype), ValueError for another device.
    """
    a, wrap = as_view(x, name)
    return plain(a), wrap


def _fresh(shape: tuple[int, ...]) -> F32:
    """A new array that starts on a cache line. NumPy promises 16 bytes; vectors that cross lines cost up to 15 %."""
    count = math.prod(shape)
    if count < _WORTH_ALIGNING:
        return np.empty(shape, np.float32)
    room = np.empty(count + _LINE, np.float32)
    skip = -(room.__array_interface__["data"][0] // room.itemsize) % _LINE
    return room[skip : skip + count].reshape(shape)


class Output:
    """Where a result goes: a fresh array, or the caller's `out`, written directly where its memory allows.

    `array` is plain and is what the core writes; `finish()` returns what the caller gets.
    """

    def __init__(
        self, shape: tuple[int, ...], out: Any, wrap: Wrap, inputs: tuple[tuple[str, NDArray[Any] | None], ...]
    ) -> None:
        self._out = out
        self._wrap = wrap
        self._target: NDArray[Any] | None = None
        if out is None:
            self.array: F32 = _fresh(shape)
            return
        target = _view(out, "out", writable=True)
        _check_dtype(target, "out")
        if target.shape != shape:
            raise ValueError(f"out must have shape {shape}, got {target.shape}")
        if not target.flags.writeable:
            raise ValueError("out is read-only" + ("" if target is out else _READ_ONLY_DLPACK))
        plain_already = _is_plain(target)  # then no two elements share memory
        if not plain_already and _overlaps_itself(target):
            raise ValueError(f"out overlaps itself: two of its elements share memory (strides {target.strides})")
        for name, array in inputs:
            if array is not None and _share_memory(target, array):
                raise ValueError(f"out overlaps {name} in memory")
        self._target = target
        self.array = target if plain_already else _fresh(shape)

    def finish(self) -> Any:
        if self._target is None:
            return self._wrap(self.array)
        if self.array is not self._target:
            self._target[...] = self.array
        return self._out


def _share_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # NumPy's stub knows -1 and 0 only
    except TooHardError:
        return True  # interleaved beyond what can be decided quickly: refused rather than risked


def _overlaps_itself(a: NDArray[Any]) -> bool:
    """Whether two indices name the same memory.

    Exact up to 2^24 elements. Of larger arrays only the plain case is told apart, in which each axis steps over
    everything that the smaller strides reach; others (interleaved by hand with `as_strided`) are taken to overlap.
    """
    axes = sorted((abs(stride), extent) for extent, stride in zip(a.shape, a.strides) if extent > 1)
    reach = a.itemsize
    for stride, extent in axes:
        if stride < reach:
            break
        reach += stride * (extent - 1)
    else:
        return False  # each axis steps over everything before it
    if a.size == 0:
        return False
    if any(stride == 0 for stride, _ in axes) or a.size > 1 << 24:
        return True
    offsets = np.zeros(1, np.int64)
    for stride, extent in axes:
        offsets = (offsets[:, None] + stride * np.arange(extent)).ravel()
    offsets.sort()
    return bool((np.diff(offsets) < a.itemsize).any())
