"""The result in words: which layout and which algorithm to use here, by how much, and whether the difference is more
than noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .timing import burst_medians

Row = dict[str, Any]
F64 = NDArray[np.float64]

#: Resampled medians for an interval; the seed makes the words repeat for the same samples.
RESAMPLES = 1000
#: Differences below this are not worth a choice, however sure they are.
WORTH = 0.02
#: Rows with fewer bursts than this have no interval worth the name.
MIN_BURSTS = 5


def resampled_medians(row: Row, seed: int, resamples: int = RESAMPLES) -> F64:
    """Medians in ms, each of bursts drawn with replacement: what the median might have been in another run."""
    medians = burst_medians(row["samples_ms"], row["burst"])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(medians), (resamples, len(medians)))
    return np.asarray(np.median(medians[drawn], axis=1))


def interval(values: F64) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def verdict(rows: list[Row]) -> list[str]:
    """Sentences for each number of threads and batch size; the very last one says what to use."""
    ours = [row for row in rows if row["provider"] == "fastconv"]
    groups = dict.fromkeys((row["threads"], row["batch"]) for row in ours if row["kind"] in ("conv", "network"))
    lines: list[str] = []
    for threads, batch in groups:
        group = [row for row in ours if (row["threads"], row["batch"]) == (threads, batch)]
        where = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"
        lines += _network_words(group, where)
        lines += _layer_words([row for row in group if row["kind"] == "conv"], where)
    return lines or ["Nothing was measured that could be compared."]


def _network_words(group: list[Row], where: str) -> list[str]:
    rows = sorted((row for row in group if row["kind"] == "network"), key=lambda row: float(row["median_ms"]))
    if len(rows) < 2:
        return []
    times = ", ".join(f"{_name(row)} {row['median_ms']:.2f} ms" for row in rows)
    difference = _difference(
        _name(rows[0]), resampled_medians(rows[0], 1), resampled_medians(rows[1], 2), thin(rows[:2])
    )
    return [f"{rows[0]['layer']} end to end ({where}): {times}: {difference}"]


def _layer_words(rows: list[Row], where: str) -> list[str]:
    """Sums over the layers, each weighted by its repeat count, of every way that ran on all of them."""
    layers = dict.fromkeys(row["layer"] for row in rows)
    ways = dict.fromkeys((row["layout"], row["algorithm"]) for row in rows)
    if not rows:
        return []
    totals: dict[tuple[str, str], F64] = {}
    partial: list[str] = []
    for layout, algorithm in ways:
        own = [row for row in rows if (row["layout"], row["algorithm"]) == (layout, algorithm)]
        if len(own) == len(layers):
            totals[(layout, algorithm)] = _total(own)
        else:
            partial.append(f"{layout} {algorithm} runs {len(own)} of {len(layers)}")
    for layout in dict.fromkeys(row["layout"] for row in rows):
        # What `algorithm="auto"` would take, summed from the rows that it picks; told where it is no single algorithm.
        picks = [row for row in rows if row["layout"] == layout and row.get("auto")]
        if len(picks) == len(layers) and len({row["algorithm"] for row in picks}) > 1:
            totals[(layout, "auto")] = _total(picks)
    # The best algorithm of each layer, for each layout: what a good choice per layer would reach.
    bests = {layout: _best_rows(rows, layout) for layout in dict.fromkeys(row["layout"] for row in rows)}
    mixed = {layout: _total(own) for layout, own in bests.items() if len(own) == len(layers)}
    count = sum(max(row["repeat"] for row in rows if row["layer"] == layer) for layer in layers)
    of = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}, {count} convolution{'s' if count > 1 else ''}"
    lines: list[str] = []
    if len(mixed) == 2:
        (first, a), (second, b) = sorted(mixed.items(), key=lambda item: float(np.median(item[1])))
        times = f"{first} {np.median(a):.2f} ms, {second} {np.median(b):.2f} ms"
        lines.append(
            f"Layouts ({where}; {of}, best algorithm for each): {times}: {_difference(first, a, b, thin(rows))}"
        )
    if partial:
        lines.append(f"Left out of the sums: {'; '.join(partial)}.")
    if not totals:
        return [*lines, f"No single algorithm ran on all layers ({where}): choose per layer from the table."]
    order = sorted(totals, key=lambda way: float(np.median(totals[way])))
    best = order[0]
    words = f"Use {' with '.join(best)} here ({where}): {of} take {np.median(totals[best]):.2f} ms"
    if len(order) == 1:
        return [*lines, words + "; there was nothing else to compare it with."]
    others = []
    for way in order[1:]:
        low, high = interval(totals[way] / totals[best])
        others.append(f"{' '.join(way)} {np.median(totals[way]):.2f} ms ({_factor(low, high)})")
    lines.append(f"{words}; {'; '.join(others)}.")
    low, _ = interval(totals[order[1]] / totals[best])
    if thin(rows):
        lines[-1] = lines[-1][:-1] + ". Too few samples to be sure: give it more time with --max-time."
    elif low <= 1.0 + WORTH:
        lines[-1] = lines[-1][:-1] + f". {' with '.join(order[1])} is within the noise of it: either will do."
    return lines


def _best_rows(rows: list[Row], layout: str) -> list[Row]:
    best: dict[str, Row] = {}
    for row in rows:
        if row["layout"] == layout and (row["layer"] not in best or row["median_ms"] < best[row["layer"]]["median_ms"]):
            best[row["layer"]] = row
    return list(best.values())


def _total(rows: list[Row]) -> F64:
    total = np.zeros(RESAMPLES)
    for number, row in enumerate(rows):
        total += row["repeat"] * resampled_medians(row, 100 + number)
    return total


def thin(rows: list[Row]) -> bool:
    """Whether any row has too few bursts to say how sure it is."""
    return any(len(row["samples_ms"]) // row["burst"] < MIN_BURSTS for row in rows)


def _difference(winner: str, fast: F64, slow: F64, unsure: bool) -> str:
    if unsure:
        return f"{winner} is {np.median(slow / fast):.2f} times as fast, from too few samples to be sure."
    low, high = interval(slow / fast)
    if low <= 1.0 + WORTH:
        return f"the difference is within the noise ({_factor(low, high)})."
    return f"{winner} is {np.median(slow / fast):.2f} times as fast (95 % sure of {low:.2f} to {high:.2f})."


def _factor(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f} times the time"


def _name(row: Row) -> str:
    return str(row["layout"]) if row["algorithm"] == "auto" else f"{row['layout']} {row['algorithm']}"
