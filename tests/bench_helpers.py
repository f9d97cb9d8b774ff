"""Rows and result files for the tests of the benchmark: plausible samples, every key that the schema asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastconv.benchmarks import schema, timing
from numpy.typing import NDArray

RNG_SEED = 20241
F64 = NDArray[np.float64]


def noisy(
    rng: np.random.Generator, median: float, visits: int = 5, bursts: int = 6, between: float = 0.015, clock: Any = None
) -> tuple[F64, list[int], list[float]]:
    """Samples (ms), visits and clocks: visits differ by `between`, bursts by 1.5 %, calls by 1 %, with a slow outlier
    now and then, as machines do. `clock`: the machine's speed in each visit, times follow it."""
    speed = np.ones(visits) if clock is None else np.asarray(clock, dtype=np.float64)
    level = median / speed * (1 + between * rng.standard_normal(visits))
    level = level[:, None, None] * (1 + 0.015 * rng.standard_normal((visits, bursts, 1)))
    samples = level * (1 + 0.01 * np.abs(rng.standard_normal((visits, bursts, 5))))
    samples[rng.random(samples.shape) < 0.03] *= 2.5
    return samples.ravel(), [5 * bursts] * visits, [float(400 * s) for s in speed]


def row(samples: Any, visits: list[int] | None = None, clock: list[float] | None = None, **changes: Any) -> Any:
    """A row of our 3x3 layer in NHWC, with the statistics of these samples (ms)."""
    values = [float(s) for s in np.asarray(samples).ravel()]
    visits = visits or [len(values)]
    series = timing.Series(samples=[v / 1e3 for v in values], visits=visits)
    summary = timing.summarise(series)
    found: dict[str, Any] = {
        "kind": "layer", "op": "conv2d", "suite": "s", "layer": "l1", "problem": "l1 ic64 ih56 oc64 kh3 ph1 x1",
        "repeat": 1, "layout": "NHWC", "via": "", "algorithm": "im2col", "provider": "fastconv", "kernel": "k",
        "ukernel": "", "isa": "avx2", "threads": 2, "batch": 1, "device": "cpu", "dtype": "float32", "macs": 10**8,
        "auto": False, "samples_ms": values, "visits": visits, "clock": clock or [400.0] * len(visits), "burst": 5,
        "cold_ms": [], "cold_median_ms": None, "median_ms": summary.median, "p10_ms": summary.p10,
        "p90_ms": summary.p90, "min_ms": summary.minimum, "iqr_ms": summary.iqr,
        "spread": summary.spread if np.isfinite(summary.spread) else None,
    }  # fmt: skip
    return {**found, **changes}


def data(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A whole result with these rows."""
    environment = {"machine": {"cpu": "test", "isa": "avx2", "isa_found": "avx2"}, "versions": {}}
    roof = {"isa": "avx2", "threads": 2, "fma_gflops": 200.0, "bandwidth": {"l2": 150.0, "l3": 60.0, "memory": 20.0}}
    found = {
        "schema": schema.SCHEMA, "tool": schema.TOOL, "complete": True, "notes": [], "settings": {}, "rows": rows,
        "skipped": [], "environment": environment, "rooflines": [roof], "noise": {}, "sweep": None,
    }  # fmt: skip
    return {**found, **changes}
