"""What one thing that is timed side by side has in common: prepared, checked, visited, its rows filled in."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import fastconv

from . import oracle, peers
from .affinity import Pinner
from .roofline import Evictor, Roofs, Yardstick, isa_level
from .timing import Candidate, Sampler, Series, summarise

if TYPE_CHECKING:
    from .ops import Prepared
    from .runner import Run

F32 = NDArray[np.float32]
Row = dict[str, Any]


#: Visits that take samples with evicted caches.
COLD_VISITS = 3


class WrongResultError(RuntimeError):
    """A result differs from the oracle by more than rounding can explain."""


@dataclass
class Bench:
    """What the units of one ISA level, number of threads and batch size share."""

    run: Run
    isa: str
    threads: int
    batch: int
    libraries: list[peers.Peer]
    roofs: Roofs
    yardstick: Yardstick
    sampler: Sampler
    pinner: Pinner
    evictor: Evictor | None

    @property
    def layouts(self) -> tuple[str, ...]:
        return self.run.settings.layouts

    @contextmanager
    def settings(self) -> Iterator[None]:
        with fastconv.threads(self.threads), isa_level(self.isa):
            yield


@dataclass
class Entry:
    """A row in the making, and what is timed for it in this visit. `key` finds the row again in the next one."""

    key: str
    row: Row
    call: Callable[[], object]
    settle: float = 0.001
    inputs: tuple[NDArray[Any], ...] = ()
    prepared: Prepared | None = None  # a layer of ours


@dataclass
class Kept:
    """What lasts from visit to visit: a row, and what it is made from."""

    row: Row
    series: Series
    bench: Bench
    bits: int | None = None  # checksum of our result, which must not change from visit to visit
    copy: Kept | None = None  # a copy of as many bytes, timed beside it
    prepare: float = math.inf  # seconds


@dataclass
class Unit:
    """Things that are timed side by side. `build` prepares them afresh; with `lasting` they are prepared once."""

    name: str
    bench: Bench
    share: float
    lasting: bool = False
    kept: dict[str, Kept] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    visits: int = 0
    overhead: float = 0.0  # seconds of the last visit for preparing, warming up and evictions
    _entries: list[Entry] = field(default_factory=list)
    cold_visits: ClassVar[int] = COLD_VISITS

    def build(self) -> list[Entry]:
        raise NotImplementedError

    def drop(self) -> None:
        """Lets go of what was prepared once."""
        self._entries.clear()

    def known(self) -> bool:
        return self.visits > 0 and all(k.series.known() for k in self.kept.values() if k.series.samples)

    def width(self) -> float:
        """The spread of the row that is known worst."""
        return max((k.series.spread() for k in self.kept.values() if k.series.samples), default=math.inf)

    def visit(self, limit: float) -> None:
        """Prepares (and on the first visit checks) everything, then samples for what is left of `limit` seconds."""
        start = time.perf_counter()
        bench = self.bench
        with bench.settings():
            entries = self._entries or self.build()
            if self.lasting:
                self._entries = entries
            preparing = time.perf_counter() - start
            candidates: list[Candidate] = []
            for entry in entries:
                kept = self._keep(entry.key, entry.row)
                candidate = Candidate(entry.key, entry.call, entry.settle, kept.series, entry.inputs)
                # Our own threads are the yardstick's; a library may have new ones for each thing that it prepares.
                if entry.row["provider"] == "fastconv":
                    candidate.pinned = bench.yardstick.pinned
                else:
                    candidate.learn = bench.pinner.learn
                candidates.append(candidate)
            try:
                left = limit - (time.perf_counter() - start)
                bench.sampler.visit(candidates, max(left, 0.0), self._cold_calls(len(entries), left))
            finally:
                self.visits += 1
                self.overhead = preparing + bench.sampler.fixed_seconds
                for kept in self.kept.values():
                    if kept.series.samples:
                        bench.run.finish(kept)

    def _keep(self, key: str, row: Row) -> Kept:
        return self.kept.setdefault(key, Kept(row, Series(), self.bench))

    def _cold_calls(self, entries: int, left: float) -> int:
        """Calls with evicted caches: one to three a row in the first visits, within a third of the time."""
        bench = self.bench
        if bench.evictor is None or not entries or self.visits >= self.cold_visits:
            return 0
        return max(1, min(3, int(0.33 * left / (entries * bench.sampler.evict_seconds))))

    # --- what the units share in preparing ----------------------------------------------------------------------------

    def _row(
        self, kind: str, op: str, layout: str, algorithm: str, problem: str, *, n: int, repeat: int = 1, macs: int = 0,
        provider: str = "fastconv", via: str = "", dtype: str = "float32",
    ) -> Row:  # fmt: skip
        bench = self.bench
        return {
            "kind": kind, "op": op, "suite": bench.run.settings.suite.name, "layer": self.name, "problem": problem,
            "repeat": repeat, "layout": layout, "via": via, "algorithm": algorithm, "provider": provider, "kernel": "",
            "ukernel": "", "isa": bench.isa if provider == "fastconv" else "", "threads": bench.threads, "batch": n,
            "device": bench.run.settings.device, "dtype": dtype, "macs": macs, "auto": False,
        }  # fmt: skip

    def _check(self, what: str, result: F32, expected: oracle.F64, allowed: float, row: Row, kernel: str) -> None:
        """Compares with the oracle on the first visit, with the first visit's bits later. WrongResultError if it
        differs."""
        kept = self._keep(what, row)
        bits = zlib.crc32(np.ascontiguousarray(result).data)
        if kept.bits is not None:
            if bits != kept.bits:
                raise WrongResultError(
                    f"wrong result in layer {self.name} ({what}, {kernel}): not the same bits as in an earlier visit"
                )
            return
        error = worst_error(result, expected)
        if not error.relative_l2 <= allowed:
            raise WrongResultError(
                f"wrong result in layer {self.name} ({what}, {kernel}, batch {row['batch']}, {row['threads']} "
                f"threads): relative L2 error {error.relative_l2:.1e} against float64, at most {allowed:.0e} is "
                "rounding"
            )
        kept.bits = bits
        row.update(max_error=error.max_scaled, relative_l2=error.relative_l2)

    def _peer(self, entries: list[Entry], peer: peers.Peer, layout: str, make: Callable[[], tuple[Row, peers.PeerCall]],
              expected: oracle.F64 | None) -> None:  # fmt: skip
        """Adds a peer's row. One that fails, or whose result is not that precision's, is left out; the run goes on."""
        what = peer.name if layout == "-" else f"{peer.name} {layout.upper()}"
        if what in self.failed:
            return
        reason = ""
        try:
            row, call = make()
            if expected is not None and what not in self.kept:
                call.run()
                error = worst_error(call.result(), expected)
                row.update(max_error=error.max_scaled, relative_l2=error.relative_l2)
                allowed = (peers.MAX_NETWORK_L2 if row["kind"] == "network" else peers.MAX_L2)[peer.dtype]
                if not error.relative_l2 <= allowed:
                    reason = f"its result is not {peer.dtype}'s (relative L2 error {error.relative_l2:.1e}): not timed"
            row.update(kernel=call.detail)
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(str(error))}"
        if reason:
            self._leave_out(what, reason)
        else:
            entries.append(Entry(what, row, call.run, peer.settle, call.inputs))

    def _leave_out(self, what: str, reason: str) -> None:
        """Says why something is not measured here, and does not try it again."""
        self.failed.add(what)
        item = {"layer": self.name, "what": what, "reason": reason}
        if item not in self.bench.run.skipped:
            self.bench.run.skipped.append(item)


def as_nchw(out: F32, layout: str) -> F32:
    return out.transpose(0, 3, 1, 2) if layout == "nhwc" and out.ndim == 4 else out


def worst_error(result: NDArray[Any], expected: oracle.F64) -> oracle.Error:
    """The worst error over the batch, whose pictures repeat those that the oracle has seen."""
    errors = [
        oracle.compare(result[i : i + len(expected)], expected[: len(result) - i])
        for i in range(0, len(result), len(expected))
    ]
    return oracle.Error(max(e.max_scaled for e in errors), max(e.relative_l2 for e in errors))


def fill_in(kept: Kept) -> None:
    """Puts into the row what its samples say: times, clocks, rates, per cent of the peak and of the roof."""
    row, series, roofs = kept.row, kept.series, kept.bench.roofs
    clocks = [round(kept.bench.yardstick.around(moment) / 1e9, 3) for moment in series.moments]
    summary = summarise(series)
    cold = [round(sample * 1e3, 6) for sample in series.cold]
    row.update(
        samples_ms=[round(sample * 1e3, 6) for sample in series.samples], visits=list(series.visits), clock=clocks,
        burst=series.burst, cold_ms=cold, cold_median_ms=float(np.median(cold)) if cold else None,
        median_ms=summary.median, p10_ms=summary.p10, p90_ms=summary.p90, min_ms=summary.minimum,
        iqr_ms=summary.iqr, spread=summary.spread if math.isfinite(summary.spread) else None,
    )  # fmt: skip
    seconds = summary.median / 1e3
    flops = float(row.get("flops", 0))
    moved = float(row.get("bytes", 0))
    if row["macs"]:
        row["gflops"] = flops / seconds / 1e9
    if moved:
        row["gbytes_per_s"] = moved / seconds / 1e9
        row["intensity"] = flops / moved
    if row["dtype"] == "float32" and (flops or moved):
        if row["macs"]:
            row["peak_percent"] = 100 * flops / seconds / roofs.fma
        bound, bound_seconds = roofs.bound(flops, moved)
        row.update(bound=bound, bound_ms=bound_seconds * 1e3, roofline_percent=100 * bound_seconds / seconds)
    if kept.copy is not None and kept.copy.series.samples:
        copied = summarise(kept.copy.series).median
        row.update(copy_ms=copied, copy_percent=100 * copied / summary.median, copy_stores=kept.copy.row["algorithm"])
    if math.isfinite(kept.prepare):
        # A first call plans, packs and computes; the rest of it is what a prepared layer saves.
        row["pack_ms"] = max(0.0, kept.prepare * 1e3 - summary.median)


def one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 300 else words[:297] + "..."
