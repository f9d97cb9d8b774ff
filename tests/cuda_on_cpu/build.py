"""Builds the CUDA module for the host: every kernel and binding of src/, this folder as its CUDA runtime.

    python tests/cuda_on_cpu/build.py [--asan] [--check NAME]

prints the path of `_cuda_on_cpu*.so` (with --check: of that program). What was compiled is kept in a
folder of the system's temporary directory and used again for as long as a source and all it includes are the same.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIM = Path(__file__).resolve().parent
# What a program of this folder needs of src/cuda/conv beside the shim; a name may be a pattern.
CHECKED = {
    "check_gemm_f32": ["gemm_f32.cu", "implicit_gemm_f32.cu", "im2col_gemm.cu", "tiles.cpp"],
    "check_implicit_gemm_mma": ["implicit_gemm_mma*.cu", "tiles.cpp", "tiles_mma.cpp", "gemm_f32.cu"],
}
COMMON = ["problem.cpp", "validate.cpp", "lock.cpp", "log.cpp", "environment.cpp"]
FLAGS = [
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-unused-variable",
    "-DFASTCONV_CUDA_ON_CPU",
    "-DFASTCONV_CUDA_MODULE=_cuda_on_cpu",
    f"-I{ROOT / 'src'}",
    f"-I{SHIM}",
]
ASAN_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]


class CannotBuild(Exception):
    """No compiler, or no pybind11: a reason to skip, in words. A source that does not compile is a RuntimeError."""


def compiler() -> list[str]:
    named = os.environ.get("CXX")
    command = shlex.split(named) if named else [c for c in ["c++", "g++", "clang++"] if shutil.which(c)][:1]
    if not command or shutil.which(command[0]) is None:
        raise CannotBuild("no C++ compiler was found (c++, g++, clang++, or what CXX names)")
    return command


def python_flags() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise CannotBuild("pybind11 is not installed") from None
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        raise CannotBuild(f"the headers of this Python are not installed ({include}/Python.h)")
    return [f"-isystem{include}", f"-isystem{pybind11.get_include()}"]


def sources() -> list[Path]:
    src = ROOT / "src"
    return [
        *sorted((src / "cuda").rglob("*.cu")),
        *sorted((src / "cuda").rglob("*.cpp")),
        *sorted(src.glob("cuda_bindings*.cpp")),
        *(src / "common" / name for name in COMMON),
        *sorted(p for p in SHIM.glob("*.cpp") if not p.name.startswith("check")),
    ]


def digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def dependencies(makefile: Path) -> list[str]:
    text = makefile.read_text().replace("\\\n", " ").split(":", 1)[1]
    own = [d for d in text.split() if not d.startswith("/usr/")]
    return sorted(set(own))


def compile_one(source: Path, folder: Path, command: list[str]) -> Path:
    name = str(source.relative_to(ROOT)).replace("/", ".")
    target, record = folder / f"{name}.o", folder / f"{name}.json"
    if target.exists() and record.exists():
        known = json.loads(record.read_text())
        if known["command"] == command and all(digest(Path(p)) == d for p, d in known["inputs"].items()):
            return target
    # Bindings compute nothing: without optimisation they compile in half of the time.
    level = "-O0" if source.name.startswith("cuda_bindings") else "-O1"
    record.unlink(missing_ok=True)
    makefile = folder / f"{name}.d"
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    done = subprocess.run(
        [*command, level, *language, "-MMD", "-MF", str(makefile), "-c", str(source), "-o", str(target)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile for the host:\n{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)
    inputs = {p: digest(Path(p)) for p in dependencies(makefile)}
    record.write_text(json.dumps({"command": command, "inputs": inputs}))
    return target


def work_folder(asan: bool) -> Path:
    base = os.environ.get("FASTCONV_SHIM_CACHE")
    parent = Path(base) if base else Path(tempfile.gettempdir()) / f"fastconv-cuda-on-cpu-{os.getuid()}"
    tree = hashlib.sha256(f"{ROOT} {sys.executable} {sys.version}".encode()).hexdigest()[:12]
    folder = parent / (tree + ("-asan" if asan else ""))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def link(objects: list[Path], target: Path, command: list[str]) -> Path:
    record = target.with_name(target.name + ".json")
    inputs = {str(o): [o.stat().st_mtime_ns, o.stat().st_size] for o in objects}
    if target.exists() and record.exists() and json.loads(record.read_text()) == inputs:
        return target
    record.unlink(missing_ok=True)
    # To a new file: one that a process has loaded must stay what it is.
    fresh = target.with_name(target.name + ".new")
    done = subprocess.run(
        [*command, *map(str, objects), "-o", str(fresh)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the CUDA module does not link for the host:\n{done.stderr}")
    os.replace(fresh, target)
    record.write_text(json.dumps(inputs))
    return target


def build(*, asan: bool = False, check: str = "") -> Path:
    """The path of the built module, or of the program of this folder that `check` names."""
    extra = ASAN_FLAGS if asan else []
    command = [*compiler(), *FLAGS, *extra]
    if not check:
        command += python_flags()
    checked = [p for name in CHECKED.get(check, []) for p in sorted((ROOT / "src" / "cuda" / "conv").glob(name))]
    programs = [
        SHIM / f"{check}.cpp",
        SHIM / "fibers.cpp",
        SHIM / "runtime.cpp",
        ROOT / "src" / "common" / "problem.cpp",
    ]
    todo = [*programs, *checked] if check else sources()
    folder = work_folder(asan) / (check or "module")
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: compile_one(source, folder, command), todo))
        if check:
            return link(objects, folder / check, [*compiler(), *extra])
        name = "_cuda_on_cpu" + sysconfig.get_config_var("EXT_SUFFIX")
        return link(objects, folder / name, [*compiler(), "-shared", *extra])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--asan", action="store_true", help="with AddressSanitizer and UBSan")
    parser.add_argument(
        "--check",
        metavar="NAME",
        default="",
        help="a program instead: check (what the shim catches), check_mma (its tensor cores)",
    )
    options = parser.parse_args()
    try:
        print(build(asan=options.asan, check=options.check))
    except (CannotBuild, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
