"""What `fastconv bench` shows of a result: text, Markdown, pictures and the HTML page, from made-up results."""

from __future__ import annotations

import html.parser
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fastconv.benchmarks import layouts, report, schema
from fastconv.benchmarks.report import curves, drawing, figures, tables

from bench_made import BANDWIDTH, PEAK, Data, Row, full, made_data, made_row, sweep

MAIN = layouts.Setting(2, 1)


@pytest.fixture(scope="module")
def data() -> Data:
    """The whole run; tests do not change it."""
    return schema.validate(full(batches=(1, 4)))


@pytest.fixture(scope="module")
def page(data: Data) -> str:
    return report.page(data)


def _main(data: Data) -> list[layouts.Comparison]:
    return [c for c in layouts.comparisons(data["rows"]) if c.setting == MAIN]


def _needs_matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib")


# --- text -------------------------------------------------------------------------------------------------------------


def test_terminal_has_a_line_a_layer_with_the_four_numbers(data: Data) -> None:
    text = report.terminal(full((2,), (1,)))
    lines = text.splitlines()
    for c in _main(data):
        assert any(line.startswith(f"{c.layer} ") for line in lines), c.layer
    one = full((2,), (1,))
    for c in _main(one):
        (line,) = [line for line in lines[: lines.index(tables.COMPARED)] if line.startswith(f"{c.layer} ")]
        for way in layouts.WAYS:
            row = c.way(way)
            assert row is None or tables.ms(row["median_ms"]) in line.replace("*", "").replace("~", "").split()
        mark = {"nchw": 2, "nhwc": 3, "via": 4, "peer": 5}[c.winner]
        assert re.split(r"\s+", line)[mark][-1] in "*~"
    table = [line for line in lines if line.startswith(("layer ", "l1.", "l4."))]
    assert max(len(line) for line in table) <= 140
    assert tables.words(one)[-1] == lines[-1]
    assert "Left out: NCHW winograd (conv1): stride <2> is not 1" in lines
    assert "Noise: 1.2 % within a visit, 2.3 % between visits." in lines


def test_terminal_with_all_rows(data: Data) -> None:
    text = report.terminal(data, rows="all")
    body = [line for line in text.splitlines() if line.startswith(("conv1 ", "pool1 ", "resnet50 ", "64x112x112 "))]
    wanted = [row for row in data["rows"] if row["layer"] in ("conv1", "pool1", "resnet50", "64x112x112")]
    kept = [line for line in body if "end to end" not in line and "against" not in line]
    assert len(kept) == len(wanted)
    for word in ("cold ms", "isa", "via", "bound", "p90 ms", "FLOP/B"):
        assert word in text
    with pytest.raises(ValueError, match="'most'"):
        report.terminal(data, rows="most")  # type: ignore[arg-type]


def test_markdown_is_tables_with_the_winner_in_bold() -> None:
    data = full((2,), (1,))
    text = report.markdown(data)
    for c in _main(data):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {c.layer} |")]
        row = c.way(c.winner)
        assert row is not None and (f"**{tables.ms(row['median_ms'])}**" in line) == c.clear
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    hostile = report.markdown(made_data([made_row(1.0, layer="a|b*c<d>_`e")]))
    assert "a\\|b\\*c&lt;d>\\_\\`e" in hostile


# --- pictures ---------------------------------------------------------------------------------------------------------

DRAWINGS: dict[str, Callable[[Data], drawing.Drawing | None]] = {
    "heat": lambda d: figures.heat_map(_first(d), "here"),
    "bars": lambda d: figures.layer_bars(_first(d), "here"),
    "roof": lambda d: figures.roofline(d, _first(d), layouts.main_setting(d["rows"]) or MAIN),
    "scaling": lambda d: curves.scaling(d["rows"]),
    "ecdf": lambda d: curves.ratios(_first(d), "here"),
    "sweep": curves.crossover,
}


def _first(data: Data) -> list[layouts.Comparison]:
    sections = tables.sections(data)
    return sections[0][2] if sections else []


def _texts(svg: str) -> list[str]:
    """The texts of a picture, which must be well-formed XML."""
    return [(element.text or "").strip() for element in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_picture_of_a_whole_run(name: str, data: Data) -> None:
    _needs_matplotlib()
    found = DRAWINGS[name](sweep() if name == "sweep" else data)
    assert found is not None and found.name == name and found.title and found.how.endswith(".")
    assert _texts(found.svg) and "currentColor" in found.svg and drawing.INK not in found.svg
    assert f'<title id="title-{name}">' in found.svg
    assert "http" not in found.svg and "font-family" not in found.svg
    ids = set(re.findall(r'id="([^"]+)"', found.svg))
    assert all(i.startswith(f"{name}-") or i == f"title-{name}" for i in ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', found.svg)) <= ids


NEARLY_EMPTY: dict[str, Callable[[], Data]] = {
    "nothing": lambda: made_data([]),
    "one row": lambda: made_data([made_row(1.0)]),
    "one peer alone": lambda: made_data([made_row(1.0, provider="pytorch")]),
    "bfloat16 alone": lambda: made_data([made_row(1.0, provider="pytorch-bf16", dtype="bfloat16")]),
    "no layout": lambda: made_data([made_row(1.0, layout="-", op="softmax"), made_row(1.0, layer="b", op="relu")]),
    "a network alone": lambda: made_data([made_row(1.0, kind="network", layer="resnet50", algorithm="auto")]),
    "a conversion alone": lambda: made_data([made_row(1.0, kind="convert", layout="NCHW->NHWC")]),
    "incomplete": lambda: made_data(full((1,), (1,))["rows"][:14], complete=False, notes=["interrupted"]),
    "a sweep cut short": lambda: {**sweep(), "rows": sweep()["rows"][:3], "complete": False},
    "a sweep of nothing": lambda: {**sweep(), "rows": []},
    "bare rows": lambda: made_data([_bare(made_row(1.0, layout=layout)) for layout in ("NCHW", "NHWC")]),
}


def _bare(row: Row) -> Row:
    """Without the keys that a row may lack, and with a spread that is not known."""
    optional = ("gflops", "peak_percent", "pack_ms", "packed_bytes", "intensity", "bound", "bound_ms", "bytes",
                "roofline_percent", "max_error", "relative_l2", "gbytes_per_s", "suite", "kernel")  # fmt: skip
    return {**{k: v for k, v in row.items() if k not in optional}, "spread": None, "cold_median_ms": None}


@pytest.mark.parametrize("name", NEARLY_EMPTY)
@pytest.mark.filterwarnings("error")
def test_nearly_empty_results_have_every_view(name: str) -> None:
    data = NEARLY_EMPTY[name]()
    for rows in ("compact", "all"):
        assert report.terminal(data, rows=rows)  # type: ignore[arg-type]
    assert report.markdown(data).startswith("**")
    _Page().feed(text := report.page(data))
    assert ("incomplete" in text) == (not data["complete"])
    if importlib.util.find_spec("matplotlib"):
        for draw in DRAWINGS.values():
            found = draw(data)
            assert found is None or _texts(found.svg)


def test_the_heat_map_has_the_numbers_of_the_rows(data: Data) -> None:
    _needs_matplotlib()
    found = figures.heat_map(_main(data), "here")
    assert found is not None
    shown = [text.replace(" •", "") for text in _texts(found.svg)]
    wanted = [f"{r['median_ms']:.3f}" for c in _main(data) for r in c.rows if r["dtype"] == "float32"]
    assert sorted(t for t in shown if re.fullmatch(r"\d+\.\d{3}", t)) == sorted(wanted)
    assert "bf16" not in "".join(shown)
    assert sum(text.endswith("•") for text in _texts(found.svg)) == sum(
        bool(r["auto"]) for c in _main(data) for r in c.rows if r["provider"] == "fastconv" and not r["via"]
    )


def test_many_layers_are_cut_to_the_costly_ones() -> None:
    rows = [made_row(1.0 + i / 10, layer=f"layer{i}") for i in range(figures.MOST + 20)]
    kept, words = figures.shown(layouts.comparisons(rows))
    assert [c.layer for c in kept] == [f"layer{i}" for i in range(20, figures.MOST + 20)]
    assert "60 of 80" in words


def test_the_roofline_shows_the_roofs_of_its_setting(data: Data) -> None:
    _needs_matplotlib()
    for threads in (1, 2):
        compared = [c for c in layouts.comparisons(data["rows"]) if c.setting == layouts.Setting(threads, 1)]
        found = figures.roofline(data, compared, layouts.Setting(threads, 1))
        assert found is not None
        words = _texts(found.svg)
        assert f"FMA peak {PEAK[threads]:.0f} GFLOP/s (avx512)" in words
        assert f"memory {BANDWIDTH[threads]['memory']:.0f} GB/s" in words
    free = figures.roofline({**data, "rooflines": []}, compared, MAIN)
    assert free is not None and not any("peak" in word for word in _texts(free.svg))


def test_drawing_leaves_no_trace(data: Data) -> None:
    _needs_matplotlib()
    import matplotlib

    before = dict(matplotlib.rcParams)
    first = figures.heat_map(_main(data), "here")
    assert dict(matplotlib.rcParams) == before
    assert first == figures.heat_map(_main(data), "here")  # the same rows give the same bytes


def test_colours_stand_out_on_light_and_dark() -> None:
    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    peers = ("pytorch", "onnxruntime", "openvino", "ncnn", "scipy", "numpy", "jax", "xnnpack", "tvm", "mlx")
    styles = [drawing.style(peer) for peer in peers]
    styles += [drawing.style("fastconv", "NCHW"), drawing.style("fastconv", "NHWC")]
    for color in [s.color for s in styles] + [drawing.style("fastconv", "NCHW", "NHWC").color]:
        light, dark = 1.05 / (luminance(color) + 0.05), (luminance(color) + 0.05) / (luminance("#111111") + 0.05)
        assert min(light, dark) >= 3, color


def test_picture_for_a_readme(tmp_path: Path, data: Data) -> None:
    _needs_matplotlib()
    for name in ("a.svg", "a.png"):
        report.picture(data, tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    (nhwc,) = [t for t in layouts.totals(data["rows"], MAIN) if t.label == "NHWC"]
    assert f"{nhwc.ms:.1f} ms" in words and "fastconv NHWC" in words and "openvino" in words
    assert "prefers-color-scheme:dark" in text and not any("bf16" in str(word) for word in words)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="neither in"):
        report.picture(data, tmp_path / "a.gif")
    with pytest.raises(ValueError, match="nothing to draw"):
        report.picture(made_data([]), tmp_path / "b.svg")


# --- the page ---------------------------------------------------------------------------------------------------------


class _Page(html.parser.HTMLParser):
    """What a page asks for and shows: attributes, ids, and whether tags that must be closed are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("section", "div", "table", "details", "figure", "svg", "script", "style", "ul", "pre"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "action", "data", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("section", "div", "table", "details", "figure", "svg", "script", "style", "ul", "pre"):
            assert self.open.pop() == tag

    def handle_data(self, words: str) -> None:
        if self.cells and "table" in self.open:
            self.cells[-1] += words


def test_page_is_one_file_without_the_network(page: str) -> None:
    found = _Page()
    found.feed(page)
    assert found.open == [] and len(found.ids) == len(set(found.ids))
    assert "//" not in page.replace("</", "") and "@import" not in page and "url(" not in page.replace("url(#", "")
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert len(page) < 2_000_000


def test_page_shows_the_numbers_of_the_rows(page: str, data: Data) -> None:
    found = _Page()
    found.feed(page)
    cells = {cell.strip() for cell in found.cells}
    for row in data["rows"]:
        assert tables.ms(row["median_ms"]) in cells, row["layer"]
    for c in _main(data):
        assert c.nhwc is not None and c.factor is not None and f"{c.factor:.2f}" in cells
    assert html.escape(tables.words(data)[0]) in page
    order = ["class=verdict", "id=times", "id=layouts", "id=heat", "id=bars", "id=roof", "id=scaling", "id=ecdf"]
    order += ["id=method", "id=rows", "id=environment", "id=markdown"]
    if importlib.util.find_spec("matplotlib"):
        places = [page.index(f"{word}>") for word in order]
        assert places == sorted(places)


def test_page_escapes_everything() -> None:
    bad = "<b>&'\"x</script>"
    rows = [made_row(1.0, layer=bad, layout=layout, problem=bad, auto=True, gflops=9.0) for layout in ("NCHW", "NHWC")]
    rows += [made_row(1.0, layer=bad, provider=bad, kernel=bad, problem=bad), made_row(1.0, kind="convert", layer=bad)]
    rows += [made_row(1.0, kind="network", layer=bad, provider=name) for name in ("fastconv", bad)]
    skipped = [{"layer": bad, "what": bad, "reason": bad}]
    environment = {"machine": {"cpu": bad, "isa": bad}, "versions": {bad: bad}}
    text = report.page(
        made_data(
            rows, notes=[bad], skipped=skipped, noise={"sentence": bad}, environment=environment, settings={bad: bad}
        )
    )
    _Page().feed(text)
    assert "<b>" not in text and "&lt;b&gt;" in text and text.count("</script>") == 1


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))


def test_page_without_matplotlib(no_matplotlib: None, data: Data, tmp_path: Path) -> None:
    text = report.page(data)
    _Page().feed(text)
    assert "<svg" not in text and "pip install &quot;fastconv[bench]&quot;" in text and "l4.1-2.conv2" in text
    with pytest.raises(ImportError, match="pip install"):
        report.picture(data, tmp_path / "a.svg")


def test_page_of_thousands_of_rows_is_small(no_matplotlib: None, data: Data) -> None:
    """Without pictures, whose size `figures.MOST` and the number of heat maps limit."""
    rows = data["rows"]
    many = [{**row, "layer": f"{row['layer']}.{i}"} for i in range(4) for row in rows if row["kind"] == "layer"]
    assert len(many) > 4000
    assert len(report.page(made_data(many))) < 3_000_000


def test_a_table_leaves_out_what_says_nothing() -> None:
    text = report.page(made_data([made_row(1.0)]))
    assert "NCHW via NHWC<" not in text and "best peer<" not in text
    assert report.aligned(("a", "bb"), [("x", "1")], {0}) == ["a  bb", "-  --", "x   1"]
