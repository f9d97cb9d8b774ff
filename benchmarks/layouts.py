"""Rows brought together for the questions that every view of a result asks.

Pure functions on the rows of a result (schema 2). A layer in a setting (threads, batch, device) becomes a `Comparison`
with four rows: NCHW native, NHWC native, NCHW in and out through NHWC with both conversions inside the time, and the
best float32 peer. What `algorithm="auto"` picks stands for a native layout, so that nobody is shown a time that needs a
search; the fastest algorithm is kept beside it. Rows of another dtype than float32 are never part of a comparison.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .problem import parse_problem

Row = dict[str, Any]
Data = dict[str, Any]

OURS = "fastconv"
#: The four rows of a comparison, in the order in which they are shown.
WAYS = ("nchw", "nhwc", "via", "peer")
#: Differences below this are not worth a choice, however sure they are.
WORTH = 0.02


@dataclass(frozen=True, order=True)
class Setting:
    """What a group of rows has in common: number of threads, batch size, device, and our ISA level where a result has
    more than one (else "")."""

    threads: int
    batch: int
    device: str = "cpu"
    isa: str = ""

    def __str__(self) -> str:
        words = [f"{self.threads} thread{'s' if self.threads > 1 else ''}", f"batch {self.batch}", self.isa]
        return ", ".join(word for word in (*words, self.device if self.device != "cpu" else "") if word)

    def holds(self, row: Row) -> bool:
        """Whether the row belongs to it. A peer's row knows nothing of our ISA levels and belongs to all of them."""
        same = (int(row["threads"]), int(row["batch"]), _device(row)) == (self.threads, self.batch, self.device)
        return same and (not self.isa or not is_ours(row) or row.get("isa") == self.isa)


@dataclass(frozen=True)
class Comparison:
    """One layer (or network) in one setting: its rows, and the four that stand for the four ways to run it.

    `nchw`, `nhwc`: what "auto" picks in that layout, else the fastest; the same row where the layer has no layout
    (`has_layout` False). `nchw_fastest`, `nhwc_fastest`: the fastest algorithm. `via`: NCHW in and out, computed in
    NHWC. `peer`: the float32 row of another library with the lowest median. `winner`: one of WAYS, or "" where nothing
    is to be compared; `factor`: the next best median over the winner's (the layout of a layer without one counts
    once), None where there is no second; `clear`: whether that is more than the noise and worth a choice.
    `convert_ms`: what the conversions of `via` take alone, where that was measured.
    """

    layer: str
    problem: str
    op: str
    repeat: int
    setting: Setting
    has_layout: bool
    rows: tuple[Row, ...]
    nchw: Row | None
    nhwc: Row | None
    nchw_fastest: Row | None
    nhwc_fastest: Row | None
    via: Row | None
    peer: Row | None
    winner: str
    factor: float | None
    clear: bool
    convert_ms: float | None = None

    def way(self, name: str) -> Row | None:
        """The row of that way, one of WAYS."""
        rows = {"nchw": self.nchw, "nhwc": self.nhwc, "via": self.via, "peer": self.peer}
        return rows[name]

    @property
    def ours(self) -> Row | None:
        """The faster of the two native rows: what to run here if the layout is free."""
        return fastest(row for row in (self.nchw, self.nhwc) if row is not None)

    @property
    def ours_fastest(self) -> Row | None:
        """The fastest algorithm in the layout of `ours`: another one where "auto" does not pick the best."""
        return self.nhwc_fastest if self.ours is self.nhwc else self.nchw_fastest


@dataclass(frozen=True)
class Ratio:
    """Ours against a peer on one layer. `layout`: the one that both use, or "best" (each in its fastest)."""

    layer: str
    repeat: int
    setting: Setting
    peer: str
    layout: str
    ours_ms: float
    peer_ms: float

    @property
    def ratio(self) -> float:
        """Our time over theirs: below 1 we are faster."""
        return self.ours_ms / self.peer_ms


@dataclass(frozen=True)
class Against:
    """All ratios of one peer, layout and setting in numbers. Sums are in ms, each layer times its repeat count."""

    peer: str
    layout: str
    setting: Setting
    layers: int
    won: int
    geometric_mean: float
    ours_sum_ms: float
    peer_sum_ms: float

    @property
    def ratio_of_sums(self) -> float:
        return self.ours_sum_ms / self.peer_sum_ms


def median(row: Row) -> float:
    """The median of a row's warm samples in ms."""
    return float(row["median_ms"])


def fastest(rows: Iterable[Row]) -> Row | None:
    """The row with the lowest median; the first of equal ones; None of none."""
    return min(rows, key=median, default=None)


def _device(row: Row) -> str:
    return str(row.get("device") or "cpu")


def isa_levels(rows: Iterable[Row]) -> list[str]:
    """Our ISA levels in a result, in the order in which they ran."""
    return list(dict.fromkeys(str(row["isa"]) for row in rows if is_ours(row) and row.get("isa")))


def settings(rows: Sequence[Row]) -> list[Setting]:
    """The settings of layers and networks, in the order in which they were run."""
    levels = isa_levels(rows)
    found: dict[Setting, None] = {}
    for row in rows:
        if row["kind"] in ("layer", "network"):
            for level in _levels_of(row, levels):
                found[Setting(int(row["threads"]), int(row["batch"]), _device(row), level)] = None
    return list(found)


def _levels_of(row: Row, levels: list[str]) -> list[str]:
    """The ISA levels in whose settings the row is to appear."""
    if len(levels) < 2:
        return [""]
    return [str(row.get("isa", ""))] if is_ours(row) else levels


def main_setting(rows: Sequence[Row]) -> Setting | None:
    """The one to show first: the most threads, then the smallest batch, then the highest ISA level."""
    ranks = ("", "scalar", "avx2", "avx512")
    return min(
        settings(rows),
        key=lambda s: (-s.threads, s.batch, -(ranks.index(s.isa) if s.isa in ranks else len(ranks))),
        default=None,
    )


def is_ours(row: Row) -> bool:
    return bool(row["provider"] == OURS)


def is_float32(row: Row) -> bool:
    return bool(row.get("dtype", "float32") == "float32")


def two_layouts(rows: Iterable[Row]) -> set[str]:
    """The providers that were timed in both layouts, so that a row of theirs has to say which."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        if row["kind"] in ("layer", "network"):
            seen.setdefault(row["provider"], set()).add(row["layout"])
    return {provider for provider, layouts in seen.items() if {"NCHW", "NHWC"} <= layouts}


def label(row: Row, both: set[str] | None = None, algorithm: bool = True) -> str:
    """A row's way in words: "NHWC direct", "NCHW via NHWC", "pytorch NHWC", "onnxruntime".

    `both`: the providers that need their layout said (all of them if left out), see `two_layouts`.
    """
    if not is_ours(row):
        said = row["layout"] != "-" and (both is None or row["provider"] in both)
        return f"{row['provider']} {row['layout']}" if said else str(row["provider"])
    layout = "" if row["layout"] == "-" else str(row["layout"])
    if row.get("via"):
        return f"{layout} via {row['via']}"
    chosen = str(row["algorithm"]) if algorithm else ""
    return f"{layout} {chosen}".strip() or OURS


def comparisons(rows: Sequence[Row], kind: str = "layer") -> list[Comparison]:
    """A comparison for each layer (kind "layer") or network (kind "network") and setting, in the order of the rows."""
    levels = isa_levels(rows)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] == kind:
            for level in _levels_of(row, levels):
                setting = Setting(int(row["threads"]), int(row["batch"]), _device(row), level)
                # Two problems of one name are two layers.
                groups.setdefault((row.get("suite"), row["layer"], row.get("problem"), setting), []).append(row)
    conversions = {_place(row): median(row) for row in rows if row["layout"] == "NCHW->NHWC->NCHW"}
    found = [_comparison(group, key[-1]) for key, group in groups.items()]
    return [
        dataclasses.replace(c, convert_ms=c.via.get("convert_ms", conversions.get(_place(c.via)))) if c.via else c
        for c in found
    ]


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("suite", "layer", "problem", "threads", "batch", "device", "isa"))


def _comparison(rows: list[Row], setting: Setting) -> Comparison:
    first = rows[0]
    compared = [row for row in rows if is_float32(row)]
    native = [row for row in compared if is_ours(row) and not row.get("via")]
    has_layout = not any(row["layout"] == "-" for row in native) if native else first["layout"] != "-"
    nchw, nchw_fastest = _native(native, "NCHW" if has_layout else "-")
    nhwc, nhwc_fastest = _native(native, "NHWC") if has_layout else (nchw, nchw_fastest)
    via = fastest(row for row in compared if is_ours(row) and row.get("via"))
    peer = fastest(row for row in compared if not is_ours(row))
    winner, factor, clear = _winner({"nchw": nchw, "nhwc": nhwc if has_layout else None, "via": via, "peer": peer})
    return Comparison(
        layer=str(first["layer"]),
        problem=str(first.get("problem", "")),
        op=str(first.get("op", "")),
        repeat=int(first.get("repeat", 1)),
        setting=setting,
        has_layout=has_layout,
        rows=tuple(rows),
        nchw=nchw,
        nhwc=nhwc,
        nchw_fastest=nchw_fastest,
        nhwc_fastest=nhwc_fastest,
        via=via,
        peer=peer,
        winner=winner,
        factor=factor,
        clear=clear,
    )


def _native(rows: list[Row], layout: str) -> tuple[Row | None, Row | None]:
    """What "auto" picks in the layout, and the fastest there."""
    own = [row for row in rows if row["layout"] == layout]
    best = fastest(own)
    return fastest(row for row in own if row.get("auto")) or best, best


def _winner(ways: dict[str, Row | None]) -> tuple[str, float | None, bool]:
    order = sorted(((median(row), name, row) for name, row in ways.items() if row is not None), key=lambda way: way[:2])
    if not order:
        return "", None, False
    if len(order) == 1:
        return order[0][1], None, False
    (first, name, best), (second, _, other) = order[:2]
    return name, second / first, clearly_faster(best, other)


def clearly_faster(fast: Row, slow: Row) -> bool:
    """Whether the medians differ by more than WORTH and than their 95 % intervals allow; no if those are not known."""
    spreads = [row.get("spread") for row in (fast, slow)]
    if any(spread is None for spread in spreads):
        return False
    noise = math.hypot(*(float(spread) for spread in spreads if spread is not None))
    return median(slow) / median(fast) - 1.0 > max(WORTH, noise)


def weighted_sums(comparisons: Sequence[Comparison]) -> tuple[dict[str, float], int]:
    """The time of all layers in ms, each times its repeat count, for each of WAYS; and how many layers that is.

    Only layers that have every way which any of them has are counted, so that the sums stand for the same work. A layer
    without a layout needs no conversion: its one row counts for all three of ours.
    """
    wanted = [way for way in WAYS if any(_row_for_sum(c, way) is not None for c in comparisons)]
    sums = dict.fromkeys(wanted, 0.0)
    count = 0
    for c in comparisons:
        rows = {way: _row_for_sum(c, way) for way in wanted}
        if all(row is not None for row in rows.values()):
            count += 1
            for way, row in rows.items():
                sums[way] += c.repeat * median(row) if row is not None else 0.0
    return (sums, count) if count else ({}, 0)


def _row_for_sum(comparison: Comparison, way: str) -> Row | None:
    row = comparison.way(way)
    return comparison.nchw if row is None and way == "via" and not comparison.has_layout else row


def ratios(comparisons: Iterable[Comparison]) -> list[Ratio]:
    """Ours over each float32 peer for each layer: in each layout that both have, and "best" (each in its fastest).

    Ours is what "auto" picks in a native layout; rows through another layout are not part of this.
    """
    found: list[Ratio] = []
    for c in comparisons:
        own = {"NCHW": c.nchw, "NHWC": c.nhwc} if c.has_layout else {"-": c.nchw}
        theirs: dict[str, list[Row]] = {}
        for row in c.rows:
            if not is_ours(row) and is_float32(row):
                theirs.setdefault(row["provider"], []).append(row)
        for provider, rows in theirs.items():
            pairs = [(row["layout"], own.get(row["layout"]), row) for row in rows] if c.has_layout else []
            pairs.append(("best", c.ours, fastest(rows) or rows[0]))
            found += [
                Ratio(c.layer, c.repeat, c.setting, provider, layout, median(mine), median(row))
                for layout, mine, row in pairs
                if mine is not None
            ]
    return found


def against(found: Iterable[Ratio]) -> list[Against]:
    """The ratios of each peer, layout and setting summed up, in the order of their first appearance; "best" last."""
    groups: dict[tuple[Setting, str, str], list[Ratio]] = {}
    for ratio in found:
        groups.setdefault((ratio.setting, ratio.peer, ratio.layout), []).append(ratio)
    peers = list(dict.fromkeys((setting, peer) for setting, peer, _ in groups))
    order = sorted(groups, key=lambda key: (peers.index(key[:2]), key[2] == "best"))
    return [
        Against(
            peer=peer,
            layout=layout,
            setting=setting,
            layers=len(own := groups[(setting, peer, layout)]),
            won=sum(r.ratio < 1.0 for r in own),
            geometric_mean=geometric_mean([r.ratio for r in own]),
            ours_sum_ms=sum(r.repeat * r.ours_ms for r in own),
            peer_sum_ms=sum(r.repeat * r.peer_ms for r in own),
        )
        for setting, peer, layout in order
    ]


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers. ValueError of none."""
    if not values:
        raise ValueError("geometric_mean: no values")
    return math.exp(sum(math.log(value) for value in values) / len(values))


def ways(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The distinct ways among `rows` by `label`, each with its first row: ours by layout, through NHWC, the peers."""
    both = two_layouts(rows)
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(label(row, both), row)
    return sorted(found.items(), key=_order)


def _order(way: tuple[str, Row]) -> tuple[bool, bool, str]:
    row = way[1]
    return (not is_ours(row), bool(row.get("via")), str(row["layout"]) if is_ours(row) else "")


@dataclass(frozen=True)
class Total:
    """What one way takes for everything: a network end to end, or the sum over its layers (`layers` of them, else 0).

    `ms`: the median, or the sum of medians times repeat counts. `row`: the network's row, or one layer's.
    """

    label: str
    ms: float
    row: Row
    layers: int


def totals(rows: Sequence[Row], setting: Setting, network: str | None = None) -> list[Total]:
    """How long each way takes in a setting, in the rows' order: for the network (the first unless named), else for all
    layers.

    A sum over the layers is given only for a way that ran every one of them, so that all sums stand for the same work.
    Rows of other dtypes are in the list only for a network.
    """
    here = [row for row in rows if setting.holds(row)]
    own = [row for row in here if row["kind"] == "network" and network in (None, row["layer"])]
    if own:
        both = two_layouts(own)
        first = own[0]["layer"]
        return [Total(label(r, both, r["algorithm"] != "auto"), median(r), r, 0) for r in own if r["layer"] == first]
    return _layer_totals(comparisons(here))


def _layer_totals(compared: list[Comparison]) -> list[Total]:
    both = two_layouts([row for c in compared for row in c.rows])
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    samples: dict[str, Row] = {}
    for c in compared:
        own = {"NCHW": c.nchw, "NHWC": c.nhwc, "NCHW via NHWC": _row_for_sum(c, "via")}
        best: dict[str, Row | None] = {**own}
        for row in c.rows:
            if not is_ours(row) and is_float32(row):
                names = [label(row, both)]
                if row["layout"] == "-" and row["provider"] in both:
                    names = [f"{row['provider']} {layout}" for layout in ("NCHW", "NHWC")]
                best.update(dict.fromkeys(names, row))
        for name, chosen in best.items():
            if chosen is not None:
                sums[name] = sums.get(name, 0.0) + c.repeat * median(chosen)
                counts[name] = counts.get(name, 0) + 1
                samples.setdefault(name, chosen)
    full = [name for name in sums if counts[name] == len(compared)]
    return [Total(name, sums[name], samples[name], counts[name]) for name in full]


def sweep_points(data: Data) -> list[tuple[float, Comparison]]:
    """The varied value and the comparison of each step of a crossover run, in rising order; empty without a sweep."""
    sweep = data.get("sweep")
    if not sweep:
        return []
    points: list[tuple[float, Comparison]] = []
    for c in comparisons(data["rows"]):
        value = c.rows[0].get("sweep_value", _varied(c, str(sweep["vary"])))
        if value is not None and value in sweep["values"]:
            points.append((float(value), c))
    return sorted(points, key=lambda point: point[0])


def _varied(comparison: Comparison, vary: str) -> int | None:
    if vary == "n":
        return comparison.setting.batch
    try:
        value = getattr(parse_problem(comparison.problem), vary, None)
    except ValueError:  # a problem of a later version: no point, rather than no report
        return None
    return value if isinstance(value, int) else None
