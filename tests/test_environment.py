"""What surrounds a call and must not change its answer: floating-point modes, variables, forks at a bad moment."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv as fc
from helpers import run_python

FE_UPWARD = 0x800  # x86's value, from <fenv.h>

needs_x86_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.uname().machine != "x86_64",
    reason="rounding modes are set by x86 values",
)


@needs_x86_linux
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rounding_mode_of_the_caller_changes_nothing_and_stays(threads: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 24, 30, 30)).astype(np.float32)
    conv = fc.Conv2d(rng.standard_normal((40, 24, 3, 3)).astype(np.float32), padding=1)
    libm = ctypes.CDLL("libm.so.6")
    with fc.threads(threads):
        expected = conv(x)
        before = libm.fegetround()
        try:
            assert libm.fesetround(FE_UPWARD) == 0
            found = conv(x)
            after = libm.fegetround()
        finally:
            libm.fesetround(before)
    assert after == FE_UPWARD, "the caller's mode is put back"
    assert np.array_equal(found, expected)


def test_forced_kernel_stands_for_auto_only() -> None:
    code = """
import numpy as np, fastconv as fc
x, w = np.ones((1, 3, 12, 13), np.float32), np.ones((5, 3, 3, 3), np.float32)
print(fc.explain("conv2d", x, w)["algorithm"], fc.explain("conv2d", x, w, algorithm="direct")["algorithm"],
      fc.explain("relu", x)["algorithm"])
try:
    fc.conv2d(x, w, algorithm="bogus")
except ValueError as refusal:
    print("refused", "bogus" in str(refusal))
"""
    done = run_python(code, env={"FASTCONV_KERNEL": "im2col"})
    assert done.stdout.split() == ["im2col", "direct", "direct", "refused", "True"], done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("FASTCONV_KERNEL", "nonsense"), ("FASTCONV_VERBOSE", "yes"), ("FASTCONV_MAX_ISA", "sse9")]
)
def test_bad_variables_are_told_at_import(name: str, value: str) -> None:
    done = run_python("import fastconv", env={name: value})
    assert done.returncode == 1
    assert name in done.stderr and value in done.stderr


def list_cache(cpu: Path, index: int, **files: str) -> None:
    folder = cpu / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_caches_as_the_kernel_lists_them(tmp_path: Path) -> None:
    cpu = tmp_path / "cpu3"
    list_cache(cpu, 0, level="1\n", type="Data\n", size="48K\n")
    list_cache(cpu, 1, level="1\n", type="Instruction\n", size="32K\n")
    list_cache(cpu, 2, level="2\n", type="Unified\n", size="1M\n")
    list_cache(cpu, 3, level="3\n", type="Unified\n", size="32768K\n")
    list_cache(cpu, 4, level="4\n", type="Unified\n", size="1G\n")
    assert fc._core.listed_caches(str(tmp_path), 3) == (48 << 10, 1 << 20, 32 << 20)
    assert fc._core.listed_caches(str(tmp_path), 2) == (0, 0, 0)
    assert fc._core.listed_caches("", -1) == (0, 0, 0)


@pytest.mark.parametrize(
    "size", ["", "K", "0K", "-48K", "48k", "48 K", "48KB", "1", "9" * 40, "9" * 40 + "K", "1099511627777", "2000000G"]
)
def test_cache_sizes_that_make_no_sense(size: str, tmp_path: Path) -> None:
    list_cache(tmp_path / "cpu0", 0, level="1", type="Data", size=size)
    list_cache(tmp_path / "cpu0", 2, level="2", type="Unified", size="2097152")
    list_cache(tmp_path / "cpu0", 3, level="3", type="Unified")  # no file of its size
    assert fc._core.listed_caches(str(tmp_path), 0) == (0, 2 << 20, 0)


def test_caches_of_this_machine() -> None:
    """Whoever told them: a core's caches grow with their level."""
    found = fc._core.machine()
    assert 4 << 10 <= found["l1d_bytes"] <= found["l2_bytes"] and found["l3_bytes"] >= 256 << 10
    for cpu in sorted(os.sched_getaffinity(0))[:1] if hasattr(os, "sched_getaffinity") else []:
        for size, name in zip(fc._core.listed_caches("/sys/devices/system/cpu", cpu), ("l1d", "l2", "l3"), strict=True):
            assert size in (0, found[f"{name}_bytes"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_another_thread_packs() -> None:
    """The child uses the very layer whose weights its parent was packing."""
    code = """
import os, signal, threading, time
import numpy as np, fastconv as fc
conv = fc.Conv2d(np.ones((1024, 1024, 3, 3), np.float32), padding=1)
x = np.ones((1, 1024, 8, 8), np.float32)
worker = threading.Thread(target=conv, args=(x,))
worker.start()
time.sleep(0.02)
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if conv(x)[0, 0, 4, 4] == 9 * 1024 else 3)
worker.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = run_python(code)
    assert done.stdout.split() == ["0"], done.stdout + done.stderr


def test_single_output_row_of_a_strided_pointwise_convolution(rng: np.random.Generator) -> None:
    """A stride without a second window is dropped from the problem; the image is no matrix of pixels all the same."""
    for layout, x_shape, w_shape in (("NHWC", (3, 2, 2, 5), (4, 1, 1, 5)), ("NCHW", (3, 5, 2, 2), (4, 5, 1, 1))):
        x, w = rng.standard_normal(x_shape).astype(np.float32), rng.standard_normal(w_shape).astype(np.float32)
        expected = fc.conv2d(x, w, None, 2, layout=layout, algorithm="reference")
        for algorithm in ("direct", "im2col"):
            found = fc.conv2d(x, w, None, 2, layout=layout, algorithm=algorithm)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
