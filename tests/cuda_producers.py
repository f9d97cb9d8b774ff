"""The public CUDA path under test: which build of the module it runs on, and arrays of libraries made up for the tests.

On the shim device memory is host memory, so that a NumPy array can be presented as a CUDA array of any kind.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastconv as fc
from cuda_backend import use

Array = NDArray[Any]


@contextmanager
def public(name: str) -> Iterator[Any]:
    """`fastconv` with CUDA by the module built for the host ("shim") or the real one ("gpu"); skips where it cannot."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch, name)
        yield fc.cuda._backend.backend()


class Foreign:
    """A NumPy array that says it lies on a CUDA device, in a library nobody knows. Keeps what it was asked."""

    def __init__(self, array: Array, *, read_only: bool = False, kind: int = 2, device: int = 0) -> None:
        self.array = array
        self.read_only = read_only
        self.streams: list[Any] = []
        self._kind, self._device = kind, device

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._kind, self._device

    def __dlpack__(self, *, stream: Any = None, **more: Any) -> Any:
        self.streams.append(stream)
        view = fc.cuda._backend.backend().from_pointer(
            self.array.__array_interface__["data"][0],
            self.array.shape,
            tuple(s // self.array.itemsize for s in self.array.strides),
            "bfloat16" if self.array.dtype == np.uint16 else self.array.dtype.name,
            self._device,
            self.read_only,
            self.array,
            "array",
        )
        return view.dlpack("max_version" in more)


class OldForeign(Foreign):
    """Its `__dlpack__` is from before versions."""

    def __dlpack__(self, *, stream: Any = None) -> Any:  # type: ignore[override]
        return super().__dlpack__(stream=stream)


class Library(Foreign):
    """Of a library that imports what it gets back."""

    def __array_namespace__(self) -> Any:
        return Library

    @staticmethod
    def from_dlpack(x: Any) -> ImportedArray:
        assert x.__dlpack_device__()[0] == 2
        x.__dlpack__(stream=1, max_version=(1, 0))
        return ImportedArray(x)


class ImportedArray:
    def __init__(self, x: Any) -> None:
        self.x = x

    def numpy(self) -> Array:
        result: Array = self.x.numpy()
        return result


class InterfaceOnly:
    """An array with nothing but `__cuda_array_interface__`, like Numba's: a copy in device memory, strides kept."""

    def __init__(self, array: Array, **changes: Any) -> None:
        module = fc.cuda._backend.backend()
        low, high = np.lib.array_utils.byte_bounds(array) if hasattr(np.lib, "array_utils") else np.byte_bounds(array)
        size = -(-(high - low) // 4)
        self._memory = module.empty((size + 1,), "float32", 0, 0)
        raw = np.zeros(4 * (size + 1), np.uint8)
        raw[: high - low] = np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(low))
        module.copy_host(self._memory, raw, True, 0)
        pointer = self._memory.pointer + array.__array_interface__["data"][0] - low
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (pointer, not array.flags.writeable),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            "stream": None,
            **changes,
        }
