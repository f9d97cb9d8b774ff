"""The CUDA backend as the tests see it: the module built for the host by tests/cuda_on_cpu, or the real one on a GPU."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent / "cuda_on_cpu"))
import build  # noqa: E402

Array = NDArray[Any]
DTYPES = ["float32", "float16", "bfloat16"]


def bfloat16_bits(values: Array) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each value, ties to even, as its bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def rounded(values: Array, dtype: str) -> Array:
    """The values as `dtype` stores them, as float32."""
    values = np.asarray(values, dtype=np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        return (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32).reshape(values.shape)
    return values


class Raw:
    """The functions of the extension module on NumPy arrays; bfloat16 as the float32 of the same value."""

    def __init__(self, module: Any, stream: int = 0) -> None:
        self.module, self.stream = module, stream

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.module.empty(shape, dtype, 0, self.stream)

    def put(self, values: Array, dtype: str = "float32") -> Any:
        """A device array of these values."""
        host = np.ascontiguousarray(values)
        if dtype == "bfloat16":
            host = bfloat16_bits(host)
        elif dtype != "int64":
            host = host.astype(dtype)
        view = self.empty(values.shape, dtype)
        self.module.copy_host(view, host, True, self.stream)
        return view

    def put_misaligned(self, values: Array, dtype: str) -> Any:
        """The same one element behind an aligned address."""
        whole = self.put(np.concatenate([np.zeros(1, np.float32), np.ravel(values)]), dtype)
        return self.misaligned(whole, values.shape, dtype)

    def empty_misaligned(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.misaligned(self.empty((int(np.prod(shape)) + 1,), dtype), shape, dtype)

    def misaligned(self, whole: Any, shape: tuple[int, ...], dtype: str) -> Any:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        return self.module.from_pointer(
            whole.pointer + whole.itemsize, shape, strides, dtype, 0, False, whole, "misaligned"
        )

    def get(self, view: Any) -> Array:
        if not view.contiguous:
            whole = self.empty(view.shape, view.dtype)
            self.module.copy(view, whole, self.stream)
            view = whole
        kinds = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64}
        host = np.empty(view.shape, kinds[view.dtype])
        self.module.copy_host(view, host, False, self.stream)
        if view.dtype == "bfloat16":
            return (host.astype(np.uint32) << 16).view(np.float32)
        return host.astype(np.float32) if view.dtype == "float16" else host


@functools.cache
def host_module() -> ModuleType | str:
    """The module built for the host, or why there is none here."""
    try:
        path = build.build(asan="FASTCONV_SHIM_ASAN" in os.environ)
    except build.CannotBuild as reason:
        return f"the CUDA kernels cannot be built for the host: {reason}"
    spec = importlib.util.spec_from_file_location("_cuda_on_cpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def gpu_module() -> ModuleType | str:
    """The real module, or why it cannot be used here."""
    try:
        module: Any = importlib.import_module("fastconv._cuda")
    except ImportError:
        return "fastconv was built without CUDA"
    return module.why_unavailable() or module


BACKENDS = ["shim", pytest.param("gpu", marks=pytest.mark.gpu)]


def raw(name: str) -> Raw:
    module = host_module() if name == "shim" else gpu_module()
    if isinstance(module, str):
        pytest.skip(module)
    return Raw(module)
