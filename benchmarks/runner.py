"""A whole run: every layer in every layout with every algorithm, checked first and then timed side by side."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import fastconv

from . import machine, peers, schema
from .cases import Bench, Unit, WrongResultError
from .problem import Problem, Suite

Row = dict[str, Any]

__all__ = ["Run", "Settings", "WrongResultError", "cpu_algorithms", "selected"]


@dataclass(frozen=True)
class Settings:
    """What to run. `algorithms` empty: all that this machine has for the CPU, without the reference."""

    suite: Suite
    match: str | None = None
    layouts: tuple[str, ...] = ("nchw", "nhwc")
    algorithms: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    device: str = "cpu"
    peers: tuple[str, ...] = ()
    max_time: float = 120.0


def selected(suite: Suite, match: str | None) -> tuple[tuple[Problem, ...], str | None]:
    """The suite's layers and network whose names `match` finds. ValueError for a bad expression or if nothing is
    left."""
    if match is None:
        return suite.problems, suite.network
    try:
        pattern = re.compile(match)
    except re.error as error:
        raise ValueError(f"match: {match!r} is not a regular expression: {error}") from None
    problems = tuple(p for p in suite.problems if pattern.search(p.name))
    network = suite.network if suite.network and pattern.search(suite.network) else None
    if not problems and network is None:
        raise ValueError(f"match: no layer of suite {suite.name!r} is found by {match!r}")
    return problems, network


def cpu_algorithms() -> list[str]:
    """Names of the convolution algorithms that this machine can run, best first, without the reference."""
    found = [k["algorithm"] for k in fastconv.kernels("conv2d") if k["supported"] and k["device"] == "cpu"]
    return [name for name in dict.fromkeys(found) if name != "reference"]


@dataclass
class Run:
    """One run. `execute` fills `rows`; `data` is the file's content at any time. `progress(done, total, name)` is told
    each step."""

    settings: Settings
    progress: Callable[[int, int, str], None] = lambda done, total, name: None
    save: Callable[[dict[str, Any]], None] = lambda data: None
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    def execute(self) -> None:
        """Runs everything. WrongResultError stops it; a KeyboardInterrupt passes through; both leave what was
        measured."""
        s = self.settings
        problems, network = selected(s.suite, s.match)
        algorithms = list(s.algorithms) or cpu_algorithms()
        self.environment = machine.environment()
        self._note(machine.busy_warning(self.environment["load_average"], len(self.environment["affinity"] or [1])))
        libraries, messages = peers.load_peers(list(s.peers)) if s.suite.peers else ([], [])
        for message in messages:
            self._note(message)
        if s.peers and not s.suite.peers:
            self._note(f"suite {s.suite.name} calls no peers: --peers is ignored")
        deadline = time.perf_counter() + s.max_time
        for threads in s.threads:
            self.peaks[str(threads)] = machine.fma_peak(threads)
        self.environment["peaks_by_isa"] = machine.peaks_by_isa(max(s.threads))
        units: list[Unit] = []
        for threads in s.threads:
            for batch in s.batches:
                bench = Bench(self, threads, batch, libraries)
                units += bench.units(problems, network, algorithms)
        incomplete = False
        for number, unit in enumerate(units):
            self.progress(number, len(units), unit.name)
            left = deadline - time.perf_counter()
            if left <= 0 and number > 0:  # something is measured in any case
                incomplete = True
                self.skipped.append({"layer": unit.name, "what": "all", "reason": "the time limit was reached before"})
                continue
            unit.execute(left * unit.share / sum(u.share for u in units[number:]))
            self.save(self.data())
        self.progress(len(units), len(units), "done")
        if incomplete:
            self._note(
                f"the time limit of {s.max_time:g} s ended the run early: not everything was measured (--max-time)"
            )
        self._check_drift()
        self.complete = not incomplete
        self.save(self.data())

    def _note(self, text: str | None) -> None:
        if text:
            self.notes.append(text)

    def _check_drift(self) -> None:
        """Measures the peaks once more: if they moved, so did the machine's speed. The higher one is what counts."""
        for threads in self.settings.threads:
            again, before = machine.fma_peak(threads), self.peaks[str(threads)]
            self.peaks[str(threads)] = max(again, before)
            if abs(again / before - 1.0) > 0.05:
                self._note(
                    f"the FMA peak on {threads} thread(s) went from {before / 1e9:.0f} to {again / 1e9:.0f} GFLOP/s "
                    "during the run: clocks or neighbours changed, so trust small differences less"
                )
        for row in self.rows:
            if "gflops" in row:
                row["peak_percent"] = 1e11 * row["gflops"] / self.peaks[str(row["threads"])]

    def data(self) -> dict[str, Any]:
        """The result as the file holds it, see `schema`."""
        settings = dataclasses.asdict(self.settings)
        settings["suite"] = self.settings.suite.name
        return {
            "schema": schema.SCHEMA,
            "tool": schema.TOOL,
            "complete": self.complete,
            "notes": list(self.notes),
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
            "environment": self.environment,
            "peaks": dict(self.peaks),
            "rows": list(self.rows),
            "skipped": list(self.skipped),
        }
