"""Arrays of other libraries: their memory, their current stream, and results in their own kind.

`torch` and `cupy` are known by name; every other library is asked through DLPack, or `__cuda_array_interface__`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .._arrays import _is_torch, _libraries, dtype_name
from .._devices import place
from ._array import Array
from ._backend import backend
from ._streams import LEGACY, protocol_number

_versioned: dict[type, bool] = {}  # whether a class's __dlpack__ takes max_version


def view_of(x: Any, name: str, handle: int) -> Any:
    """`x` as the compiled module sees it. The stream `handle` waits for what its owner still does to it."""
    if isinstance(x, Array):
        return x._view
    if place(x) != "cuda":
        raise TypeError(f"{name} must be an array on a CUDA device, got {type(x).__name__}")
    if getattr(x, "requires_grad", False):
        raise ValueError(f"{name} carries gradients and cannot be shared; pass {name}.detach()")
    if not hasattr(x, "__dlpack__"):
        return _from_interface(x, name, handle)
    try:
        capsule = _torch_capsule(x, handle) if _is_torch(x) else _capsule(x, protocol_number(handle))
    except Exception as error:
        dtype = dtype_name(x)
        if dtype not in (None, "float32", "float16", "bfloat16"):
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {dtype}") from None
        raise ValueError(f"{name} cannot be shared through DLPack: {error}") from None
    return backend().from_dlpack(capsule, name)


def _capsule(x: Any, stream: int) -> Any:
    kind = type(x)
    takes_version = _versioned.get(kind)
    if takes_version is not False:
        try:
            capsule = x.__dlpack__(stream=stream, max_version=(1, 0))
        except TypeError:
            if takes_version:  # it did take the argument before: the error is about something else
                raise
        else:
            _versioned[kind] = True
            return capsule
    capsule = x.__dlpack__(stream=stream)
    _versioned[kind] = False
    return capsule


def _torch_capsule(x: Any, handle: int) -> Any:
    """Ordered here and not by torch, which takes the streams of the current device and knows no per-thread one; and
    under the array's own device, since torch exports no other's."""
    cuda, device = sys.modules["torch"].cuda, int(x.device.index)
    producer = int(cuda.current_stream(x.device).cuda_stream)
    if producer != handle:
        backend().wait(device, handle, producer)
    if cuda.current_device() == device:
        return _capsule(x, -1)
    with cuda.device(device):
        return _capsule(x, -1)


def _from_interface(x: Any, name: str, handle: int) -> Any:
    """Versions 2 and 3 of `__cuda_array_interface__`."""
    told = x.__cuda_array_interface__
    if told.get("mask") is not None:
        raise ValueError(f"{name} has a mask, which is not supported")
    dtype = np.dtype(told["typestr"])
    if dtype.name not in ("float32", "float16", "int64") or not dtype.isnative:
        raise TypeError(f"{name} must be float32 or float16 here, got {told['typestr']}")
    shape = tuple(told["shape"])
    strides = told.get("strides")
    if strides is None:
        steps, step = [], 1
        for extent in reversed(shape):
            steps.append(step)
            step *= max(extent, 1)
        strides = tuple(s * dtype.itemsize for s in reversed(steps))
    if any(s % dtype.itemsize for s in strides):
        raise ValueError(f"{name} must have strides of whole elements, got {strides} bytes of {dtype.name}")
    pointer, read_only = told["data"]
    producer = told.get("stream")
    view = backend().from_pointer(
        int(pointer or 0),
        shape,
        tuple(s // dtype.itemsize for s in strides),
        dtype.name,
        None,
        bool(read_only),
        x,
        name,
    )
    if producer is not None:
        if int(producer) == 0:
            raise ValueError(f"{name}: stream 0 in __cuda_array_interface__ is ambiguous and not allowed")
        backend().wait(view.device, handle, int(producer))
    return view


class Library:
    """What an op needs of the library that its input belongs to. This one: `Array`, and those known by DLPack only.

    `same`: the op's stream is the library's current one.
    """

    def __init__(self, wrap: Callable[[Array], Any] | None = None) -> None:
        self._wrap = wrap

    def stream(self, x: Any) -> int:
        """The handle of the stream on which the library works now, on the device of `x`."""
        return LEGACY

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, handle: int, same: bool) -> tuple[Any, Any]:
        """(what `finish` makes the caller's result of, the view to write)."""
        array = Array(backend().empty(shape, dtype, device, handle))
        return array, array._view

    def finish(self, array: Any) -> Any:
        if self._wrap is None:
            return array
        array._known_consumer = True  # a library's own streams are never destroyed
        return self._wrap(array)

    def keep(self, device: int, handle: int, same: bool, arrays: list[Any]) -> None:
        """Sees to it that memory that `handle` still reads is not given to others."""
        foreign = [x for x in arrays if not isinstance(x, Array)]
        if foreign:
            backend().hold(device, handle, foreign)


class _Torch(Library):
    """torch: its allocator knows streams, and is told when another than its current one is used."""

    def stream(self, x: Any) -> int:
        return int(sys.modules["torch"].cuda.current_stream(x.device).cuda_stream)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, handle: int, same: bool) -> tuple[Any, Any]:
        torch = sys.modules["torch"]
        kind, where = getattr(torch, dtype), torch.device("cuda", device)
        if same:
            made = torch.empty(shape, dtype=kind, device=where)
        else:
            with torch.cuda.stream(_torch_stream(device, handle)):
                made = torch.empty(shape, dtype=kind, device=where)
        return made, view_of(made, "out", handle)

    def finish(self, array: Any) -> Any:
        return array

    def keep(self, device: int, handle: int, same: bool, arrays: list[Any]) -> None:
        others = [x for x in arrays if not _is_torch(x)]
        if others:
            super().keep(device, handle, same, others)
        if same:
            return
        stream = _torch_stream(device, handle)
        for x in arrays:
            if _is_torch(x):
                x.record_stream(stream)


def _torch_stream(device: int, handle: int) -> Any:
    cuda = sys.modules["torch"].cuda
    return cuda.default_stream(device) if handle == LEGACY else cuda.ExternalStream(handle, device=device)


class _CuPy(Library):
    """CuPy: memory goes back to the pool of the stream that was current when it was allocated."""

    def stream(self, x: Any) -> int:
        with x.device:
            handle = int(sys.modules["cupy"].cuda.get_current_stream().ptr)
        return LEGACY if handle == 1 else handle

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, handle: int, same: bool) -> tuple[Any, Any]:
        if dtype == "bfloat16" or not same:
            return super().empty(shape, dtype, device, handle, same)
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            made = cupy.empty(shape, dtype)
        return made, view_of(made, "out", handle)

    def finish(self, array: Any) -> Any:
        return sys.modules["cupy"].from_dlpack(array) if isinstance(array, Array) else array

    def keep(self, device: int, handle: int, same: bool, arrays: list[Any]) -> None:
        if not same or not all("cupy" in _libraries(x) for x in arrays):
            super().keep(device, handle, same, arrays)


_ARRAYS = Library()
_TORCH = _Torch()
_CUPY = _CuPy()


def library_of(x: Any) -> Library:
    """The library of `x`; results of arrays whose library cannot import one are an `Array`."""
    if isinstance(x, Array):
        return _ARRAYS
    if _is_torch(x):
        return _TORCH
    names = _libraries(x)
    if "cupy" in names and "cupy" in sys.modules:
        return _CUPY
    namespace = getattr(x, "__array_namespace__", None)
    candidates = [namespace()] if callable(namespace) else []
    if "jaxlib" in names or "jax" in names:
        candidates.append(sys.modules.get("jax.dlpack"))
    candidates += [sys.modules.get(name) for name in names]
    for candidate in candidates:
        from_dlpack = getattr(candidate, "from_dlpack", None)
        if callable(from_dlpack):
            return Library(from_dlpack)
    return _ARRAYS
