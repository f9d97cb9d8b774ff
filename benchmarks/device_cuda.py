"""`fastconv bench --device cuda`: our ops and networks on a GPU, timed by CUDA events, and PyTorch's beside them.

A layer's time is that of one call among many in one replayed CUDA graph: no launch from the host is in it. A network's
is one `net(x)`, from event to event, calls one behind the other. Every result is compared with float64 first, computed
from operands that are rounded to the dtype.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastconv

from . import machine, ops, oracle, peers, schema
from .networks import MACS
from .problem import Problem, Suite, format_problem
from .timing import Series, summarise
from .unit import F32, Row, WrongResultError, as_nchw, one_line, worst_error

#: Number forms by the name that `--dtypes` takes: how arrays are stored, and how float32 is multiplied.
FORMS: dict[str, tuple[str, str]] = {
    "float32": ("float32", "float32"),
    "3xtf32": ("float32", "3xtf32"),
    "tf32": ("float32", "tf32"),
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
}
#: Relative L2 against float64 that is rounding: of a layer, with operands rounded before, and of a whole network.
MAX_L2 = {"float32": 2e-6, "3xtf32": 2e-6, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 5e-3}
MAX_NETWORK_L2 = {"float32": 2e-5, "3xtf32": 2e-5, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 1e-1}
#: A recording of a layer holds enough calls to last this long, and at most so many.
RECORDED_MS, MAX_RECORDED = 1.0, 100
#: Events around so many replays are one visit; a row has three.
VISITS, BURST = 3, 10
#: Bytes of the copy that the bandwidth is measured with: several times any L2.
COPY_BYTES = 1 << 30

_WORDS = {"nchw": "NCHW", "nhwc": "NHWC"}
_TO = {"nchw": (0, 1, 2, 3), "nhwc": (0, 2, 3, 1)}


# --- arrays -----------------------------------------------------------------------------------------------------------


def rounded(values: Any, dtype: str) -> F32:
    """The values as `dtype` stores them (to nearest even), as float32."""
    x = np.asarray(values, np.float32)
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
        kept = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint32) << 16
        return kept.view(np.float32).reshape(x.shape)
    return x


def to_host(array: Any) -> F32:
    """A device array's values as float32."""
    values: NDArray[Any] = array.numpy()
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def backend() -> Any:
    """The compiled module. RuntimeError that says what is missing where a GPU cannot be used."""
    from fastconv.cuda import _backend

    return _backend.backend()


# --- times ------------------------------------------------------------------------------------------------------------


def time_calls(call: Callable[[int], object], device: int = 0, visits: int = VISITS, burst: int = BURST) -> list[float]:
    """Milliseconds of one call: replays of a graph that holds many, over their number. `call` gets a stream's handle.

    The first call is made on its own, outside of the graph, so that nothing is planned or allocated inside."""
    module = backend()
    once = module.Recording(device)
    call(once.stream)
    once.begin()
    call(once.stream)
    once.end()
    estimate = statistics.median(once.time(3))
    count = int(min(MAX_RECORDED, max(1, RECORDED_MS / max(estimate, 1e-4))))
    many = module.Recording(device)
    many.begin()
    for _ in range(count):
        call(many.stream)
    many.end()
    many.time(2)  # warm-up: clocks rise, the graph is uploaded
    return [ms / count for _ in range(visits) for ms in many.time(burst)]


def time_network(net: Any, x: Any, visits: int = VISITS, burst: int = BURST) -> tuple[list[float], F32]:
    """(milliseconds of each call, logits) for x, a `fastconv.cuda.Array` of the net's dtype."""
    stream = fastconv.cuda.Stream()
    logits = to_host(net(x))
    program = net.program(x.shape).program
    target = fastconv.cuda.empty(logits.shape, "float32")
    fastconv.cuda.synchronize()

    def timed(count: int) -> list[float]:
        found: list[float] = program.time([x._view], [target._view], stream.ptr, count)
        return found

    warm = statistics.median(timed(3))
    timed(int(min(50, max(2, 20.0 / max(warm, 1e-3)))))  # clocks rise for some 20 ms
    samples = [ms for _ in range(visits) for ms in timed(burst)]
    if to_host(target).tobytes() != logits.tobytes():
        raise WrongResultError("a network's result has not the same bits in each run")
    return samples, logits


def device_facts(device: int = 0) -> dict[str, Any]:
    """The device's name and what planning knows of it, its copy bandwidth (bytes/s, read and written) and FMA peak."""
    module = backend()
    facts = dict(module.devices()[device])
    facts["copy_bandwidth"] = float(module.copy_bandwidth(device, COPY_BYTES, 10))
    facts["fma_peak"] = float(module.fma_peak(device, 5))
    return facts


# --- one layer or network of ours -------------------------------------------------------------------------------------


def prepared_layer(
    p: Problem, layout: str, form: str, algorithm: str
) -> tuple[Callable[[int], object], Any, oracle.F64]:
    """(call, its output array, what the first pictures must be) of one layer with all its arrays on the device."""
    dtype, compute = FORMS[form]
    given = ops.operands(p)
    given = dataclasses.replace(given, x=rounded(given.x, dtype))
    if given.weight is not None and p.op in ("conv2d", "linear"):
        given = dataclasses.replace(given, weight=rounded(given.weight, dtype))
    expected = ops.expected(p, given)
    pictures = given.x.ndim == 4
    order = _TO[layout] if pictures else tuple(range(given.x.ndim))
    x = fastconv.cuda.asarray(np.ascontiguousarray(given.x.transpose(order)), dtype)
    into = p.result_layout(layout)
    shape = tuple(p.output_shape[i] for i in (_TO[into] if len(p.output_shape) == 4 else range(len(p.output_shape))))
    out = fastconv.cuda.empty(shape, dtype)
    word: Any = _WORDS[layout]
    target: Any = _WORDS[into]
    kernel, stride, padding, dilation = (p.kh, p.kw), (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw)
    options: dict[str, Any] = {"device": "cuda", "dtype": dtype}
    if p.op in ("conv2d", "linear"):
        options["compute"] = compute
    elif form in ("tf32", "3xtf32"):
        raise NotImplementedError(f"{p.op} multiplies nothing: see float32")
    if p.op == "conv2d":
        conv = fastconv.Conv2d(
            given.weight, given.bias, stride, padding, dilation, p.g,
            layout=word, weight_layout="OIHW", algorithm=algorithm, **options,
        )  # fmt: skip
        return lambda s: conv(x, out=out, stream=s), out, expected
    if p.op == "linear":
        fc = fastconv.Linear(given.weight, given.bias, **options)
        return lambda s: fc(x, out=out, stream=s), out, expected
    if p.op == "max_pool2d":
        return (
            lambda s: fastconv.max_pool2d(x, kernel, stride, padding, dilation, layout=word, out=out, stream=s),
            out,
            expected,
        )
    if p.op == "avg_pool2d":
        return lambda s: fastconv.avg_pool2d(x, kernel, stride, padding, layout=word, out=out, stream=s), out, expected
    if p.op == "global_avg_pool2d":
        return lambda s: fastconv.adaptive_avg_pool2d(x, 1, layout=word, out=out, stream=s), out, expected
    if p.op == "relu":
        return lambda s: fastconv.relu(x, out=out, stream=s), out, expected
    if p.op == "convert_layout":
        return lambda s: fastconv.convert_layout(x, word, target, out=out, stream=s), out, expected
    dim = -1 if layout == "nhwc" else 1
    if p.op == "softmax":
        return lambda s: fastconv.softmax(x, dim, out=out, stream=s), out, expected
    vectors = [fastconv.cuda.asarray(v) for v in (given.mean, given.variance, given.weight, given.bias)]
    return (
        lambda s: fastconv.batch_norm(x, *vectors, eps=oracle.BATCH_NORM_EPS, layout=word, out=out, stream=s),
        out,
        expected,
    )


def plan_of(p: Problem, layout: str, form: str, algorithm: str) -> dict[str, Any]:
    """What `explain` says of a convolution on the current device; other ops have one kernel each."""
    if p.op != "conv2d":
        return {}
    dtype, compute = FORMS[form]
    shape = tuple(p.input_shape[i] for i in _TO[layout])
    weight = np.zeros((p.oc, p.ic // p.g, p.kh, p.kw), np.float32)
    conv = fastconv.Conv2d(
        weight, np.zeros(p.oc, np.float32), (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw), p.g,
        layout=_WORDS[layout], weight_layout="OIHW", algorithm=algorithm, device="cuda",  # type: ignore[arg-type]
        dtype=dtype, compute=compute,  # type: ignore[arg-type]
    )  # fmt: skip
    return dict(conv.explain(shape))


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What to run; `forms` are keys of FORMS, `algorithms` empty is "auto"."""

    suite: Suite
    problems: tuple[Problem, ...]
    network: str | None
    layouts: tuple[str, ...]
    forms: tuple[str, ...]
    algorithms: tuple[str, ...]
    batches: tuple[int, ...]
    peers: tuple[str, ...]
    max_time: float
    match: str | None = None


@dataclass
class Run:
    """One run; the same outside as `runner.Run`."""

    settings: Settings
    progress: Callable[[int, int, str], None] = lambda done, total, name: None
    save: Callable[[dict[str, Any]], None] = lambda data: None
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    def execute(self) -> None:
        """Runs everything. WrongResultError where a result of ours is wrong; RuntimeError without a GPU."""
        s = self.settings
        deadline = time.perf_counter() + s.max_time
        self.facts = device_facts()
        libraries, messages = peers.load_peers(s.peers, "cuda") if s.peers else ([], [])
        self.notes += messages
        units = list(self._units(libraries))
        for number, (name, work) in enumerate(units):
            if number and time.perf_counter() > deadline:
                self.notes.append(f"the time limit of {s.max_time:g} s ended the run before {name} (--max-time)")
                break
            self.progress(number, len(units), name)
            work()
            self.save(self.data())
        else:
            self.complete = True
        self.save(self.data())

    def _units(self, libraries: list[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
        s = self.settings
        for batch in s.batches:
            if s.network:
                yield f"{s.network}, batch {batch}", lambda b=batch: self._network(b, libraries)  # type: ignore[misc]
            for problem in s.problems:
                p = problem.with_batch(batch)
                yield p.name, lambda p=p: self._layer(p, libraries)  # type: ignore[misc]

    def _layer(self, p: Problem, libraries: Iterable[Any]) -> None:
        given, expected = ops.operands(p), None
        for layout in self.settings.layouts:
            for form in self.settings.forms:
                for algorithm in self.settings.algorithms or ("auto",):
                    what = f"{layout.upper()} {form} {algorithm}"
                    try:
                        call, out, expected = prepared_layer(p, layout, form, algorithm)
                        samples = time_calls(call)
                    except (NotImplementedError, MemoryError) as refused:
                        self._skip(p.name, what, str(refused))
                        continue
                    plan = plan_of(p, layout, form, algorithm)
                    row = self._row("layer", p.op, p.name, layout, form, algorithm, p.n, repeat=p.x)
                    row.update(problem=format_problem(p), macs=p.macs * p.n, kernel=str(plan.get("kernel", "")))
                    row.update(ukernel=str(plan.get("blocking", "")), auto=algorithm == "auto")
                    size = 4 if FORMS[form][0] == "float32" else 2
                    result = to_host(out)
                    nchw = as_nchw(result, p.result_layout(layout))
                    limit = MAX_L2[form] if p.op != "softmax" else max(MAX_L2[form], ops.max_relative_l2(p))
                    self._finish(
                        row, samples, nchw, expected, limit, flops=2 * p.macs * p.n, moved=p.traffic(p.n) * size / 4
                    )
        for peer in libraries:
            for layout in self.settings.layouts:
                expected = ops.expected(p, given)
                self._peer(peer, p.op, p.name, layout, p.n, lambda: peer.layer(p, given, layout, 1), expected, p)  # noqa: B023

    def _network(self, batch: int, libraries: Iterable[Any]) -> None:
        name = str(self.settings.network)
        if not name.startswith("resnet"):
            self._skip(name, "the network", "only ResNets are built on a GPU here")
            return
        state, x, expected = network_inputs(name, batch)
        for layout in self.settings.layouts:
            for form in self.settings.forms:
                for algorithm in self.settings.algorithms or ("auto",):
                    dtype, compute = FORMS[form]
                    try:
                        net = getattr(fastconv.models, name)(
                            state,
                            layout=_WORDS[layout],
                            algorithm=algorithm,
                            device="cuda",
                            dtype=dtype,
                            compute=compute,
                        )
                        own = fastconv.cuda.asarray(np.ascontiguousarray(x.transpose(_TO[layout])), dtype)
                        samples, logits = time_network(net, own)
                    except (NotImplementedError, MemoryError) as refused:
                        self._skip(name, f"{layout.upper()} {form} {algorithm}", str(refused))
                        continue
                    row = self._row("network", "network", name, layout, form, algorithm, batch)
                    row.update(problem=name, macs=MACS[name] * batch, auto=algorithm == "auto")
                    self._finish(row, samples, logits, expected, MAX_NETWORK_L2[form], flops=2 * row["macs"])
        folded = peers.fold_batch_norm(state)
        for peer in libraries:
            for layout in self.settings.layouts:
                self._peer(
                    peer, "network", name, layout, batch,
                    lambda: peer.network(name, folded, x, layout, 1), expected, None,  # noqa: B023
                )  # fmt: skip

    def _peer(self, peer: Any, op: str, name: str, layout: str, batch: int, make: Callable[[], Any],
              expected: oracle.F64, p: Problem | None) -> None:  # fmt: skip
        what = f"{peer.name} {layout.upper()}"
        try:
            call = make()
            samples = [ms for _ in range(VISITS) for ms in call.device_ms(BURST)]
            result = call.result()
        except Exception as error:  # a library may raise anything; the run goes on
            self._skip(name, what, f"{type(error).__name__}: {error}")
            return
        row = self._row("network" if p is None else "layer", op, name, layout, peer.dtype, "-", batch, peer.name)
        macs = MACS[name] * batch if p is None else p.macs * p.n
        row.update(problem=name if p is None else format_problem(p), macs=macs, kernel=call.detail)
        row.update(repeat=1 if p is None else p.x)
        self._finish(row, samples, result, expected, float("inf"), flops=2 * macs)

    def _row(self, kind: str, op: str, name: str, layout: str, form: str, algorithm: str, batch: int,
             provider: str = "fastconv", repeat: int = 1) -> Row:  # fmt: skip
        return {
            "kind": kind, "op": op, "suite": self.settings.suite.name, "layer": name, "problem": name, "repeat": repeat,
            "layout": layout.upper(), "via": "", "algorithm": algorithm, "provider": provider, "kernel": "",
            "ukernel": "", "isa": str(self.facts.get("isa", "")), "threads": 1, "batch": batch, "device": "cuda",
            "dtype": form, "macs": 0, "auto": False,
        }  # fmt: skip

    def _finish(self, row: Row, samples: list[float], result: F32, expected: oracle.F64, limit: float, *, flops: float,
                moved: float = 0.0) -> None:  # fmt: skip
        error = worst_error(result, expected)
        row.update(max_error=error.max_scaled, relative_l2=error.relative_l2)
        if not error.relative_l2 <= limit:
            raise WrongResultError(
                f"wrong result in {row['layer']} ({row['layout']} {row['dtype']} {row['algorithm']}, {row['kernel']}): "
                f"relative L2 error {error.relative_l2:.1e} against float64, at most {limit:.0e} is rounding"
            )
        row.update(statistics_of(samples), flops=flops)
        seconds = row["median_ms"] / 1e3
        if flops:
            row["gflops"] = flops / seconds / 1e9
        if moved:
            bandwidth = float(self.facts["copy_bandwidth"])
            row.update(bytes=moved, gbytes_per_s=moved / seconds / 1e9, intensity=flops / moved)
            row.update(bound="memory", bound_ms=moved / bandwidth * 1e3)
            row["roofline_percent"] = 100 * moved / bandwidth / seconds
        if row["dtype"] == "float32" and row["provider"] == "fastconv" and flops:
            row["peak_percent"] = 100 * flops / seconds / float(self.facts["fma_peak"])
        self.rows.append(row)

    def _skip(self, layer: str, what: str, reason: str) -> None:
        self.skipped.append({"layer": layer, "what": what, "reason": one_line(reason)})

    def data(self) -> dict[str, Any]:
        """The result as the file holds it, see `schema`."""
        s = self.settings
        roof = {
            "isa": str(self.facts.get("isa", "")), "threads": 1,
            "fma_gflops": float(self.facts.get("fma_peak", 1.0)) / 1e9,
            "bandwidth": {"memory": float(self.facts.get("copy_bandwidth", 1.0)) / 1e9},
        }  # fmt: skip
        return {
            "schema": schema.SCHEMA,
            "tool": schema.TOOL,
            "complete": self.complete,
            "notes": [*self.notes, *self._about()],
            "settings": {
                "suite": s.suite.name, "match": s.match, "layouts": list(s.layouts), "dtypes": list(s.forms),
                "algorithms": list(s.algorithms), "batches": list(s.batches), "device": "cuda", "peers": list(s.peers),
                "max_time": s.max_time,
            },
            "environment": {**machine.environment(), "gpu": self.facts},
            "rooflines": [roof] if self.facts else [],
            "noise": {},
            "rows": list(self.rows),
            "skipped": list(self.skipped),
            "sweep": None,
        }  # fmt: skip

    def _about(self) -> list[str]:
        if not self.facts:
            return []
        return [
            f"{self.facts['name']}: {self.facts['copy_bandwidth'] / 1e9:.0f} GB/s by our own copy (read and written), "
            f"{self.facts['fma_peak'] / 1e12:.1f} TFLOP/s of float32 FMAs; the tensor cores' peak is not measured"
        ]


def statistics_of(samples: list[float]) -> Row:
    """What a row of the file needs of its samples (ms, in visits of one length)."""
    visits = VISITS if len(samples) % VISITS == 0 else 1
    series = Series(burst=BURST, samples=[ms / 1e3 for ms in samples], visits=[len(samples) // visits] * visits)
    summary = summarise(series)
    return {
        "samples_ms": [round(ms, 6) for ms in samples], "visits": list(series.visits), "clock": [0.0] * visits,
        "burst": BURST, "cold_ms": [], "cold_median_ms": None, "median_ms": summary.median, "p10_ms": summary.p10,
        "p90_ms": summary.p90, "min_ms": summary.minimum, "iqr_ms": summary.iqr,
        "spread": summary.spread if np.isfinite(summary.spread) else None,
    }  # fmt: skip


def network_inputs(name: str, batch: int) -> tuple[dict[str, F32], F32, oracle.F64]:
    """(weights, NCHW pictures of which at most two differ, float64 logits of those) as the CPU's benchmark has them."""
    depth = int(name.removeprefix("resnet"))
    distinct = np.random.default_rng(2).standard_normal((min(batch, 2), 3, 224, 224), np.float32)
    state = fastconv.models.init_state(depth)
    key = (name, len(distinct))
    if key not in _oracle:
        _oracle[key] = oracle.resnet_float64(depth, state, distinct)
    return state, np.resize(distinct, (batch, 3, 224, 224)), _oracle[key]


_oracle: dict[tuple[str, int], oracle.F64] = {}


def save_oracle(path: str) -> None:
    """Writes the float64 logits that were computed so far, for other processes."""
    np.savez(path, **{f"{name} {count}": logits for (name, count), logits in _oracle.items()})  # type: ignore[arg-type]


def load_oracle(path: str) -> None:
    with np.load(path) as kept:
        for key in kept.files:
            name, count = key.split()
            _oracle[name, int(count)] = kept[key]


def text(data: dict[str, Any]) -> str:
    """A line a row, the fastest of each layer and batch first, and what each takes in the fastest one's time."""
    lines = [f"note: {note}" for note in data["notes"]]
    lines += [f"left out: {item['layer']}, {item['what']}: {item['reason']}" for item in data["skipped"]]
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in data["rows"]:
        groups.setdefault((row["layer"], row["batch"]), []).append(row)
    head = (
        "layer",
        "n",
        "by",
        "layout",
        "dtype",
        "algorithm",
        "median ms",
        "+- %",
        "TFLOP/s",
        "GB/s",
        "% copy",
        "rel. L2",
        "kernel",
    )
    body = [head]
    for (layer, batch), rows in groups.items():
        for row in sorted(rows, key=lambda r: float(r["median_ms"])):
            spread = row["spread"]
            body.append((
                layer, str(batch), row["provider"], row["layout"], row["dtype"], row["algorithm"],
                f"{row['median_ms']:.4f}", "?" if spread is None else f"{100 * spread:.1f}",
                f"{row['gflops'] / 1e3:.1f}" if row.get("gflops") else "",
                f"{row['gbytes_per_s']:.0f}" if row.get("gbytes_per_s") else "",
                f"{row['roofline_percent']:.0f}" if row.get("roofline_percent") else "",
                f"{row['relative_l2']:.1e}", f"{row['kernel']} {row['ukernel']}".strip(),
            ))  # fmt: skip
    widths = [max(len(line[i]) for line in body) for i in range(len(head))]
    lines += ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in body]
    return "\n".join(lines)
