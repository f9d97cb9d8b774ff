"""The environment that a result belongs to: machine, versions, settings."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv import _core

#: Settings that change how fast something runs, for us or for a peer.
_VARIABLES = ("FASTCONV_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "MALLOC_")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_NODES = Path("/sys/devices/system/node")
_PEER_PACKAGES = ("torch", "onnxruntime", "openvino", "ncnn", "scipy")


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def environment() -> dict[str, Any]:
    """The machine, the versions and the settings, as plain JSON values. Names no user, host or path."""
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    found = {
        key: value for key, value in _core.machine().items() if isinstance(value, (bool, int, float, str, type(None)))
    }
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": found,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "affinity": affinity,
        "governor": _first_line(_GOVERNOR),
        "numa_nodes": len(list(_NODES.glob("node[0-9]*"))) or None,
        "load_average": load_average(),
        "threads_default": int(fastconv.get_num_threads()),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
        "versions": {
            "fastconv": str(fastconv.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
            **{name: v for name in _PEER_PACKAGES if (v := _version(name)) is not None},
        },
        "openmp": _openmp_runtimes(),
    }


def busy_warning(load: float | None, cpus: int) -> str | None:
    """A sentence if the machine had other work to do, else None."""
    if load is None or load <= 0.5 * cpus:
        return None
    return f"the machine was busy at the start (load average {load:.1f} on {cpus} processors): expect noise"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _openmp_runtimes() -> list[dict[str, Any]] | None:
    """Thread pools loaded into the process, where threadpoolctl can tell."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return None
    import threadpoolctl

    keep = ("user_api", "internal_api", "prefix", "version", "num_threads")
    return [{key: pool.get(key) for key in keep} for pool in threadpoolctl.threadpool_info()]
