"""What samples are worth: medians that might have been, drawn again from visits and bursts, and ratios of two rows.

The bootstrap is drawn in two stages, as the samples were taken: visits with replacement, then bursts within each. So an
interval knows both sorts of noise, that from call to call and that from one moment (and one set of memory pages) to
another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .timing import split_bursts

Row = dict[str, Any]
F64 = NDArray[np.float64]

#: Resampled medians for an interval; seeds make the words repeat for the same samples.
RESAMPLES = 1000
#: Rows with fewer bursts than this have no interval worth the name.
MIN_BURSTS = 5


def row_bursts(row: Row, at_one_clock: bool = False) -> list[F64]:
    """The medians (ms) of the bursts of each visit; `at_one_clock`: times the clock that the machine had then, which
    turns times into amounts of work, the same at any clock."""
    parts = split_bursts(row["samples_ms"], row["burst"], row["visits"])
    if at_one_clock and all(value > 0 for value in row["clock"]):
        return [part * clock for part, clock in zip(parts, row["clock"], strict=True)]
    return parts


def resampled_medians(row: Row, seed: int, at_one_clock: bool = False, resamples: int = RESAMPLES) -> F64:
    """Medians of a row as they might have come out in other runs like this one."""
    return drawn_medians(row_bursts(row, at_one_clock), seed, resamples)


def round_ratios(row: Row, base: Row) -> list[F64]:
    """For each visit of two rows that were visited together: bursts of the one over those of the other in the same
    round, so that whatever slowed the machine down for a moment slowed both."""
    pairs = zip(row_bursts(row), row_bursts(base))
    ratios = [first[: len(second)] / second[: len(first)] for first, second in pairs]
    return [part for part in ratios if len(part)]


def cold_ratios(row: Row, base: Row) -> list[F64]:
    """The same for calls with evicted caches."""
    first, second = (np.asarray(r["cold_ms"], dtype=np.float64) for r in (row, base))
    count = min(len(first), len(second))
    return [first[:count] / second[:count]] if count else []


def drawn_medians(parts: list[F64], seed: int, resamples: int = RESAMPLES) -> F64:
    """The median of all, a value for each drawing of visits and of what is within them."""
    rng = np.random.default_rng(seed)
    sizes = np.array([len(part) for part in parts])
    if len(parts) < 3:  # too few visits to draw from: bursts alone
        pool = np.concatenate(parts)
        return np.asarray(np.median(pool[rng.integers(0, len(pool), (resamples, len(pool)))], axis=1))
    padded = np.zeros((len(parts), sizes.max()))
    for number, part in enumerate(parts):
        padded[number, : len(part)] = part
    visits = rng.integers(0, len(parts), (resamples, len(parts)))
    # Every drawn visit gives as many bursts as the largest one has, so that the draws form a plain array.
    within = (rng.random((resamples, len(parts), sizes.max())) * sizes[visits][:, :, None]).astype(np.int64)
    drawn = padded[visits[:, :, None], within]
    return np.asarray(np.median(drawn.reshape(resamples, -1), axis=1))


def interval(values: F64) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def thin(rows: list[Row]) -> bool:
    """Whether any row has too few bursts to say how sure it is."""
    return any(sum(len(part) for part in row_bursts(row)) < MIN_BURSTS for row in rows)
