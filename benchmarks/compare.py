"""Two runs, row by row: FASTER, SLOWER, SAME or UNSURE, from the samples and not from two numbers.

For each row that both runs have, the ratio of the medians (B over A) and its 95 % interval come from a bootstrap over
bursts (calls of one burst resemble each other, so bursts are what is drawn). With a margin m (4 % unless told): FASTER
and SLOWER need the whole interval beyond the margin, SAME the whole interval within it; anything else is UNSURE.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .report import aligned
from .schema import row_key
from .verdict import F64, RESAMPLES, Row, interval, resampled_medians, thin

MARGIN = 0.04
_STATISTICS = {"median": "median_ms", "min": "min_ms", "p10": "p10_ms", "p90": "p90_ms"}


@dataclass(frozen=True)
class Change:
    """One row of A against the same of B. `ratio`: B's median over A's; `low`, `high`: its 95 % interval."""

    row: Row
    other: Row
    ratio: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Threshold:
    """`--fail-if median:5%`: the statistic, and by what fraction it may rise."""

    statistic: str
    fraction: float


def parse_threshold(text: str) -> Threshold:
    """Reads `median:5%` or `p90:0.1`. ValueError for anything else."""
    match = re.fullmatch(r"\s*(\w+)\s*:\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    if match is None or match[1] not in _STATISTICS:
        raise ValueError(f"fail-if: {text!r} is not like median:5% (statistics: {', '.join(_STATISTICS)})")
    value = float(match[2])
    return Threshold(match[1], value / 100 if match[3] else value)


def compare_rows(a: Row, b: Row, margin: float = MARGIN) -> Change:
    """The verdict on one row of two runs."""
    ratios = resampled_medians(b, 2) / resampled_medians(a, 1)
    low, high = interval(ratios)
    ratio = float(np.median(b["samples_ms"]) / np.median(a["samples_ms"]))
    if thin([a, b]):
        verdict = "UNSURE"
    elif low > 1 + margin:
        verdict = "SLOWER"
    elif high < 1 / (1 + margin):
        verdict = "FASTER"
    elif low >= 1 / (1 + margin) and high <= 1 + margin:
        verdict = "SAME"
    else:
        verdict = "UNSURE"
    return Change(a, b, ratio, low, high, verdict)


def compare(a: dict[str, Any], b: dict[str, Any], margin: float = MARGIN) -> list[Change]:
    """Verdicts on every row that both runs have, in A's order. ValueError if they share none."""
    others = {row_key(row): row for row in b["rows"]}
    changes = [compare_rows(row, others[row_key(row)], margin) for row in a["rows"] if row_key(row) in others]
    if not changes:
        raise ValueError("compare: the two results have no row in common")
    return changes


def failures(changes: list[Change], threshold: Threshold) -> list[Change]:
    """Rows whose statistic rose by more than the threshold, which is sure where its 95 % interval lies above it.

    The verdict's margin does not matter here: a threshold below it can fail a row that is the SAME.
    """
    limit = 1 + threshold.fraction
    key = _STATISTICS[threshold.statistic]
    return [c for c in changes if c.other[key] / c.row[key] > limit and _low(c, threshold.statistic) > limit]


def _low(change: Change, statistic: str) -> float:
    """The lower end of the 95 % interval of B's statistic over A's."""
    if statistic == "median":
        return change.low
    return interval(_resampled(change.other, 2, statistic) / _resampled(change.row, 1, statistic))[0]


def _resampled(row: Row, seed: int, statistic: str) -> F64:
    """The statistic of the samples of bursts drawn with replacement, for each of the resamplings."""
    samples = np.asarray(row["samples_ms"], dtype=np.float64)
    burst = min(row["burst"], len(samples))
    bursts = samples[: len(samples) // burst * burst].reshape(-1, burst)
    drawn = np.random.default_rng(seed).integers(0, len(bursts), (RESAMPLES, len(bursts)))
    pooled = bursts[drawn].reshape(RESAMPLES, -1)
    if statistic == "min":
        return np.asarray(pooled.min(axis=1))
    return np.asarray(np.percentile(pooled, float(statistic[1:]), axis=1))


def geometric_mean(changes: list[Change]) -> float:
    return math.exp(sum(math.log(c.ratio) for c in changes) / len(changes))


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Sentences on what else differs between the runs, so that a change is not blamed on the wrong thing."""
    lines: list[str] = []
    for label, path in (
        ("processor", ("machine", "cpu")),
        ("ISA level", ("machine", "isa")),
        ("affinity", ("affinity",)),
        ("fastconv", ("versions", "fastconv")),
        ("NumPy", ("versions", "numpy")),
    ):
        first, second = _dig(a["environment"], path), _dig(b["environment"], path)
        if first != second:
            lines.append(f"the {label} differs: {first} and {second}")
    for name, run in (("A", a), ("B", b)):
        if not run["complete"]:
            lines.append(f"{name} is an incomplete run")
    keys = [{row_key(row) for row in run["rows"]} for run in (a, b)]
    for name, only in (("A", keys[0] - keys[1]), ("B", keys[1] - keys[0])):
        if only:
            lines.append(f"{len(only)} row{'s' if len(only) > 1 else ''} only in {name}")
    return lines


def _dig(data: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def table(changes: list[Change]) -> list[str]:
    """The verdicts as lines of text, and a last line that counts them."""
    head = ("layer", "layout", "algorithm", "thr", "n", "A ms", "B ms", "B / A", "95 % interval", "verdict")
    body = [
        (
            c.row["layer"],
            c.row["layout"],
            c.row["algorithm"] if c.row["provider"] == "fastconv" else c.row["provider"],
            str(c.row["threads"]),
            str(c.row["batch"]),
            f"{c.row['median_ms']:.3f}",
            f"{c.other['median_ms']:.3f}",
            f"{c.ratio:.3f}",
            f"{c.low:.3f} to {c.high:.3f}",
            c.verdict,
        )
        for c in changes
    ]
    counts = {v: sum(c.verdict == v for c in changes) for v in ("FASTER", "SLOWER", "SAME", "UNSURE")}
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    return [*aligned(head, body, {0, 1, 2, 9}), "", f"{words}; geometric mean of B / A: {geometric_mean(changes):.3f}"]


def as_json(changes: list[Change], notes: list[str], failed: list[Change]) -> dict[str, Any]:
    """The same for a machine."""
    keys = ("kind", "provider", "layer", "layout", "algorithm", "threads", "batch")
    return {
        "schema": 1,
        "notes": notes,
        "geometric_mean": geometric_mean(changes),
        "rows": [
            {
                **{key: c.row[key] for key in keys},
                "a_ms": c.row["median_ms"],
                "b_ms": c.other["median_ms"],
                "ratio": c.ratio,
                "interval": [c.low, c.high],
                "verdict": c.verdict,
                "failed": c in failed,
            }
            for c in changes
        ],
    }
