"""The functions of the CUDA extension module itself on NumPy arrays, on a device of one kind: what no op names."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cuda_backend import bfloat16_bits, host_module

Array = NDArray[Any]
BACKENDS = ["shim", pytest.param("gpu", marks=pytest.mark.gpu)]


class Raw:
    """One device's arrays; bfloat16 comes and goes as the float32 of the same value."""

    def __init__(self, module: Any, device: int) -> None:
        self.module, self.device, self.stream = module, device, 0

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.module.empty(shape, dtype, self.device, self.stream)

    def put(self, values: Array, dtype: str = "float32") -> Any:
        host = np.ascontiguousarray(values)
        host = bfloat16_bits(host) if dtype == "bfloat16" else host.astype(dtype)
        view = self.empty(values.shape, dtype)
        self.module.copy_host(view, host, True, self.stream)
        return view

    def put_misaligned(self, values: Array, dtype: str) -> Any:
        """The same one element behind an aligned address."""
        whole = self.put(np.concatenate([np.zeros(1, np.float32), np.ravel(values)]), dtype)
        return self._shifted(whole, values.shape, dtype)

    def empty_misaligned(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._shifted(self.empty((int(np.prod(shape)) + 1,), dtype), shape, dtype)

    def _shifted(self, whole: Any, shape: tuple[int, ...], dtype: str) -> Any:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        at = whole.pointer + whole.itemsize
        return self.module.from_pointer(at, shape, strides, dtype, self.device, False, whole, "misaligned")

    def get(self, view: Any) -> Array:
        kinds = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
        host = np.empty(view.shape, kinds[view.dtype])
        self.module.copy_host(view, host, False, self.stream)
        if view.dtype == "bfloat16":
            return (host.astype(np.uint32) << 16).view(np.float32)
        return host.astype(np.float32)


def raw(name: str, isa: str = "") -> Raw:
    """A backend on its first device, or on the first one of that ISA; a skip with the reason where there is none."""
    module: Any = host_module()
    if name == "gpu":
        try:
            module = importlib.import_module("fastconv._cuda")
        except ImportError:
            module = "fastconv was built without CUDA"
        else:
            module = module.why_unavailable() or module
    if isinstance(module, str):
        pytest.skip(module)
    devices = [i for i, facts in enumerate(module.devices()) if isa in ("", facts["isa"])]
    if not devices:
        pytest.skip(f"no device of {isa}")
    return Raw(module, devices[0])
