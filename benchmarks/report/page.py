"""A result as one HTML file that needs nothing else: no network, light and dark, sortable, printable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import layouts
from ..layouts import Comparison, Data, Row, Setting, Total
from . import curves, figures, tables
from .drawing import HINT, Drawing, available, style
from .markdown import markdown
from .markup import SCRIPT, STYLE, Cell, cell_table, table, text

#: Heat maps of more settings than this would make the page slow: the others have their tables.
MAPS = 8
#: More sentences than this are folded.
SENTENCES = 4
METHOD = (
    "Every result was checked against float64 arithmetic before it was timed; max error is the largest difference over "
    "the largest value.",
    "All ways to run a layer take turns, so that a clock or a neighbour that changes hits them alike; a time is the "
    "median of warm calls from Python to Python, and every sample is in the JSON file.",
    "The roofs (float32 FMA peak and bandwidths) were measured on this machine with the same number of threads; a cold "
    "time is that of a call after its weights were evicted from the caches.",
)
_SECTIONS = {
    "times": "Times",
    "layouts": "Layouts",
    "pictures": "Pictures",
    "method": "Method",
    "rows": "All rows",
    "environment": "Environment",
    "markdown": "Markdown",
}


def page(data: Data) -> str:
    """One HTML page: the words, the times, the layouts, the pictures, the method, all rows, and the environment.

    The pictures are left out, and that is said, where matplotlib is not installed.
    """
    sections = tables.sections(data)
    words = tables.words(data)
    inner = {
        "times": _times(data),
        "layouts": _layouts(data, sections),
        "pictures": _pictures(data, sections),
        "method": _method(data),
        "rows": _rows(data),
        "environment": _environment(data),
        "markdown": _markdown(data, words),
    }
    nav = "".join(f'<a href="#{name}">{_SECTIONS[name]}</a>' for name, part in inner.items() if part)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>fastconv bench: {text(_subject(data))}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>fastconv bench: {text(_subject(data))}</h1><nav>{nav}</nav></header>",
        *(f"<p class=soft>{text(line)}</p>" for line in tables.headline(data)),
        _verdict(words),
        *(f"<section id={name}>{part}</section>" for name, part in inner.items() if part),
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _subject(data: Data) -> str:
    suite = (data.get("settings") or {}).get("suite")
    return str(suite or next((row["layer"] for row in data["rows"]), "no rows"))


def _verdict(words: Sequence[str]) -> str:
    """The last sentence large (up to its first colon, if that much says what to use), the others below it."""
    head, colon, rest = words[-1].partition(": ")
    if len(head) < 24 or not colon:
        head, rest = words[-1], ""
    box = f"<div class=verdict><strong>{text(head)}{'.' if rest else ''}</strong>{_paragraph(_capital(rest))}</div>"
    others = "".join(f"<li>{text(line)}" for line in words[:-1])
    if not others:
        return box
    if len(words) - 1 <= SENTENCES:
        return f"{box}<ul class=words>{others}</ul>"
    summary = f"<summary>In words <small>{len(words) - 1} sentences</small></summary>"
    return f"{box}<details>{summary}<ul class=words>{others}</ul></details>"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _paragraph(words: str) -> str:
    return f"<p>{text(words)}</p>" if words else ""


# --- times ------------------------------------------------------------------------------------------------------------


def _times(data: Data) -> str:
    """The network (or the sum over the layers) in the main setting as bars, and all settings in one table.

    Nothing for a crossover run: its layers are no whole.
    """
    rows = data["rows"]
    main = layouts.main_setting(rows)
    if main is None:
        return "<h2>Times</h2><p>Nothing was measured that could be compared.</p>"
    if data.get("sweep"):
        return ""
    networks: list[str | None] = list(dict.fromkeys(str(r["layer"]) for r in rows if r["kind"] == "network"))
    parts = []
    for name in networks or [None]:
        own = [(setting, layouts.totals(rows, setting, name)) for setting in layouts.settings(rows)]
        own = [(setting, totals) for setting, totals in own if totals]
        if own:
            setting, totals = next((pair for pair in own if pair[0] == main), own[0])
            title = f"{name} end to end" if name else f"Sum over {totals[0].layers} layers, each times its repeat count"
            parts.append(f"<h2>{text(title)} <small>{text(setting)}</small></h2>{_bars(totals, setting)}")
            parts.append(_by_setting(own) if len(own) > 1 else "")
    return "".join(parts)


def _bars(totals: Sequence[Total], setting: Setting) -> str:
    """A line a way, fastest float32 first, with a bar; other dtypes last and without a ratio."""
    order = sorted(totals, key=lambda t: (not layouts.is_float32(t.row), t.ms))
    longest = max(t.ms for t in order)
    fast = next((t.ms for t in order if layouts.is_float32(t.row)), None)
    body = []
    for total in order:
        row, same = total.row, layouts.is_float32(total.row)
        color = style("fastconv", str(row["layout"]), str(row.get("via") or "")).color if layouts.is_ours(row) else ""
        ground = f";background:{color}" if color else ""
        bar = f'<i style="width:{100 * total.ms / longest:.1f}%{ground}{"" if same else ";opacity:.45"}"></i>'
        best = "best" if same and total.ms == fast else ""
        ratio = tables.times(total.ms / fast) if same and fast else text(row["dtype"])
        body.append(
            [
                Cell(text(_name(total))),
                Cell(bar, "b"),
                Cell(tables.ms(total.ms), best),
                Cell(ratio),
                Cell("" if total.layers else f"{1e3 * setting.batch / total.ms:.1f}"),
                Cell("" if total.layers else tables.error(row)),
            ]
        )
    head = ["way", "", "ms", "x fastest", "images/s", "max error"]
    return cell_table(head, body, [], {0}, "bars")


def _name(total: Total) -> str:
    ours = layouts.is_ours(total.row)
    return f"{layouts.OURS} {total.label}" if ours and total.label != layouts.OURS else total.label


def _by_setting(own: Sequence[tuple[Setting, Sequence[Total]]]) -> str:
    every = [total for _, totals in own for total in totals]
    every.sort(key=lambda total: not layouts.is_float32(total.row))  # other dtypes last
    names = list(dict.fromkeys(_name(total) for total in every))
    body = []
    for setting, totals in own:
        by_name = {_name(total): total for total in totals}
        fast = min((t.ms for t in totals if layouts.is_float32(t.row)), default=None)
        line = [Cell(text(setting))]
        for name in names:
            total = by_name.get(name)
            best = total is not None and total.ms == fast and layouts.is_float32(total.row)
            line.append(Cell(tables.ms(total.ms) if total else "", "best" if best else ""))
        body.append(line)
    return f"<h3>All settings <small>ms</small></h3>{cell_table(['setting', *names], body, [], {0})}"


# --- layouts ----------------------------------------------------------------------------------------------------------


Section = tuple[str, Setting, list[Comparison]]


def _layouts(data: Data, sections: Sequence[Section]) -> str:
    rows = data["rows"]
    parts = ["<h2>Layout comparison: four ways to run each layer</h2>"]
    if sections:
        parts.append(
            "<p class=soft>Median ms. NCHW and NHWC: native, with the algorithm that auto picks. NCHW via NHWC: NCHW "
            "in and out, computed in NHWC, both conversions inside the time. Best peer: the fastest float32 one. Blue: "
            "the fastest of the four, ~ where the next best is too close to call; by: the next best over it. Per cent, "
            "cold and error are those of the faster native row; cold x: with evicted weights over warm; % copy: "
            "of the speed of our own copy of as many bytes, NCHW/NHWC. Sums count "
            "each layer as often as the network runs it.</p>"
        )
    both = layouts.two_layouts(rows)
    for number, (where, _, layers) in enumerate(sections):
        inner = _four_ways(layers, both, not data.get("sweep"))
        against = tables.against(layers)
        if against.body:
            how = "below 1 fastconv is faster; best: each in its faster layout"
            inner += f"<h3>Ours over the peers <small>{how}</small></h3>{table(against)}"
        if number == 0:
            parts.append(f"<h3>{text(where)}</h3>{inner}")
        else:
            parts.append(f"<details><summary>{text(where)}</summary>{inner}</details>")
    converts = tables.converts(rows)
    if converts.body:
        parts.append(f"<details><summary>Converting between the layouts alone</summary>{table(converts)}</details>")
    return "".join(parts) if sections or converts.body else ""


def _four_ways(comparisons: Sequence[Comparison], both: set[str], whole: bool) -> str:
    """A line a layer; each of the four cells has the ms, and small below them what ran and how well."""
    head = ["layer", "x", "NCHW", "NHWC", "NCHW via NHWC", "best peer", "by", "% peak", "% of roof"]
    head += ["% copy", "cold x", "max error"]
    body = []
    for c in comparisons:
        ours: Row = c.ours or {}
        line = [_over_small(c.layer, _shape(c)), Cell(str(c.repeat))]
        line += [_way_cell(c, way, both) for way in layouts.WAYS]
        line += [
            Cell(tables.times(c.factor)),
            Cell(tables.percent(ours.get("peak_percent"))),
            _over_small(tables.percent(ours.get("roofline_percent")), str(ours.get("bound", ""))),
            Cell(tables.copied(c)),
            Cell(tables.times(tables.cold(ours)) if ours else ""),
            Cell(text(tables.error(ours))),
        ]
        body.append(line)
    sums, count = layouts.weighted_sums(comparisons)
    foot = []
    if count > 1 and whole:
        total = [tables.ms(sums[way]) if way in sums else "" for way in layouts.WAYS]
        foot = [[f"sum, {tables.of(count, len(comparisons))}", "", *total, *[""] * 6]]
    return cell_table(head, body, foot, {0})


def _shape(comparison: Comparison) -> str:
    """The problem's letters without its name, its repeat count and what is 1 or 0 anyway."""
    words = comparison.problem.split()
    kept = [w for w in words[1:] if not (w[:1] == "x" and w[1:].isdigit())]
    usual = {"sh1", "sw1", "ph0", "pw0", "n1", f"n{comparison.setting.batch}"}
    return " ".join(w for w in kept if w not in usual and w[:2] not in ("iw", "kw", "sw", "pw", "dw"))


def _way_cell(comparison: Comparison, way: str, both: set[str]) -> Cell:
    row = comparison.way(way)
    if row is None or (way == "nhwc" and not comparison.has_layout):
        return Cell("=" if row is not None else "")
    if way == "peer":
        below = layouts.label(row, both)
    elif way == "via":
        below = f"{tables.ms(comparison.convert_ms)} converting" if comparison.convert_ms is not None else ""
    else:
        best = comparison.nchw_fastest if way == "nchw" else comparison.nhwc_fastest
        below = str(row["algorithm"])
        if best is not None and best is not row and layouts.clearly_faster(best, row):
            below += f"; {best['algorithm']} {tables.ms(layouts.median(best))}"
    won = way == comparison.winner and comparison.factor is not None
    mark = " ~" if won and not comparison.clear else ""
    return _over_small(tables.ms(layouts.median(row)) + mark, below, "best" if won else "")


def _over_small(words: str, below: str, kind: str = "") -> Cell:
    return Cell(f"{text(words)}<small>{text(below)}</small>" if below else text(words), kind)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(data: Data, sections: Sequence[Section]) -> str:
    rows = data["rows"]
    if not sections and not rows:
        return ""
    if not available():
        return f"<h2>Pictures</h2><p>{text(HINT)}</p>"
    drawings = [curves.crossover(data)] if data.get("sweep") else []
    if sections:
        where, main, own = sections[0]
        drawings.append(figures.heat_map(own, where))
        if not data.get("sweep"):
            drawings += [figures.layer_bars(own, where), figures.roofline(data, own, main)]
            drawings += [curves.scaling(rows), curves.ratios(own, where)]
    else:
        drawings.append(curves.scaling(rows))
    parts = [_figure(drawing) for drawing in drawings if drawing is not None]
    for number, (where, _, own) in enumerate(sections[1:MAPS]):
        drawing = figures.heat_map(own, where, f"heat{number}")
        if drawing is not None:
            summary = f"<summary>Heat map <small>{text(where)}</small></summary>"
            parts.append(f"<details>{summary}{_figure(drawing)}</details>")
    if len(sections) > MAPS:
        words = f"{len(sections) - MAPS} more settings have no heat map here; their numbers are in the tables."
        parts.append(f"<p class=soft>{words}</p>")
    return "".join(parts)


def _figure(drawing: Drawing) -> str:
    return (
        f"<figure id={drawing.name}><h2>{text(drawing.title)} <small>{text(drawing.where)}</small></h2>"
        f"<figcaption>{text(drawing.how)}</figcaption><div class=wide>{drawing.svg}</div></figure>"
    )


# --- the rest ---------------------------------------------------------------------------------------------------------


def _method(data: Data) -> str:
    parts = ["<h2>Noise and method</h2>", *(f"<p>{text(line)}</p>" for line in tables.remarks(data))]
    parts.append(f"<p>{text(' '.join(METHOD))}</p>")
    return "".join(parts)


def _rows(data: Data) -> str:
    rows, skipped = data["rows"], data["skipped"]
    parts = ["<h2>All rows</h2>"]
    if rows:
        how = "the star marks what auto picks; ± is half the median's 95 % interval"
        summary = (
            f"<summary>{len(rows)} row{'s' if len(rows) > 1 else ''} with everything <small>{how}</small></summary>"
        )
        parts.append(f"<details>{summary}{table(tables.everything(rows))}</details>")
    else:
        parts.append("<p>No rows.</p>")
    if skipped:
        left_out = tables.left_out(skipped)
        found = tables.Table(("what", "layers", "why"), left_out, frozenset({0, 1, 2}))
        parts.append(f"<h2>Left out</h2>{table(found, 'facts')}")
    return "".join(parts)


def _environment(data: Data) -> str:
    facts = [(key, str(value)) for key, value in _flat(data["environment"]) if value not in (None, "", [], {})]
    settings = [(f"asked for: {key}", str(value)) for key, value in _flat(data.get("settings") or {}) if value]
    found = tables.Table(("what", "value"), [*facts, *settings], frozenset({0, 1}))
    return f"<h2>Environment</h2>{table(found, 'facts') if found.body else ''}"


def _markdown(data: Data, words: Sequence[str]) -> str:
    summary = "<summary>For a README or an issue <small>one click selects all of it</small></summary>"
    return f"<h2>Markdown</h2><details>{summary}<pre>{text(markdown(data, words))}</pre></details>"


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in data.items():
        out += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return out
