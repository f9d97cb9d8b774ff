"""Threads, and what this build and machine are: `set_num_threads`, `threads`, `show_config`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import _core
from ._arguments import integer

MAX_THREADS = 4096


def _thread_count(n: Any) -> int:
    count = integer(n, "n", 1)
    if count > MAX_THREADS:
        raise ValueError(f"n must be at most {MAX_THREADS}, got {count}")
    return count


def set_num_threads(n: int) -> None:
    """Number of threads for every call of this process from now on, at least 1."""
    _core.set_num_threads(_thread_count(n))


def get_num_threads() -> int:
    """Number of threads that a call made here would use.

    In this order: `threads` of this Python thread, `set_num_threads`, FASTCONV_NUM_THREADS, OMP_NUM_THREADS, and else
    the smaller of the affinity mask and the container's CPU quota.
    """
    return _core.get_num_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Number of threads for the calls that this Python thread makes inside the block."""
    before = _core.set_thread_override(_thread_count(n))
    try:
        yield
    finally:
        _core.set_thread_override(before)


def _cuda() -> str:
    """The devices, or what is missing for CUDA."""
    from . import cuda

    reason = cuda.why_unavailable()
    if reason:
        return f"unavailable: {reason}"
    return ", ".join(f"{d['name']} ({d['isa']})" for d in cuda.devices())


def show_config(*, as_dict: bool = False) -> dict[str, Any] | None:
    """Print what this build and machine are, or return it as a dict.

    Versions, processor, ISA level, caches, threads, CUDA, tuned choices, algorithms.
    """
    from . import _tuning  # here: an import of the package alone has no use for it

    machine = _core.machine()
    config: dict[str, Any] = {
        "fastconv": _core.__version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        **machine,
        "cuda": _cuda(),
        "tuning": _tuning.load().describe(),
        "algorithms": sorted({row["algorithm"] for row in _core.kernels("conv2d")}),
    }
    if as_dict:
        return config
    width = max(map(len, config))
    for key, value in config.items():
        print(f"{key:<{width}}  {', '.join(value) if isinstance(value, list) else value}")
    return None
