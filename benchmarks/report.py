"""A result as an aligned text table for a terminal, and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from .verdict import verdict

Row = dict[str, Any]

HEAD = (
    "layer",
    "x",
    "layout",
    "algorithm",
    "kernel",
    "thr",
    "n",
    "median ms",
    "spread",
    "GFLOP/s",
    "% peak",
    "pack ms",
    "max error",
)
_LEFT = {0, 2, 3, 4}
_KINDS = (
    ("conv", "Convolutions"),
    ("convert", "Converting a tensor between the layouts"),
    ("network", "Network, end to end"),
)


def cells(row: Row) -> tuple[str, ...]:
    """One row as the table shows it. The star marks what `algorithm="auto"` picks."""
    algorithm = row["provider"] if row["provider"] != "fastconv" else row["algorithm"]
    star = " *" if row.get("auto") and row["algorithm"] != "auto" else ""
    rate = (
        f"{row['gflops']:.1f}"
        if "gflops" in row
        else f"{row['gbytes_per_s']:.1f} GB/s"
        if "gbytes_per_s" in row
        else ""
    )
    return (
        row["layer"],
        str(row["repeat"]),
        row["layout"],
        algorithm + star,
        row.get("kernel", ""),
        str(row["threads"]),
        str(row["batch"]),
        f"{row['median_ms']:.3f}",
        f"{100 * row['spread']:.1f}%" if row.get("spread") is not None else "?",
        rate,
        f"{row['peak_percent']:.1f}" if "peak_percent" in row else "",
        f"{row['pack_ms']:.2f}" if "pack_ms" in row else "",
        f"{row['max_error']:.1e}" if "max_error" in row else "",
    )


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    """Lines of a table: the columns in `left` flush left, the others flush right."""
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, rule, *body)
    ]


def terminal(data: dict[str, Any]) -> str:
    """The whole result in text. The last line says in words what to use here."""
    lines = [*headline(data), ""]
    for kind, title in _KINDS:
        rows = [row for row in data["rows"] if row["kind"] == kind]
        if rows:
            lines += [title, *aligned(HEAD, [cells(row) for row in rows], _LEFT), ""]
    if any(row.get("auto") and row["algorithm"] != "auto" for row in data["rows"]):
        lines += ['* what algorithm="auto" picks. Spread: half the median\'s 95 % interval over the median.']
        lines += ["  Max error: the largest difference from float64, over the largest value.", ""]
    lines += [f"left out: {item['layer']}, {item['what']}: {item['reason']}" for item in data["skipped"]]
    lines += [f"note: {note}" for note in data["notes"]]
    lines += verdict(data["rows"])
    return "\n".join(lines)


def headline(data: dict[str, Any]) -> list[str]:
    """Machine, versions and measured peaks, a line each."""
    environment = data["environment"]
    found, versions = environment.get("machine", {}), environment.get("versions", {})
    peaks = ", ".join(
        f"{float(value) / 1e9:.0f} GFLOP/s on {threads} thread(s)" for threads, value in data["peaks"].items()
    )
    processor = f"{found.get('cpu', 'unknown processor')}, {found.get('isa', '?')}"
    return [
        f"fastconv {versions.get('fastconv', '?')}, NumPy {versions.get('numpy', '?')}, {environment.get('date', '?')}",
        f"{processor}; measured float32 FMA peak: {peaks or 'not measured'}",
    ]


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
th.l, td.l { text-align: left; }
.wide { overflow-x: auto; }
.verdict { font-size: 17px; font-weight: 600; }
figure { margin: 0; background: #fff; }
figure svg { max-width: 100%; height: auto; }
@media print { body { margin: 0; } .wide { overflow: visible; } }
"""


def page(data: dict[str, Any]) -> str:
    """One HTML page: the words, the tables, the environment, and a plot where matplotlib is installed."""
    words = verdict(data["rows"])
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>fastconv bench</title><style>{_STYLE}</style><h1>fastconv bench</h1>",
        *(f"<p>{_text(line)}</p>" for line in headline(data)),
        f"<p class=verdict>{_text(words[-1])}</p>",
        *(f"<p>{_text(line)}</p>" for line in words[:-1]),
    ]
    plot = _plot(data["rows"])
    if plot:
        parts.append(f"<figure>{plot}</figure>")
    for kind, title in _KINDS:
        rows = [row for row in data["rows"] if row["kind"] == kind]
        if rows:
            parts.append(f"<h2>{title}</h2>" + _table(HEAD, [cells(row) for row in rows], _LEFT))
    if data["skipped"]:
        left_out = [(item["layer"], item["what"], item["reason"]) for item in data["skipped"]]
        parts.append("<h2>Left out</h2>" + _table(("layer", "what", "why"), left_out, {0, 1, 2}))
    parts += [f"<p>Note: {_text(note)}</p>" for note in data["notes"]]
    facts = [(key, str(value)) for key, value in _flat(data["environment"]) if value not in (None, "", [], {})]
    parts.append("<h2>Environment</h2>" + _table(("what", "value"), facts, {0, 1}))
    return "\n".join(parts) + "\n</html>\n"


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(head: Sequence[str], body: Sequence[Sequence[str]], left: set[int]) -> str:
    def line(values: Sequence[str], tag: str) -> str:
        inner = "".join(f"<{tag}{' class=l' if i in left else ''}>{_text(v)}</{tag}>" for i, v in enumerate(values))
        return f"<tr>{inner}</tr>"

    rows = "".join(line(values, "td") for values in body)
    return f"<div class=wide><table><thead>{line(head, 'th')}</thead><tbody>{rows}</tbody></table></div>"


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in data.items():
        out += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return out


def _plot(rows: list[Row]) -> str | None:
    """Bars in SVG: the median of each layer, times its repeat count, for each layout and algorithm. None without
    matplotlib."""
    convs = [row for row in rows if row["kind"] == "conv"]
    if not convs or importlib.util.find_spec("matplotlib") is None:
        return None
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    first = (convs[0]["threads"], convs[0]["batch"])
    convs = [row for row in convs if (row["threads"], row["batch"]) == first]
    layers = list(dict.fromkeys(row["layer"] for row in convs))
    ways = list(dict.fromkeys((row["provider"], row["layout"], row["algorithm"]) for row in convs))
    figure, axes = pyplot.subplots(figsize=(12, 0.9 + 0.16 * len(layers) * (len(ways) + 1)))
    for number, way in enumerate(ways):
        own = {row["layer"]: row for row in convs if (row["provider"], row["layout"], row["algorithm"]) == way}
        positions = [i + 0.8 * (number + 0.5) / len(ways) - 0.4 for i, layer in enumerate(layers) if layer in own]
        widths = [own[layer]["median_ms"] * own[layer]["repeat"] for layer in layers if layer in own]
        axes.barh(positions, widths, 0.8 / len(ways), label=" ".join(part for part in way if part != "-"))
    axes.set_yticks(range(len(layers)), layers)
    axes.invert_yaxis()
    axes.set_xlabel(f"median ms x repeat count ({first[0]} threads, batch {first[1]})")
    axes.legend()
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
