"""What this machine can do at most, measured: the two roofs of a roofline model, and how fast it is just now.

A row's time has two floors: its operations at the FMA peak, and its least bytes at the bandwidth of the first memory
that holds them all: the L2 caches of the threads, the L3, or memory (Williams, Waterman, Patterson: "Roofline: an
insightful visual performance model for multicore architectures", 2009). The higher floor is its bound.
"""

from __future__ import annotations

import bisect
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastconv
from fastconv import _core

from .timing import Candidate, Place, Sampler

F32 = NDArray[np.float32]

LEVELS = ("scalar", "avx2", "avx512")
#: ISA levels whose float32 FMA loop is that of another.
_FLOAT32_ISA = {"amx": "avx512"}
#: Where the system does not tell: caches of a usual size.
_L2_BYTES, _L3_BYTES = 1 << 20, 32 << 20
#: How many times the L3 must be read to be surely out of it: one that is filled by what the L2 drops, and keeps what
#: was used twice, still serves a quarter of twice its size.
_STREAM_FACTOR = 4
#: Reading more than this would take too long, or too much memory.
_MAX_STREAM_BYTES = 512 << 20
_YARDSTICK_MS = 1
#: How long the noise is looked at before a run.
NOISE_SECONDS = 1.5


def float32_isa() -> str:
    """The level whose FMA loop bounds the float32 kernels in use now."""
    isa = str(_core.machine()["isa"])
    return _FLOAT32_ISA.get(isa, isa)


def levels() -> list[str]:
    """The ISA levels that can be chosen here, lowest first."""
    top = float32_isa()
    return list(LEVELS[: LEVELS.index(top) + 1]) if top in LEVELS else [top]


@contextmanager
def isa_level(level: str | None) -> Iterator[None]:
    """Caps the package to an ISA level for plans made inside; None leaves it alone."""
    if level is None:
        yield
        return
    before = float32_isa()
    _core.set_max_isa(level)
    try:
        yield
    finally:
        _core.set_max_isa(before)


def caches() -> tuple[int, int]:
    """Bytes of one core's L2 and of the L3 that this machine shows."""
    found = _core.machine()
    return int(found.get("l2_bytes") or _L2_BYTES), int(found.get("l3_bytes") or _L3_BYTES)


def fma_peak(threads: int, isa: str | None = None, milliseconds: int = 40, repeats: int = 3) -> float:
    """FLOP/s (an FMA counts as two) of a register-only FMA loop on `threads` threads: the best of `repeats`
    measurements."""
    level = isa or float32_isa()
    return max(float(_core.measure_fma_peak(level, threads, milliseconds)) for _ in range(repeats))


@dataclass
class Roofs:
    """Peak (FLOP/s) and bandwidths (bytes/s, by where the data lie) of one ISA level on so many threads."""

    isa: str
    threads: int
    fma: float
    bandwidth: dict[str, float]

    def level_of(self, bytes_moved: float) -> str:
        """Which memory holds so many bytes: "l2", "l3" or "memory"."""
        l2, l3 = caches()
        return "l2" if bytes_moved <= self.threads * l2 else "l3" if bytes_moved <= l3 else "memory"

    def bound(self, flops: float, bytes_moved: float) -> tuple[str, float]:
        """What bounds a computation ("compute", "l2", "l3", "memory"), and the seconds that it takes at least."""
        level = self.level_of(bytes_moved)
        by_bytes = bytes_moved / self.bandwidth[level] if level in self.bandwidth else 0.0
        by_flops = flops / self.fma
        return ("compute", by_flops) if by_flops >= by_bytes else (level, by_bytes)

    def as_json(self) -> dict[str, Any]:
        gigabytes = {level: value / 1e9 for level, value in self.bandwidth.items()}
        return {"isa": self.isa, "threads": self.threads, "fma_gflops": self.fma / 1e9, "bandwidth": gigabytes}


def measure_roofs(isa: str, threads: int) -> Roofs:
    """Peak and read bandwidths. Takes about half a second."""
    l2, l3 = caches()
    sizes = {"l2": threads * l2 // 2, "l3": min(max(8 * threads * l2, l3 // 16), l3 // 2), "memory": stream_bytes()}
    buffer = np.ones(max(sizes.values()) // 4, np.float32)
    found: dict[str, float] = {}
    with isa_level(isa), fastconv.threads(threads):
        for level, size in sizes.items():
            part = buffer[: size // 4]
            repeats = max(3, min(200, (1 << 28) // size))
            found[level] = max(float(_core.measure_read_bandwidth(part, threads, repeats)) for _ in range(3))
        return Roofs(isa, threads, fma_peak(threads, isa), found)


def stream_bytes() -> int:
    """How much must be read so that the caches hold nothing of before: four times the L3, at most 512 MiB."""
    l2, l3 = caches()
    return min(max(_STREAM_FACTOR * l3, 16 * l2), _MAX_STREAM_BYTES)


class Evictor:
    """Empties the caches of all threads: copies half of a buffer that is larger than they are onto the other half."""

    def __init__(self, threads: int) -> None:
        half = stream_bytes() // 8
        self.threads, self.bytes = threads, half * 8
        self._source, self._target = np.ones(half, np.float32), np.zeros(half, np.float32)

    def __call__(self) -> None:
        _core.copy_bytes(self._source, self._target, self.threads)


class Yardstick:
    """A fixed loop of FMAs, called again and again during a run: how fast the machine was just then.

    Clocks go up and down with heat and neighbours, for our kernels, for peers and for this loop alike. `compare` uses
    it to set two runs to one clock.
    """

    def __init__(self, isa: str, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.isa, self.threads, self.clock = isa, threads, clock
        self.moments: list[float] = []
        self.values: list[float] = []  # FLOP/s
        self.pinned: Place = nullcontext

    def __call__(self) -> None:
        with self.pinned():
            value = float(_core.measure_fma_peak(self.isa, self.threads, _YARDSTICK_MS))
        self.moments.append(self.clock())
        self.values.append(value)

    def around(self, moment: float, seconds: float = 3.0) -> float:
        """The median of what it showed within so many seconds of a moment; of everything where that is too little."""
        first = bisect.bisect_left(self.moments, moment - seconds)
        near = self.values[first : bisect.bisect_right(self.moments, moment + seconds)]
        return float(np.median(near if len(near) >= 5 else self.values)) if self.values else 0.0


def estimate_noise(threads: int, yardstick: Yardstick, seconds: float | None = None) -> dict[str, Any]:
    """How noisy this machine is before anything is compared on it: a fixed loop, and one kernel entered twice.

    `within_percent`: half the spread (10th to 90th percentile) of the loop's speed over its median; `drift_percent`:
    the same of its medians over tenths of the time; `twice_percent`: by how much the medians of the same kernel,
    entered as two candidates, differ.
    """
    sampler = Sampler(yardstick=yardstick, order=random.Random(3))
    x = np.ones((1, 28, 28, 128), np.float32)
    conv = fastconv.Conv2d(np.ones((128, 128, 3, 3), np.float32), padding=1, layout="NHWC", weight_layout="OIHW")
    out = np.empty((1, 28, 28, 128), np.float32)
    candidates = [Candidate(name, lambda: conv(x, out=out), pinned=yardstick.pinned) for name in ("first", "second")]
    first = len(yardstick.values)
    with fastconv.threads(threads):
        sampler.visit(candidates, NOISE_SECONDS if seconds is None else seconds)
    values = np.asarray(yardstick.values[first:])
    p10, p50, p90 = np.percentile(values, [10, 50, 90])
    tenths = [float(np.median(part)) for part in np.array_split(values, min(10, len(values)))]
    within, drift = 50 * (p90 - p10) / p50, 50 * (max(tenths) - min(tenths)) / p50
    medians = [float(np.median(c.series.samples)) for c in candidates]
    twice = 100 * abs(medians[0] / medians[1] - 1)
    kernel = np.concatenate([np.asarray(c.series.samples) / m for c, m in zip(candidates, medians)])
    spread = 50 * float(np.percentile(kernel, 90) - np.percentile(kernel, 10))
    sentence = (
        f"Noise before the run ({threads} thread{'s' if threads > 1 else ''}): a fixed FMA loop varied by "
        f"+-{within:.1f} % and drifted by +-{drift:.1f} %; one 3x3 kernel varied by +-{spread:.1f} %, and entered "
        f"twice its medians differed by {twice:.1f} %."
    )
    return {
        "sentence": sentence,
        "threads": threads,
        "within_percent": float(within),
        "drift_percent": float(drift),
        "kernel_percent": spread,
        "twice_percent": float(twice),
    }
