"""The pictures of one setting: heat map, bars of the network's time, roofline. Each is None where it has nothing to
show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import layouts
from ..layouts import Comparison, Data, Row, Setting
from . import tables
from .drawing import BEST, INK, SLOW, Drawing, Style, canvas, grid, inline, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A picture of more layers than this cannot be read: those that take most of the time are drawn.
MOST = 60
#: Slowdown at which the heat map's colour is full.
FULL = 3.0
_MEMORY = (("l2", "L2", "--"), ("l3", "L3", "-."), ("memory", "memory", ":"))


def shown(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], str]:
    """At most MOST layers, in order, and a sentence on those left out (else "")."""
    own = list(comparisons)
    if len(own) <= MOST:
        return own, ""
    costs = sorted((c.repeat * max(layouts.median(r) for r in c.rows) for c in own), reverse=True)
    kept = [c for c in own if c.repeat * max(layouts.median(r) for r in c.rows) >= costs[MOST - 1]][:MOST]
    return kept, f" Drawn are the {len(kept)} of {len(own)} layers that take most of the time."


def heat_map(comparisons: Sequence[Comparison], where: str, name: str = "heat") -> Drawing | None:
    """Layers x ways: ms in the cells, coloured by the slowdown against the fastest of the row."""
    own, less = shown(comparisons)
    table = [(c, [r for r in c.rows if layouts.is_float32(r)]) for c in own]
    both = layouts.two_layouts([r for _, rows in table for r in rows])
    columns = [label for label, _ in layouts.ways([r for _, rows in table for r in rows])]
    if not columns or not table:
        return None
    size = (max(6.4, 2.3 + 0.86 * len(columns)), 1.15 + 0.235 * len(table))
    with canvas(*size, f"{name}{where}", 8.5) as figure:
        axes = figure.add_subplot()
        for y, (_, rows) in enumerate(table):
            cells = {layouts.label(r, both): r for r in sorted(rows, key=layouts.median, reverse=True)}
            fast = layouts.fastest(rows)
            for x, column in enumerate(columns):
                if column in cells and fast is not None:
                    _cell(axes, x, y, cells[column], layouts.median(cells[column]) / layouts.median(fast))
                elif column not in cells:
                    axes.text(x, y, "–", ha="center", va="center", alpha=0.5, in_layout=False)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xticks(
            range(len(columns)), [column.replace(" ", "\n", 1).replace("pytorch-", "pytorch-\n") for column in columns]
        )
        axes.set_yticks(range(len(table)), [c.layer for c, _ in table])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _heat_legend(axes, len(table))
        title = "Each layer in each layout with each algorithm"
        how = (
            "Read along a row: ms of each way, blue the fastest, the stronger the orange the slower against it; a dot "
            f"marks what auto picks.{less}"
        )
        return Drawing(name, title, where, how, inline(figure, name, f"{title} ({where})"))


def _cell(axes: Axes, x: int, y: int, row: Row, slowdown: float) -> None:
    from matplotlib.patches import Rectangle

    best = slowdown <= 1.0
    alpha = 0.42 if best else _depth(slowdown)
    color = BEST if best else SLOW
    # What lies inside the axes has no say in the layout, which would else measure every text.
    box = Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=color, alpha=alpha, edgecolor="none", in_layout=False)
    axes.add_patch(box)
    text = f"{layouts.median(row):.3f}" if layouts.median(row) < 100 else f"{layouts.median(row):.1f}"
    dot = " •" if row.get("auto") and layouts.is_ours(row) and not row.get("via") else ""
    weight = "bold" if best else "normal"
    axes.text(x, y, text + dot, ha="center", va="center_baseline", weight=weight, in_layout=False)


def _depth(slowdown: float) -> float:
    """How opaque the orange of a slowdown is: none at 1, full at FULL, even steps in ratios."""
    return 0.04 + 0.66 * min(1.0, math.log(max(slowdown, 1.0)) / math.log(FULL))


def _heat_legend(axes: Axes, rows: int) -> None:
    from matplotlib.patches import Patch

    steps = [(BEST, 0.42, "fastest")]
    steps += [(SLOW, _depth(v), f"{v:g} x its time") for v in (1.1, 1.5, 2.0)]
    steps.append((SLOW, _depth(FULL), f"{FULL:g} x and more"))
    handles = [Patch(facecolor=color, alpha=alpha, edgecolor="none", label=text) for color, alpha, text in steps]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.06 / max(rows, 1)), ncols=len(handles),
        handlelength=1.4, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


# --- bars -------------------------------------------------------------------------------------------------------------


def layer_bars(comparisons: Sequence[Comparison], where: str, name: str = "bars") -> Drawing | None:
    """Median x repeat count of each layer, in network order, for the four ways."""
    own, less = shown([c for c in comparisons if c.winner])
    if not own:
        return None
    with canvas(9.2, 1.2 + 0.36 * len(own), f"{name}{where}", 9) as figure:
        draw_bars(figure.add_subplot(), own)
        title = "Where the time goes, layer by layer"
        how = (
            "Each bar is the median time of one call times how often the network makes it; the layers are in network "
            f"order, shorter is better.{less}"
        )
        return Drawing(name, title, where, how, inline(figure, name, f"{title} ({where})"))


def draw_bars(axes: Axes, comparisons: Sequence[Comparison], ways: Sequence[str] = layouts.WAYS) -> None:
    """Horizontal bars on `axes`, a group a layer, a bar a way; the best peer in grey, whoever it is."""
    ways = [way for way in ways if any(c.way(way) is not None for c in comparisons)]
    names = {"nchw": "NCHW", "nhwc": "NHWC", "via": "NCHW via NHWC", "peer": "best peer of the layer"}
    height = 0.8 / max(len(ways), 1)
    for number, way in enumerate(ways):
        found = [(i, c, row) for i, c in enumerate(comparisons) if (row := c.way(way)) is not None]
        found = [entry for entry in found if entry[1].has_layout or way in ("nchw", "peer")]
        look = way_style(way)
        axes.barh(
            [i - 0.4 + height * (number + 0.5) for i, _, _ in found],
            [c.repeat * layouts.median(row) for _, c, row in found],
            height * 0.92, color=look.color, label=names[way],
        )  # fmt: skip
    axes.set_yticks(range(len(comparisons)), [f"{c.layer}  x{c.repeat}" for c in comparisons])
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("median ms x repeat count")
    grid(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(ways), borderaxespad=0.1, columnspacing=1.2)


def way_style(way: str) -> Style:
    """The style of one of WAYS; the best peer is grey, as it may be another one on each layer."""
    if way == "peer":
        return Style("#808080", "D", dashes="--")
    return style("fastconv", way.upper() if way != "via" else "NCHW", "NHWC" if way == "via" else "")


# --- roofline ---------------------------------------------------------------------------------------------------------


def roofline(data: Data, comparisons: Sequence[Comparison], setting: Setting, name: str = "roof") -> Drawing | None:
    """FLOP per byte against GFLOP/s, with the roofs that were measured for these threads (none: only the points)."""
    points: dict[str, list[tuple[float, float, Comparison, Row]]] = {}
    for c in comparisons:
        for row in (c.nchw, c.nhwc if c.has_layout else None, *_peer_rows(c)):
            if row is not None and row.get("gflops") and row.get("intensity"):
                way = str(row["layout"]) if layouts.is_ours(row) else f"{row['provider']}"
                points.setdefault(way, []).append((float(row["intensity"]), float(row["gflops"]), c, row))
    if not points:
        return None
    with canvas(9.2, 6.2, f"{name}{setting}", 9) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set_yscale("log")
        everything = [point for own in points.values() for point in own]
        left, right = min(p[0] for p in everything) / 1.6, max(p[0] for p in everything) * 1.6
        bottom, top = min(p[1] for p in everything) / 1.5, max(p[1] for p in everything)
        roof = _roof(data, setting)
        if roof is not None:
            top = max(top, float(roof["fma_gflops"]))
            # A piece of each slope belongs to the picture, even where all layers lie to the right of it.
            slowest = min(roof["bandwidth"].values(), default=None)
            left = min(left, float(roof["fma_gflops"]) / slowest / 4) if slowest else left
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top * 1.35)
        for own in points.values():
            row = own[0][3]
            look = style(str(row["provider"]), str(row["layout"]))
            way = {"NCHW": "fastconv NCHW", "NHWC": "fastconv NHWC", "-": "fastconv"}.get(str(row["layout"]), "")
            axes.scatter(
                [p[0] for p in own], [p[1] for p in own], s=26, marker=look.marker, color=look.color, alpha=0.9,
                linewidths=0, label=way if layouts.is_ours(row) else f"{row['provider']} (faster layout)", zorder=3,
            )  # fmt: skip
        axes.set_xlabel("FLOP per byte that must move (input, weights and output once)")
        axes.set_ylabel("GFLOP/s")
        _plain_ticks(axes)
        grid(axes)
        figure.draw_without_rendering()  # only with its layout is it known which labels would collide
        if roof is not None:
            _draw_roof(axes, roof, (left, right), bottom)
        _label_layers(axes, comparisons, [(p[0], p[1]) for p in everything])
        figure.legend(loc="outside lower center", ncols=5, handletextpad=0.3)
        title = "Roofline: how much of the machine each layer uses"
        how = (
            "Each mark is a layer; lines are the measured roofs, and the nearer a mark is to the lowest line above it, "
            "the less is left to gain."
        )
        return Drawing(name, title, str(setting), how, inline(figure, name, f"{title} ({setting})"))


def _peer_rows(comparison: Comparison) -> list[Row]:
    """The faster row of each float32 peer."""
    best: dict[str, Row] = {}
    for row in comparison.rows:
        provider = str(row["provider"])
        if layouts.is_ours(row) or not layouts.is_float32(row):
            continue
        if provider not in best or layouts.median(row) < layouts.median(best[provider]):
            best[provider] = row
    return list(best.values())


def _roof(data: Data, setting: Setting) -> Row | None:
    """The measured roofline for the setting's threads and ISA level (the highest one where the setting has none)."""
    fitting = [r for r in data.get("rooflines") or [] if r["threads"] == setting.threads]
    fitting = [r for r in fitting if not setting.isa or r["isa"] == setting.isa]
    return max(fitting, key=lambda r: float(r["fma_gflops"]), default=None)


def _draw_roof(axes: Axes, roof: Row, span: tuple[float, float], bottom: float) -> None:
    """The peak as a level line and each bandwidth as a slope up to it, with their numbers along them."""
    peak = float(roof["fma_gflops"])
    axes.plot(span, [peak, peak], color=INK, linewidth=1.3)
    axes.annotate(
        f"FMA peak {peak:.0f} GFLOP/s ({roof['isa']})", (span[1], peak), xytext=(-4, 4), textcoords="offset points",
        ha="right",
    )  # fmt: skip
    for key, text, dashes in _MEMORY:
        speed = roof["bandwidth"].get(key)
        start, end = max(span[0], bottom / speed) if speed else 0.0, peak / speed if speed else 0.0
        if not speed or start >= min(end, span[1]):
            continue
        end = min(end, span[1])
        axes.plot([start, end], [start * speed, end * speed], color=INK, linewidth=1.1, linestyle=dashes)
        if end / start < 1.8:  # too short for its label
            continue
        middle = math.sqrt(start * end)
        axes.text(
            middle, middle * speed * 1.04, f"{text} {speed:.0f} GB/s", ha="center", va="bottom", alpha=0.85,
            rotation=math.degrees(math.atan(speed)), rotation_mode="anchor", transform_rotates_text=True,
        )  # fmt: skip


def _plain_ticks(axes: Axes) -> None:
    """Numbers as 1, 2, 5, 10, 20 ... on both logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _label_layers(axes: Axes, comparisons: Sequence[Comparison], marks: Sequence[tuple[float, float]]) -> None:
    """Names beside the faster native row of each layer, the costliest layers first, only where they fall on nothing.

    Boxes are in points and estimated from the number of letters, which is enough to keep them apart.
    """
    figure = axes.figure
    scale = 72.0 / figure.dpi
    corners = (axes.transData.transform(mark) * scale for mark in marks)
    taken = [_box(x, y, -4, -4, 8, 8) for x, y in corners]
    inside = axes.get_window_extent()
    limits = (inside.x0 * scale, inside.y0 * scale, inside.x1 * scale, inside.y1 * scale)
    for c in sorted(comparisons, key=lambda c: -c.repeat * (layouts.median(c.ours) if c.ours else 0.0)):
        row = c.ours
        if row is None or not row.get("gflops") or not row.get("intensity"):
            continue
        x, y = axes.transData.transform((float(row["intensity"]), float(row["gflops"]))) * scale
        width = 4.6 * len(c.layer)
        for dx, dy in ((6, -4), (-6 - width, -4), (-width / 2, 6), (-width / 2, -14), (6, 5), (-6 - width, 5)):
            box = _box(x, y, dx, dy, width, 9)
            free = not any(_overlap(box, other) for other in taken)
            if free and box[0] > limits[0] and box[1] > limits[1] and box[2] < limits[2] and box[3] < limits[3]:
                taken.append(box)
                axes.annotate(
                    c.layer, (float(row["intensity"]), float(row["gflops"])), xytext=(dx, dy + 1.5),
                    textcoords="offset points", fontsize=7.5, alpha=0.85,
                )  # fmt: skip
                break


def _box(x: float, y: float, dx: float, dy: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x + dx, y + dy, x + dx + width, y + dy + height


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def totals_bars(axes: Axes, totals: Sequence[layouts.Total]) -> None:
    """Horizontal bars of whole times, fastest first, with the numbers at their ends; ours in colour, peers in grey."""
    order = sorted((t for t in totals if layouts.is_float32(t.row)), key=lambda t: t.ms)
    for y, total in enumerate(order):
        ours = layouts.is_ours(total.row)
        look = style("fastconv", str(total.row["layout"]), str(total.row.get("via") or "")) if ours else None
        axes.barh(y, total.ms, 0.56, color=look.color if look else "#808080")
        text = f"{tables.ms(total.ms) if total.ms < 10 else format(total.ms, '.1f')} ms"
        weight = "bold" if ours else "normal"
        axes.annotate(text, (total.ms, y), xytext=(5, 0), textcoords="offset points", va="center", weight=weight)
    names = [f"fastconv {t.label}" if layouts.is_ours(t.row) and t.label != "fastconv" else t.label for t in order]
    axes.set_yticks(range(len(order)), names)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(0, 1.22 * max((t.ms for t in order), default=1.0))
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
