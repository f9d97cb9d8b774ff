"""FASTCONV_KERNEL and FASTCONV_VERBOSE of a process whose CUDA backend is the module built for the host."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

import cuda_backend
from helpers import run_python

COLUMNS = [
    "event",
    "op",
    "device",
    "layout",
    "dtype",
    "problem",
    "algorithm",
    "ukernel",
    "blocking",
    "packed_bytes",
    "scratch_bytes",
    "ms",
]

# Before fastconv is imported, since that is when it looks at its environment.
SHIM = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("_cuda_on_cpu", {path!r})
spec = importlib.util.spec_from_loader("_cuda_on_cpu", loader)
sys.modules["fastconv._cuda"] = importlib.util.module_from_spec(spec)
loader.exec_module(sys.modules["fastconv._cuda"])
"""
SETUP = """
import numpy as np, fastconv as fc
x, w = np.ones((1, 8, 9, 9), np.float32), np.ones((8, 8, 3, 3), np.float32)
cx, cw = fc.cuda.asarray(x), fc.cuda.asarray(w)
expected = fc.conv2d(x, w, algorithm="reference")
"""


def with_shim(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    module = cuda_backend.host_module()
    if isinstance(module, str):
        pytest.skip(module)
    return run_python(SHIM.format(path=module.__file__) + SETUP + code, env=env)


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in done.stderr.splitlines()]
    assert all(row[0] == "fastconv" and len(row) == len(COLUMNS) + 1 for row in rows), done.stderr
    return [dict(zip(COLUMNS, row[1:], strict=True)) for row in rows if "cuda" in row]


PLANS = """
assert np.array_equal(fc.conv2d(cx, cw).numpy(), expected) and np.array_equal(fc.conv2d(x, w), expected)
on = lambda device, **options: fc.explain("conv2d", x, w, device=device, **options)
print(on("cpu")["algorithm"], on("cuda")["kernel"], on("cuda", algorithm="direct")["kernel"],
      on("cuda", algorithm=["im2col", "auto"])["algorithm"], fc.explain("relu", cx)["algorithm"])
"""


@pytest.mark.parametrize(
    ("name", "cpu", "cuda"),
    [
        ("im2col", "im2col", "conv_im2col_gemm_f32"),  # both have it
        ("conv_direct", "direct", "conv_direct"),
        ("implicit_gemm", "", "conv_implicit_gemm_f32"),  # CUDA alone: an algorithm, and a driver
        ("conv_implicit_gemm_f32", "", "conv_implicit_gemm_f32"),
        ("reference", "reference", ""),  # the CPU alone
    ],
)
def test_forced_kernel_counts_where_a_backend_has_it(name: str, cpu: str, cuda: str) -> None:
    done = with_shim(PLANS, FASTCONV_KERNEL=name)
    assert done.returncode == 0, done.stderr
    free = with_shim(PLANS).stdout.split()
    assert done.stdout.split() == [cpu or free[0], cuda or free[1], *free[2:]]


def test_forced_kernel_that_cannot_do_a_problem_gives_its_reason() -> None:
    code = """
try:
    fc.conv2d(cx, cw)
except NotImplementedError as refusal:
    print(refusal)
print(fc.relu(cx).numpy().sum() == x.sum(), np.array_equal(fc.conv2d(x, w), expected))
"""
    done = with_shim(code, FASTCONV_KERNEL="conv_implicit_gemm_mma_sm80")
    assert done.returncode == 0, done.stderr
    refusal, others = done.stdout.splitlines()
    assert "(conv_implicit_gemm_mma_sm80)" in refusal and "conv_direct" not in refusal
    assert others == "True True"


def test_name_that_no_backend_has_is_told_at_import() -> None:
    done = with_shim("", FASTCONV_KERNEL="nonsense")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "FASTCONV_KERNEL" in last and "'nonsense'" in last
    assert "conv_implicit_gemm_mma_sm80" in last and "conv_reference" in last


def test_name_of_a_backend_that_is_not_there_is_told_at_import() -> None:
    code = "import sys; sys.modules['fastconv._cuda'] = None; import fastconv"
    done = run_python(code, env={"FASTCONV_KERNEL": "implicit_gemm"})
    assert done.returncode == 1
    assert "FASTCONV_KERNEL" in done.stderr and "no CUDA backend" in done.stderr


def test_winograd_changes_nothing() -> None:
    done = with_shim(PLANS, FASTCONV_WINOGRAD="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == with_shim(PLANS).stdout.split()[1:]


def test_a_line_for_each_plan_and_run() -> None:
    code = """
for _ in range(2):
    fc.conv2d(cx, cw)
print(fc.explain("conv2d", cx, cw))
fc.relu(fc.cuda.asarray(x, "float16"))
"""
    done = with_shim(code, FASTCONV_VERBOSE="1")
    plan = eval(done.stdout)
    found = lines(done)
    assert [(row["event"], row["op"]) for row in found] == [
        ("plan", "conv2d"),
        ("run", "conv2d"),
        ("run", "conv2d"),
        ("plan", "relu"),
        ("run", "relu"),
    ]
    conv = found[1]
    for column in ("layout", "dtype", "problem", "algorithm", "ukernel", "blocking"):
        assert conv[column] == plan[column], column
    assert conv["blocking"], "the tile"
    assert int(conv["packed_bytes"]) == plan["packed_bytes"] > 0
    assert int(conv["scratch_bytes"]) == plan["workspace_bytes"]
    assert found[-1]["dtype"] == "float16"
    assert [row["ms"] for row in found] == ["0", "", "", "0", ""], "nobody waits for a run"


def test_a_line_for_each_step_of_a_network() -> None:
    code = """
program = fc.cuda._backend.backend().Program(0, "float32")
at = program.cast(program.input((1, 9, 9, 8), "float32"), "float16")
at = program.max_pool2d(at, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), False, "NHWC")
program.output(at)
program.finalize()
a, b = fc.cuda.asarray(np.ones((1, 9, 9, 8), np.float32)), fc.cuda.empty((1, 4, 4, 8), "float16")
program.run([a._view], [b._view], 0)
program.run_profiled([a._view], [b._view], 0)
"""
    found = lines(with_shim(code, FASTCONV_VERBOSE="1"))
    steps = [("cast", "float16", "float32"), ("max_pool2d", "float16", "")]
    runs: list[Any] = [row for row in found if row["event"] == "run"]
    assert [(row["op"], row["dtype"]) for row in runs] == 2 * [step[:2] for step in steps]
    assert runs[0]["ukernel"] == "float32" and runs[0]["problem"] == "n648", "a cast: from, and how many"
    assert [row["ms"] for row in runs[:2]] == ["", ""]
    assert all(float(row["ms"]) >= 0 for row in runs[2:]), "a profile measures"
