"""Where a network's time goes: each step of ResNet-50 on its own, by CUDA events, slowest first.

    python -m fastconv.benchmarks.gpu.steps --json FILE

Steps are launched one by one, so that very short ones contain some of the launch; the sum is not the graph's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fastconv

from .. import device_cuda as gpu
from .isolated import call_isolated

CASES = (
    ("bfloat16", 1, "NHWC"), ("bfloat16", 32, "NHWC"), ("bfloat16", 256, "NHWC"), ("bfloat16", 32, "NCHW"),
    ("float32", 32, "NHWC"), ("3xtf32", 32, "NHWC"),
)  # fmt: skip
ROUNDS = 9
#: Seconds that one case may take, the start of its process included.
CASE_SECONDS = 20.0


def profile(
    form: str, batch: int, layout: str, network: str = "resnet50", size: int = 224, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """A dict a step: layers, kernel, blocking, us (median), tflops, gbytes_per_s, output_shape."""
    dtype, compute = gpu.FORMS[form]
    net = getattr(fastconv.models, network)(layout=layout, device="cuda", dtype=dtype, compute=compute)
    shape = (batch, size, size, 3) if layout == "NHWC" else (batch, 3, size, size)
    x = fastconv.cuda.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)
    compiled, stream = net.program(shape), fastconv.cuda.Stream()
    target = fastconv.cuda.empty((batch, 1000), "float32")
    fastconv.cuda.synchronize()
    times = [compiled.program.run_profiled([x._view], [target._view], stream.ptr) for _ in range(rounds)]
    rows = []
    for step, seconds in zip(compiled.steps(), zip(*times, strict=True), strict=True):
        median = max(statistics.median(seconds[1:]), 1e-9)
        rows.append(
            {
                "layers": step["layers"],
                "kernel": step["kernel"],
                "blocking": step.get("blocking", ""),
                "us": median * 1e6,
                "tflops": step["flops"] / median / 1e12,
                "gbytes_per_s": step["bytes"] / median / 1e9,
                "output_shape": step["output_shape"],
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Each step's time.")
    parser.add_argument("--json")
    for flag in ("--case", "--answer"):  # one case, in a process of its own
        parser.add_argument(flag, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        Path(options.answer).write_text(json.dumps(profile(*CASES[int(options.case)])), encoding="utf-8")
        return 0
    if not options.json:
        parser.error("--json is required")
    data: dict[str, Any] = {}
    status = 0
    for number, (form, batch, layout) in enumerate(CASES):
        name = f"{form}, batch {batch}, {layout}"
        rows, why = call_isolated("steps", ["--case", str(number)], CASE_SECONDS)
        if rows is None:
            print(f"{name}: {why}", flush=True)
            status = 1
            continue
        data[name] = rows
        Path(options.json).write_text(json.dumps(data), encoding="utf-8")
        print(f"{name}: {sum(row['us'] for row in rows):.0f} us in {len(rows)} steps; the slowest:")
        for row in sorted(rows, key=lambda row: -float(row["us"]))[:8]:
            print(
                f"  {row['us']:8.1f} us  {row['tflops']:7.1f} TFLOP/s  {row['gbytes_per_s']:7.0f} GB/s  "
                f"{row['layers']}  {row['kernel']} {row['blocking']}",
                flush=True,
            )
    return status


if __name__ == "__main__":
    sys.exit(main())
