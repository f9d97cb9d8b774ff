"""HTML by hand: escaping, tables, the page's style and its few lines of script."""

from __future__ import annotations

import html
from collections.abc import Sequence, Set
from dataclasses import dataclass

from .tables import Table


@dataclass(frozen=True)
class Cell:
    """A cell of a body: HTML, and a class of the style (or "")."""

    inner: str
    kind: str = ""


STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --soft: #5d6673; --line: #d5dae1; --card: #f4f6f9;
        --best: rgba(42,134,200,.26); --bar: #808080; --link: #0b62a8; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --bg: #111; --fg: #e8eaed; --soft: #a3abb6;
        --line: #34383f; --card: #1b1d21; --best: rgba(42,134,200,.42); --link: #6fb7f2; } }
:root[data-theme=dark] { color-scheme: dark; --bg: #111; --fg: #e8eaed; --soft: #a3abb6; --line: #34383f;
        --card: #1b1d21; --best: rgba(42,134,200,.42); --link: #6fb7f2; }
:root[data-theme=light] { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; background: var(--bg); color: var(--fg);
       margin: 0 auto; max-width: 76rem; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem; }
header { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: baseline; }
header h1 { font-size: 1.05rem; margin: 0; letter-spacing: .02em; }
header nav { font-size: .85rem; flex: 1; display: flex; flex-wrap: wrap; gap: .1rem .9rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .2rem; }
a { color: var(--link); }
header button { font: inherit; font-size: .85rem; color: var(--fg); background: var(--card);
       border: 1px solid var(--line); border-radius: 6px; padding: .15rem .7rem; cursor: pointer; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.6rem 0 .3rem; }
h2 small, h3 small, summary small { font-weight: 400; font-size: .85rem; color: var(--soft); margin-left: .5rem; }
p { margin: .4rem 0; max-width: 62rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.verdict { background: var(--card); border-left: 5px solid #2a86c8; border-radius: 0 8px 8px 0; margin: 1rem 0;
       padding: .9rem 1.2rem; }
.verdict strong { display: block; font-size: clamp(1.25rem, 1rem + 1.3vw, 1.8rem); line-height: 1.25; }
.verdict p { margin: .4rem 0 0; max-width: none; }
.words li { margin: .2rem 0; }
ul { margin: .4rem 0; padding-left: 1.2rem; max-width: 66rem; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .22rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
       vertical-align: baseline; }
th.l, td.l { text-align: left; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; line-height: 1.25; }
tfoot td { font-weight: 600; border-top: 2px solid var(--line); border-bottom: 0; }
td small { display: block; font-weight: 400; color: var(--soft); font-size: 11px; line-height: 1.2; }
td.best { background: var(--best); font-weight: 600; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--bg); }
th[role=button] { cursor: pointer; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
.bars { width: 100%; max-width: 60rem; }
.bars td.b { width: 60%; padding-right: 0; text-align: left; }
.bars i { display: block; height: .95rem; min-width: 2px; border-radius: 0 3px 3px 0; background: var(--bar);
       print-color-adjust: exact; -webkit-print-color-adjust: exact; }
figure { margin: .6rem 0 0; }
figure svg { width: 100%; height: auto; display: block; }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { font-size: 12px; overflow-x: auto; background: var(--card); padding: .8rem; border-radius: 8px;
       user-select: all; -webkit-user-select: all; }
.facts td:last-child { white-space: normal; overflow-wrap: anywhere; text-align: left; }
@media (max-width: 40rem) { header nav { order: 3; flex-basis: 100%; } header h1 { flex: 1; }
       th, td { padding: .22rem .4rem; } .bars tr > :nth-child(n+5) { display: none; }
       td:first-child, th:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6.5rem;
         max-width: 9rem; } }
@media print {
  @page { size: A4 landscape; margin: 11mm; }
  :root, :root[data-theme=dark], :root:not([data-theme=light]) { color-scheme: light; --bg: #fff; --fg: #000;
       --soft: #444; --line: #bbb; --card: #f2f4f7; --best: rgba(42,134,200,.26); }
  body { max-width: none; padding: 0; font-size: 11px; } header nav, header button { display: none; }
  .wide { overflow: visible; } table { font-size: 9px; } th, td { padding: .12rem .35rem; }
  td small { font-size: 7.5px; } td.best { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  td:first-child, th:first-child { position: static; }
  #rows table { font-size: 6px; } #rows th, #rows td { padding: .08rem .2rem; }
  thead { display: table-header-group; } tfoot { display: table-row-group; } tr, figure { break-inside: avoid; }
  h2, figcaption, summary { break-after: avoid; } section#layouts { break-before: page; }
  figure svg { min-width: 0 !important; max-width: 100%; max-height: 158mm; }
  pre { white-space: pre-wrap; font-size: 8px; }
}
"""

#: Sorting by a click (or Enter) on a head, and the light and dark button. The page is whole without it.
SCRIPT = """
document.querySelectorAll('table.sort th').forEach(function (head) {
  head.tabIndex = 0;
  head.setAttribute('role', 'button');
  function sort() {
    var table = head.closest('table'), body = table.tBodies[0], at = head.cellIndex;
    var up = head.getAttribute('aria-sort') !== 'ascending';
    var keyed = Array.from(body.rows).map(function (row) {
      var cell = row.cells[at], text = cell ? cell.textContent.trim() : '', number = parseFloat(text);
      return { row: row, text: text, number: number };
    });
    var numbers = keyed.every(function (k) { return k.text === '' || k.text[0] === '=' || !isNaN(k.number); });
    keyed.sort(function (a, b) {
      var none = numbers ? isNaN(a.number) - isNaN(b.number) : (a.text === '') - (b.text === '');
      if (none) { return none; }
      var order = numbers ? (a.number - b.number) || 0 : a.text.localeCompare(b.text, undefined, { numeric: true });
      return up ? order : -order;
    });
    table.querySelectorAll('th').forEach(function (other) { other.removeAttribute('aria-sort'); });
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    body.append.apply(body, keyed.map(function (k) { return k.row; }));
  }
  head.addEventListener('click', sort);
  head.addEventListener('keydown', function (event) {
    if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); sort(); }
  });
});
(function () {
  var root = document.documentElement, button = document.createElement('button');
  function dark() {
    return root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  }
  function name() { button.textContent = dark() ? 'Light' : 'Dark'; }
  button.type = 'button';
  button.title = 'light or dark page';
  button.addEventListener('click', function () { root.dataset.theme = dark() ? 'light' : 'dark'; name(); });
  name();
  document.querySelector('header').append(button);
})();
"""


def text(value: object) -> str:
    """Any value as text that HTML shows as it is."""
    return html.escape(str(value))


def table(found: Table, kind: str = "") -> str:
    """A table whose cells are escaped here."""
    body = [[Cell(text(cell.strip())) for cell in line] for line in found.body]
    foot = [[text(cell.strip()) for cell in line] for line in found.foot]
    return cell_table(found.head, body, foot, found.left, kind)


def cell_table(
    head: Sequence[str],
    body: Sequence[Sequence[Cell]],
    foot: Sequence[Sequence[str]],
    left: Set[int],
    kind: str = "",
) -> str:
    """A table of cells that are HTML already; heads are text. Sortable if it has more than one line.

    Columns that say nothing are left out, and end tags that HTML implies: thousands of rows stay small.
    """
    used = [i for i in range(len(head)) if any(line[i].inner for line in body)]
    head, left = [head[i] for i in used], {new for new, old in enumerate(used) if old in left}
    body, foot = [[line[i] for i in used] for line in body], [[line[i] for i in used] for line in foot]
    classes = " ".join(word for word in ("sort" if len(body) > 1 else "", kind) if word)
    sides = ["l" if i in left else "" for i in range(len(head))]
    heads = "".join(f"{_open('th', side)}{_head(cell)}" for side, cell in zip(sides, head, strict=True))
    lines = "\n".join(
        "<tr>" + "".join(f"{_open('td', side, cell.kind)}{cell.inner}" for side, cell in zip(sides, line, strict=True))
        for line in body
    )
    feet = "".join(
        "<tr>" + "".join(f"{_open('td', side)}{cell}" for side, cell in zip(sides, line, strict=True)) for line in foot
    )
    foot_part = f"<tfoot>{feet}</tfoot>" if feet else ""
    named = f' class="{classes}"' if classes else ""
    return f"<div class=wide><table{named}><thead><tr>{heads}</thead>\n<tbody>{lines}</tbody>{foot_part}</table></div>"


def _head(words: str) -> str:
    """Short heads stay on one line."""
    shown = text(words).replace("+-", "±")
    return shown.replace(" ", "&nbsp;") if len(words) <= 9 else shown


def _open(tag: str, *kinds: str) -> str:
    words = " ".join(kind for kind in kinds if kind)
    return f"<{tag}>" if not words else f"<{tag} class={words}>" if " " not in words else f'<{tag} class="{words}">'
