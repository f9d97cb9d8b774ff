"""A result as text: one line a layer with the four ways as columns, or every row with everything."""

from __future__ import annotations

from typing import Literal

from .. import layouts
from ..layouts import Data
from . import tables
from .tables import Table, aligned

_KINDS = (
    ("layer", "Layers"),
    ("copy", "Copies of as many bytes"),
    ("convert", "Converting a tensor between the layouts"),
    ("network", "Network, end to end"),
)
_EXPLAIN = (
    tables.COMPARED,
    "  via: NCHW in and out through NHWC, conversions counted; peer: the best float32 one. Of the faster native row:",
    '  algorithm: what "auto" picks (a clearly faster one); % of roof: which roof bounds it, how much of it is used;',
    "  cold x: the time with evicted weights over the warm one; max error: largest difference from float64, over the",
    "  largest value; % copy: of the speed of our own copy of as many bytes, NCHW/NHWC. A sum counts each layer as",
    "  often as the network runs it.",
)
_EXPLAIN_ALL = (
    '* what algorithm="auto" picks; +- %: half the median\'s 95 % interval; % of roof: how much is reached of the roof',
    "  that bounds it; max error: the largest difference from float64, over the largest value.",
)


def terminal(data: Data, rows: Literal["compact", "all"] = "compact") -> str:
    """The whole result in text. The last line says in words what to use here.

    `rows`: "compact" (one line a layer, at most 140 columns for usual names) or "all" (every row with everything).
    ValueError for another word.
    """
    if rows not in ("compact", "all"):
        raise ValueError(f"rows: {rows!r} is neither 'compact' nor 'all'")
    lines = [*tables.headline(data), ""]
    lines += _compact(data) if rows == "compact" else _all(data)
    lines += [f"Left out: {what} ({layers}): {reason}" for what, layers, reason in tables.left_out(data["skipped"])]
    lines += tables.remarks(data)
    lines += tables.words(data)
    return "\n".join(lines)


def _compact(data: Data) -> list[str]:
    rows = data["rows"]
    both = layouts.two_layouts(rows)
    lines: list[str] = []
    for where, _, own in tables.sections(data):
        lines += _titled(f"Layers, {where}", tables.compared(own, both, not data.get("sweep")))
        lines += _titled(f"Ours over the peers, {where}", tables.against(own))
    if lines:
        lines += [*_EXPLAIN, ""]
    lines += _titled("Converting a tensor between the layouts", tables.converts(rows))
    for setting in layouts.settings(rows):
        lines += _titled(f"Network, end to end, {setting}", tables.networks(rows, setting))
    return lines


def _all(data: Data) -> list[str]:
    lines: list[str] = []
    for kind, title in _KINDS:
        lines += _titled(title, tables.everything([row for row in data["rows"] if row["kind"] == kind]))
    return [*lines, *_EXPLAIN_ALL, ""] if lines else lines


def _titled(title: str, table: Table) -> list[str]:
    """The table under its title; columns that say nothing are left out; no lines without rows."""
    if not table.body:
        return []
    shown = table.telling()
    text = aligned(shown.head, [*shown.body, *shown.foot], shown.left)
    if table.foot:
        text.insert(len(text) - len(table.foot), text[1])
    return [title, *text, ""]
