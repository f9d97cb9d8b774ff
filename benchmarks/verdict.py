"""The result in words: which layout and algorithm to use here, by how much, and whether that is more than noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from .layouts import WORTH
from .resampling import F64, RESAMPLES, Row, interval, resampled_medians, thin


def verdict(data: dict[str, Any]) -> list[str]:
    """Sentences for each ISA level, number of threads and batch size; the very last one says what to use."""
    if data.get("sweep"):
        return [str(line) for line in data["sweep"].get("sentences", [])] or ["Nothing was found."]
    rows = [row for row in data["rows"] if row["dtype"] == "float32" and row["kind"] in ("layer", "network")]
    ours = [row for row in rows if row["provider"] == "fastconv" and row["layout"] != "-"]
    native = [row for row in ours if not row["via"]]
    several = len({row["isa"] for row in native}) > 1
    lines: list[str] = []
    choices: dict[str, list[str]] = {}  # what to use: for which threads and batch sizes
    groups = dict.fromkeys((row["isa"], row["threads"], row["batch"]) for row in native)
    for isa, threads, batch in groups:
        here = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
        group = [row for row in native if (row["isa"], row["threads"], row["batch"]) == (isa, threads, batch)]
        where = f"{isa}, " * several + f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"
        network = sorted((row for row in group if row["kind"] == "network"), key=lambda row: float(row["median_ms"]))
        layers = [row for row in group if row["kind"] == "layer"]
        via = [row for row in here if row["via"] and row["isa"] == isa]
        lines += _via_words(
            layers or network, [row for row in via if row["kind"] == ("layer" if layers else "network")]
        )
        lines += _peer_words(group, [row for row in here if row["provider"] != "fastconv"], where)
        if layers:
            lines += _network_words(network, where)
            words, choice, layout = _layer_words(layers, where)
            if layout and len(network) > 1 and network[0]["layout"] != layout and _worth(network[0], network[1]):
                words[-1] += f" End to end, {network[0]['layer']} is faster in {network[0]['layout']}."
            lines += words
        else:
            lines.append(_network_choice(network, where))
            choice = _name(network[0], " with ")
        choices.setdefault(choice, []).append(where)
    if not groups:
        return ["Nothing was measured that could be compared."]
    if len(groups) > 1:
        if len(choices) == 1:
            ((choice, places),) = choices.items()
            lines.append(f"Use {choice} here, in all that was measured: {'; '.join(places)}.")
        else:
            parts = [f"{choice} for {' and for '.join(places)}" for choice, places in choices.items()]
            lines.append(f"Use here: {'; '.join(parts)}.")
    return lines


def _via_words(native: list[Row], via: list[Row]) -> list[str]:
    """Whether NCHW arrays should take the way through NHWC: from the layers (or networks) that have both rows."""
    own = _fastest([row for row in native if row["layout"] == "NCHW"])
    pairs = [(own[row["layer"]], row) for row in via if row["layer"] in own]
    if not pairs:
        return []
    direct, detour = _total([pair[0] for pair in pairs]), _total([pair[1] for pair in pairs])
    rows = [row for pair in pairs for row in pair]
    first, fast, slow = ("NCHW native", direct, detour)
    if np.median(detour) < np.median(direct):
        first, fast, slow = ("the way through NHWC", detour, direct)
    of = pairs[0][1]["layer"] if len(pairs) == 1 else f"{len(pairs)} layers"
    times = f"{np.median(direct):.2f} ms native, {np.median(detour):.2f} ms through NHWC with both conversions"
    if pairs[0][1]["kind"] == "network":
        times = times.replace("both conversions", "the picture's conversion")
    return [f"NCHW arrays ({of}): {times}: {_difference(first, fast, slow, thin(rows))}"]


def _peer_words(ours: list[Row], peers: list[Row], where: str) -> list[str]:
    """One sentence for the network and one for the layers: the best of ours against the best of the peers."""
    lines: list[str] = []
    for kind in ("network", "layer"):
        best = _fastest([row for row in ours if row["kind"] == kind])
        other = _fastest([row for row in peers if row["kind"] == kind])
        pairs = [(best[name], other[name]) for name in best if name in other]
        if not pairs:
            continue
        if kind == "network":
            for mine, theirs in pairs:
                ratio = mine["median_ms"] / theirs["median_ms"]
                lines.append(
                    f"{mine['layer']} ({where}) against the best peer, {theirs['provider']} {theirs['layout']}: "
                    f"{mine['median_ms']:.2f} to {theirs['median_ms']:.2f} ms, {ratio:.2f} of its time."
                )
            continue
        ratios = [mine["median_ms"] / theirs["median_ms"] for mine, theirs in pairs]
        ahead = sum(ratio <= 1 for ratio in ratios)
        mean = float(np.exp(np.mean(np.log(ratios))))
        lines.append(
            f"Layers ({where}) against the best peer of each: ahead on {ahead} of {len(pairs)}, geometric mean "
            f"{mean:.2f} of its time."
        )
    return lines


def _fastest(rows: list[Row]) -> dict[str, Row]:
    best: dict[str, Row] = {}
    for row in rows:
        if row["layer"] not in best or row["median_ms"] < best[row["layer"]]["median_ms"]:
            best[row["layer"]] = row
    return best


def _network_words(rows: list[Row], where: str) -> list[str]:
    """The network end to end, beside the layers; rows from fast to slow."""
    if len(rows) < 2:
        return []
    times = ", ".join(f"{_name(row)} {row['median_ms']:.2f} ms" for row in rows)
    difference = _difference(
        _name(rows[0]), resampled_medians(rows[0], 1), resampled_medians(rows[1], 2), thin(rows[:2])
    )
    return [f"{rows[0]['layer']} end to end ({where}): {times}: {difference}"]


def _network_choice(rows: list[Row], where: str) -> str:
    """What to use where nothing but the network was measured; rows from fast to slow."""
    best = rows[0]
    only = _only(rows)
    words = (
        f"Use {_name(best, ' with ')} here ({where}{only}): {best['layer']} end to end takes {best['median_ms']:.2f} ms"
    )
    if len(rows) == 1:
        return words + ("." if only else "; there was nothing else to compare it with.")
    fast = resampled_medians(best, 1)
    ratios = [(row, resampled_medians(row, 2) / fast) for row in rows[1:]]
    others = "; ".join(f"{_name(row)} {row['median_ms']:.2f} ms ({_factor(*interval(r))})" for row, r in ratios)
    return f"{words}; {others}.{_doubt(_name(rows[1]), ratios[0][1], thin(rows[:2]))}"


def _only(rows: list[Row]) -> str:
    layouts = dict.fromkeys(str(row["layout"]) for row in rows)
    return f"; only {next(iter(layouts))} was measured" if len(layouts) == 1 else ""


def _doubt(second: str, ratios: F64, unsure: bool) -> str:
    """A sentence on how little the choice may matter; empty where it does."""
    if unsure:
        return " Too few samples to be sure: give it more time with --max-time."
    low, _ = interval(ratios)
    if low <= 1.0:
        return f" {second} is within the noise of it: either will do."
    if low <= 1.0 + WORTH:
        return f" The difference from {second} is too small to matter: either will do."
    return ""


def _worth(fast: Row, slow: Row) -> bool:
    ratios = resampled_medians(slow, 2) / resampled_medians(fast, 1)
    return not thin([fast, slow]) and interval(ratios)[0] > 1.0 + WORTH


def _layer_words(rows: list[Row], where: str) -> tuple[list[str], str, str]:
    """Sums over the layers, each weighted by its repeat count, of every way that ran on all of them.

    Returns sentences, the last of which says what to use; that in two words; and its layout, if it has one.
    """
    layers = dict.fromkeys(row["layer"] for row in rows)
    ways = dict.fromkeys((row["layout"], row["algorithm"]) for row in rows)
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
    of = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}, {count} with repeats"
    lines: list[str] = []
    if len(mixed) == 2:
        (first, a), (second, b) = sorted(mixed.items(), key=lambda item: float(np.median(item[1])))
        times = f"{first} {np.median(a):.2f} ms, {second} {np.median(b):.2f} ms"
        lines.append(
            f"Layouts ({where}; {of}, best algorithm for each): {times}: {_difference(first, a, b, thin(rows))}"
        )
    if partial:
        lines.append(f"Left out of the sums: {'; '.join(partial)}.")
    only = _only(rows)
    if not totals and not mixed:
        words = f"Use the fastest row of each layer ({where}{only}): no layout runs all of the {len(layers)} layers."
        return [*lines, words], "the fastest row of each layer", ""
    if not totals:
        best_layout = min(mixed, key=lambda layout: float(np.median(mixed[layout])))
        choice = f"{best_layout} with the fastest algorithm of each layer"
        words = f"Use {choice} here ({where}{only}): {of} take {np.median(mixed[best_layout]):.2f} ms"
        return [*lines, f"{words}; no single algorithm runs them all."], choice, best_layout
    order = sorted(totals, key=lambda way: float(np.median(totals[way])))
    best = order[0]
    choice = " with ".join(best)
    words = f"Use {choice} here ({where}{only}): {of} take {np.median(totals[best]):.2f} ms"
    if len(order) == 1:
        return [*lines, words + "; there was nothing else to compare it with."], choice, best[0]
    others = []
    for way in order[1:]:
        low, high = interval(totals[way] / totals[best])
        others.append(f"{' '.join(way)} {np.median(totals[way]):.2f} ms ({_factor(low, high)})")
    doubt = _doubt(" with ".join(order[1]), totals[order[1]] / totals[best], thin(rows))
    return [*lines, f"{words}; {'; '.join(others)}.{doubt}"], choice, best[0]


def _best_rows(rows: list[Row], layout: str) -> list[Row]:
    return list(_fastest([row for row in rows if row["layout"] == layout]).values())


def _total(rows: list[Row]) -> F64:
    total = np.zeros(RESAMPLES)
    for number, row in enumerate(rows):
        total += row["repeat"] * resampled_medians(row, 100 + number)
    return total


def _difference(winner: str, fast: F64, slow: F64, unsure: bool) -> str:
    if unsure:
        return f"{winner} is {np.median(slow / fast):.2f} times as fast, from too few samples to be sure."
    low, high = interval(slow / fast)
    if low <= 1.0 + WORTH:
        return (
            f"the difference is {'within the noise' if low <= 1.0 else 'too small to matter'} ({_factor(low, high)})."
        )
    return f"{winner} is {np.median(slow / fast):.2f} times as fast (95 % sure of {low:.2f} to {high:.2f})."


def _factor(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f} times the time"


def _name(row: Row, between: str = " ") -> str:
    return str(row["layout"]) if row["algorithm"] == "auto" else f"{row['layout']}{between}{row['algorithm']}"
