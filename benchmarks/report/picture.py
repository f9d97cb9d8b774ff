"""One picture for a README: how long each layout and each peer takes, and beside it where the time goes."""

from __future__ import annotations

import os

from .. import layouts
from ..layouts import Data
from ..schema import write_atomically
from . import figures
from .drawing import HINT, alone, available, canvas, png


def picture(data: Data, path: str | os.PathLike[str]) -> None:
    """Writes the main setting of a result as a picture: whole times on the left, each layer's share on the right.

    `path` ends in .svg (light and dark, as the viewer's system has it) or .png (on white). ValueError for another end
    or for a result without a layer or network, ImportError without matplotlib, OSError where it cannot be written.
    """
    kind = os.path.splitext(os.fspath(path))[1].lower()
    if kind not in (".svg", ".png"):
        raise ValueError(f"path: {os.fspath(path)!r} ends neither in .svg nor in .png")
    if not available():
        raise ImportError(HINT)
    rows = data["rows"]
    setting = layouts.main_setting(rows)
    if setting is None:
        raise ValueError("data: no layer and no network was measured, so there is nothing to draw")
    totals = layouts.totals(rows, setting)
    compared = [c for c in layouts.comparisons(rows) if c.setting == setting]
    own, _ = figures.shown(compared)
    what = totals[0].row["layer"] if totals and not totals[0].layers else "all layers"
    title = f"{what}, float32, {setting}: median time, shorter is better"
    ways = ("nchw", "nhwc", "peer")
    with canvas(11.5, max(3.4, 1.4 + 0.22 * len(own)), "picture", 9.5, 0.1) as figure:
        figure.suptitle(title, fontsize=11.5, weight="bold")
        parts = [part for part, has in (("totals", bool(totals)), ("layers", len(own) > 1)) if has]
        every = figure.subplots(1, len(parts), squeeze=False, width_ratios=[1.0, 1.15][: len(parts)])[0]
        for axes, part in zip(every, parts, strict=True):
            if part == "totals":
                figures.totals_bars(axes, totals)
            else:
                figures.draw_bars(axes, own, ways)
        if kind == ".svg":
            write_atomically(path, alone(figure, "picture", title))
        else:
            with open(path, "wb") as file:
                file.write(png(figure))
