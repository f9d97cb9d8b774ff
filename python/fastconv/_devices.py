"""Where arrays lie, told without loading the CUDA backend: what decides between the two paths of an op.

A CUDA array is an object whose `__dlpack_device__` says so, or, where it has none, one with
`__cuda_array_interface__`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

_CUDA = (2, 13)  # DLPack's device types: CUDA memory, CUDA managed memory


def place(x: Any) -> str | None:
    """ "cpu", "cuda" or the name of DLPack's device type; None for what is no array."""
    if isinstance(x, np.ndarray):
        return "cpu"
    device = getattr(x, "__dlpack_device__", None)
    if callable(device):
        try:
            kind = int(device()[0])
        except Exception:  # whatever the other library raises for memory that it cannot share; the path itself will say
            return None
        return "cuda" if kind in _CUDA else "cpu" if kind in (1, 3) else f"DLPack device type {kind}"
    if isinstance(getattr(x, "__cuda_array_interface__", None), dict):
        return "cuda"
    return "cpu" if hasattr(x, "__dlpack__") else None


def on_cuda(stream: Any, **arrays: Any) -> bool:
    """Whether the arrays of a call lie on a CUDA device; those that are None do not count.

    ValueError when some do and others lie on the CPU, and when there is a `stream` for the CPU.
    """
    if stream is None:
        for x in arrays.values():
            if x is not None and type(x) is not np.ndarray:
                break
        else:
            return False
    places = {name: place(x) for name, x in arrays.items() if x is not None}
    device = next((name for name, where in places.items() if where == "cuda"), None)
    if device is None:
        if stream is not None:
            raise ValueError(f"stream is for arrays on a CUDA device, but {next(iter(places))} is not on one")
        return False
    for name, where in places.items():
        if where is None:
            raise TypeError(
                f"{name} must be an array on a CUDA device, as {device} is; got {type(arrays[name]).__name__}"
            )
        if where != "cuda":
            _mixed(name, where, device)
    return True


def _mixed(name: str, where: str, device: str) -> NoReturn:
    there = "the CPU" if where == "cpu" else where
    raise ValueError(f"{name} lies on {there}, but {device} on a CUDA device; all arguments must be on one device")
