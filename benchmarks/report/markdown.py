"""A result as Markdown tables, fit for a README or an issue."""

from __future__ import annotations

from collections.abc import Sequence

from .. import layouts
from ..layouts import Comparison, Data
from . import tables
from .tables import Table

#: Stands for Markdown's own ** until everything else is escaped.
_BOLD = "\x02"


def markdown(data: Data, words: Sequence[str] = ()) -> str:
    """The words, the four ways a layer, the peers and the network, for each setting; ends with a line feed.

    `words`: the sentences of `tables.words`, from a caller that has them already.
    """
    rows = data["rows"]
    both = layouts.two_layouts(rows)
    words = words or tables.words(data)
    parts = [_text(f"{_BOLD}{words[-1]}{_BOLD}"), *(_text(line) for line in words[:-1])]
    for where, _, own in tables.sections(data):
        parts += _titled(f"Layers, {where}: median ms", _layers(own, both, not data.get("sweep")))
        parts += _titled(f"Ours over the peers, {where}", tables.against(own))
    for setting in layouts.settings(rows):
        parts += _titled(f"Network, {setting}", tables.networks(rows, setting))
    parts += [_text(line) for line in (*tables.remarks(data), *tables.headline(data))]
    return "\n\n".join(parts) + "\n"


def _layers(comparisons: Sequence[Comparison], both: set[str], whole: bool) -> Table:
    """Median ms of the four ways, the fastest in bold, and what a reader asks next."""
    head = ("layer", "x", "NCHW", "NHWC", "NCHW via NHWC", "best peer", "algorithm", "% peak", "% of roof")
    body = []
    for c in comparisons:
        ours = c.ours or {}
        cells = []
        for way in layouts.WAYS:
            text = tables.way_ms(c, way)
            text = f"{_BOLD}{text[:-1]}{_BOLD}" if text.endswith("*") else text.replace("~", "").strip()
            cells.append(f"{text} {layouts.label(c.peer, both)}" if way == "peer" and c.peer else text)
        facts = (tables.percent(ours.get("peak_percent")), tables.bound(ours), tables.copied(c), tables.error(ours))
        body.append((c.layer, str(c.repeat), *cells, tables.algorithm(c), *facts))
    sums, count = layouts.weighted_sums(comparisons)
    foot: tuple[tuple[str, ...], ...] = ()
    if count > 1 and whole:
        total = [tables.ms(sums[way]) if way in sums else "" for way in layouts.WAYS]
        foot = ((f"sum, {tables.of(count, len(comparisons))}", "", *total, *[""] * 5),)
    return Table((*head, "% copy", "max error"), body, frozenset({0, 6, 8}), foot)


def _titled(title: str, table: Table) -> list[str]:
    if not table.body:
        return []
    table = table.telling()
    rule = [":--" if i in table.left else "--:" for i in range(len(table.head))]
    lines = [_line(table.head), f"| {' | '.join(rule)} |", *(_line(cells) for cells in (*table.body, *table.foot))]
    return [_text(title), "\n".join(lines)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(text: str) -> str:
    """Text that Markdown shows as it is, but for `_BOLD`."""
    for mark in "\\`*_|[]~":
        text = text.replace(mark, f"\\{mark}")
    for mark, shown in (("&", "&amp;"), ("<", "&lt;"), ("\n", " "), (_BOLD, "**")):
        text = text.replace(mark, shown)
    return text
