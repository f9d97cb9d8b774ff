"""The CUDA backend as the tests see it: the module built for the host by tests/cuda_on_cpu, or the real one on a GPU.

Under the fixture `cuda` everything in `fastconv.cuda`, and every op on its arrays, runs there.
"""

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

import fastconv as fc
from fastconv.cuda import _backend

sys.path.insert(0, str(Path(__file__).parent / "cuda_on_cpu"))
import build

Array = NDArray[Any]
DTYPES = ["float32", "float16", "bfloat16"]


def bfloat16_bits(values: Array) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each value, ties to even, as its bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)


def rounded(values: Array, dtype: str) -> NDArray[np.float32]:
    """The values as `dtype` stores them, as float32."""
    values = np.asarray(values, dtype=np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        return (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32).reshape(values.shape)
    return values


def put(values: Array, dtype: str = "float32", *, misaligned: bool = False) -> Any:
    """A device array of these values in C order; misaligned: one element behind a multiple of 16 bytes."""
    host = np.ascontiguousarray(values, dtype=np.float32)
    if misaligned:
        return _shifted(put(np.concatenate([np.zeros(1, np.float32), host.ravel()]), dtype), host.shape)
    if dtype == "bfloat16":
        return fc.cuda.asarray(bfloat16_bits(host), "bfloat16")
    return fc.cuda.asarray(host.astype(dtype))


def empty(shape: tuple[int, ...], dtype: str = "float32", *, misaligned: bool = False) -> Any:
    if misaligned:
        return _shifted(fc.cuda.empty((int(np.prod(shape)) + 1,), dtype), shape)
    return fc.cuda.empty(shape, dtype)


def strided(whole: Any, shape: tuple[int, ...], strides: tuple[int, ...], first: int = 0) -> Any:
    """Elements first + sum(index * stride) of a contiguous device array."""
    view = whole._view
    at = view.pointer + first * view.itemsize
    other = _backend.backend().from_pointer(at, shape, strides, view.dtype, view.device, False, whole, "array")
    return fc.cuda.Array(other)


def _shifted(whole: Any, shape: tuple[int, ...]) -> Any:
    return strided(whole, shape, tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))), 1)


def get(array: Any) -> Array:
    """A device array's values: float32 for the floating-point dtypes, which hold each exactly."""
    host = array.numpy()
    if array._view.dtype == "bfloat16":
        return (host.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return host.astype(np.float32) if host.dtype == np.float16 else host


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


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """Puts the backend of that name under `fastconv.cuda` for a test, or skips it with the reason; returns the name."""
    if name == "shim":
        module = host_module()
        if isinstance(module, str):
            pytest.skip(module)
        monkeypatch.setattr(_backend, "_module", module)
    else:
        monkeypatch.setattr(_backend, "_module", None)
        reason = fc.cuda.why_unavailable()
        if reason:
            pytest.skip(reason)
    return name
