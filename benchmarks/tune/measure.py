"""Samples for the tuner: every driver of every convolution, alone or inside its network, in each setting.

A run is the benchmark's own (`runner.Run`) with other units and without roofs. Alone, a layer is the benchmark's
`LayerUnit` with drivers for algorithms. In a network (`--model`), the network runs as it is and with other drivers for
some layers at a time, and the steps' own times are the samples: inputs and weights then lie where the layers before
have left them, and residual and activation are those of the network. Results are checked against float64 first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fastconv import _core, _tuning

from .. import networks, ops, oracle, roofline
from ..cases import AXES, WORDS, LayerUnit
from ..problem import Problem, format_problem
from ..resampling import row_bursts
from ..runner import Run
from ..timing import BURST_SECONDS, MIN_VISITS
from ..unit import F32, Bench, Entry, Kept, Row, Unit, WrongResultError, worst_error
from .choices import GAIN, Decision, decide, setting_ratio

#: A driver whose best burst takes so many times as long as the default's is not measured further: no choice may lose as
#: much in any setting. Judged from so many bursts.
LOST = 1.5
LOST_BURSTS = 5
#: Part of the time for the network with and without its choices.
VERIFY_SHARE = 0.15
#: Runs of a network timed in one turn at most, and turns in one visit.
_NETWORK_BURST = 3
_NETWORK_TURNS = 4

Lost = set[tuple[str, ...]]


def _undecided(base: Row, row: Row) -> bool:
    """Who looks after each visit finds a winner by chance sooner or later; so a win takes twice as many."""
    _, ratio = setting_ratio(row, base)
    word = "UNSURE" if ratio is None else ratio.word(GAIN)
    return word == "UNSURE" or (word == "FASTER" and len(row["visits"]) < 2 * MIN_VISITS)


class _Choosing:
    """What both sorts of unit do after a visit: see which drivers are out of the question, and whether all is clear.

    Rows of one problem and layout belong together; `planned` in a row names the two in the words of a plan."""

    kept: dict[str, Kept]
    lost: Lost
    clear: bool

    def known(self) -> bool:
        return self.clear

    def _groups(self) -> Iterator[tuple[Row, list[Row]]]:
        """The default's row, and those of the others that are still measured."""
        found: dict[tuple[str, str], list[Row]] = {}
        for kept in self.kept.values():
            if kept.row.get("samples_ms"):
                found.setdefault(kept.row["planned"], []).append(kept.row)
        for rows in found.values():
            base = next((row for row in rows if row["auto"]), None)
            if base is not None:
                yield base, [row for row in rows if row is not base and lost_key(row) not in self.lost]

    def _look(self) -> None:
        for base, others in self._groups():
            own = np.concatenate(row_bursts(base))
            for row in others:
                bursts = np.concatenate(row_bursts(row))
                if min(len(own), len(bursts)) >= LOST_BURSTS and bursts.min() > LOST * own.min():
                    self.lost.add(lost_key(row))
        self.clear = not any(_undecided(base, row) for base, others in self._groups() for row in others)


def lost_key(row: Row) -> tuple[str, ...]:
    return (row["isa"], *row["planned"], row["algorithm"])


@dataclass
class TunedLayer(_Choosing, LayerUnit):
    """One layer alone: each layout with each driver, warm and with evicted caches."""

    lost: Lost = field(default_factory=set)
    clear: bool = False
    detour: bool = False
    cold_visits: ClassVar[int] = 1 << 30

    def build(self) -> list[Entry]:
        entries = super().build()
        self.failed |= {e.key for e in entries if not e.row["auto"] and lost_key(e.row) in self.lost}
        return [e for e in entries if e.key not in self.failed]

    def _describe(self, row: Row, plan: dict[str, Any]) -> None:
        super()._describe(row, plan)
        row["planned"] = (str(plan["layout"]), _tuning.problem_of(plan))

    def visit(self, limit: float) -> None:
        super().visit(limit)
        self._look()


@dataclass
class _Variant:
    """The network with other drivers for some layers (`drivers`, by problem); of these the `steps` are timed. The one
    that changes none gives the times of the defaults."""

    program: Any
    drivers: dict[str, str]
    steps: dict[str, list[int]]


@dataclass
class NetworkLayers(_Choosing, Unit):
    """All convolutions of a network in one layout, timed as its steps.

    A layer is judged between neighbours that run as they do untuned: of two that follow each other only one is changed
    in one variant, since what one leaves in the caches, and which steps run depth-first together, is the other's time.
    """

    layout: str = "nhwc"
    lost: Lost = field(default_factory=set)
    clear: bool = False
    _burst: int = 0
    _able: dict[str, list[str]] = field(default_factory=dict)  # drivers beside the default, by problem
    _order: random.Random = field(default_factory=lambda: random.Random(4))

    def visit(self, limit: float) -> None:
        start = time.perf_counter()
        with self.bench.settings():
            x, variants = self._variants()
            out = np.empty((len(x), 1000), np.float32)
            if not self._burst:
                self._check_logits(x, out, variants)
                slow = min(sum(variants[0].program.run_profiled([x], [out])) for _ in range(2))
                self._burst = max(1, min(_NETWORK_BURST, int(BURST_SECONDS / slow)))
            self.overhead = time.perf_counter() - start
            counts = {key: len(kept.series.samples) for key, kept in self.kept.items()}
            try:
                for number in range(_NETWORK_TURNS):
                    if number and time.perf_counter() - start >= limit:
                        break
                    self._order.shuffle(variants)
                    for variant in variants:
                        self._turn(variant, x, out)
                    self.bench.yardstick()
            finally:
                self.visits += 1
                middle = (start + time.perf_counter()) / 2
                for key, kept in self.kept.items():
                    more = len(kept.series.samples) - counts.get(key, 0)
                    if more:
                        kept.series.visits.append(more)
                        kept.series.moments.append(middle)
                        self.bench.run.finish(kept)
        self._look()

    def _variants(self) -> tuple[F32, list[_Variant]]:
        """The programs, made anew for each visit: activations then lie in other memory."""
        run = self.bench.run
        assert isinstance(run, TuneRun)
        net, x = run.network(self.layout), run.pictures(self.layout, self.bench.batch)
        base = self._program(net, x, {})
        plans = base.steps()
        order = [i for i in range(len(plans)) if net._nodes[i].kind == "conv"]
        problems = {i: _tuning.problem_of(plans[i]) for i in order}
        layers: dict[str, list[int]] = {}
        for i, problem in problems.items():
            layers.setdefault(problem, []).append(i)
        if not self._able:
            self._able = {problem: [] for problem in layers}
            for driver in run.drivers:
                steps = self._program(net, x, dict.fromkeys(layers, driver)).steps()
                for problem, (first, *_) in layers.items():
                    if steps[first]["kernel"] == driver != plans[first]["kernel"]:
                        self._able[problem].append(driver)
        variants = [_Variant(base, {}, layers)]
        for group in apart([problems[i] for i in order]):
            left = {problem: [d for d in self._able[problem] if not self._gone(problem, d)] for problem in group}
            for turn in range(max(map(len, left.values()))):
                drivers = {problem: able[turn] for problem, able in left.items() if turn < len(able)}
                program = self._program(net, x, drivers)
                variants.append(_Variant(program, drivers, {problem: layers[problem] for problem in drivers}))
        layout = self.layout.upper()
        for variant in variants:
            for problem, steps_of in variant.steps.items():
                plan, changed = plans[steps_of[0]], problem in variant.drivers
                driver = variant.drivers.get(problem, str(plan["kernel"]))
                row = self._row("layer", "conv2d", layout, driver, problem, n=len(x), repeat=len(steps_of))
                row.update(layer=net.layer_names[steps_of[0]], planned=(layout, problem), auto=not changed)
                row.update(kernel=driver, macs=int(plan["macs"]), flops=2 * int(plan["macs"]))
                self._keep(self._key(variant, problem), row)
        return x, variants

    def _program(self, net: Any, x: F32, drivers: dict[str, str]) -> Any:
        isa, layout = self.bench.isa, self.layout.upper()
        return program_with(net, x, [(isa, layout, problem, driver) for problem, driver in drivers.items()])

    def _gone(self, problem: str, driver: str) -> bool:
        return (self.bench.isa, self.layout.upper(), problem, driver) in self.lost

    def _key(self, variant: _Variant, problem: str) -> str:
        return f"{variant.drivers.get(problem, '')} {problem}"

    def _turn(self, variant: _Variant, x: F32, out: F32) -> None:
        with self.bench.yardstick.pinned():
            if self._burst > 1:  # a slow run makes its own warmth
                variant.program.run([x], [out])
            for _ in range(self._burst):
                seconds = variant.program.run_profiled([x], [out])
                for problem, steps in variant.steps.items():
                    series = self.kept[self._key(variant, problem)].series
                    series.burst = self._burst
                    series.samples.append(sum(seconds[i] for i in steps) / len(steps))

    def _check_logits(self, x: F32, out: F32, variants: list[_Variant]) -> None:
        run = self.bench.run
        assert isinstance(run, TuneRun)
        for variant in variants:
            variant.program.run([x], [out])
            error = worst_error(out, run.expected_logits())
            if not error.relative_l2 <= oracle.MAX_NETWORK_L2:
                drivers = ", ".join(sorted(set(variant.drivers.values()))) or "untuned"
                raise WrongResultError(
                    f"wrong result of {self.name} ({self.layout.upper()}, {drivers}): relative L2 error "
                    f"{error.relative_l2:.1e} against float64, at most {oracle.MAX_NETWORK_L2:.0e} is rounding"
                )


@dataclass
class TunedNetwork(Unit):
    """The whole network as it is untuned and with the choices, in turns."""

    layout: str = "nhwc"
    decisions: tuple[Decision, ...] = ()

    def build(self) -> list[Entry]:
        run = self.bench.run
        assert isinstance(run, TuneRun)
        net, x = run.network(self.layout), run.pictures(self.layout, self.bench.batch)
        out = np.empty((len(x), 1000), np.float32)
        choices = [(d.isa, d.layout, d.problem, d.tuned) for d in self.decisions if d.changed]
        programs = {"untuned": program_with(net, x, []), "tuned": program_with(net, x, choices)}
        entries = []
        for name, program in programs.items():
            row = self._row("network", "network", self.layout.upper(), name, self.name, n=len(x))
            call = lambda program=program: program.run([x], [out])  # noqa: E731
            entries.append(Entry(name, self._keep(name, row).row, call, inputs=(x,)))
        return entries

    def known(self) -> bool:
        rows = [kept.row for kept in self.kept.values() if kept.row.get("samples_ms")]
        return self.visits >= MIN_VISITS and len(rows) == 2 and not _undecided(*rows)

    def _cold_calls(self, entries: int, left: float) -> int:
        return 0


def apart(order: list[str]) -> list[list[str]]:
    """The names in groups of which none holds two that follow each other; greedily, so two or three for a chain."""
    near: dict[str, set[str]] = {name: set() for name in order}
    for first, second in itertools.pairwise(order):
        if first != second:
            near[first].add(second)
            near[second].add(first)
    groups: list[list[str]] = []
    for name, others in near.items():
        free = next((group for group in groups if not others & set(group)), None)
        if free is None:
            groups.append(free := [])
        free.append(name)
    return groups


def program_with(net: Any, x: F32, choices: list[tuple[str, str, str, str]]) -> Any:
    """A program of its own for these tuned choices; none of them is in force afterwards."""
    _core.set_tuned(choices)
    try:
        return net._build(x.shape)
    finally:
        _core.set_tuned([])


@dataclass
class TuneRun(Run):
    """Measures and decides. `model`: layers are timed inside this network."""

    model: str | None = None
    decisions: list[Decision] = field(default_factory=list)
    lost: Lost = field(default_factory=set)
    drivers: list[str] = field(default_factory=lambda: ops.drivers("conv2d"))
    _network: Any = None
    _nets: dict[str, Any] = field(default_factory=dict)
    _expected: oracle.F64 | None = None
    _verifying: bool = False

    def execute(self) -> None:
        """Fills `rows` and `decisions`, whatever ends it."""
        whole = self.settings
        settings = [(threads, batch) for threads in whole.threads for batch in whole.batches]
        _core.set_tuned([])  # "auto" is what planning takes by itself
        try:
            if self.model is not None:
                self.settings = dataclasses.replace(whole, max_time=(1 - VERIFY_SHARE) * whole.max_time)
            try:
                super().execute()
            finally:
                self.decisions = decide(self.rows, settings, self.lost)
            if self.model is not None and any(d.changed for d in self.decisions):
                self._verifying = True
                self.settings = dataclasses.replace(whole, max_time=VERIFY_SHARE * whole.max_time)
                super().execute()
        finally:
            self.settings = whole
            _tuning.reload()

    def _weight(self, threads: int, batch: int) -> float:
        return math.sqrt(batch / threads)  # where calls are slow, too few would be timed in an equal part

    def _units(self, bench: Bench, problems: Iterable[Problem], network: str | None) -> Iterable[Unit]:
        s = self.settings
        if self.model is not None:
            for layout in s.layouts:
                if self._verifying:
                    yield TunedNetwork(self.model, bench, 1.0, lasting=True, layout=layout, decisions=self._own(bench))
                else:
                    yield NetworkLayers(self.model, bench, 1.0, layout=layout, lost=self.lost)
            return
        seen = set()
        for problem in problems:
            p = dataclasses.replace(problem, n=bench.batch, x=1)  # whatever batch it names: a choice holds for all
            same = format_problem(p).partition(" ")[2]
            if p.op == "conv2d" and same not in seen:
                seen.add(same)
                yield TunedLayer(p.name, bench, 1.0, problem=p, algorithms=tuple(self.drivers), lost=self.lost)

    def _own(self, bench: Bench) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.isa == bench.isa)

    def _measured_roofs(self, isa: str, threads: int) -> roofline.Roofs:
        return roofline.Roofs(isa, threads, 1.0, {})  # nothing here is set against a peak

    def _look_at_noise(self, threads: int, yardstick: roofline.Yardstick) -> None:
        return

    def _tuned_note(self) -> str | None:
        return None  # none is in force while measuring

    def _finish(self, complete: bool) -> None:
        self.complete = complete

    # --- the network --------------------------------------------------------------------------------------------------

    def network(self, layout: str) -> Any:
        """The network in that layout, made once: its packed weights serve every program."""
        if layout not in self._nets:
            self._nets[layout] = self._made().make(WORDS[layout], "auto")
        return self._nets[layout]

    def _made(self) -> Any:
        assert self.model is not None
        if self._network is None:
            known = self.model in networks.MACS
            depth = self.model.removeprefix("resnet")
            self._network = networks.load(self.model) if known else networks.ResNet(int(depth))
        return self._network

    def pictures(self, layout: str, batch: int) -> F32:
        x = np.resize(_distinct(), (batch, 3, 224, 224))
        return np.ascontiguousarray(x.transpose(AXES[layout]))

    def expected_logits(self) -> oracle.F64:
        if self._expected is None:
            self._expected = np.asarray(self._made().expected(_distinct()))
        return self._expected


def _distinct() -> F32:
    return np.random.default_rng(2).standard_normal((2, 3, 224, 224), np.float32)
