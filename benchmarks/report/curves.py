"""The pictures across settings and layers: batch and thread scaling, ratios against the peers, crossover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from .. import layouts
from ..layouts import OURS, Comparison, Data, Row, Setting, Total
from .drawing import INK, Drawing, canvas, grid, inline, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Ratios that get a tick.
_RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 20, 50, 100)

#: By the name of a way: x, y, and a row to take names from.
Points = dict[str, list[tuple[float, float, Row]]]


def scaling(rows: Sequence[Row], name: str = "scaling") -> Drawing | None:
    """Images per second against batch size and against threads; None where the result has one of each."""
    found = layouts.settings(rows)
    main = layouts.main_setting(rows)
    if main is None:
        return None
    batches = [s for s in found if (s.threads, s.device, s.isa) == (main.threads, main.device, main.isa)]
    threads = [s for s in found if (s.batch, s.device, s.isa) == (main.batch, main.device, main.isa)]
    panels: list[tuple[str, str, Points]] = []
    if len(batches) > 1:
        text = f"batch size ({main.threads} thread{'s' if main.threads > 1 else ''})"
        panels.append((text, "images per second", _rates(rows, batches, lambda s: s.batch)))
    if len(threads) > 1:
        rates = _rates(rows, threads, lambda s: s.threads)
        panels.append((f"threads (batch {main.batch})", "images per second over one on the fewest threads", rates))
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    with canvas(4.6 * len(panels) if len(panels) > 1 else 6.4, 4.4, name, 9) as figure:
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (below, beside, points) in zip(every, panels, strict=True):
            speedup = beside.endswith("threads")
            _draw_rates(axes, points, speedup)
            axes.set_xlabel(below)
            axes.set_ylabel("speed-up over the fewest threads" if speedup else beside)
        handles, labels = every[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=2.6)
        what = _what(rows, main)
        title = "Scaling with batch and threads" if len(panels) > 1 else "Scaling"
        how = "Higher is better; a flat line gains nothing from more, the thin line is a gain in full proportion."
        return Drawing(name, title, what, how, inline(figure, name, f"{title} ({what})"))


def _what(rows: Sequence[Row], setting: Setting) -> str:
    """What the totals of a setting are of."""
    own = layouts.totals(rows, setting)
    return str(own[0].row["layer"]) if own and not own[0].layers else "sum over the layers"


def _rates(rows: Sequence[Row], settings: Sequence[Setting], value: Callable[[Setting], int]) -> Points:
    """Images per second by way: (batch or threads, rate, row), for ways that have two points at least."""
    points: Points = {}
    for setting in sorted(settings, key=value):
        for total in layouts.totals(rows, setting):
            if layouts.is_float32(total.row):
                rate = 1e3 * setting.batch / total.ms
                points.setdefault(_name(total), []).append((float(value(setting)), rate, total.row))
    return {way: own for way, own in points.items() if len(own) > 1}


def _name(total: Total) -> str:
    return f"{OURS} {total.label}" if layouts.is_ours(total.row) and total.label != OURS else total.label


def _draw_rates(axes: Axes, points: Points, speedup: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    values = sorted({point[0] for own in points.values() for point in own})
    for way, own in points.items():
        row = own[0][2]
        look = style(str(row["provider"]), str(row["layout"]), str(row.get("via") or ""))
        base = own[0][1] if speedup else 1.0
        # The second layout of a peer has the same colour: hollow marks tell them apart.
        hollow = not layouts.is_ours(row) and row["layout"] == "NCHW" and f"{row['provider']} NHWC" in points
        axes.plot(
            [p[0] for p in own], [p[1] / base for p in own], color=look.color, marker=look.marker, markersize=6,
            linestyle=look.dashes, linewidth=1.7, label=way, markerfacecolor="none" if hollow else look.color,
        )  # fmt: skip
    if speedup:
        axes.plot(values, [v / values[0] for v in values], color=INK, linewidth=0.8, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    lowest = min([1.0, *(p[1] / own[0][1] for own in points.values() for p in own)])
    axes.set_ylim(bottom=lowest - 0.1 if speedup else 0.0)
    grid(axes)


def ratios(comparisons: Sequence[Comparison], where: str, name: str = "ecdf") -> Drawing | None:
    """For each float32 peer the share of layers on which we are faster by at most so much, each in its best layout."""
    found = [r for r in layouts.ratios(comparisons) if r.layout == "best"]
    peers = list(dict.fromkeys(r.peer for r in found))
    if not peers:
        return None
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, PercentFormatter

    with canvas(9.2, 4.4, f"{name}{where}", 9) as figure:
        axes = figure.add_subplot()
        low, high = 1.0, 1.0
        for peer in peers:
            values = sorted(1 / r.ratio for r in found if r.peer == peer)
            look = style(peer)
            mean = layouts.geometric_mean(values)
            steps = [i / len(values) for i in range(len(values) + 1)]
            axes.step(
                [values[0], *values], steps, where="post", color=look.color, linestyle=look.dashes, linewidth=2,
                label=f"{peer}: geometric mean {mean:.2f}",
            )  # fmt: skip
            low, high = min(low, values[0]), max(high, values[-1])
        axes.set_xscale("log")
        low, high = min(low / 1.05, 0.9), max(high * 1.05, 1.1)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(FixedLocator([v for v in _RATIOS if low <= v <= high]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 1.02)
        axes.axvline(1.0, color=INK, linewidth=1.2)
        axes.set_xlabel("the peer's time over ours (right of 1: fastconv is faster)")
        axes.set_ylabel("share of the layers")
        grid(axes)
        axes.legend(loc="lower right")
        title = "Against each peer, over all layers"
        how = (
            "At a ratio on the axis, the curve says on which share of the layers the peer's time over ours is at most "
            "that; the further right a curve, the better for fastconv."
        )
        return Drawing(name, title, where, how, inline(figure, name, f"{title} ({where})"))


def crossover(data: Data, name: str = "sweep") -> Drawing | None:
    """ms against the varied value for each way, and where the order of the fastest two changes."""
    main = layouts.main_setting(data["rows"])
    if main is None:
        return None
    here = (main.threads, main.isa)
    points = [p for p in layouts.sweep_points(data) if (p[1].setting.threads, p[1].setting.isa) == here]
    lines: Points = {}
    for value, c in points:
        for way in layouts.WAYS:
            row = c.way(way)
            if row is not None and (c.has_layout or way in ("nchw", "peer")):
                lines.setdefault(_way_name(way), []).append((value, layouts.median(row), row))
    if not lines:
        return None
    sweep = data["sweep"]
    what = str(sweep.get("what") or sweep["vary"])
    with canvas(9.2, 4.8, f"{name}{what}", 9) as figure:
        axes = figure.add_subplot()
        for way, own in lines.items():
            row = own[0][2]
            peer = not layouts.is_ours(row)
            look = style(str(row["provider"]), str(row["layout"]), str(row.get("via") or ""))
            axes.plot(
                [p[0] for p in own], [p[1] for p in own], marker="D" if peer else look.marker, markersize=5,
                color="#808080" if peer else look.color, linestyle="--" if peer else "-", linewidth=1.7, label=way,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for low, high, one, other in crossings(points):
            axes.axvspan(low, high, color=INK, alpha=0.12, linewidth=0)
            axes.annotate(
                f"{_way_name(one)} to {_way_name(other)}", ((low * high) ** 0.5, 0.98),
                xycoords=("data", "axes fraction"), ha="center", va="top", rotation=90, fontsize=8,
            )  # fmt: skip
        _sweep_ticks(axes, sorted({value for value, _ in points}))
        axes.set_xlabel(what)
        axes.set_ylabel("median ms")
        grid(axes)
        axes.legend(loc="lower right")
        title = f"Where the winner changes with the {what}"
        how = "The lowest line is the way to use; grey bands lie between two measured values where the lowest changes."
        where = f"{sweep['layer']}, {main.threads} thread{'s' if main.threads > 1 else ''}"
        return Drawing(name, title, where, how, inline(figure, name, f"{title} ({where})"))


def _way_name(way: str) -> str:
    return {"nchw": "NCHW", "nhwc": "NHWC", "via": "NCHW via NHWC", "peer": "best peer"}[way]


def crossings(points: Sequence[tuple[float, Comparison]]) -> list[tuple[float, float, str, str]]:
    """Pairs of values between which the clear winner changes: low, high, and who wins at each. Ties lie between."""
    clear = [(value, c.winner) for value, c in points if c.clear]
    return [(low, high, one, other) for (low, one), (high, other) in pairwise(clear) if one != other]


def _sweep_ticks(axes: Axes, values: list[float]) -> None:
    """The measured values on the axis, as many as have room."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    kept: list[float] = []
    for value in values:
        if not kept or value / kept[-1] >= (values[-1] / values[0]) ** 0.05:
            kept.append(value)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
