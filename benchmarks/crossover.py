"""Where the winner changes: one layer, one size varied, on a coarse grid first, then closer where two values differ.

A value has a winner if it is faster than every other way by more than the noise (95 %, and by at least `WORTH`);
otherwise it is a tie. Between two neighbouring values with different winners the middle is measured too, until they
are next to each other or the rounds are used up: the answer is a range, and no finer than what was measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .layouts import WORTH
from .problem import Problem, Suite
from .resampling import Row, interval, resampled_medians, thin
from .runner import Run, Settings

#: What can be varied, the letter of a problem that it stands for, and the largest value tried unless told.
LETTERS = {"batch": ("n", 32), "width": ("ih", 224), "in-channels": ("ic", 512), "out-channels": ("oc", 512)}
#: Values of the first grid, and how often it is refined.
GRID = 7
REFINEMENTS = 4


@dataclass(frozen=True)
class Winner:
    """What is fastest at one value: its name, or None for a tie. `ways`: median ms of each."""

    value: int
    name: str | None
    ways: dict[str, float]


def grid(low: int, high: int, count: int = GRID) -> list[int]:
    """About `count` whole numbers from low to high, in equal ratios."""
    if not 1 <= low <= high:
        raise ValueError(f"from, to: need 1 <= from <= to, got {low} and {high}")
    return sorted({round(v) for v in np.geomspace(low, high, count)})


def name_of(row: Row) -> str:
    """How the words call a row: layout and algorithm, or the peer."""
    layout = "" if row["layout"] == "-" else f"{row['layout']} "
    if row["via"]:
        return f"NCHW via {row['via']}"
    return layout + str(row["algorithm"] if row["provider"] == "fastconv" else row["provider"])


def winner(rows: Sequence[Row], value: int) -> Winner:
    """Who is fastest among rows of one problem, if that is more than noise."""
    rows = sorted(rows, key=lambda row: float(row["median_ms"]))
    ways = {name_of(row): float(row["median_ms"]) for row in rows}
    if len(rows) < 2:
        return Winner(value, name_of(rows[0]) if rows else None, ways)
    low, _ = interval(resampled_medians(rows[1], 2) / resampled_medians(rows[0], 1))
    sure = low > 1 + WORTH and not thin(list(rows[:2]))
    return Winner(value, name_of(rows[0]) if sure else None, ways)


def between(found: dict[int, Winner], step: int = 1) -> list[int]:
    """Values to measure next: the (geometric) middle of neighbours whose winners differ and that are not adjacent."""
    values = sorted(found)
    middles: list[int] = []
    for low, high in itertools.pairwise(values):
        if found[low].name != found[high].name and high - low > step:
            middle = step * round(math.sqrt(low * high) / step)
            middles.append(min(max(middle, low + step), high - step))
    return [m for m in dict.fromkeys(middles) if m not in found]


def sentences(layer: str, what: str, found: dict[int, Winner]) -> list[str]:
    """What was found, as ranges; the last sentence sums up."""
    values = sorted(found)
    if not values:
        return [f"{layer}: nothing was measured."]
    ranges: list[tuple[str | None, int, int]] = []
    for value in values:
        name = found[value].name
        if ranges and ranges[-1][0] == name:
            ranges[-1] = (name, ranges[-1][1], value)
        else:
            ranges.append((name, value, value))
    lines = [f"{layer}, {what} {_span(low, high)}: {name or 'a tie within the noise'}." for name, low, high in ranges]
    sure = [entry for entry in ranges if entry[0] is not None]
    changes: list[str] = []
    for (first, _, last), (second, start, _) in itertools.pairwise(sure):
        if first != second:
            at = f"{what} {start}" if start - last <= 1 else f"a {what} between {last} and {start}"
            changes.append(f"from {at} on {second} is faster than {first}")
    if changes:
        return [*lines, f"Use {sure[0][0]} below; {'; '.join(changes)}."]
    if sure:
        return [*lines, f"Use {sure[0][0]}: the winner does not change from {what} {values[0]} to {values[-1]}."]
    return [*lines, f"No way is faster by more than the noise from {what} {values[0]} to {values[-1]}: use any."]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


@dataclass
class Search:
    """A crossover run. `execute` measures; `run.data()` holds all rows and, as `sweep`, what was found."""

    problem: Problem
    what: str
    low: int
    high: int
    settings: Settings
    progress: Callable[[int, int, str], None] = lambda done, total, name: None
    save: Callable[[dict[str, Any]], None] = lambda data: None

    def __post_init__(self) -> None:
        letter = LETTERS[self.what][0]
        depthwise = self.problem.g > 1
        self.letter = letter
        self.step = self.problem.g if depthwise and letter in ("ic", "oc") and self.problem.g != self.problem.ic else 1
        values = [v for v in grid(self.low, self.high) if v % self.step == 0] or [self.high - self.high % self.step]
        self.values = [v for v in values if v >= 1]
        for value in self.values:
            self.problem.replace_size(letter, value)  # ValueError now, not after minutes
        self.run = Run(self._settings(self.values), self.progress, self._save)
        self.found: dict[int, Winner] = {}

    def _settings(self, values: Sequence[int]) -> Settings:
        """The same settings for the layer at these values, with a share of the time in proportion."""
        problems = []
        for value in values:
            p = self.problem.replace_size(self.letter, value)
            problems.append(dataclasses.replace(p, name=f"{self.problem.name}/{self.letter}{value}"))
        share = len(values) / (GRID + REFINEMENTS)
        suite = Suite("crossover", tuple(problems), max_time=self.settings.max_time * share)
        return dataclasses.replace(self.settings, suite=suite, max_time=max(1.0, self.settings.max_time * share))

    def execute(self) -> None:
        """Measures the grid, then closer where the winner changes. Interruptions leave what was measured."""
        values = self.values
        for _ in range(1 + REFINEMENTS):
            self.run.settings = self._settings(values)
            try:
                self.run.execute()
            finally:
                self._judge()
            values = between(self.found, self.step)
            if not values:
                break
        self._save(self.run.data())

    def _judge(self) -> None:
        for row in self.run.rows:
            row["sweep_value"] = int(str(row["layer"]).rsplit(f"/{self.letter}", 1)[1])
        for value in sorted({row["sweep_value"] for row in self.run.rows}):
            own = [row for row in self.run.rows if row["sweep_value"] == value and row["kind"] == "layer"]
            own = [row for row in own if row["dtype"] == "float32"]
            if own:
                self.found[value] = winner(own, value)
        lines = sentences(self.problem.name, self.what, self.found)
        winners = [{"value": v, "winner": w.name, "ms": w.ways} for v, w in sorted(self.found.items())]
        self.run.sweep = {
            "vary": self.letter, "what": self.what, "layer": self.problem.name, "values": sorted(self.found),
            "winners": winners, "sentences": lines,
        }  # fmt: skip

    def _save(self, data: dict[str, Any]) -> None:
        self.save(data)
