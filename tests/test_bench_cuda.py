"""The benchmark of the CUDA backend: what it runs and writes, on the host in place of a GPU (times mean nothing)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import device_cuda, schema
from fastconv.benchmarks.gpu import small_cases, steps, table
from fastconv.benchmarks.gpu.isolated import call_isolated

import fastconv as fc
from fastconv import cli
from fastconv.cuda import _backend


@pytest.fixture
def quick(cuda: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The backend, with few repeats and small copies; the roofs made up."""
    facts = {"name": "made up", "isa": "sm_90", "copy_bandwidth": 1e12, "fma_peak": 1e13}
    monkeypatch.setattr(device_cuda, "device_facts", lambda device=0: dict(facts))
    monkeypatch.setattr(device_cuda, "MAX_RECORDED", 2)
    monkeypatch.setattr(device_cuda, "BURST", 1)
    return _backend.backend()


def test_a_run(quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.json"
    problems = ["a ic8 ih6 oc8 kh3 ph1", "b max_pool2d ic8 ih6 kh2", "c linear ic8 oc5 n2"]
    arguments = [word for text in problems for word in ("--problem", text)]
    options = ["--device", "cuda", "--dtypes", "float32,bfloat16,3xtf32", "--json", str(target), "--peers", "pytorch"]
    assert cli.main(["bench", "run", *arguments, *options]) == 0
    data = schema.load(target)
    assert data["complete"]
    rows = [row for row in data["rows"] if row["layer"] == "a" and row["provider"] == "fastconv"]
    found = {(row["layout"], row["dtype"]) for row in rows}
    assert {(layout, dtype) for layout in ("NCHW", "NHWC") for dtype in ("float32", "bfloat16")} <= found
    assert all(row["device"] == "cuda" and row["relative_l2"] < 5e-3 and row["kernel"] for row in rows)
    said = capsys.readouterr().out
    assert "bfloat16" in said
    assert "1000 GB/s by our own copy" in said


def test_named_algorithms(quick: Any, tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    options = ["--device", "cuda", "--algorithms", "direct,im2col", "--dtypes", "float32", "--layouts", "nhwc"]
    assert cli.main(["bench", "run", "--problem", "ic4 ih5 oc4 kh3", *options, "--json", str(target)]) == 0
    assert {row["algorithm"] for row in schema.load(target)["rows"]} == {"direct", "im2col"}


def test_a_wrong_result_stops_the_run(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(device_cuda.MAX_L2, "float32", 0.0)
    arguments = ["bench", "run", "--problem", "ic4 ih5 oc4 kh3", "--device", "cuda", "--dtypes", "float32"]
    assert cli.main(arguments) == 1


@pytest.mark.parametrize(
    "options", [["--dtypes", "float8"], ["--algorithms", "magic"], ["--peers", "numpy"], ["--layouts", "chwn"]]
)
def test_bad_options(quick: Any, options: list[str]) -> None:
    assert cli.main(["bench", "run", "--suite", "quick", "--device", "cuda", *options]) == 2


def test_dtypes_are_for_the_gpu() -> None:
    assert cli.main(["bench", "run", "--suite", "quick", "--dtypes", "bfloat16"]) == 2


def test_without_a_gpu_the_reason_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    reason = fc.cuda.why_unavailable()
    if not reason:
        pytest.skip("CUDA is available here")
    assert cli.main(["bench", "run", "--suite", "quick", "--device", "cuda"]) == 1
    assert reason in capsys.readouterr().err


def test_small_cases(quick: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [
        "stem ic3 ih9 iw11 oc64 kh7 kw7 sh2 sw2 ph3 pw3 n1",
        "odd ic5 ih7 oc7 kh3 ph1 n1",
        "rectified relu ic20 ih9 n2",
    ]
    monkeypatch.setattr(small_cases, "PROBLEMS", chosen)
    assert small_cases.run() == 0, capsys.readouterr().out
    assert ", 0 failed" in capsys.readouterr().out


def test_rounding_is_that_of_the_dtypes() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.1415927, 1e-40, 65504.0], np.float32)
    np.testing.assert_array_equal(device_cuda.rounded(values, "float32"), values)
    np.testing.assert_array_equal(device_cuda.rounded(values, "float16"), values.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(device_cuda.rounded(values[1:3], "bfloat16"), np.float32([1.0, 1.015625]))


def test_steps(quick: Any) -> None:
    rows = steps.profile("float32", 1, "NHWC", "resnet18", 32, 2)
    assert [row["layers"] for row in rows][-1] == "fc"
    assert all(row["us"] > 0 and row["kernel"] for row in rows)


def test_table(quick: Any) -> None:
    moving = table.moving_rows(1e12, 1, 8)
    assert not [row for row in moving if "failed" in row]
    timed = {"median_ms": 1.0, "relative_l2": 1e-6}
    networks = [
        {"name": f"ResNet-50, {name}", "form": form, "batch": n, "reach_ms": ms, "reach_share": share, "ms": 1.0,
         "NHWC": timed, "NCHW": timed, "peer": {"median_ms": 2.0}, "share_of_peer": 0.5}
        for name, form, n, ms, share, _ in table.NETWORKS
    ]  # fmt: skip
    facts = {"name": "made up", "copy_bandwidth": 1e12, "fma_peak": 1e13}
    text = table.markdown({"gpu": facts, "networks": networks, "moving": moving, "failed": ["x"]})
    first, second = (next(line for line in text.splitlines() if f"batch {n} " in line) for n in ("1", "32"))
    assert first.endswith("| no |")
    assert second.endswith("| yes |")
    assert "FAILED: x" in text
    slow = [{**row, "share_of_peer": 0.75} for row in networks]
    text = table.markdown({"gpu": facts, "networks": slow, "moving": moving, "failed": []})
    assert next(line for line in text.splitlines() if "batch 32 " in line).endswith("| no |")
    json.dumps(moving)


def test_a_part_that_hangs_or_fails_is_told(tmp_path: Path) -> None:
    row, why = call_isolated("table", ["--row", "99", "--oracle", str(tmp_path / "none.npz")], 60)
    assert row is None
    assert "none.npz" in why
    assert call_isolated("table", ["--moving", "1"], 0.01) == (None, "stopped after 0.01 s")


def test_the_oracle_goes_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_cuda, "_oracle", {("resnet50", 2): np.arange(6.0).reshape(2, 3)})
    device_cuda.save_oracle(str(tmp_path / "a.npz"))
    device_cuda._oracle.clear()
    device_cuda.load_oracle(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(device_cuda._oracle["resnet50", 2], np.arange(6.0).reshape(2, 3))


def test_the_one_command_is_a_shell_script(tmp_path: Path) -> None:
    """Without a GPU its parts say so, and the script goes on to its summary."""
    script = Path(__file__).parents[1] / "benchmarks" / "gpu" / "run_all.sh"
    environment = {**os.environ, "PARTS": "facts memcheck", "PYTHON": sys.executable, "SITE": str(tmp_path)}
    done = subprocess.run([script, tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=120)
    assert "Summary" in done.stdout
    assert "facts" in (tmp_path / "out" / "log.txt").read_text()
