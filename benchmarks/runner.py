"""A whole run: noise and roofs first, then every layer visited several times in changing order until all is known."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastconv
from fastconv import _tuning

from . import machine, peers, roofline, schema
from .affinity import Pinner
from .cases import NETWORK_SHARE, LayerUnit, NetworkUnit
from .problem import Problem, Suite
from .timing import Sampler
from .unit import Bench, Kept, Row, Unit, WrongResultError, fill_in

__all__ = ["Run", "Settings", "WrongResultError", "selected"]

#: Visits that a layer gets at most; how many are planned before it is known what one costs; and how much of the time
#: preparing, warming up and evicting may take.
MAX_VISITS = 80
FIRST_PLAN = 8
OVERHEAD_SHARE = 0.45
#: Seconds between two writes of the file, at least; and how many times as long as the last one took: what is written
#: grows with the samples, and the time is the samples'.
SAVE_SECONDS = 3.0
SAVE_PAUSE = 50
#: A known layer is visited again in every so many passes while others are not known: machines change by the minute, and
#: samples of a run's first seconds alone would stand for those only. After the first plan, the half of the layers whose
#: widest rows are narrowest is visited in every second pass.
KNOWN_EVERY = 3
NARROW_EVERY = 2
#: Caps oneDNN (in PyTorch) where only a lower ISA level is measured: peers get the same instructions.
_ONEDNN_LEVEL = {"scalar": "SSE41", "avx2": "AVX2"}


@dataclass(frozen=True)
class Settings:
    """What to run. `algorithms` empty: all that this machine has for the CPU, without the reference. `isas` empty: the
    level in use. `cold`: time with evicted weights too. `pin`: threads on
    processors of their own."""

    suite: Suite
    match: str | None = None
    layouts: tuple[str, ...] = ("nchw", "nhwc")
    algorithms: tuple[str, ...] = ()
    isas: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    device: str = "cpu"
    peers: tuple[str, ...] = ()
    cold: bool = True
    pin: bool = True
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
    problems = tuple(p for p in suite.problems if pattern.search(p.name) or pattern.search(p.op))
    network = suite.network if suite.network and pattern.search(suite.network) else None
    if not problems and network is None:
        raise ValueError(f"match: no layer of suite {suite.name!r} is found by {match!r}")
    return problems, network


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
    roofs: list[roofline.Roofs] = field(default_factory=list)
    noise: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] | None = None
    complete: bool = False
    _libraries: list[peers.Peer] | None = None
    _benches: dict[tuple[str, int], Bench] = field(default_factory=dict)
    _kept: list[Kept] = field(default_factory=list)
    _save_next: float = 0.0

    def execute(self) -> None:
        """Runs everything. WrongResultError stops it; a KeyboardInterrupt passes through; both leave what was
        measured."""
        s = self.settings
        problems, network = selected(s.suite, s.match)
        isas = s.isas or (roofline.float32_isa(),)
        deadline = time.perf_counter() + s.max_time
        if self._libraries is None:
            self._libraries = self._start(isas)
        sections = [(isa, threads, batch) for isa in isas for threads in s.threads for batch in s.batches]
        weights = [self._weight(threads, batch) for _, threads, batch in sections]
        reached = True
        for number, (isa, threads, batch) in enumerate(sections):
            if (isa, threads) not in self._benches:
                self._benches[isa, threads] = self._bench(isa, threads, batch, self._libraries)
            bench = dataclasses.replace(self._benches[isa, threads], batch=batch)
            left = deadline - time.perf_counter()
            units = list(self._units(bench, problems, network))
            share = weights[number] / sum(weights[number:])
            reached &= self._passes(units, time.perf_counter() + left * share, number, len(sections))
        if not reached:
            self.note(
                f"the time limit of {s.max_time:g} s ended the run early: not everything was measured (--max-time)"
            )
        self._finish(reached)

    def _weight(self, threads: int, batch: int) -> float:
        """What part of the time a setting gets, beside those of the others."""
        return 1.0

    def _start(self, isas: tuple[str, ...]) -> list[peers.Peer]:
        """Looks at the machine, says what a sceptic should know, and loads the peers."""
        s = self.settings
        self.environment = machine.environment()
        self.note(machine.busy_warning(self.environment["load_average"], len(self.environment["affinity"] or [1])))
        if not s.suite.peers and s.peers:
            self.note(f"suite {s.suite.name} calls no peers: --peers is ignored")
        wanted = list(s.peers) if s.suite.peers else []
        if wanted and set(isas) < set(roofline.LEVELS) and roofline.levels()[-1] not in isas:
            wanted = self._cap_peers(wanted, isas[-1])
        libraries, messages = peers.load_peers(wanted, s.device) if wanted else ([], [])
        for message in messages:
            self.note(message)
        # Again, now that the peers' libraries and thread pools are there.
        self.environment = {**machine.environment(), "load_average": self.environment["load_average"]}
        self.environment["pinned"] = s.pin and Pinner(max(s.threads)).why_not is None
        self.note(_pin_note(s))
        self.note(self._tuned_note())
        return libraries

    def _tuned_note(self) -> str | None:
        count = len(_tuning.load().here)
        return f'"auto" follows {count} tuned choices (FASTCONV_TUNE=0 ignores them)' if count else None

    def _cap_peers(self, wanted: list[str], isa: str) -> list[str]:
        """Only oneDNN can be held to a lower ISA level, by its environment variable, before it is loaded."""
        kept = [name for name in wanted if name.startswith("pytorch")]
        if kept:
            os.environ["ONEDNN_MAX_CPU_ISA"] = _ONEDNN_LEVEL[isa]
            self.note(f"PyTorch's oneDNN is capped to {_ONEDNN_LEVEL[isa]}, as fastconv is to {isa}")
        for name in wanted:
            if name not in kept:
                self.note(f"peer {name} is left out: it cannot be capped to {isa}, so it would not be the same machine")
        return kept

    def _bench(self, isa: str, threads: int, batch: int, libraries: list[peers.Peer]) -> Bench:
        """What the units of one ISA level and number of threads share."""
        s = self.settings
        roofs = self._measured_roofs(isa, threads)
        pinner = Pinner(threads, s.pin)
        yardstick = roofline.Yardstick(isa, threads)
        with fastconv.threads(threads), roofline.isa_level(isa):
            yardstick.pinned = pinner.learn(_often(yardstick))
            self._look_at_noise(threads, yardstick)
        evictor = roofline.Evictor(threads) if s.cold else None
        sampler = Sampler(yardstick, evictor, order=random.Random(1))
        if evictor is not None:
            self.environment["evicted_bytes"] = evictor.bytes
        return Bench(self, isa, threads, batch, libraries, roofs, yardstick, sampler, pinner, evictor)

    def _measured_roofs(self, isa: str, threads: int) -> roofline.Roofs:
        self.progress(0, 1, f"{isa}, {threads} threads: roofs and noise")
        roofs = roofline.measure_roofs(isa, threads)
        self.roofs.append(roofs)
        return roofs

    def _look_at_noise(self, threads: int, yardstick: roofline.Yardstick) -> None:
        noise = roofline.estimate_noise(threads, yardstick)
        if not self.noise:
            self.noise = noise

    def _units(self, bench: Bench, problems: Iterable[Problem], network: str | None) -> Iterable[Unit]:
        s = self.settings
        for problem in problems:
            p = problem.with_batch(bench.batch)
            ways = 5.0 + sum(len(set(peer.layouts) & set(s.layouts)) for peer in bench.libraries)
            yield LayerUnit(p.name, bench, ways, problem=p, algorithms=s.algorithms)
        if network:
            share = NETWORK_SHARE * (len(s.layouts) + 1 + len(bench.libraries))
            yield NetworkUnit(network, bench, share, lasting=True, algorithms=s.algorithms or ("auto",))

    def _passes(self, units: list[Unit], deadline: float, section: int, sections: int) -> bool:
        """Visits the units until all is known or the time is up. False if some unit was not visited at all."""
        shuffle = random.Random(2)
        steps, number = FIRST_PLAN * len(units), 0
        for round_number in range(MAX_VISITS):
            pending = _due(units, round_number)
            if not pending:
                break
            left = deadline - time.perf_counter()
            if round_number == 0:
                more = FIRST_PLAN
            else:
                if left <= 0:
                    break
                shuffle.shuffle(pending)
                overhead = sum(unit.overhead for unit in pending)
                more = max(1, min(MAX_VISITS - round_number, int(OVERHEAD_SHARE * left / max(overhead, 1e-3))))
                steps = number + more * len(pending)
            end = time.perf_counter() + left / more
            for position, unit in enumerate(pending):
                now = time.perf_counter()
                if now >= deadline and not (section == 0 and number == 0):  # something is measured in any case
                    break
                self.progress(section * steps + number, sections * steps, f"{unit.name} ({round_number + 1})")
                rest = sum(u.share for u in pending[position:])
                unit.visit(max(end - now, 0.0) * unit.share / rest)
                number += 1
                self._save_now_and_then()
        for unit in units:
            if not unit.visits:
                self.skipped.append({"layer": unit.name, "what": "all", "reason": "the time limit was reached before"})
        for unit in units:
            unit.drop()  # a network's weights, ours and the peers', are not needed any more
        return all(unit.visits for unit in units)

    def note(self, text: str | None) -> None:
        if text and text not in self.notes:
            self.notes.append(text)

    def finish(self, kept: Kept) -> None:
        """Takes a row in, or its statistics anew after another visit."""
        if not any(kept is known for known in self._kept):
            self._kept.append(kept)
            self.rows.append(kept.row)
        fill_in(kept)

    def _finish(self, complete: bool) -> None:
        """Measures the peaks once more: if they moved, so did the machine's speed. The higher one is what counts."""
        for roofs in self.roofs:
            again = roofline.fma_peak(roofs.threads, roofs.isa)
            if abs(again / roofs.fma - 1.0) > 0.05:
                self.note(
                    f"the FMA peak ({roofs.isa}, {roofs.threads} threads) went from {roofs.fma / 1e9:.0f} to "
                    f"{again / 1e9:.0f} GFLOP/s during the run: clocks or neighbours changed; `compare` sets runs to "
                    "one clock, single times are what they were"
                )
            roofs.fma = max(roofs.fma, again)
        yardsticks = {id(kept.bench.yardstick): kept.bench.yardstick for kept in self._kept}
        spans = [np.percentile(y.values, [10, 50, 90]) for y in yardsticks.values() if y.values]
        if spans:
            self.noise["run_percent"] = float(max(50 * (p90 - p10) / p50 for p10, p50, p90 in spans))
        for kept in self._kept:  # the yardstick and the peaks now know more about every moment
            fill_in(kept)
        self.complete = complete
        self.save(self.data())

    def _save_now_and_then(self) -> None:
        begin = time.perf_counter()
        if begin >= self._save_next:
            self.save(self.data())
            end = time.perf_counter()
            self._save_next = end + max(SAVE_SECONDS, SAVE_PAUSE * (end - begin))

    def data(self) -> dict[str, Any]:
        """The result as the file holds it, see `schema`."""
        settings = {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)}
        settings["suite"] = self.settings.suite.name
        return {
            "schema": schema.SCHEMA,
            "tool": schema.TOOL,
            "complete": self.complete,
            "notes": list(self.notes),
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
            "environment": self.environment,
            "rooflines": [roofs.as_json() for roofs in self.roofs],
            "noise": self.noise,
            "rows": [row for row in self.rows if row.get("samples_ms")],
            "skipped": list(self.skipped),
            "sweep": self.sweep,
        }


def _due(units: list[Unit], round_number: int) -> list[Unit]:
    """The units that a pass visits, none once all are known: those whose rows vary most the most often."""
    unknown = [unit for unit in units if not unit.known()]
    if not unknown or round_number % KNOWN_EVERY == 0:
        return units[:] if unknown else []
    if round_number < FIRST_PLAN or round_number % NARROW_EVERY == 0:
        return unknown
    widths = [unit.width() for unit in unknown]
    middle = float(np.median(widths))
    return [unit for unit, width in zip(unknown, widths) if width >= middle]


def _often(call: Callable[[], object]) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(20):
            call()

    return calls


def _pin_note(settings: Settings) -> str | None:
    if not settings.pin:
        return "threads were not pinned (--no-pin)"
    why = Pinner(max(settings.threads)).why_not
    return f"threads were not pinned: {why}" if why else None
