"""What a run is made of: a layer in every way that it can be computed, a whole network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import fastconv
from fastconv import _core

from . import networks, ops, oracle, peers, roofline
from .problem import Problem, format_problem
from .unit import F32, Entry, Row, Unit, one_line

Layout = Literal["NCHW", "NHWC"]

#: Parts of a pass that a network takes, where a layer takes one for each thing that it times.
NETWORK_SHARE = 4.0
#: Seconds that NumPy's BLAS threads go on spinning after the oracle's matrix products (OpenBLAS: about 0.1).
ORACLE_SETTLE = 0.13
#: Ops with little arithmetic, and from how many times one core's L2 their input is so large that only its bytes count:
#: then a copy of as many bytes is timed beside them.
_MOVERS = ("max_pool2d", "avg_pool2d", "global_avg_pool2d", "relu", "batch_norm", "softmax", "convert_layout")
_COPIED_FROM = 4
#: Ops that a user might wrap in conversions to get them in the other layout.
_WRAPPED = ("conv2d", "max_pool2d", "avg_pool2d")
WORDS: dict[str, Layout] = {"nchw": "NCHW", "nhwc": "NHWC"}
AXES = {"nchw": (0, 1, 2, 3), "nhwc": (0, 2, 3, 1)}


@dataclass
class LayerUnit(Unit):
    """One layer: each layout with each algorithm (or driver), NCHW through NHWC, the conversions alone, each peer."""

    problem: Problem = None  # type: ignore[assignment]
    algorithms: tuple[str, ...] = ()
    detour: bool = True  # whether NCHW through NHWC is timed, and the conversions
    _expected: oracle.F64 | None = None

    def build(self) -> list[Entry]:
        p, bench = self.problem, self.bench
        given = ops.operands(p)
        first = self._expected is None
        if self._expected is None:
            self._expected = ops.expected(p, given)
            time.sleep(ORACLE_SETTLE)
        expected = self._expected
        entries: list[Entry] = []
        algorithms = list(self.algorithms) or ops.algorithms(p.op)
        for layout in bench.layouts if p.has_layout else ("-",):
            picked = self._picked_by_auto(given, layout) if len(algorithms) > 1 and first else ()
            for algorithm in algorithms:
                entry = self._ours(given, layout, algorithm, expected)
                if entry is not None:
                    if first:
                        entry.row["auto"] = algorithm in (*picked, "auto") or len(algorithms) == 1
                    entries.append(entry)
                    entries += self._copy(entry)
        if self.detour and p.has_layout and p.op in _WRAPPED and len(bench.layouts) == 2:
            entries += self._through_nhwc(given, expected)
        for peer in bench.libraries:
            for layout in bench.layouts if p.has_layout else ("-",):
                if layout == "-" or layout in peer.layouts:
                    self._peer(entries, peer, layout, lambda: self._peer_layer(peer, given, layout), expected)  # noqa: B023
        if not first:
            for entry in entries:
                entry.row = self.kept[entry.key].row
        return entries

    def _peer_layer(self, peer: peers.Peer, given: ops.Operands, layout: str) -> tuple[Row, peers.PeerCall]:
        call = peer.layer(self.problem, given, layout, self.bench.threads)
        row = self._layer_row(layout.upper(), "-", provider=peer.name, dtype=peer.dtype)
        return row, call

    def _layer_row(self, layout: str, algorithm: str, **more: Any) -> Row:
        p = self.problem
        row = self._row(
            "layer", p.op, layout, algorithm, format_problem(p), n=p.n, repeat=p.x, macs=p.macs * p.n, **more
        )
        row.update(bytes=p.traffic(p.n), flops=p.flops * p.n)
        return row

    def _picked_by_auto(self, given: ops.Operands, layout: str) -> tuple[str, ...]:
        """The algorithm and the driver."""
        try:
            plan = ops.prepare(self.problem, given, layout, "auto").plan
        except NotImplementedError:
            return ()
        return str(plan.get("algorithm")), str(plan.get("kernel"))

    def _ours(self, given: ops.Operands, layout: str, algorithm: str, expected: oracle.F64) -> Entry | None:
        p = self.problem
        what = algorithm if layout == "-" else f"{layout.upper()} {algorithm}"
        if what in self.failed:
            return None
        begin = time.perf_counter()
        try:
            ready = ops.prepare(p, given, layout, algorithm)
            ready.call()
        except NotImplementedError as refused:
            self._leave_out(what, one_line(str(refused)))
            return None
        seconds = time.perf_counter() - begin
        plan = ready.plan
        if plan.get("conversions"):
            self._leave_out(what, "its plan converts the layout, so it does not stand for that layout")
            return None
        row = self._layer_row(layout.upper(), algorithm)
        self._describe(row, plan)
        allowed = ops.max_relative_l2(p, str(plan.get("algorithm")))
        self._check(what, ready.result, expected, allowed, row, row["kernel"])
        kept = self._keep(what, row)
        kept.prepare = min(kept.prepare, seconds)
        return Entry(what, row, ready.call, inputs=(ready.x,), prepared=ready)

    def _copy(self, ours: Entry) -> list[Entry]:
        """What moving as many bytes takes at best: from the very arrays of our row, with the same kind of stores."""
        p, ready = self.problem, ours.prepared
        reads, writes = p.inputs(p.n), p.outputs(p.n)
        if p.op not in _MOVERS or ready is None or 4 * reads < _COPIED_FROM * roofline.caches()[0]:
            return []
        stores, threads = str(ready.plan.get("stores", "regular")), self.bench.threads
        key = f"{ours.key} copy"
        row = self._row("copy", "copy", ours.row["layout"], stores, ours.row["problem"], n=p.n)
        row.update(bytes=4 * (reads + writes), flops=0, kernel="copy", ukernel=f"peak_f32_{self.bench.isa}")
        source, target = ready.x.reshape(-1)[:reads], ready.out.reshape(-1)
        self.kept[ours.key].copy = self._keep(key, row)
        return [Entry(key, row, lambda: _core.copy_bytes(source, target, threads, stores == "streaming"))]

    def _describe(self, row: Row, plan: dict[str, Any]) -> None:
        row.update(kernel=str(plan.get("kernel", "")), ukernel=str(plan.get("ukernel", "")))
        row.update({key: plan[key] for key in ("packed_bytes", "workspace_bytes") if key in plan})

    def _through_nhwc(self, given: ops.Operands, expected: oracle.F64) -> list[Entry]:
        """What a user of NCHW arrays gets by computing in NHWC: both conversions are inside the time. The conversions
        alone are a row of their own."""
        p, what = self.problem, "NCHW via NHWC"
        if what in self.failed:
            return []
        x = np.ascontiguousarray(given.x)
        try:
            # On a copy: its input is written by the conversion, and may share memory where both layouts are the same.
            inner = ops.prepare(p, dataclasses.replace(given, x=x.copy()), "nhwc", "auto")
        except NotImplementedError as refused:
            self._leave_out(what, one_line(str(refused)))
            return []
        out = np.empty((p.n, inner.out.shape[3], *inner.out.shape[1:3]), np.float32)

        def convert_in() -> None:
            fastconv.convert_layout(x, "NCHW", "NHWC", out=inner.x)

        def convert_out() -> None:
            fastconv.convert_layout(inner.out, "NHWC", "NCHW", out=out)

        def call() -> None:
            convert_in()
            inner.call()
            convert_out()

        def conversions() -> None:
            convert_in()
            convert_out()

        inner.x[...] = 0.0
        call()
        row = self._layer_row("NCHW", "auto", via="NHWC")
        self._describe(row, inner.plan)
        allowed = ops.max_relative_l2(p, str(inner.plan.get("algorithm")))
        self._check(what, out, expected, allowed, row, row["kernel"])
        both = self._row("convert", "convert_layout", "NCHW->NHWC->NCHW", "auto", format_problem(p), n=p.n)
        both.update(bytes=2 * (x.nbytes + out.nbytes), flops=0, max_error=0.0, relative_l2=0.0, auto=True)
        return [
            Entry(what, row, call, inputs=(x,)),
            Entry("conversions", both, conversions, inputs=(x,)),
        ]


@dataclass
class NetworkUnit(Unit):
    """A whole network: each layout, NCHW pictures through the NHWC network, each peer. Prepared once."""

    algorithms: tuple[str, ...] = ("auto",)

    def build(self) -> list[Entry]:
        bench, name = self.bench, self.name
        network = networks.load(name)
        distinct = np.random.default_rng(2).standard_normal((min(bench.batch, 2), 3, 224, 224), np.float32)
        x = np.resize(distinct, (bench.batch, 3, 224, 224))
        expected = network.expected(distinct)
        time.sleep(ORACLE_SETTLE)
        entries: list[Entry] = []
        nets: dict[str, Callable[[F32], F32]] = {}
        for layout in bench.layouts:
            own = np.ascontiguousarray(x.transpose(AXES[layout]))
            for algorithm in self.algorithms:
                what = f"{layout.upper()} {algorithm}"
                begin = time.perf_counter()
                try:
                    net = network.make(WORDS[layout], algorithm)
                    logits = net(own)
                except NotImplementedError as refused:
                    self._leave_out(what, one_line(str(refused)))
                    continue
                nets.setdefault(layout, net)
                row = self._network_row(layout.upper(), algorithm)
                row["auto"] = algorithm == "auto"
                self._check(what, logits, expected, oracle.MAX_NETWORK_L2, row, "the network")
                self._keep(what, row).prepare = time.perf_counter() - begin
                entries.append(Entry(what, row, lambda net=net, own=own: net(own), inputs=(own,)))  # type: ignore[misc]
        if len(bench.layouts) == 2 and "nhwc" in nets:
            entries.append(self._through_nhwc(x, nets["nhwc"], expected))
        folded = network.folded() if bench.libraries else {}
        for peer in bench.libraries:
            for layout in bench.layouts:
                if layout in peer.layouts:
                    self._peer(entries, peer, layout, lambda: self._peer_network(peer, folded, x, layout), expected)  # noqa: B023
        return entries

    def _network_row(self, layout: str, algorithm: str, **more: Any) -> Row:
        batch = self.bench.batch
        macs = networks.MACS[self.name] * batch
        row = self._row("network", "network", layout, algorithm, self.name, n=batch, macs=macs, **more)
        row.update(flops=2 * macs)
        return row

    def _through_nhwc(self, x: F32, net: Callable[[F32], F32], expected: oracle.F64) -> Entry:
        """NCHW pictures into the NHWC network: one conversion, inside the time; logits have no layout."""
        inside = np.zeros([x.shape[i] for i in AXES["nhwc"]], np.float32)

        def call() -> F32:
            fastconv.convert_layout(x, "NCHW", "NHWC", out=inside)
            return net(inside)

        row = self._network_row("NCHW", "auto", via="NHWC")
        self._check("NCHW via NHWC", call(), expected, oracle.MAX_NETWORK_L2, row, "the network")
        return Entry("NCHW via NHWC", row, call, inputs=(x,))

    def _peer_network(self, peer: peers.Peer, folded: Any, x: F32, layout: str) -> tuple[Row, peers.PeerCall]:
        call = peer.network(self.name, folded, x, layout, self.bench.threads)
        return self._network_row(layout.upper(), "-", provider=peer.name, dtype=peer.dtype), call
