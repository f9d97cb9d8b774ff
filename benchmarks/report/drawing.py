"""Drawing with matplotlib into SVG that lives inside a page: no pyplot, no global state, and the page's own colours.

Text and axes are drawn in a sentinel colour that becomes `currentColor`, the ground is transparent, so one picture fits
a light page and a dark one. The colours of the series have a contrast of at least 3 to 1 against #fff and #111 and can
be told apart with the usual colour blindnesses; markers and hatches say the same once more. Text stays text.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How to get the pictures, for a page that has none.
HINT = 'The pictures need matplotlib: pip install "fastconv[bench]", then write the report again.'

#: Drawn colour of all that shall have the colour of the page's text. No series comes near it.
INK = "#010203"
#: Best of its row, and slower than it: in the heat map and in the page's tables.
BEST, SLOW = "#2a86c8", "#dd6b10"


@dataclass(frozen=True)
class Style:
    """How one way is drawn everywhere: colour, marker, hatch of bars, dashes of lines."""

    color: str
    marker: str
    hatch: str = ""
    dashes: str = "-"


_OURS = {
    "NCHW": Style("#2a86c8", "o"),
    "NHWC": Style("#dd6b10", "s"),
    "NCHW via NHWC": Style("#a06bd0", "^", "////"),
}
_PEERS = {
    "pytorch": Style("#d0559a", "D", "....", "--"),
    "onnxruntime": Style("#14946b", "v", "xxxx", "-."),
    "openvino": Style("#9a7d0a", "P", "\\\\\\\\", ":"),
    "ncnn": Style("#7b7fd1", "X", "++++", "--"),
    "scipy": Style("#b0665a", "<", "oooo", "-."),
    "numpy": Style("#808080", ">", "****", ":"),
}
_OTHERS = (Style("#808080", "h", "----", "--"), Style("#5c8f8f", "*", "||||", "-."), Style("#b0665a", "d", "//..", ":"))


def style(provider: str, layout: str = "", via: str = "") -> Style:
    """The style of a way; a peer's two layouts share one, the same name always gives the same."""
    if provider == "fastconv":
        return _OURS["NCHW via NHWC" if via else layout if layout in _OURS else "NCHW"]
    known = _PEERS.get(provider)
    return known or _OTHERS[int(hashlib.sha256(provider.encode()).hexdigest(), 16) % len(_OTHERS)]


@dataclass(frozen=True)
class Drawing:
    """A picture with its words. `name`: a word for links and ids; `where`: the setting; `how`: how to read it."""

    name: str
    title: str
    where: str
    how: str
    svg: str


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def canvas(width: float, height: float, salt: str, size: float = 10.0, pad: float = 0.04) -> Iterator[Figure]:
    """A figure of that many inches with the settings of all our pictures, which hold within the block only.

    `salt` goes into the ids of what it refers to inside, `size` is that of the text in points, `pad` is in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "DejaVu Sans",  # ships with matplotlib; wider than what a page uses, so text fits there too
        "font.size": size,
        "hatch.linewidth": 0.6,
        "path.simplify": True,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings):
        yield Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=pad, h_pad=pad))


def grid(axes: Axes, which: Literal["both", "x", "y"] = "both") -> None:
    """Faint lines behind everything."""
    axes.set_axisbelow(True)
    axes.grid(True, axis=which, color=INK, alpha=0.16, linewidth=0.7)


def inline(figure: Figure, name: str, title: str) -> str:
    """The figure as an <svg> element for a page: no id that another picture could have, `title` for screen readers."""
    text = _clean(_saved(figure), name)
    # A page's HTML parser knows SVG by its name; without the names of XML no address is left in the page.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    label = f"title-{name}"
    head, rest = text.split(">", 1)
    # As wide as its letters stand in the page's size; on a narrow screen it shrinks so far that they can be read.
    inches = figure.get_size_inches()[0]
    sizes = f"max-width:{108 * inches:.0f}px;min-width:{min(70 * inches, 640):.0f}px"
    named = f'<title id="{label}">{html.escape(title)}</title>'
    return f'{head} style="{sizes}" role="img" aria-labelledby="{label}">{named}{rest}'


def alone(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG file: its own ground, light or dark as the viewer's system has it."""
    text = _clean(_saved(figure), name)
    head, rest = text.split(">", 1)
    rules = (
        "svg{color:#1f2328;background:#fff;font-family:system-ui,-apple-system,'Segoe UI',sans-serif}"
        "@media (prefers-color-scheme:dark){svg{color:#e6edf3;background:#0d1117}}"
    )
    return f'{head} role="img"><title>{html.escape(title)}</title><style>{rules}</style>{rest}\n'


def png(figure: Figure, dots_per_inch: float = 160) -> bytes:
    """The figure as a PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor="white")
    return buffer.getvalue()


def _saved(figure: Figure) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", transparent=True)
    return buffer.getvalue()


def _clean(text: str, name: str) -> str:
    """The <svg> element alone, smaller, with `currentColor` for the sentinel and ids that begin with `name`."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", text, flags=re.S)
    text = text.replace(INK, "currentColor")
    # The page's font, in the size that was asked for.
    text = re.sub(r"font: ((?:bold |700 )?)([\d.]+)px [^;\"]*", lambda m: _font(m[1], m[2]), text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r'\sid="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    # Coordinates in the tags, not the numbers that are shown between them.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d{2})\d+", r"\1", tag[0]), text)
    text = re.sub(r">\s+<", "><", text)
    return re.sub(r"\s*\n\s*", " ", text).replace("<svg ", '<svg stroke-linejoin="round" ', 1).strip()


def _font(weight: str, size: str) -> str:
    return f"font-size: {size}px" + ("; font-weight: 700" if weight else "")
