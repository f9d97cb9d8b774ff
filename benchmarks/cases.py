"""What a run is made of: a layer, a conversion, a network; each is prepared, checked against the oracle, then timed."""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import fastconv

from . import oracle, peers, timing
from .problem import Problem, format_problem

if TYPE_CHECKING:
    from .runner import Run

F32 = NDArray[np.float32]
Row = dict[str, Any]
Layout = Literal["NCHW", "NHWC"]

#: Pictures of a batch that differ. The others repeat them, so the oracle has little to do and yet every output is
#: checked.
DISTINCT = 4
#: Multiply-adds for one 224 x 224 picture, convolutions and classifier (53 convolutions: 4087.136 million).
NETWORK_MACS = {"resnet50": 4_089_184_256}
#: Parts of the time left that a network takes, where a layer takes one for each thing that it times.
NETWORK_SHARE = 4.0
CONVERSION_SHARE = 0.3
_DIRECTIONS: tuple[tuple[Layout, Layout], ...] = (("NCHW", "NHWC"), ("NHWC", "NCHW"))
_WORDS: dict[str, Layout] = {"nchw": "NCHW", "nhwc": "NHWC"}
_AXES = {"nchw": (0, 1, 2, 3), "nhwc": (0, 2, 3, 1)}


class WrongResultError(RuntimeError):
    """A result differs from the oracle by more than rounding can explain."""


@dataclass(frozen=True)
class Unit:
    name: str
    share: float
    execute: Callable[[float], None]


@dataclass
class _Entry:
    """A row in the making and what is timed for it."""

    row: Row
    candidate: timing.Candidate


class Bench:
    """The units of one number of threads and one batch size."""

    def __init__(self, run: Run, threads: int, batch: int, libraries: list[peers.Peer]) -> None:
        self.run, self.threads, self.batch, self.libraries = run, threads, batch, libraries
        self.layouts = run.settings.layouts

    def units(self, problems: tuple[Problem, ...], network: str | None, algorithms: list[str]) -> Iterator[Unit]:
        each = len(algorithms) * len(self.layouts) + sum(
            len(set(p.layouts) & set(self.layouts)) for p in self.libraries
        )
        for problem in problems:
            p = problem.with_batch(self.batch)
            yield Unit(p.name, each, lambda limit, p=p: self._conv(p, algorithms, limit))  # type: ignore[misc]
        if len(self.layouts) > 1:
            for shape in _activations(problems, self.batch):
                name = _shape_name(shape)
                yield Unit(name, CONVERSION_SHARE, lambda limit, s=shape: self._conversions(s, limit))  # type: ignore[misc]
        if network:
            chosen = list(self.run.settings.algorithms) or ["auto"]
            share = NETWORK_SHARE * (len(chosen) * len(self.layouts) + len(self.libraries))
            yield Unit(network, share, lambda limit: self._network(network, chosen, limit))

    # --- a layer ------------------------------------------------------------------------------------------------------

    def _conv(self, p: Problem, algorithms: list[str], limit: float) -> None:
        start = time.perf_counter()
        x, weight, bias = _operands(p)
        expected = oracle.problem_float64(p, x[:DISTINCT], weight, bias)
        entries: list[_Entry] = []
        for layout in self.layouts:
            own = np.ascontiguousarray(x.transpose(_AXES[layout]))
            auto = self._chosen_by_auto(p, own, weight, bias, layout) if len(algorithms) > 1 else None
            for algorithm in algorithms:
                entry = self._prepared_layer(p, own, weight, bias, layout, algorithm, expected)
                if entry is not None:
                    entry.row["auto"] = algorithm in (auto, "auto")
                    entries.append(entry)
        for peer in self.libraries:
            for layout in self.layouts:
                if layout not in peer.layouts:
                    continue
                what = f"{peer.name} {layout.upper()}"
                with self._tolerant(p.name, what):
                    call = peer.conv(p, x, weight, bias, layout, self.threads)
                    row = self._row("conv", p.name, layout, "-", p.n, p.x, format_problem(p), p.macs * p.n, peer.name)
                    self._add_peer(entries, row, call, peer, expected, peers.MAX_PEER_L2)
        self._time(entries, limit - (time.perf_counter() - start))

    def _prepared_layer(
        self, p: Problem, x: F32, weight: F32, bias: F32, layout: str, algorithm: str, expected: oracle.F64
    ) -> _Entry | None:
        """The layer, checked, with the time that planning and packing took; None (and a line in `skipped`) if it is
        refused."""
        shape = (p.n, p.oc, p.oh, p.ow)
        out = np.empty([shape[i] for i in _AXES[layout]], np.float32)
        what = f"{layout.upper()} {algorithm}"
        prepare = math.inf
        with fastconv.threads(self.threads):
            try:
                for _ in range(2):
                    begin = time.perf_counter()
                    conv = _layer(p, weight, bias, layout, algorithm)
                    conv(x, out=out)
                    prepare = min(prepare, time.perf_counter() - begin)
            except NotImplementedError as refused:
                self.run.skipped.append({"layer": p.name, "what": what, "reason": _one_line(str(refused))})
                return None
            plan = _plan(conv)
        if plan.get("conversions"):
            reason = "its plan converts the layout, so it does not stand for that layout"
            self.run.skipped.append({"layer": p.name, "what": what, "reason": reason})
            return None
        kernel = str(plan.get("kernel", ""))
        error = _check(_as_nchw(out, layout), expected)
        if not error.relative_l2 <= oracle.MAX_RELATIVE_L2:
            raise WrongResultError(
                f"wrong result in layer {p.name} ({what}, {kernel}, batch {p.n}, {self.threads} threads): relative L2 "
                f"error {error.relative_l2:.1e} against float64, at most {oracle.MAX_RELATIVE_L2:.0e} is rounding"
            )
        row = self._row("conv", p.name, layout, algorithm, p.n, p.x, format_problem(p), p.macs * p.n)
        row.update(kernel=kernel, ukernel=str(plan.get("ukernel", "")), isa=str(plan.get("isa", "")))
        row.update(
            max_error=error.max_scaled, relative_l2=error.relative_l2, bytes=_traffic(p), prepare_ms=prepare * 1e3
        )
        row.update({key: plan[key] for key in ("packed_bytes", "workspace_bytes") if key in plan})
        return _Entry(row, timing.Candidate(what, lambda: conv(x, out=out)))

    def _chosen_by_auto(self, p: Problem, x: F32, weight: F32, bias: F32, layout: str) -> str | None:
        with warnings.catch_warnings(), fastconv.threads(self.threads):
            warnings.simplefilter("ignore")
            conv = _layer(p, weight, bias, layout, "auto")
            conv(x)
            return str(_plan(conv).get("algorithm"))

    # --- converting a tensor from one layout to the other -------------------------------------------------------------

    def _conversions(self, shape: tuple[int, int, int, int], limit: float) -> None:
        x = np.random.default_rng(1).standard_normal(shape, np.float32)
        name = _shape_name(shape)
        tensors = {"NCHW": x, "NHWC": np.ascontiguousarray(x.transpose(_AXES["nhwc"]))}
        entries: list[_Entry] = []
        for source, target in _DIRECTIONS:
            with fastconv.threads(self.threads):
                got = fastconv.convert_layout(tensors[source], source, target)
            if not np.array_equal(got, tensors[target]):
                raise WrongResultError(f"wrong result in layer {name}: {source} to {target} does not keep the values")
            row = self._row("convert", name, f"{source}->{target}", "convert", shape[0], 1, name, 0)
            row.update(max_error=0.0, relative_l2=0.0, bytes=2 * x.nbytes)
            call = _converter(tensors[source], source, target, got)
            entries.append(_Entry(row, timing.Candidate(row["layout"], call)))
        self._time(entries, limit)

    # --- the network --------------------------------------------------------------------------------------------------

    def _network(self, name: str, algorithms: list[str], limit: float) -> None:
        start = time.perf_counter()
        distinct = np.random.default_rng(2).standard_normal((min(self.batch, 2), 3, 224, 224), np.float32)
        x = np.resize(distinct, (self.batch, 3, 224, 224))
        state = fastconv.models.init_state(50)
        expected = oracle.resnet50_float64(state, distinct)
        macs = NETWORK_MACS[name] * self.batch
        entries: list[_Entry] = []
        for layout in self.layouts:
            own = np.ascontiguousarray(x.transpose(_AXES[layout]))
            for algorithm in algorithms:
                what = f"{layout.upper()} {algorithm}"
                with fastconv.threads(self.threads):
                    begin = time.perf_counter()
                    try:
                        net = fastconv.models.resnet50(state, layout=_WORDS[layout], algorithm=algorithm)
                        logits = net(own)
                    except NotImplementedError as refused:
                        self.run.skipped.append({"layer": name, "what": what, "reason": _one_line(str(refused))})
                        continue
                    prepare = time.perf_counter() - begin
                error = _check(logits, expected)
                if not error.relative_l2 <= oracle.MAX_NETWORK_L2:
                    raise WrongResultError(
                        f"wrong result in network {name} ({what}, batch {self.batch}, {self.threads} threads): "
                        f"relative L2 error {error.relative_l2:.1e} against float64, at most "
                        f"{oracle.MAX_NETWORK_L2:.0e} is rounding"
                    )
                row = self._row("network", name, layout, algorithm, self.batch, 1, name, macs)
                row.update(max_error=error.max_scaled, relative_l2=error.relative_l2, prepare_ms=prepare * 1e3)
                row["auto"] = algorithm == "auto"
                entries.append(_Entry(row, timing.Candidate(what, lambda net=net, own=own: net(own))))  # type: ignore[misc]
        folded = peers.fold_batch_norm(state) if self.libraries else {}
        for peer in self.libraries:
            for layout in self.layouts:
                if layout in peer.layouts:
                    with self._tolerant(name, f"{peer.name} {layout.upper()}"):
                        call = peer.network(folded, x, layout, self.threads)
                        row = self._row("network", name, layout, "-", self.batch, 1, name, macs, peer.name)
                        self._add_peer(entries, row, call, peer, expected, 10 * peers.MAX_PEER_L2)
        self._time(entries, limit - (time.perf_counter() - start))

    # --- what they share ----------------------------------------------------------------------------------------------

    def _row(
        self, kind: str, layer: str, layout: str, algorithm: str, batch: int, repeat: int, problem: str, macs: int,
        provider: str = "fastconv",
    ) -> Row:  # fmt: skip
        text = layout if kind == "convert" else layout.upper()
        return {
            "kind": kind, "op": "convert_layout" if kind == "convert" else "conv2d" if kind == "conv" else "network",
            "suite": self.run.settings.suite.name, "layer": layer, "problem": problem, "repeat": repeat, "layout": text,
            "algorithm": algorithm, "provider": provider, "kernel": "", "threads": self.threads, "batch": batch,
            "device": self.run.settings.device, "dtype": "float32", "macs": macs, "auto": False,
        }  # fmt: skip

    def _add_peer(
        self,
        entries: list[_Entry],
        row: Row,
        call: peers.PeerCall,
        peer: peers.Peer,
        expected: oracle.F64,
        allowed: float,
    ) -> None:
        call.run()
        error = _check(call.result(), expected)
        what = f"{peer.name} {row['layout']}"
        if not error.relative_l2 <= allowed:
            reason = (
                f"its result is not float32's (relative L2 error {error.relative_l2:.1e} against float64): not timed"
            )
            self.run.skipped.append({"layer": row["layer"], "what": what, "reason": reason})
            return
        row.update(kernel=call.detail, max_error=error.max_scaled, relative_l2=error.relative_l2)
        entries.append(_Entry(row, timing.Candidate(what, call.run, peer.settle)))

    @contextmanager
    def _tolerant(self, layer: str, what: str) -> Iterator[None]:
        """A peer that fails is left out here; the run goes on."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {_one_line(str(error))}"
            self.run.skipped.append({"layer": layer, "what": what, "reason": reason})

    def _time(self, entries: list[_Entry], limit: float) -> None:
        """Times the entries side by side and keeps the rows, also those of a unit that is interrupted."""
        try:
            with fastconv.threads(self.threads):
                timing.measure([entry.candidate for entry in entries], max(limit, 0.0))
        finally:
            for entry in entries:
                if entry.candidate.samples:
                    self._finish(entry)

    def _finish(self, entry: _Entry) -> None:
        row, candidate = entry.row, entry.candidate
        summary = timing.summarise(candidate.samples, candidate.burst)
        row.update(
            samples_ms=[round(sample * 1e3, 6) for sample in candidate.samples], burst=candidate.burst,
            median_ms=summary.median, p10_ms=summary.p10, p90_ms=summary.p90, min_ms=summary.minimum,
            iqr_ms=summary.iqr, spread=summary.spread if math.isfinite(summary.spread) else None,
        )  # fmt: skip
        seconds = summary.median / 1e3
        if row["macs"]:
            flops = 2 * row["macs"] / seconds
            row["gflops"] = flops / 1e9
            row["peak_percent"] = 100 * flops / self.run.peaks[str(self.threads)]
        if "bytes" in row:
            row["gbytes_per_s"] = row["bytes"] / seconds / 1e9
        if "prepare_ms" in row:
            # A first call plans, packs and computes; the rest of it is what a prepared layer saves.
            row["pack_ms"] = max(0.0, row.pop("prepare_ms") - summary.median)
        self.run.rows.append(row)


def _operands(p: Problem) -> tuple[F32, F32, F32]:
    """Input (NCHW), weight (OIHW) and bias, the same ones for the same layer; normal, the output of variance about
    one."""
    rng = np.random.default_rng(zlib.crc32(format_problem(p).encode()))
    distinct = rng.standard_normal((min(p.n, DISTINCT), p.ic, p.ih, p.iw), np.float32)
    x = np.resize(distinct, (p.n, p.ic, p.ih, p.iw))
    weight = rng.standard_normal((p.oc, p.ic // p.g, p.kh, p.kw), np.float32)
    weight *= np.float32(1.0 / math.sqrt(p.ic // p.g * p.kh * p.kw))
    return x, weight, rng.standard_normal(p.oc, np.float32)


def _layer(p: Problem, weight: F32, bias: F32, layout: str, algorithm: str) -> Any:
    return fastconv.Conv2d(
        weight, bias, (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw), p.g,
        layout=_WORDS[layout], weight_layout="OIHW", algorithm=algorithm,
    )  # fmt: skip


def _plan(conv: Any) -> dict[str, Any]:
    """The plan of a layer that has been called."""
    plan = conv.explain()
    return dict(plan[0] if isinstance(plan, list) else plan)


def _converter(x: F32, source: Layout, target: Layout, out: F32) -> Callable[[], object]:
    return lambda: fastconv.convert_layout(x, source, target, out=out)


def _as_nchw(out: F32, layout: str) -> F32:
    return out if layout == "nchw" else out.transpose(0, 3, 1, 2)


def _check(result: NDArray[Any], expected: oracle.F64) -> oracle.Error:
    """The worst error over the batch, whose pictures repeat those that the oracle has seen."""
    errors = [
        oracle.compare(result[i : i + len(expected)], expected[: len(result) - i])
        for i in range(0, len(result), len(expected))
    ]
    return oracle.Error(max(e.max_scaled for e in errors), max(e.relative_l2 for e in errors))


def _activations(problems: tuple[Problem, ...], batch: int) -> list[tuple[int, int, int, int]]:
    """Distinct shapes (n, c, h, w) that go into or come out of the layers, biggest first; without those of one channel
    or one pixel, which are the same memory in both layouts."""
    shapes = {(p.n or batch, c, h, w) for p in problems for c, h, w in ((p.ic, p.ih, p.iw), (p.oc, p.oh, p.ow))}
    return sorted((s for s in shapes if s[1] > 1 and s[2] * s[3] > 1), key=lambda s: (-math.prod(s), s))


def _shape_name(shape: tuple[int, int, int, int]) -> str:
    return "x".join(map(str, shape[1:]))


def _traffic(p: Problem) -> int:
    """Least bytes moved: weights once, input and output for each picture."""
    weights = 4 * p.oc * (p.ic // p.g) * p.kh * p.kw
    return (p.bytes - weights) * p.n + weights


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 300 else words[:297] + "..."
