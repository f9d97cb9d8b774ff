"""Made-up results of schema 2 for the tests of what is shown: a whole run, single rows, a crossover run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastconv.benchmarks import problem

Row = dict[str, Any]
Data = dict[str, Any]

SEED = 7
PEAK = {1: 214.0, 2: 428.0}
BANDWIDTH = {1: {"l2": 190.0, "l3": 34.0, "memory": 24.0}, 2: {"l2": 380.0, "l3": 66.0, "memory": 42.0}}
#: What a library reaches of the roofline: by provider and layout, in a 1x1 and in a wider kernel.
SPEEDS = {
    ("fastconv", "NCHW", "direct"): (0.52, 0.72),
    ("fastconv", "NCHW", "im2col"): (0.56, 0.60),
    ("fastconv", "NHWC", "direct"): (0.66, 0.76),
    ("fastconv", "NHWC", "im2col"): (0.68, 0.66),
    ("pytorch", "NCHW", "-"): (0.34, 0.46),
    ("pytorch", "NHWC", "-"): (0.48, 0.58),
    ("pytorch-bf16", "NCHW", "-"): (0.6, 1.9),
    ("pytorch-bf16", "NHWC", "-"): (0.9, 2.3),
    ("onnxruntime", "NCHW", "-"): (0.54, 0.50),
    ("openvino", "NCHW", "-"): (0.62, 0.70),
}
_RNG = np.random.default_rng(SEED)


def made_row(ms: float, rng: np.random.Generator = _RNG, **keys: Any) -> Row:
    """A row of schema 2 around a median of about `ms`, 8 visits of 5 samples, with everything a real one has."""
    samples = [float(v) for v in ms * (1 + 0.02 * np.abs(rng.standard_normal(40)))]
    median = statistics.median(samples)
    row: Row = {
        "kind": "layer", "op": "conv2d", "provider": "fastconv", "suite": "resnet50", "layer": "a", "repeat": 1,
        "problem": "a ic64 ih56 iw56 oc64 kh3 kw3 sh1 sw1 ph1 pw1 x1", "layout": "NHWC", "via": "", "algorithm": "-",
        "auto": False, "kernel": "", "ukernel": "", "isa": "", "threads": 1, "batch": 1, "device": "cpu",
        "dtype": "float32", "samples_ms": samples, "visits": [5] * 8, "clock": [214.0] * 8, "burst": 5, "cold_ms": [],
        "median_ms": median, "p10_ms": float(np.percentile(samples, 10)), "p90_ms": float(np.percentile(samples, 90)),
        "min_ms": min(samples), "iqr_ms": 0.01 * median, "spread": 0.006, "cold_median_ms": None, "macs": 0,
        "bytes": 1, "gbytes_per_s": 1.0, "intensity": 1.0, "bound": "memory", "bound_ms": ms / 2,
        "roofline_percent": 50.0, "max_error": 3.8e-07, "relative_l2": 1.6e-07,
    }  # fmt: skip
    if keys.get("provider", "fastconv") == "fastconv":
        row.update(algorithm="direct", kernel="conv_direct", isa="avx512", pack_ms=0.31, packed_bytes=37632)
        row.update(cold_median_ms=1.4 * median)
    return {**row, **keys}


def made_data(rows: list[Row], **keys: Any) -> Data:
    """A result of schema 2 with these rows and no rooflines."""
    machine = {"cpu": "A <Processor> & more", "isa": "avx512"}
    versions = {"fastconv": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0"}
    return {
        "schema": 2, "tool": "fastconv bench", "complete": True, "notes": [], "settings": {"suite": "resnet50"},
        "environment": {"date": "2026-11-20T23:45:19+00:00", "machine": machine, "versions": versions},
        "rooflines": [], "noise": {}, "rows": rows, "skipped": [], "sweep": None, **keys,
    }  # fmt: skip


def _layer_rows(p: Any, threads: int, batch: int, rng: np.random.Generator) -> Iterator[Row]:
    """What a run would have for one layer: every way, with times that a roofline and SPEEDS give."""
    oh, ow = (p.ih + 2 * p.ph - p.kh) // p.sh + 1, (p.iw + 2 * p.pw - p.kw) // p.sw + 1
    macs = batch * p.oc * oh * ow * p.ic * p.kh * p.kw
    moved = 4 * (batch * (p.ic * p.ih * p.iw + p.oc * oh * ow) + p.oc * p.ic * p.kh * p.kw)
    level = "l2" if moved < 2e6 else "l3" if moved < 60e6 else "memory"
    limits = {"compute": 2e-6 * macs / PEAK[threads], level: 1e-6 * moved / BANDWIDTH[threads][level]}
    bound = max(limits, key=lambda name: limits[name])
    text = problem.format_problem(p)
    for (provider, layout, algorithm), speed in SPEEDS.items():
        reached = speed[p.kh > 1] * (1 if threads == 1 else 0.9) * float(rng.uniform(0.8, 1.1))
        ms = limits[bound] / min(reached, 0.97 if provider != "pytorch-bf16" else 9.0) + 0.01
        ways = [(layout, "", ms)]
        if (layout, algorithm) == ("NHWC", "direct"):
            ways.append(("NCHW", "NHWC", ms + 2e-6 * moved / BANDWIDTH[threads][level]))
        for outside, via, time in ways:
            row = made_row(
                time, rng, provider=provider, layer=p.name, problem=text, repeat=p.x, layout=outside, via=via,
                algorithm=algorithm, auto=algorithm == "direct", threads=threads, batch=batch, macs=macs, bytes=moved,
                dtype="bfloat16" if provider.endswith("bf16") else "float32", intensity=2 * macs / moved, bound=bound,
                bound_ms=limits[bound],
            )  # fmt: skip
            median = row["median_ms"]
            row.update(gflops=2e-6 * macs / median, peak_percent=2e-4 * macs / median / PEAK[threads])
            row.update(gbytes_per_s=1e-6 * moved / median, roofline_percent=100 * limits[bound] / median)
            yield row
        if (layout, algorithm) == ("NHWC", "direct"):
            both = {"kind": "convert", "op": "convert_layout", "layout": "NCHW->NHWC->NCHW", "problem": text}
            yield made_row(ways[1][2] - ms, rng, layer=p.name, threads=threads, batch=batch, algorithm="auto", **both)


def _network_rows(layers: list[Row], threads: int, batch: int, rng: np.random.Generator) -> Iterator[Row]:
    for provider, layout, algorithm in SPEEDS:
        for via in ("", "NHWC") if (layout, algorithm) == ("NHWC", "direct") else ("",):
            if algorithm == "im2col":
                continue
            key = (provider, "NCHW" if via else layout, algorithm, via)
            own = [r for r in layers if (r["provider"], r["layout"], r["algorithm"], r["via"]) == key]
            total = 1.08 * sum(r["repeat"] * r["median_ms"] for r in own)
            yield made_row(
                total, rng, kind="network", op="network", provider=provider, layer="resnet50", problem="resnet50",
                layout=key[1], via=via, algorithm="auto" if algorithm == "direct" else "-", auto=algorithm == "direct",
                threads=threads, batch=batch, dtype="bfloat16" if provider.endswith("bf16") else "float32",
                macs=batch * 4_089_184_256, peak_percent=0.818e3 * batch / total / PEAK[threads] * 1e3,
            )  # fmt: skip


def full(threads: tuple[int, ...] = (1, 2), batches: tuple[int, ...] = (1, 4, 16)) -> Data:
    """A whole ResNet-50 run with peers, pooling, conversions and the network, for each setting."""
    rng = np.random.default_rng(SEED)
    rows: list[Row] = []
    for t in threads:
        for n in batches:
            layers = [row for p in problem.load_suite("resnet50").problems for row in _layer_rows(p, t, n, rng)]
            rows += layers
            layers = [row for row in layers if row["kind"] == "layer"]
            pool = {"op": "max_pool2d", "layer": "pool1", "problem": "pool1 max_pool2d ic64 ih112 kh3 sh2 ph1 x1"}
            for layout, provider in (("NCHW", "fastconv"), ("NHWC", "fastconv"), ("NCHW", "onnxruntime")):
                ms = 0.11 * n / t * (1 if layout == "NHWC" else 1.6)
                rows.append(made_row(ms, rng, **pool, layout=layout, provider=provider, threads=t, batch=n, auto=True))
            for tensor, ms in (("64x112x112", 0.29), ("2048x7x7", 0.02)):
                for direction in ("NCHW->NHWC", "NHWC->NCHW"):
                    named = {"kind": "convert", "op": "convert_layout", "layer": tensor, "problem": tensor}
                    rows.append(made_row(ms * n / t, rng, **named, layout=direction, threads=t, batch=n))
            rows += _network_rows(layers, t, n, rng)
    roofs = [{"isa": "avx512", "threads": t, "fma_gflops": PEAK[t], "bandwidth": BANDWIDTH[t]} for t in threads]
    noise = {"sentence": "Noise: 1.2 % within a visit, 2.3 % between visits.", "within_percent": 1.2}
    skipped = [{"layer": "conv1", "what": "NCHW winograd", "reason": "stride <2> is not 1"}]
    notes = ["the machine was busy: load 1.7 on 2 processors"]
    return made_data(rows, rooflines=roofs, noise=noise, skipped=skipped, notes=notes)


def sweep() -> Data:
    """A crossover run: NCHW wins up to 16 channels, NHWC from 32 on."""
    values = [4, 8, 16, 32, 64, 128]
    rows = []
    for ic in values:
        named = {
            "layer": f"mine ic{ic}",
            "sweep_value": ic,
            "problem": f"mine ic{ic} ih28 iw28 oc64 kh3 kw3 sh1 sw1 ph1 pw1 x1",
            "auto": True,
        }
        for layout, ms in (("NCHW", 0.02 * ic), ("NHWC", 0.2 + 0.01 * ic)):
            rows.append(made_row(ms, layout=layout, **named))
    sentences = ["NHWC wins from ic32 on."]
    return made_data(rows, sweep={"vary": "ic", "layer": "mine", "values": values, "sentences": sentences})
