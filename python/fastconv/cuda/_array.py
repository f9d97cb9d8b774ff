"""`Array`: device memory for those who have no other library for it."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arguments import integer, text
from ._backend import backend, device_argument
from ._streams import LEGACY, handle_of, protocol_number

DTYPES = ("float32", "float16", "bfloat16")


def _bfloat16() -> Any:
    """NumPy's dtype for bfloat16, where the package that has it is loaded; else the name."""
    module = sys.modules.get("ml_dtypes")
    return "bfloat16" if module is None else np.dtype(module.bfloat16)


def _host_dtype(name: str) -> np.dtype[Any]:
    """How NumPy holds elements of this dtype: bfloat16 as its bits where ml_dtypes is not loaded."""
    if name != "bfloat16":
        return np.dtype(name)
    known = _bfloat16()
    return np.dtype(np.uint16) if isinstance(known, str) else known


class Array:
    """An array in the memory of a CUDA device, in C order, made by `asarray`, `empty`, `from_dlpack` or an op.

    Work on it is ordered: an op on another stream waits, on the device, for what was done to the array before. Freeing
    waits likewise, and never for the host. While a graph is captured nothing is ordered so, and an array that a graph
    uses must live as long as the graph.
    """

    __slots__ = ("__weakref__", "_known_consumer", "_view")

    def __init__(self, view: Any) -> None:
        if not isinstance(view, backend().View):
            raise TypeError("an Array is made by fastconv.cuda.asarray, empty or from_dlpack, not by its class")
        self._view = view
        self._known_consumer = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._view.shape)

    @property
    def ndim(self) -> int:
        return len(self._view.shape)

    @property
    def size(self) -> int:
        return math.prod(self._view.shape)

    @property
    def dtype(self) -> Any:
        """NumPy's dtype; of bfloat16 that of ml_dtypes where that is loaded, and else the string "bfloat16"."""
        name = str(self._view.dtype)
        return _bfloat16() if name == "bfloat16" else np.dtype(name)

    @property
    def nbytes(self) -> int:
        return self.size * int(self._view.itemsize)

    @property
    def device(self) -> int:
        return int(self._view.device)

    def numpy(self, *, stream: Any = None) -> NDArray[Any]:
        """A copy in host memory, when all work on the array is done. bfloat16 without ml_dtypes: its bits, uint16."""
        handle = LEGACY if stream is None else handle_of(stream)
        host = np.empty(self.shape, _host_dtype(str(self._view.dtype)))
        view = self._view
        if not view.contiguous:
            view = backend().empty(self.shape, view.dtype, view.device, handle)
            backend().copy(self._view, view, handle)
        backend().copy_host(view, host.reshape(-1).view(np.uint8), False, handle)
        return host

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule over the same memory; `stream` (None or 1: the legacy default, 2: the thread's, -1: none) will
        wait for the work on it."""
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"dl_device must be {self.__dlpack_device__()}, got {tuple(dl_device)}")
        number = 1 if stream is None else integer(stream, "stream", -1)
        if number == 0:
            raise ValueError("stream must not be 0, which DLPack leaves undefined; 1 is the legacy default stream")
        handle = LEGACY if number in (-1, 1) else number
        view = self._view
        if copy:
            view = backend().empty(self.shape, view.dtype, view.device, handle)
            backend().copy(self._view, view, handle)
        if number != -1:
            backend().hand_over(view, handle, self._known_consumer)
        return view.dlpack(max_version is not None and max_version[0] >= 1)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        view = self._view
        if view.dtype == "bfloat16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16; use __dlpack__")
        backend().hand_over(view, LEGACY, True)
        return {
            "shape": tuple(view.shape),
            "typestr": np.dtype(view.dtype).str,
            "data": (int(view.pointer), bool(view.read_only)),
            "strides": tuple(s * view.itemsize for s in view.strides),
            "version": 3,
            "stream": protocol_number(LEGACY),
        }

    def __repr__(self) -> str:
        return f"fastconv.cuda.Array(shape={self.shape}, dtype={self._view.dtype}, device={self.device})"


def asarray(x: Any, dtype: str | None = None, *, device: int | None = None, stream: Any = None) -> Array:
    """A NumPy array (or what NumPy makes one of) as an `Array` on a CUDA device.

    Args:
        x: float32, float16, ml_dtypes' bfloat16, or uint16 with dtype="bfloat16", whose values are then bits of
            bfloat16. float64 is refused, not rounded.
        dtype: "float32", "float16" or "bfloat16": converted on the device, to nearest even. None: as `x` is.
        device: ordinal; None is the current device. stream: None is the legacy default stream.
    """
    host = np.asarray(x)
    name = str(host.dtype)
    wanted = name if dtype is None else text(str(np.dtype(dtype)) if not isinstance(dtype, str) else dtype, "dtype")
    if dtype is not None and wanted not in DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {wanted}")
    if name == "uint16" and wanted == "bfloat16":
        name = "bfloat16"
    if name not in DTYPES:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {name}")
    ordinal = device_argument(device)
    handle = LEGACY if stream is None else handle_of(stream)
    plain = np.array(host, order="C", copy=True, subok=False) if not host.flags.c_contiguous else host
    view = backend().empty(plain.shape, name, ordinal, handle)
    backend().copy_host(view, plain.reshape(-1).view(np.uint8), True, handle)
    if wanted != name:
        converted = backend().empty(plain.shape, wanted, ordinal, handle)
        backend().copy(view, converted, handle)
        view = converted
    return Array(view)


def empty(shape: Any, dtype: str = "float32", *, device: int | None = None, stream: Any = None) -> Array:
    """An `Array` of this shape with any values in it."""
    extents = tuple(integer(e, "shape", 0) for e in (shape if isinstance(shape, (tuple, list)) else (shape,)))
    if text(dtype, "dtype") not in DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    handle = LEGACY if stream is None else handle_of(stream)
    return Array(backend().empty(extents, dtype, device_argument(device), handle))


def from_dlpack(x: Any, *, stream: Any = None) -> Array:
    """Any CUDA array with `__dlpack__` or `__cuda_array_interface__` as an `Array` over the same memory."""
    from ._producers import view_of

    if isinstance(x, Array):
        return x
    return Array(view_of(x, "x", LEGACY if stream is None else handle_of(stream)))
