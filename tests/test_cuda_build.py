"""Builds with and without CUDA: what each says, and that one without loses nothing else."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv as fc
from helpers import run_python

ROOT = Path(__file__).resolve().parent.parent

# What hides the compiled module from an interpreter, as a build without CUDA has none.
WITHOUT = "import sys\nsys.modules['fastconv._cuda'] = None\nimport numpy as np\nimport fastconv as fc\n"


def module_path() -> Path:
    spec = importlib.util.find_spec("fastconv._cuda")
    if spec is None or spec.origin is None:
        pytest.skip("fastconv was built without CUDA")
    return Path(spec.origin)


def run(code: str) -> str:
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_build_without_cuda_says_so() -> None:
    said = run(
        WITHOUT + "print(fc.cuda.is_available(), fc.cuda.device_count(), fc.cuda.devices())\n"
        "print(fc.cuda.why_unavailable())\n"
        "print(fc.show_config(as_dict=True)['cuda'])\n"
        "print([row for row in fc.kernels() if row['device'] != 'cpu'])\n"
    ).splitlines()
    reason = "this build of fastconv has no CUDA backend (FASTCONV_CUDA=OFF, or no CUDA compiler when it was built)"
    assert said == ["False 0 []", reason, f"unavailable: {reason}", "[]"]


def test_a_build_without_cuda_refuses_with_the_reason() -> None:
    said = run(
        WITHOUT + "x = np.zeros((1, 2, 4, 4), np.float32)\n"
        "class Device:\n"
        "    shape = (1, 2, 4, 4)\n"
        "    def __dlpack_device__(self): return 2, 0\n"
        "    def __dlpack__(self, **more): raise AssertionError('memory is not even asked for')\n"
        "for call in (\n"
        "    lambda: fc.explain('relu', (4,), device='cuda'),\n"
        "    lambda: fc.Conv2d(np.zeros((2, 2, 1, 1), np.float32), device='cuda'),\n"
        "    lambda: fc.MaxPool2d(2, device='cuda'),\n"
        "    lambda: fc.cuda.asarray(x),\n"
        "    lambda: fc.cuda.Stream(),\n"
        "    lambda: fc.cuda.synchronize(),\n"
        "    lambda: fc.relu(Device()),\n"
        "):\n"
        "    try: print('came back:', call())\n"
        "    except Exception as error: print(f'{type(error).__name__}: {error}')\n"
    ).splitlines()
    kinds = [line.split(":")[0] for line in said]
    assert kinds == ["NotImplementedError", *["RuntimeError"] * 5, "ValueError"]
    assert all("this build of fastconv has no CUDA backend" in line for line in said)
    assert said[-1].startswith("ValueError: input lies on a CUDA device, but CUDA is not available")


def test_a_build_without_cuda_loses_nothing_else() -> None:
    said = run(
        WITHOUT + "x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((3, 2, 3, 3), np.float32)\n"
        "print(fc.conv2d(x, w).sum(), fc.Conv2d(w)(x).sum(), fc.max_pool2d(x, 2).shape)\n"
        "print(len(fc.kernels('conv2d')) > 0, fc.explain('conv2d', x, w)['device'])\n"
        "print('fastconv._cuda' in sys.modules and sys.modules['fastconv._cuda'] is None)\n"
    )
    assert said.splitlines() == ["216.0 216.0 (1, 2, 2, 2)", "True cpu", "True"]


def test_ops_on_the_cpu_do_not_load_the_module() -> None:
    said = run(
        "import sys\nimport numpy as np\nimport fastconv as fc\n"
        "x = np.ones((1, 2, 4, 4), np.float32)\n"
        "fc.relu(x), fc.max_pool2d(x, 2), fc.MaxPool2d(2)(x)\n"
        "print([name for name in sys.modules if 'fastconv' in name and 'cuda' in name])\n"
    )
    assert said.strip() == "[]"


def test_the_reason_is_a_sentence() -> None:
    reason = fc.cuda.why_unavailable()
    assert fc.cuda.is_available() == (reason == "")
    if reason:
        assert any(word in reason for word in ("driver", "device", "build"))


def test_the_module_needs_the_driver_alone() -> None:
    path = module_path()
    assert path.stat().st_size < 60_000_000, "a wheel compresses it to less than 30 MB"
    if shutil.which("readelf") is None:
        pytest.skip("no readelf here")
    said = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    needed = [line for line in said.splitlines() if "(NEEDED)" in line]
    assert not any(name in line for line in needed for name in ("libcuda", "cudart", "cublas", "cudnn"))


def test_the_module_has_code_for_each_architecture() -> None:
    path = module_path()
    tool = shutil.which("cuobjdump")
    if tool is None:
        pytest.skip("no cuobjdump here")
    code = subprocess.run([tool, "--list-elf", str(path)], capture_output=True, text=True, check=True).stdout
    later = subprocess.run([tool, "--list-ptx", str(path)], capture_output=True, text=True, check=True).stdout
    if "sm_80" not in code:
        pytest.skip("a development build for fewer architectures")
    assert all(arch in code for arch in ("sm_80", "sm_89", "sm_90a"))
    assert "sm_90" in later or "compute_90" in later


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    if not Path(cmake).exists():
        pytest.skip("no CMake here")
    # No compiler for CUDA on the path, whatever this machine has.
    kept = [p for p in os.environ["PATH"].split(os.pathsep) if not Path(p, "nvcc").exists()]
    env = {**os.environ, "PATH": os.pathsep.join(kept)}
    env.pop("CUDACXX", None)
    return subprocess.run(
        [cmake, "-S", str(ROOT), "-B", str(folder), f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


NOT_A_COMPILER = "-DCMAKE_CUDA_COMPILER=NOTFOUND"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "fine", "words"),
    [
        ("AUTO", True, "without CUDA: no working CUDA compiler"),
        ("OFF", True, "without CUDA: FASTCONV_CUDA=OFF"),
        ("ON", False, "FASTCONV_CUDA=ON: no working CUDA compiler"),
        ("MAYBE", False, "FASTCONV_CUDA must be AUTO, ON or OFF; got 'MAYBE'"),
    ],
)
def test_configuring_without_a_cuda_compiler(tmp_path: Path, asked: str, fine: bool, words: str) -> None:
    done = configure(tmp_path, f"-DFASTCONV_CUDA={asked}", f"-DPython_EXECUTABLE={sys.executable}", NOT_A_COMPILER)
    assert (done.returncode == 0) == fine, done.stdout + done.stderr
    assert words in " ".join((done.stdout + done.stderr).split())
