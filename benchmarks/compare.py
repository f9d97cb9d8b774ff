"""Two runs, row by row: FASTER, SLOWER, SAME or UNSURE, from the samples and not from two numbers.

Both runs are set to one clock first: beside every visit a fixed loop was timed, and a machine that ran 5 % slower then
is not a kernel that did. (Rows that the L3 or memory bounds, and those that only move data, stay as measured: their
clocks are others.) For each row that both runs have, the ratio of the medians (B over A) and its 95 % interval
come from a bootstrap over visits and bursts. With a margin m (5 % unless told):

    SLOWER  the ratio is above 1 + m, and its interval above 1 + m / 2     (FASTER: the same, turned round)
    SAME    the ratio is within the margin, and its interval within twice the margin
    UNSURE  anything else, and any row with fewer than five bursts
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .report import aligned
from .resampling import F64, RESAMPLES, Row, interval, resampled_medians, row_bursts, thin
from .schema import row_key

MARGIN = 0.05
VERDICTS = ("FASTER", "SLOWER", "SAME", "UNSURE")
_STATISTICS = {"median": "median_ms", "min": "min_ms", "p10": "p10_ms", "p90": "p90_ms"}


@dataclass(frozen=True)
class Change:
    """One row of A against the same of B. `raw`: B's median over A's as measured; `ratio`: the same at one clock;
    `low`, `high`: its 95 % interval."""

    row: Row
    other: Row
    raw: float
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


def word(ratio: float, low: float, high: float, margin: float) -> str:
    """The verdict on a ratio and its interval, by the rule above."""
    wide, narrow = 1 + margin, 1 + margin / 2
    if ratio > wide and low > narrow:
        return "SLOWER"
    if ratio < 1 / wide and high < 1 / narrow:
        return "FASTER"
    if 1 / wide <= ratio <= wide and 1 / (1 + 2 * margin) <= low and high <= 1 + 2 * margin:
        return "SAME"
    return "UNSURE"


def compare_rows(a: Row, b: Row, margin: float = MARGIN, one_clock: bool = True) -> Change:
    """The verdict on one row of two runs."""
    clocks = one_clock and follows_clock(a) and all(value > 0 for value in (*a["clock"], *b["clock"]))
    ratios = resampled_medians(b, 2, clocks) / resampled_medians(a, 1, clocks)
    low, high = interval(ratios)
    middle = [float(np.median(np.concatenate(row_bursts(row, clocks)))) for row in (a, b)]
    ratio = middle[1] / middle[0]
    raw = float(np.median(b["samples_ms"]) / np.median(a["samples_ms"]))
    verdict = "UNSURE" if thin([a, b]) else word(ratio, low, high, margin)
    return Change(a, b, raw, ratio, low, high, verdict)


def follows_clock(row: Row) -> bool:
    """Whether the core's clock sets the pace of a row: it does for arithmetic on what the core's caches
    hold, and not for what only moves."""
    return row["kind"] != "convert" and row.get("bound", "compute") in ("compute", "l2")


def compare(a: dict[str, Any], b: dict[str, Any], margin: float = MARGIN, one_clock: bool = True) -> list[Change]:
    """Verdicts on every row that both runs have, in A's order. ValueError if they share none.

    `one_clock` holds for two runs on one machine; between two machines it is the times that count.
    """
    one_clock = one_clock and same_machine(a, b)
    others = {row_key(row): row for row in b["rows"]}
    pairs = [(row, others[row_key(row)]) for row in a["rows"] if row_key(row) in others]
    if not pairs:
        raise ValueError("compare: the two results have no row in common")
    return [compare_rows(row, other, margin, one_clock) for row, other in pairs]


def failures(changes: list[Change], threshold: Threshold) -> list[Change]:
    """Rows whose statistic rose by more than the threshold, which is sure where its 95 % interval lies above it.

    The verdict's margin does not matter here: a threshold below it can fail a row that is the SAME. The median is
    taken at one clock; the other statistics as measured.
    """
    limit = 1 + threshold.fraction
    if threshold.statistic == "median":
        return [c for c in changes if c.ratio > limit and c.low > limit]
    key = _STATISTICS[threshold.statistic]
    return [c for c in changes if c.other[key] / c.row[key] > limit and _low(c, threshold.statistic) > limit]


def _low(change: Change, statistic: str) -> float:
    """The lower end of the 95 % interval of B's statistic over A's."""
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
    clocks = [_clock(run) for run in (a, b)]
    if all(clocks) and same_machine(a, b) and abs(clocks[1] / clocks[0] - 1) > 0.01:
        change = 100 * (clocks[1] / clocks[0] - 1)
        lines.append(f"the machine's clock in B was {change:+.1f} % of A's: ratios are set to one clock (--raw: not)")
    keys = [{row_key(row) for row in run["rows"]} for run in (a, b)]
    for name, only in (("A", keys[0] - keys[1]), ("B", keys[1] - keys[0])):
        if only:
            lines.append(f"{len(only)} row{'s' if len(only) > 1 else ''} only in {name}")
    return lines


def same_machine(a: dict[str, Any], b: dict[str, Any]) -> bool:
    paths = (("machine", "cpu"), ("machine", "isa_found"))
    return all(_dig(a["environment"], path) == _dig(b["environment"], path) for path in paths)


def _clock(run: dict[str, Any]) -> float:
    values = [value for row in run["rows"] for value in row["clock"]]
    return float(np.median(values)) if values else 0.0


def _dig(data: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def table(changes: list[Change]) -> list[str]:
    """The verdicts as lines of text, and a last line that counts them."""
    head = ("layer", "layout", "algorithm", "thr", "n", "A ms", "B ms", "raw", "B / A", "95 % interval", "verdict")
    body = [
        (
            c.row["layer"],
            c.row["layout"] + (f" via {c.row['via']}" if c.row["via"] else ""),
            c.row["algorithm"] if c.row["provider"] == "fastconv" else c.row["provider"],
            str(c.row["threads"]),
            str(c.row["batch"]),
            f"{c.row['median_ms']:.3f}",
            f"{c.other['median_ms']:.3f}",
            f"{c.raw:.3f}",
            f"{c.ratio:.3f}",
            f"{c.low:.3f} to {c.high:.3f}",
            c.verdict,
        )
        for c in changes
    ]
    counts = {v: sum(c.verdict == v for c in changes) for v in VERDICTS}
    words = ", ".join(f"{count} {name} ({100 * count / len(changes):.0f} %)" for name, count in counts.items())
    return [*aligned(head, body, {0, 1, 2, 10}), "", f"{words}; geometric mean of B / A: {geometric_mean(changes):.3f}"]


def as_json(changes: list[Change], notes: list[str], failed: list[Change]) -> dict[str, Any]:
    """The same for a machine."""
    keys = ("kind", "provider", "op", "layer", "layout", "via", "algorithm", "isa", "threads", "batch", "dtype")
    return {
        "schema": 2,
        "notes": notes,
        "geometric_mean": geometric_mean(changes),
        "rows": [
            {
                **{key: c.row[key] for key in keys},
                "a_ms": c.row["median_ms"],
                "b_ms": c.other["median_ms"],
                "raw_ratio": c.raw,
                "ratio": c.ratio,
                "interval": [c.low, c.high],
                "verdict": c.verdict,
                "failed": any(c is f for f in failed),
            }
            for c in changes
        ],
    }
