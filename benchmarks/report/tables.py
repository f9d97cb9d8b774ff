"""What the text, the Markdown and the HTML view have in common: numbers as text, and tables as lists of cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import layouts
from ..layouts import Comparison, Data, Row, Setting
from ..verdict import verdict


@dataclass(frozen=True)
class Table:
    """A table of text. `left`: columns that stand flush left. `foot`: lines under the others, not to be sorted."""

    head: tuple[str, ...]
    body: Sequence[tuple[str, ...]]
    left: frozenset[int] = frozenset()
    foot: tuple[tuple[str, ...], ...] = ()

    def telling(self) -> Table:
        """The table without the columns that say nothing."""
        lines = [*self.body, *self.foot]
        used = [i for i in range(len(self.head)) if any(line[i].strip() for line in lines)]
        kept = [tuple(line[i] for i in used) for line in (self.head, *self.body, *self.foot)]
        left = frozenset(new for new, old in enumerate(used) if old in self.left)
        end = 1 + len(self.body)
        return Table(kept[0], kept[1:end], left, tuple(kept[end:]))


def words(data: Data) -> list[str]:
    """The result in sentences; the last one says what to use."""
    return verdict(data)


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: set[int] | frozenset[int]) -> list[str]:
    """Lines of a table: the columns in `left` flush left, the others flush right."""
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, rule, *body)
    ]


# --- numbers ----------------------------------------------------------------------------------------------------------


def ms(value: float) -> str:
    """A time in ms with three figures after the point, fewer for long ones."""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A number that is per cent already; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def error(row: Row) -> str:
    value = row.get("max_error")
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def spread(row: Row) -> str:
    value = row.get("spread")
    return "?" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def bound(row: Row) -> str:
    """The roof over a row and how much of it is reached: "l3 62"."""
    reached = row.get("roofline_percent")
    return f"{row.get('bound', '')} {percent(reached)}".strip()


def copied(comparison: Comparison) -> str:
    """The speed of a copy of the same bytes that each layout reaches, in per cent: "93/95" (NCHW/NHWC)."""
    rows = (comparison.nchw, comparison.nhwc) if comparison.has_layout else (comparison.nchw,)
    cells = [percent(row.get("copy_percent")) if row else "" for row in rows]
    return "/".join(cells) if any(cells) else ""


def cold(row: Row) -> float | None:
    """How many times as long a call takes whose weights were evicted from the caches."""
    value = row.get("cold_median_ms")
    return None if value is None else float(value) / layouts.median(row)


def algorithm(comparison: Comparison) -> str:
    """What auto picks in the faster layout, and in brackets a clearly faster one: "direct (im2col)"."""
    row, best = comparison.ours, comparison.ours_fastest
    if row is None:
        return ""
    name = str(row["algorithm"])
    if best is None or best is row or not layouts.clearly_faster(best, row):
        return name
    return f"{name} ({best['algorithm']})"


def images_per_second(row: Row) -> float:
    return 1e3 * float(row["batch"]) / layouts.median(row)


# --- what was run, and where ------------------------------------------------------------------------------------------


def headline(data: Data) -> list[str]:
    """Versions, machine and measured roofs, a line each."""
    environment = data["environment"]
    found, versions = environment.get("machine", {}), environment.get("versions", {})
    others = {"fastconv", "numpy", "python"}
    named = [("fastconv", versions.get("fastconv", "?")), ("NumPy", versions.get("numpy", "?"))]
    named += [(name, value) for name, value in versions.items() if name not in others]
    processor = f"{found.get('cpu', 'unknown processor')}, {found.get('isa', '?')}"
    return [
        f"{', '.join(f'{name} {value}' for name, value in named)}; {environment.get('date', 'no date')}",
        f"{processor}; measured: {'; '.join(roofs(data)) or 'no roofline'}",
        *([] if data.get("complete", True) else ["This run is incomplete: not everything was measured."]),
    ]


def roofs(data: Data) -> list[str]:
    """Each measured roofline in words: peak of float32 FMAs, and bandwidths in GB/s."""
    lines = []
    for roof in data.get("rooflines") or []:
        bandwidths = [
            f"{name if name == 'memory' else name.upper()} {value:.0f} GB/s"
            for name, value in (roof.get("bandwidth") or {}).items()
            if value
        ]
        where = f"{roof['isa']}, {roof['threads']} thread{'s' if roof['threads'] > 1 else ''}"
        peak = f"FMA peak {roof['fma_gflops']:.0f} GFLOP/s"
        lines.append(f"{', '.join([peak, *bandwidths])} ({where})")
    return lines


def remarks(data: Data) -> list[str]:
    """The noise, the notes and what else a reader must know before the words."""
    lines = [str(data["noise"]["sentence"])] if (data.get("noise") or {}).get("sentence") else []
    lines += [f"Note: {note}" for note in data["notes"]]
    other = sorted({str(row["dtype"]) for row in data["rows"] if not layouts.is_float32(row)})
    if other:
        lines.append(f"Rows in {', '.join(other)} compute something else than float32: shown, never compared with it.")
    return lines


def sections(data: Data) -> list[tuple[str, Setting, list[Comparison]]]:
    """The layers in groups that belong into one table: a setting each, its words, and the main one first.

    The steps of a crossover run are one group for each number of threads and ISA level, whatever their batch.
    """
    rows = data["rows"]
    compared = layouts.comparisons(rows)
    main = layouts.main_setting(rows)
    order = sorted(layouts.settings(rows), key=lambda setting: setting != main)
    if not data.get("sweep"):
        groups = [(str(setting), setting, [c for c in compared if c.setting == setting]) for setting in order]
        return [group for group in groups if group[2]]
    points = [c for _, c in layouts.sweep_points(data)]
    groups = []
    for setting in {(s.threads, s.isa): s for s in reversed(order)}.values():
        own = [c for c in points if (c.setting.threads, c.setting.isa) == (setting.threads, setting.isa)]
        where = (
            f"{setting.threads} thread{'s' if setting.threads > 1 else ''}{f', {setting.isa}' if setting.isa else ''}"
        )
        groups.append((where, setting, own))
    groups.sort(key=lambda group: main is None or (group[1].threads, group[1].isa) != (main.threads, main.isa))
    return [group for group in groups if group[2]]


# --- tables -----------------------------------------------------------------------------------------------------------

COMPARED = '* the fastest of the four, ~ too close to call; by: the next best over it. NCHW, NHWC: what "auto" picks'


def compared(comparisons: Sequence[Comparison], both: set[str], whole: bool = True) -> Table:
    """A line a layer, its four rows as columns; then facts of the faster native row, see `COMPARED`.

    `whole`: the layers are one network or suite, so their sum means something.
    """
    head = (
        *("layer", "x", "NCHW ms", "NHWC ms", "via ms", "peer ms", "peer", "by", "algorithm", "% peak", "% of roof"),
        *("% copy", "cold x", "max error"),
    )
    body = []
    for c in comparisons:
        ours = c.ours or {}
        body.append(
            (
                c.layer,
                str(c.repeat),
                *(way_ms(c, way) for way in layouts.WAYS),
                layouts.label(c.peer, both) if c.peer else "",
                times(c.factor),
                algorithm(c),
                percent(ours.get("peak_percent")),
                bound(ours),
                copied(c),
                times(cold(ours)) if ours else "",
                error(ours),
            )
        )
    sums, count = layouts.weighted_sums(comparisons)
    foot: tuple[tuple[str, ...], ...] = ()
    if count > 1 and whole:
        total = [f"{ms(sums[way])} " if way in sums else "" for way in layouts.WAYS]
        foot = ((f"sum, {of(count, len(comparisons))}", "", *total, *[""] * 8),)
    return Table(head, body, frozenset({0, 6, 8, 10}), foot)


def of(count: int, everything: int) -> str:
    return f"{count} of {everything} layers" if count < everything else f"{count} layers"


def way_ms(comparison: Comparison, way: str) -> str:
    """The way's median with its mark; "=" where the layer has no layout and so no other time in this one."""
    if way == "nhwc" and not comparison.has_layout and comparison.nchw is not None:
        return "= "
    row = comparison.way(way)
    if row is None:
        return ""
    mark = " " if way != comparison.winner or comparison.factor is None else "*" if comparison.clear else "~"
    return ms(layouts.median(row)) + mark


def against(comparisons: Sequence[Comparison]) -> Table:
    """Ours over each float32 peer: geometric mean over the layers, ratio of the sums, layers won."""
    head = ("peer", "layout", "layers", "won", "geo. mean", "ours ms", "peer ms", "ours / peer")
    body = [
        (
            a.peer,
            a.layout,
            str(a.layers),
            str(a.won),
            f"{a.geometric_mean:.3f}",
            ms(a.ours_sum_ms),
            ms(a.peer_sum_ms),
            f"{a.ratio_of_sums:.3f}",
        )
        for a in layouts.against(layouts.ratios(comparisons))
    ]
    return Table(head, body, frozenset({0, 1}))


def networks(rows: Sequence[Row], setting: Setting) -> Table:
    """Each way to run each network in a setting, fastest float32 first; other dtypes last, without a ratio."""
    head = ("network", "way", "ms", "+- %", "images/s", "x fastest", "% peak", "cold x", "max error")
    here = [row for row in rows if row["kind"] == "network" and setting.holds(row)]
    both = layouts.two_layouts(here)
    body = []
    for name in dict.fromkeys(row["layer"] for row in here):
        own = [row for row in here if row["layer"] == name]
        fast = min((layouts.median(row) for row in own if layouts.is_float32(row)), default=0.0)
        for row in sorted(own, key=lambda r: (not layouts.is_float32(r), layouts.median(r))):
            body.append(
                (
                    str(name),
                    way(row, both),
                    ms(layouts.median(row)),
                    spread(row),
                    f"{images_per_second(row):.1f}",
                    times(layouts.median(row) / fast) if layouts.is_float32(row) else str(row["dtype"]),
                    percent(row.get("peak_percent")),
                    times(cold(row)),
                    error(row),
                )
            )
    return Table(head, body, frozenset({0, 1}))


def way(row: Row, both: set[str]) -> str:
    """The row's way as `layouts.label` has it, ours with our name before it; "auto" goes without saying."""
    name = layouts.label(row, both, row["algorithm"] != "auto")
    return f"{layouts.OURS} {name}" if layouts.is_ours(row) and name != layouts.OURS else name


def converts(rows: Sequence[Row]) -> Table:
    """A line a tensor (or layer) and setting, a time and a rate for each direction."""
    own = [row for row in rows if row["kind"] == "convert"]
    several = len({row.get("isa") for row in own}) > 1
    directions = list(dict.fromkeys(str(row["layout"]) for row in own))
    groups: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in own:
        key = (str(row["layer"]), str(row["threads"]), str(row["batch"]), str(row.get("isa")) if several else "")
        groups.setdefault(key, {})[row["layout"]] = row
    body: list[tuple[str, ...]] = []
    for key, found in groups.items():
        cells: list[str] = []
        for direction in directions:
            if direction in found:
                cells += [ms(layouts.median(found[direction])), percent(found[direction].get("gbytes_per_s"), 1)]
            else:
                cells += ["", ""]
        body.append((*key, *cells))
    heads = [word for direction in directions for word in (f"{direction} ms", "GB/s")]
    return Table(("layer or tensor", "thr", "n", "isa", *heads), body, frozenset({0, 3}))


def everything(rows: Sequence[Row]) -> Table:
    """Every row with everything that was found out about it. The star marks what `algorithm="auto"` picks."""
    head = (
        "layer", "x", "layout", "via", "algorithm", "kernel", "isa", "dtype", "thr", "n", "median ms", "+- %", "p10 ms",
        "p90 ms", "cold ms", "GFLOP/s", "GB/s", "% peak", "bound", "% of roof", "% copy", "FLOP/B", "pack ms",
        "convert ms", "max error",
    )  # fmt: skip
    return Table(head, [_cells(row) for row in rows], frozenset({0, 2, 3, 4, 5, 6, 7, 18}))


def _cells(row: Row) -> tuple[str, ...]:
    star = " *" if row.get("auto") and row["algorithm"] != "auto" else ""
    chosen = str(row["algorithm"]) if layouts.is_ours(row) else str(row["provider"])

    def number(key: str, digits: int) -> str:
        value = row.get(key)
        return "" if value is None else f"{value:.{digits}f}"

    return (
        str(row["layer"]), str(row["repeat"]), str(row["layout"]), str(row.get("via") or ""), chosen + star,
        str(row.get("kernel") or ""), str(row.get("isa") or ""), str(row.get("dtype") or ""), str(row["threads"]),
        str(row["batch"]), ms(layouts.median(row)), spread(row), number("p10_ms", 3), number("p90_ms", 3),
        number("cold_median_ms", 3), number("gflops", 1), number("gbytes_per_s", 1), number("peak_percent", 1),
        str(row.get("bound") or ""), number("roofline_percent", 1), number("copy_percent", 1), number("intensity", 1),
        number("pack_ms", 2), number("convert_ms", 3), error(row),
    )  # fmt: skip


def left_out(skipped: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What was not measured, each reason once: what, in which layers, why."""
    layers: dict[tuple[str, str], list[str]] = {}
    for item in skipped:
        layers.setdefault((str(item["what"]), str(item["reason"])), []).append(str(item["layer"]))
    found: list[tuple[str, str, str]] = []
    for (what, reason), names in layers.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        found.append((what, shown, reason))
    return found
