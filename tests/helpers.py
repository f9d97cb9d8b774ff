"""What several test files share: capping the ISA level, making arrays in awkward memory, waiting for child
processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastconv as fc
import reference as ref
from cases import ConvCase

Array = NDArray[Any]
F32 = NDArray[np.float32]

ISA_LEVELS = ["scalar", "avx2", "avx512", "amx"]
TESTED_LEVELS = ISA_LEVELS[:3]
NO_TUNE_FILE = os.path.join(os.sep, "nonexistent", "tune.json")
LAYOUTS = ["NCHW", "NHWC"]

# --- ISA levels and kernels -------------------------------------------------------------------------------------------


def missing_level(level: str) -> str | None:
    """Why this machine cannot run at an ISA level; None when it can."""
    found = str(fc._core.machine()["isa_found"])
    if ISA_LEVELS.index(level) > ISA_LEVELS.index(found):
        return f"this machine has {found}, not {level}"
    cap = os.environ.get("FASTCONV_MAX_ISA", "").lower()
    if cap in ISA_LEVELS and ISA_LEVELS.index(level) > ISA_LEVELS.index(cap):
        return f"FASTCONV_MAX_ISA={cap} excludes {level}"
    return None


def usable_levels() -> list[str]:
    return [level for level in TESTED_LEVELS if missing_level(level) is None]


@contextmanager
def stored_past(limit: int) -> Iterator[None]:
    """Outputs of more than `limit` bytes are stored past the caches, in plans made meanwhile."""
    fc._core.set_stream_bytes(limit)
    try:
        yield
    finally:
        fc._core.set_stream_bytes(None)


@contextmanager
def adds_beside(answer: bool) -> Iterator[None]:
    """Plans as on a machine that adds beside its products, or on one that does not."""
    fc._core.set_adds_beside(answer)
    try:
        yield
    finally:
        fc._core.set_adds_beside(None)


@contextmanager
def max_isa(level: str | None) -> Iterator[None]:
    """Caps the ISA level; afterwards the machine's own again, whatever happened."""
    fc._core.set_max_isa(level)
    try:
        if level is not None:
            assert fc._core.machine()["isa"] == level
        yield
    finally:
        fc._core.set_max_isa(None)


def cpu_conv_kernels() -> list[dict[str, Any]]:
    """Every float32 CPU row of `kernels("conv2d")`."""
    return [row for row in fc.kernels("conv2d") if row["device"] == "cpu" and row["dtype"] == "float32"]


def forced_name(row: dict[str, Any]) -> str:
    """What `algorithm=` must say to reach the row: its driver's name where several drivers share the algorithm's."""
    drivers = {
        other["driver"]
        for other in fc.kernels(row["op"])
        if (other["algorithm"], other["device"]) == (row["algorithm"], row["device"])
    }
    return str(row["driver"] if len(drivers) > 1 else row["algorithm"])


def kernel_id(row: dict[str, Any]) -> str:
    return f"{row['driver']}-{row['isa']}"


# --- data -------------------------------------------------------------------------------------------------------------


def integers(rng: np.random.Generator, *shape: int) -> F32:
    """Whole numbers from -4 to 4: products and their sums of up to a million terms are exact in float32."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def normal(rng: np.random.Generator, *shape: int) -> F32:
    return rng.standard_normal(shape, dtype=np.float32)


class ConvData:
    """Arrays of a case in both layouts, and what the oracle says of them."""

    def __init__(self, case: ConvCase, kind: str) -> None:
        rng = np.random.default_rng([case.n, case.ic, case.ih, case.iw, case.oc, case.kh, case.kw, kind == "normal"])
        make: Callable[..., F32] = normal if kind == "normal" else integers
        self.case = case
        x = make(rng, case.n, case.ic, case.ih, case.iw)
        w = make(rng, case.oc, case.ic // case.groups, case.kh, case.kw)
        self.bias = make(rng, case.oc) if case.bias else None
        residual = make(rng, case.n, case.oc, *case.output_size) if case.residual else None
        expected = ref.conv2d(x, w, self.bias, residual=residual, **case.options())
        self._x = {k: np.ascontiguousarray(ref.from_nchw(x, k)) for k in LAYOUTS}
        self._w = {"NCHW": w, "NHWC": np.ascontiguousarray(ref.weight_from_oihw(w, "OHWI"))}
        self._residual = {
            k: None if residual is None else np.ascontiguousarray(ref.from_nchw(residual, k)) for k in LAYOUTS
        }
        self._expected = {k: ref.from_nchw(expected, k) for k in LAYOUTS}

    def operands(self, layout: str) -> tuple[F32, F32]:
        return self._x[layout], self._w[layout]

    def options(self, layout: str) -> dict[str, Any]:
        return {"bias": self.bias, "residual": self._residual[layout], "layout": layout, **self.case.options()}

    def expected(self, layout: str) -> Array:
        return self._expected[layout]


@lru_cache(maxsize=64)
def conv_data(case: ConvCase, kind: str = "integers") -> ConvData:
    return ConvData(case, kind)


def run_conv(data: ConvData, layout: str, algorithm: Any = "auto", **more: Any) -> Array:
    x, w = data.operands(layout)
    return np.asarray(fc.conv2d(x, w, algorithm=algorithm, **data.options(layout), **more))


def explain_conv(data: ConvData, layout: str, algorithm: Any = "auto") -> dict[str, Any]:
    x, w = data.operands(layout)
    plan: dict[str, Any] = fc.explain("conv2d", x, w, algorithm=algorithm, **data.options(layout))
    return plan


# --- memory -----------------------------------------------------------------------------------------------------------


def fenced(
    values: Array, fence: float = np.nan, margin: int = 64, offset: int | None = None
) -> tuple[Array, Callable[[], bool]]:
    """A C-contiguous copy inside a larger buffer full of `fence`, and a check that the surroundings are still
    intact. offset: so many float32 after the beginning of a cache line; None: anywhere."""
    room = np.full(values.size + 2 * margin + 16, fence, dtype=values.dtype)
    first = 0 if offset is None else (-(room.ctypes.data // values.itemsize) - margin + offset) % 16
    buffer = room[first : first + values.size + 2 * margin]
    inner = buffer[margin : margin + values.size].reshape(values.shape)
    inner[...] = values

    def intact() -> bool:
        around = np.concatenate([buffer[:margin], buffer[margin + values.size :]])
        return bool(np.array_equal(around, np.full(2 * margin, fence, dtype=values.dtype), equal_nan=True))

    return inner, intact


def _gaps(values: Array) -> Array:
    wide = np.full([2 * s + 1 for s in values.shape], np.nan, dtype=values.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in values.shape)]
    view[...] = values
    return view


def _negative(values: Array) -> Array:
    flip = tuple(slice(None, None, -1) for _ in values.shape)
    return values[flip].copy()[flip]


def _reversed_axes(values: Array) -> Array:
    return values.T.copy().T


def _rolled_axes(values: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 0, -1)), -1, 0)


def _misaligned(values: Array) -> Array:
    raw = np.zeros(values.nbytes + 1, dtype=np.uint8)
    view = raw[1:].view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


def _inner_slice(values: Array) -> Array:
    big = np.full([s + 3 for s in values.shape], np.nan, dtype=values.dtype)
    view = big[tuple(slice(1, 1 + s) for s in values.shape)]
    view[...] = values
    return view


def _read_only(values: Array) -> Array:
    copy = values.copy()
    copy.flags.writeable = False
    return copy


WRITABLE_FORMS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda values: values.copy(),
    "fortran": np.asfortranarray,
    "negative": _negative,
    "gaps": _gaps,
    "reversed_axes": _reversed_axes,
    "rolled_axes": _rolled_axes,
    "inner_slice": _inner_slice,
    "misaligned": _misaligned,
}
"""Arrays equal to the given one that lie differently in memory; none shares memory with it."""

MEMORY_FORMS: dict[str, Callable[[Array], Array]] = {**WRITABLE_FORMS, "read_only": _read_only}


# --- processes --------------------------------------------------------------------------------------------------------


def run_python(
    code: str, *, env: dict[str, str] | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter; the FASTCONV_* and OMP_* settings are those given, none other but a tuning file
    that does not exist."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCONV_", "OMP_"))}
    clean["FASTCONV_TUNE_FILE"] = NO_TUNE_FILE
    clean["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
