"""The compiled module, loaded at first use, and why it cannot be used where it cannot."""

from __future__ import annotations

import importlib
from typing import Any

from .._arguments import integer

# Tests put another build of the same bindings here.
_module: Any = None
_usable: Any = None  # the module that was found usable


def _load() -> Any:
    global _module
    if _module is None:
        _module = importlib.import_module("fastconv._cuda")
    return _module


def why_not_built() -> str:
    """Why there is no compiled module, in a sentence; empty when there is one."""
    try:
        _load()
    except ModuleNotFoundError:
        return "this build of fastconv has no CUDA backend (FASTCONV_CUDA=OFF, or no CUDA compiler when it was built)"
    except ImportError as error:
        return f"the CUDA backend of this build cannot be loaded: {error}"
    return ""


def why_unavailable() -> str:
    """What is missing for CUDA, in a sentence: the build, the driver, or a device; empty when nothing is."""
    return why_not_built() or str(_load().why_unavailable())


def is_available() -> bool:
    """Whether arrays on a CUDA device can be computed with here. Never raises."""
    try:
        return not why_unavailable()
    except Exception:
        return False


def built() -> Any:
    """The compiled module, whether or not a device can be used. NotImplementedError when this build has none."""
    reason = why_not_built()
    if reason:
        raise NotImplementedError(reason)
    return _load()


def usable() -> bool:
    """Whether `backend` has given the module before: what each call may ask."""
    return _module is not None and _usable is _module


def backend() -> Any:
    """The compiled module. RuntimeError that says what is missing where CUDA cannot be used."""
    global _usable
    if not usable():
        reason = why_unavailable()
        if reason:
            raise RuntimeError(f"CUDA is not available: {reason}")
        _usable = _module
    return _module


def device_count() -> int:
    """Number of CUDA devices; 0 where CUDA cannot be used."""
    return int(_load().device_count()) if is_available() else 0


def devices() -> list[dict[str, Any]]:
    """One dict a device: name, isa ("sm_90"), multiprocessors, l2_bytes, shared_bytes_per_block."""
    return list(_load().devices()) if is_available() else []


def device_argument(device: Any) -> int:
    """The ordinal of a device; None is the current one of this thread."""
    if device is None:
        return int(backend().current_device())
    ordinal = integer(device, "device", 0)
    count = int(backend().device_count())
    if ordinal >= count:
        raise ValueError(f"device must be less than the number of CUDA devices, {count}; got {ordinal}")
    return ordinal


def synchronize(device: int | None = None) -> None:
    """Wait for everything that the device (None: the current one) was given to do."""
    backend().synchronize(device_argument(device))
