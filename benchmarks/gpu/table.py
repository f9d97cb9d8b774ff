"""The six rows that the GPU is judged by: ResNet-50 in four forms beside PyTorch, and what only moves bytes.

    python -m fastconv.benchmarks.gpu.table --json FILE --report FILE.md

Medians of CUDA events, ours and PyTorch's in one process for each row. A row that fails or hangs costs the others
nothing. The 16-bit rows are measured twice: as "auto" chooses, and with the kernels of wgmma named first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastconv

from .. import device_cuda as gpu
from .. import machine, peers
from ..unit import worst_error
from .isolated import call_isolated

#: Name, number form, batch, milliseconds to reach, share of PyTorch's time to reach (0: none asked), PyTorch's peer.
NETWORKS: tuple[tuple[str, str, int, float, float, str], ...] = (
    ("bf16, batch 1", "bfloat16", 1, 0.25, 0.7, "pytorch-bf16"),
    ("bf16, batch 32", "bfloat16", 32, 1.2, 0.7, "pytorch-bf16"),
    ("bf16, batch 256", "bfloat16", 256, 8.0, 0.8, "pytorch-bf16"),
    ("float32 (CUDA cores), batch 32", "float32", 32, 7.0, 0.0, "pytorch"),
    ("float32 by 3xTF32, batch 32", "3xtf32", 32, 4.5, 0.0, "pytorch"),
)
#: Per cent of our own copy's speed that an op which only moves bytes should reach.
REACH_PERCENT = 85.0
#: Seconds that one row may take, the start of its process and PyTorch's search included.
ROW_SECONDS, MOVING_SECONDS = 40.0, 40.0
Row = dict[str, Any]


def network_row(
    name: str, form: str, batch: int, reach_ms: float, share: float, peer_name: str, prefer: str = ""
) -> Row:
    state, x, expected = gpu.network_inputs("resnet50", batch)
    algorithm: Any = [prefer, "auto"] if prefer else "auto"
    dtype, compute = gpu.FORMS[form]
    row: Row = {"name": f"ResNet-50, {name}", "form": form, "batch": batch, "reach_ms": reach_ms, "reach_share": share}
    row["prefer"] = prefer
    for layout in ("NHWC", "NCHW"):
        order = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)
        own = fastconv.cuda.asarray(np.ascontiguousarray(x.transpose(order)), dtype)
        net = fastconv.models.resnet50(
            state, layout=layout, algorithm=algorithm, device="cuda", dtype=dtype, compute=compute
        )
        samples, logits = gpu.time_network(net, own)
        row[layout] = {
            "median_ms": statistics.median(samples), "samples_ms": samples,
            "relative_l2": worst_error(logits, expected).relative_l2,
            "graph_refusal": net.program(own.shape).program.graph_refusal,
        }  # fmt: skip
        del net, own
    row["ms"] = min(row[layout]["median_ms"] for layout in ("NHWC", "NCHW"))
    try:
        (peer,), _ = peers.load_peers([peer_name], "cuda")
        call = peer.network("resnet50", peers.fold_batch_norm(state), x, "nhwc", 1)
        assert call.device_ms is not None
        call.device_ms(5)
        samples = [ms for _ in range(gpu.VISITS) for ms in call.device_ms(gpu.BURST)]
        row["peer"] = {
            "name": peer_name, "detail": call.detail, "median_ms": statistics.median(samples), "samples_ms": samples,
            "relative_l2": worst_error(call.result(), expected).relative_l2,
        }  # fmt: skip
        row["share_of_peer"] = row["ms"] / row["peer"]["median_ms"]
        vars(peer)["torch"].cuda.empty_cache()
    except Exception as error:  # PyTorch may be missing, or raise anything
        row["peer_missing"] = f"{type(error).__name__}: {error}"
    return row


def moving_rows(bandwidth: float, n: int = 64, size: int = 112) -> list[Row]:
    """Ops that only move bytes, each on some hundred megabytes: their speed over that of our own copy."""
    rows: list[Row] = []
    c = 64
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        count = n if dtype == "float32" else 2 * n
        for layout in ("NHWC", "NCHW"):
            shape = (count, size, size, c) if layout == "NHWC" else (count, c, size, size)
            half = (count, size // 2, size // 2, c) if layout == "NHWC" else (count, c, size // 2, size // 2)
            x = fastconv.cuda.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)
            small, same = fastconv.cuda.empty(half, dtype), fastconv.cuda.empty(shape, dtype)
            elements, pooled = float(np.prod(shape)), float(np.prod(half))
            other: Any = "NCHW" if layout == "NHWC" else "NHWC"
            turned = fastconv.cuda.empty((count, c, size, size) if layout == "NHWC" else (count, size, size, c), dtype)
            word: Any = layout
            calls: list[tuple[str, float, Callable[[int], object]]] = [
                ("max pool 3x3, stride 2", elements + pooled,
                 lambda s: fastconv.max_pool2d(x, 3, 2, 1, layout=word, out=small, stream=s)),  # noqa: B023
                ("average pool 2x2", elements + pooled,
                 lambda s: fastconv.avg_pool2d(x, 2, 2, layout=word, out=small, stream=s)),  # noqa: B023
                ("ReLU", 2 * elements, lambda s: fastconv.relu(x, out=same, stream=s)),  # noqa: B023
                (f"{layout} to {other}", 2 * elements,
                 lambda s: fastconv.convert_layout(x, word, other, out=turned, stream=s)),  # noqa: B023
            ]  # fmt: skip
            for name, moved, call in calls:
                rows.append(_moving(name, dtype, layout, moved * width, call, bandwidth))
            rows.append(_residual(dtype, layout, width, bandwidth, n, size // 2))
    return rows


def _moving(name: str, dtype: str, layout: str, moved: float, call: Callable[[int], object], bandwidth: float) -> Row:
    row: Row = {"name": name, "dtype": dtype, "layout": layout, "bytes": moved}
    try:
        row["median_ms"] = statistics.median(gpu.time_calls(call))
        row["copy_percent"] = 100 * moved / bandwidth / (row["median_ms"] / 1e3)
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}"
    return row


def _residual(dtype: str, layout: str, width: int, bandwidth: float, n: int, size: int) -> Row:
    """A residual is added in a convolution's epilogue: what it adds to the time of one, over a read of its bytes."""
    row: Row = {"name": "residual add (what it adds to a 1x1 convolution)", "dtype": dtype, "layout": layout}
    try:
        ic, oc = 64, 256
        rng = np.random.default_rng(1)
        word: Any = layout
        image, result = ((n, size, size, ch) if layout == "NHWC" else (n, ch, size, size) for ch in (ic, oc))
        x = fastconv.cuda.asarray(rng.standard_normal(image, np.float32), dtype)
        residual = fastconv.cuda.asarray(rng.standard_normal(result, np.float32), dtype)
        out = fastconv.cuda.empty(result, dtype)
        weight = rng.standard_normal((oc, ic, 1, 1), np.float32) / np.float32(8)
        conv = fastconv.Conv2d(
            weight, None, layout=word, weight_layout="OIHW", activation="relu", device="cuda", dtype=dtype  # type: ignore[arg-type]
        )  # fmt: skip
        without = statistics.median(gpu.time_calls(lambda s: conv(x, out=out, stream=s)))
        with_it = statistics.median(gpu.time_calls(lambda s: conv(x, residual, out=out, stream=s)))
        row.update(
            bytes=float(np.prod(result)) * width, without_ms=without, with_ms=with_it, median_ms=with_it - without
        )
        if with_it > without:
            row["copy_percent"] = 100 * row["bytes"] / bandwidth / ((with_it - without) / 1e3)
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}"
    return row


def measured(save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "environment": machine.environment(), "gpu": gpu.device_facts(), "networks": [], "moving": [], "failed": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        oracle_file = str(Path(folder) / "logits.npz")
        for batch in {1, 32}:
            gpu.network_inputs("resnet50", batch)
        gpu.save_oracle(oracle_file)  # once for all rows
        for number, (name, form, *_) in enumerate(NETWORKS):
            began = time.perf_counter()
            for prefer in ("", "implicit_gemm_wgmma") if form in ("bfloat16", "float16") else ("",):
                arguments = ["--row", str(number), "--oracle", oracle_file, "--prefer", prefer]
                row, why = call_isolated("table", arguments, ROW_SECONDS)
                if row is not None:
                    data["networks"].append(row)
                    for layout in ("NHWC", "NCHW"):
                        if row[layout]["graph_refusal"]:
                            data["failed"].append(f"{row['name']}, {layout}: no graph: {row[layout]['graph_refusal']}")
                else:
                    data["failed"].append(f"ResNet-50, {name}{', ' + prefer if prefer else ''}: {why}")
                save(data)
            print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
            save(data)
    moving, why = call_isolated("table", ["--moving", str(data["gpu"]["copy_bandwidth"])], MOVING_SECONDS)
    data["moving"] = moving or []
    if moving is None:
        data["failed"].append(f"ops that move bytes: {why}")
    save(data)
    return data


def markdown(data: dict[str, Any]) -> str:
    facts = data["gpu"]
    lines = [
        f"{facts['name']}: {facts['copy_bandwidth'] / 1e9:.0f} GB/s by our own copy, {facts['fma_peak'] / 1e12:.1f} "
        "TFLOP/s of float32 FMAs. Medians, CUDA events; PyTorch: channels_last, cuDNN benchmark mode, CUDA graph.",
        "",
        "| | ms NHWC | ms NCHW | reach | PyTorch ms | of PyTorch's time | reach | relative L2 | reached |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in data["networks"]:
        peer, share = row.get("peer"), row.get("share_of_peer")
        done = row["ms"] <= row["reach_ms"] and (
            not row["reach_share"] or (share is not None and share <= row["reach_share"])
        )
        error = max(row[layout]["relative_l2"] for layout in ("NHWC", "NCHW"))
        if row["form"] == "3xtf32":
            done = done and error <= 2e-6
        name = row["name"] + (f" ({row['prefer']})" if row.get("prefer") else "")
        lines.append(
            f"| {name} | {row['NHWC']['median_ms']:.3f} | {row['NCHW']['median_ms']:.3f} "
            f"| {row['reach_ms']:g} | "
            f"{format(peer['median_ms'], '.3f') if peer else row.get('peer_missing', '')} | "
            f"{format(share, '.2f') if share else ''} | {row['reach_share'] or ''} | {error:.1e} | "
            f"{'yes' if done else 'no'} |"
        )
    lines += [
        "",
        "| moves bytes only | dtype | layout | ms | % of our own copy | reached (85 %) |",
        "|---|---|---|---|---|---|",
    ]
    for row in data["moving"]:
        percent = row.get("copy_percent")
        words = row.get("failed") or ("yes" if percent is None or percent >= REACH_PERCENT else "no")
        shown = "" if percent is None else f"{percent:.0f}"
        ms = row.get("median_ms")
        lines.append(
            f"| {row['name']} | {row['dtype']} | {row['layout']} | {'' if ms is None else format(ms, '.4f')} "
            f"| {shown} | {words} |"
        )
    lines += ["", *(f"FAILED: {line}" for line in data["failed"])]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="The GPU's table.")
    parser.add_argument("--json")
    parser.add_argument("--report")
    for flag in ("--row", "--oracle", "--prefer", "--moving", "--answer"):  # a part of it, in a process of its own
        parser.add_argument(flag, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        if options.moving:
            answer: Any = moving_rows(float(options.moving))
        else:
            gpu.load_oracle(options.oracle)
            answer = network_row(*NETWORKS[int(options.row)], prefer=options.prefer or "")
        Path(options.answer).write_text(json.dumps(answer), encoding="utf-8")
        return 0
    if not (options.json and options.report):
        parser.error("--json and --report are required")

    def save(data: dict[str, Any]) -> None:
        Path(options.json).write_text(json.dumps(data, default=str), encoding="utf-8")
        Path(options.report).write_text(markdown(data), encoding="utf-8")

    data = measured(save)
    print(markdown(data))
    return 1 if data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
