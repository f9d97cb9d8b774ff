"""What the samples mean: one driver a layer, another than the default only where it is clearly faster.

A choice holds for every batch and every number of threads, so it is made from all settings (threads, batch) together.
In each setting a driver's time is set against the default's, burst by burst of the same round. Where calls with evicted
caches were timed, the setting's ratio is the geometric mean of the warm and the cold one: in a network, weights come
from further away than in a warm loop and from nearer than after an eviction. A driver's ratio is the geometric mean
over the settings, all of equal weight. It is taken if

    its ratio is below 1 / (1 + GAIN) and its 95 % interval below 1 / (1 + GAIN / 2), and
    in no setting its ratio is above 1 + HARM with its interval above 1 + HARM / 2,

and has the lowest ratio of those. A driver with too few samples in some setting is not judged.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastconv
from fastconv import _tuning

from ..compare import word
from ..report import aligned
from ..resampling import F64, MIN_BURSTS, Row, cold_ratios, drawn_medians, interval, round_ratios
from ..timing import MIN_VISITS

Setting = tuple[int, int]  # threads, batch

GAIN = 0.03
HARM = 0.05
#: Calls with evicted caches that a ratio needs.
MIN_COLD = 3


@dataclass(frozen=True)
class Ratio:
    """A driver's time over the default's, and its 95 % interval."""

    value: float
    low: float
    high: float

    def word(self, margin: float) -> str:
        return word(self.value, self.low, self.high, margin)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def as_json(self) -> dict[str, Any]:
        return {"ratio": round(self.value, 4), "interval": [round(self.low, 4), round(self.high, 4)]}


@dataclass
class Way:
    """One driver of a layer beside the default. `settings`: None where there are too few samples; `overall`: likewise,
    and where some setting is missing. `lost`: it was so much slower somewhere that no more of it was measured."""

    kernel: str
    settings: dict[Setting, Ratio | None] = field(default_factory=dict)
    overall: Ratio | None = None
    lost: bool = False

    def harmed(self) -> list[str]:
        found = [(key, r) for key, r in self.settings.items() if r is not None and r.word(HARM) == "SLOWER"]
        return [f"{r.value:.2f} with {_setting(*key)}" for key, r in found]


@dataclass
class Decision:
    """What one layer takes. `problem` and `layout` in the words of a plan; `layer` the first of that sort."""

    layer: str
    problem: str
    layout: str
    isa: str
    untuned: str
    ways: list[Way]
    settings: list[Setting]
    tuned: str = ""
    ratio: Ratio | None = None  # of the driver that was taken
    sure: bool = True  # whether every other driver was judged: then the choice replaces an older one

    def __post_init__(self) -> None:
        able = [w for w in self.ways if w.overall and w.overall.word(GAIN) == "FASTER" and not w.harmed()]
        best = min(able, key=lambda w: w.overall.value if w.overall else 1.0, default=None)
        self.sure = bool(self.settings) and all(w.lost or w.overall for w in self.ways)
        self.tuned, self.ratio = (self.untuned, None) if best is None else (best.kernel, best.overall)

    @property
    def changed(self) -> bool:
        return self.tuned != self.untuned

    def why(self) -> str:
        """A few words on what was not taken."""
        words = []
        for way in sorted(self.ways, key=lambda w: w.overall.value if w.overall else 9.0):
            if way.kernel == self.tuned:
                continue
            name = short(way.kernel)
            if way.lost:
                words.append(f"{name}: far slower")
            elif way.overall is None:
                words.append(f"{name}: too few samples")
            elif way.harmed() and way.overall.value < 1.0:
                words.append(f"{name}: {way.overall}, but {', '.join(way.harmed())}")
            else:
                words.append(f"{name}: {way.overall}")
        return "; ".join(words)

    def key(self) -> dict[str, Any]:
        """What a choice is for, as the file holds it."""
        return {
            "machine": _tuning.this_machine(), "fastconv": fastconv.__version__, "isa": self.isa, "dtype": "float32",
            "layout": self.layout, "problem": self.problem,
        }  # fmt: skip

    def choice(self) -> dict[str, Any]:
        """All of it, as the file holds it."""
        assert self.ratio is not None
        settings = [{"threads": threads, "batch": batch} for threads, batch in self.settings]
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        told = {"layer": self.layer[:60], "untuned": self.untuned, **self.ratio.as_json(), "settings": settings}
        return {**self.key(), "kernel": self.tuned, **told, "date": date}

    def as_json(self) -> dict[str, Any]:
        def way(w: Way) -> dict[str, Any]:
            overall: dict[str, Any] = w.overall.as_json() if w.overall else {"ratio": None, "interval": None}
            settings = [
                {"threads": t, "batch": n, **(r.as_json() if r else {"ratio": None, "interval": None})}
                for (t, n), r in w.settings.items()
            ]
            return {"kernel": w.kernel, "lost": w.lost, **overall, "settings": settings}

        names = ("layer", "problem", "layout", "isa", "untuned", "tuned", "changed", "sure")
        return {**{name: getattr(self, name) for name in names}, "ways": [way(w) for w in self.ways]}


def decide(rows: Iterable[Row], settings: list[Setting], lost: Iterable[tuple[str, ...]] = ()) -> list[Decision]:
    """One decision for each layer, layout and ISA level. `lost`: (isa, layout, problem, driver) that were given up."""
    given_up = set(lost)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] == "layer" and row.get("samples_ms") and "planned" in row:
            layout, problem = row["planned"]
            groups.setdefault((row["isa"], layout, problem), []).append(row)
    found = []
    for (isa, layout, problem), group in groups.items():
        base = {_key(row): row for row in group if row["auto"]}
        default = next(iter(base.values()))["algorithm"] if base else ""
        names = dict.fromkeys(row["algorithm"] for row in group if not row["auto"])
        ways = [Way(name) for name in names if name != default]
        for number, way in enumerate(ways):
            own = {_key(row): row for row in group if row["algorithm"] == way.kernel}
            way.lost = (isa, layout, problem, way.kernel) in given_up
            _judge(way, own, base, settings, 10 * number)
        found.append(Decision(str(group[0]["layer"]), problem, layout, isa, default, ways, settings))
    return [d for d in found if d.untuned]


def setting_ratio(row: Row, base: Row, seed: int = 1) -> tuple[F64, Ratio | None]:
    """Resampled logarithms of a setting's ratio, and the ratio; None (and nothing) from too few samples."""
    parts = [round_ratios(row, base)]
    if sum(map(len, parts[0])) < MIN_BURSTS or len(parts[0]) < MIN_VISITS:
        return np.empty(0), None
    if row["cold_ms"] or base["cold_ms"]:
        parts.append(cold_ratios(row, base))
        if sum(map(len, parts[1])) < MIN_COLD:
            return np.empty(0), None
    logs = np.mean([np.log(drawn_medians(part, seed + i)) for i, part in enumerate(parts)], axis=0)
    value = np.mean([np.log(np.median(np.concatenate(part))) for part in parts])
    low, high = interval(np.exp(logs))
    return logs, Ratio(float(np.exp(value)), low, high)


def _judge(way: Way, own: dict[Setting, Row], base: dict[Setting, Row], settings: list[Setting], seed: int) -> None:
    logs = []
    for number, key in enumerate(settings):
        drawn, ratio = np.empty(0), None
        if key in own and key in base:
            drawn, ratio = setting_ratio(own[key], base[key], 100 * number + seed)
        way.settings[key] = ratio
        logs.append(drawn)
    ratios = [ratio for ratio in way.settings.values() if ratio is not None]
    if settings and len(ratios) == len(settings):
        low, high = interval(np.exp(np.mean(logs, axis=0)))
        way.overall = Ratio(float(np.exp(np.mean([np.log(r.value) for r in ratios]))), low, high)


def _key(row: Row) -> Setting:
    return int(row["threads"]), int(row["batch"])


def _setting(threads: int, batch: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"


def short(kernel: str) -> str:
    return kernel.removeprefix("conv_")


def table(decisions: list[Decision]) -> list[str]:
    """The decisions as lines of text."""
    several = len({d.isa for d in decisions}) > 1
    head = ("layer", "layout", *["isa"] * several, "untuned", "tuned", "ratio", "95 % interval", "others")
    body = [
        (
            d.layer,
            d.layout,
            *[d.isa] * several,
            short(d.untuned),
            short(d.tuned) if d.changed else "-",
            f"{d.ratio.value:.3f}" if d.ratio else "",
            f"{d.ratio.low:.3f} to {d.ratio.high:.3f}" if d.ratio else "",
            d.why(),
        )
        for d in decisions
    ]
    last = len(head) - 1
    return aligned(head, body, {*range(last - 2), last})


def stored_table(choices: list[dict[str, Any]]) -> list[str]:
    """What a file holds for this machine, as lines of text."""
    head = ("layer", "layout", "isa", "untuned", "tuned", "ratio", "problem")
    body = [
        (*(_told(c.get(key)) for key in ("layer", "layout", "isa")), short(_told(c.get("untuned"))), short(c["kernel"]),
         _told(c.get("ratio")), c["problem"])
        for c in choices
    ]  # fmt: skip
    return aligned(head, body, {0, 1, 2, 3, 4, 6})


def _told(value: Any) -> str:
    """What a file says beside what is judged, fit for a terminal."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value or "")
    return "".join(c if c.isprintable() else "?" for c in text)[:60]
