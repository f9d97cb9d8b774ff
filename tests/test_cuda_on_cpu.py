"""What the shim that runs CUDA kernels on the host must catch and get right: tests/cuda_on_cpu/check*.cpp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cuda_on_cpu"))
import build


def check(case: str, *, program: str = "check", asan: bool = False, seed: int = 1) -> str:
    try:
        path = build.build(check=program, asan=asan)
    except build.CannotBuild as reason:
        pytest.skip(str(reason))
    environment = {**os.environ, "FASTCONV_SHIM_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run([path, case], capture_output=True, text=True, timeout=60, env=environment)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "case, message",
    [
        ("write_behind", "wrote 0 bytes behind its shared memory of 100 bytes"),
        ("write_before", "wrote 0 bytes before its shared memory"),
        ("deadlock", "128 threads wait at a barrier of the block, 128 of 256 have ended"),
        ("different_instructions", "lanes of a warp meet at different instructions"),
        ("wait", "deadlock in block (0, 0, 0): 32 for a condition"),
        ("too_much_shared", "1048576 bytes of shared memory, the device has 166912"),
    ],
)
def test_errors_name_the_launch_and_what_is_wrong(case: str, message: str) -> None:
    said = check(case)
    assert said.startswith("error: ") and message in said and "launched at check.cpp:" in said


def test_shared_memory_is_fresh_for_every_block() -> None:
    assert check("fresh_shared").split() == ["-nan"] * 4


SUMS = [sum(range(256 * b, 256 * b + 256)) for b in range(3)]


@pytest.mark.parametrize("seed", range(6))
def test_barriers(seed: int) -> None:
    assert check("sums", seed=seed).split() == [str(s) for s in SUMS]


def test_a_missing_barrier_shows() -> None:
    wrong = [check("missing_barrier", seed=seed).split() != [str(s) for s in SUMS] for seed in range(6)]
    assert all(wrong)


def test_shuffles() -> None:
    lanes = range(32)
    votes = sum(1 << i for i in lanes if i % 3 == 0)
    expected = [
        value for i in lanes for value in (7, i ^ 16, i + 3 if i + 3 < 32 else i, i - 3 if i % 8 >= 3 else i, votes)
    ]
    assert check("shuffles").split() == [str(v) for v in expected]


def test_blocks_of_a_cluster_run_together() -> None:
    assert check("cluster").split() == ["5"] * 256


def test_a_failed_launch_leaves_no_trace() -> None:
    assert check("after_failure").split() == [str(s) for s in SUMS]


def test_captured_work_runs_when_its_graph_does() -> None:
    assert check("capture").split() == ["-1", "256", "512"]


@pytest.mark.parametrize("case", ["write_behind", "write_before"])
def test_address_sanitizer_sees_the_size_asked_for(case: str) -> None:
    said = check(case, asan=True)
    assert "AddressSanitizer: heap-buffer-overflow" in said, said


@pytest.mark.parametrize("case", ["sums", "after_failure"])
def test_fibers_under_address_sanitizer(case: str) -> None:
    assert check(case, asan=True).split() == [str(s) for s in SUMS]


@pytest.mark.parametrize("case", ["f16", "bf16", "tf32", "f16_identity", "bf16_identity", "tf32_identity", "split"])
def test_tensor_core_products_of_integers(case: str) -> None:
    assert check(case, program="check_mma") == "ok\n"


@pytest.mark.parametrize("case", ["ldmatrix_x4", "ldmatrix_x4_trans", "ldmatrix_x2", "ldmatrix_x2_trans"])
def test_matrix_loads(case: str) -> None:
    assert check(case, program="check_mma") == "ok\n"


def test_an_asynchronous_copy_comes_when_it_is_waited_for() -> None:
    assert check("copies", program="check_mma").split() == ["?", "4", "?", "6", "?", "0", "0"]


@pytest.mark.parametrize(
    "case, message",
    [
        ("copy_from_askew", "cp.async of 16 bytes from an address that is not aligned to them"),
        ("copy_to_askew", "byte 8 of shared memory is not aligned to 16"),
        ("copy_behind", "16 bytes at byte 32 of shared memory, which has 32"),
        ("lone_lane", "deadlock"),
    ],
)
def test_tensor_core_instructions_name_what_is_wrong(case: str, message: str) -> None:
    assert message in check(case, program="check_mma")


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.CannotBuild, match="no C\\+\\+ compiler was found"):
        build.build()
