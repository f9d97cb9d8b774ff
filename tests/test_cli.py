"""The command line: what it prints, its exit statuses, and one line on standard error for whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import cli, models

pytest.importorskip("PIL", reason="Pillow is not installed")

CLASSES = models.labels.imagenet()


def run(*arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`python -m fastconv` with these arguments, as a process of its own."""
    command = [sys.executable, "-m", "fastconv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def assert_fails(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == status, done
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fastconv")
    assert all(word in lines[0] for word in words), lines[0]
    assert done.stdout == ""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file for ResNet-18: seeded, with a classifier that tells pictures apart."""
    state = models.init_state(18, seed=4)
    state["fc.weight"] *= np.float32(20)
    path = tmp_path_factory.mktemp("weights") / "resnet18.npz"
    np.savez(path, **state)
    return path


# --- what it prints -------------------------------------------------------------------------------------------------


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fastconv {fc.__version__}\n", "")


def test_help_lists_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("info", "classify", "summary", "bench"))


def test_info() -> None:
    done = run("info")
    assert (done.returncode, done.stderr) == (0, "")
    machine = fc._core.machine()
    assert str(machine["isa"]) in done.stdout
    assert str(machine["cpu"]) in done.stdout
    on_device = [row for row in fc.kernels() if row["device"] == "cuda"]
    listed = any(row["supported"] for row in on_device)
    for row in fc.kernels():
        if listed or row["device"] != "cuda":
            assert str(row["name"]) in done.stdout
    if on_device and not listed:
        assert f"{len(on_device)} CUDA kernels, none can run here: {fc.cuda.why_unavailable()}" in done.stdout


def test_info_json() -> None:
    done = run("info", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert data["version"] == fc.__version__
    assert data["threads"] >= 1
    assert data["machine"]["isa"] == fc._core.machine()["isa"]
    assert {row["name"] for row in data["kernels"]} == {row["name"] for row in fc.kernels()}


@pytest.mark.parametrize("layout", ["nchw", "NHWC"])
def test_classify_the_sample(layout: str, weights: Path) -> None:
    """No picture given: the photograph that ships. The answer is that of the library itself."""
    done = run("classify", "--layout", layout, "--weights", weights, "--model", "resnet18", "--topk", "3")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == fc.image.sample_path()
    expected = models.resnet18(weights, layout=layout.upper()).predict(fc.image.sample_path(), 3)[0]
    assert len(lines) == 3
    for line, (index, label, probability) in zip(lines, expected, strict=True):
        assert line.split(None, 1) == [f"{probability:.2%}", f"{label}  ({index})"]


def test_classify_json(weights: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i} ü.png" for i in range(11)]
    from PIL import Image

    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(path)
    done = run("classify", *paths, "--weights", weights, "--model", "resnet18", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert (data["model"], data["layout"], data["weights"]) == ("resnet18", "NHWC", str(weights))
    assert [result["image"] for result in data["results"]] == [str(path) for path in paths]
    expected = models.resnet18(weights).predict(paths)
    for result, top in zip(data["results"], expected, strict=True):
        assert [(row["class"], row["label"], row["probability"]) for row in result["top"]] == top


def test_classify_without_weights_warns_in_one_line() -> None:
    done = run("classify")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 6
    (line,) = done.stderr.splitlines()
    assert "untrained" in line
    assert "mean nothing" in line
    assert sum(label in done.stdout for label in CLASSES) >= 5


def test_layouts_give_the_same_classes(weights: Path) -> None:
    found = []
    for layout in ("nhwc", "nchw"):
        done = run("classify", "--layout", layout, "--weights", weights, "--model", "resnet18", "--json")
        found.append([row["class"] for row in json.loads(done.stdout)["results"][0]["top"]])
    assert found[0] == found[1]


@pytest.mark.parametrize("layout", ["NHWC", "nchw"])
def test_summary(layout: str) -> None:
    done = run("summary", "resnet50", "--layout", layout, "--batch", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "25 557 032" in done.stdout
    assert "layer4.2.conv3" in done.stdout
    data = json.loads(run("summary", "resnet50", "--layout", layout, "--json").stdout)
    assert (data["parameters"], data["macs"]) == (25_557_032, 4_089_184_256)
    assert data["layout"] == layout.upper()


# --- exit 1, one line -----------------------------------------------------------------------------------------------


def test_text_file_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("not a picture\n")
    assert_fails(run("classify", path), 1, "text.jpg", "not a picture")


def test_missing_and_odd_pictures(tmp_path: Path) -> None:
    assert_fails(run("classify", tmp_path / "none.jpg"), 1, "none.jpg", "not found")
    assert_fails(run("classify", tmp_path), 1, "directory", str(tmp_path))
    assert_fails(run("classify", tmp_path / "two\nlines.jpg"), 1, "not found")


def test_one_bad_picture_among_good_ones_prints_nothing_else(tmp_path: Path, weights: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(Path(fc.image.sample_path()).read_bytes()[:3000])
    arguments = [fc.image.sample_path(), bad, "--weights", weights, "--model", "resnet18"]
    assert_fails(run("classify", *arguments), 1, "bad.jpg", "damaged")


def test_bad_weight_files(tmp_path: Path, weights: Path) -> None:
    assert_fails(run("classify", "--weights", tmp_path / "none.pth"), 1, "weight file not found", "none.pth'")
    assert_fails(run("classify", "--weights", ""), 1, "fastconv: weight file not found: ''")
    text = tmp_path / "text.pth"
    text.write_text("not weights\n" * 100)
    assert_fails(run("classify", "--weights", text), 1, "text.pth")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(weights.read_bytes()[:100_000])
    assert_fails(run("classify", "--weights", cut), 1, "cut.npz")
    assert_fails(
        run("classify", "--weights", weights, "--model", "resnet50"), 1, "layer1.0.downsample.0.weight", "resnet18.npz"
    )
    assert_fails(run("classify", "--weights", tmp_path), 1, "directory", str(tmp_path))
    assert_fails(run("bench", "compare", tmp_path / "a.json", tmp_path), 1, "result file not found", "a.json'")
    assert_fails(run("bench", "report", tmp_path), 1, "directory", str(tmp_path))


# --- exit 2, one line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["required", "info|classify|summary|bench"]),
        (["nonsense"], ["nonsense"]),
        (["--nonsense"], ["--nonsense"]),
        (["--nonsense", "info"], ["--nonsense"]),
        (["--versio"], ["--versio"]),
        (["info", "--js"], ["--js"]),
        (["classify", "--lay", "NHWC"], ["--lay"]),
        (["summary", "resnet50", "--bat", "2"], ["--bat"]),
        (["bench", "--sui=quick"], ["--sui"]),
        (["bench", "compare", "a", "b", "--mar", "1%"], ["--mar"]),
        (["info", "extra"], ["extra"]),
        (["summary"], ["MODEL"]),
        (["summary", "vgg16"], ["vgg16"]),
        (["summary", "resnet50", "--batch", "0"], ["--batch", "0"]),
        (["summary", "resnet50", "--layout", "hwc"], ["--layout", "HWC"]),
        (["classify", "--topk", "0"], ["--topk", "at least 1"]),
        (["classify", "--topk", "1001"], ["--topk", "1001"]),
        (["classify", "--topk", "five"], ["--topk", "five"]),
        (["classify", "--model", "resnet51"], ["resnet51"]),
        (["classify", "--weights"], ["--weights"]),
    ],
)
def test_bad_arguments(arguments: list[str], words: list[str]) -> None:
    assert_fails(run(*arguments), 2, *words)


@pytest.mark.parametrize(
    ("argv", "orig_argv", "yes"),
    [
        (["-m", "info"], ["python", "-m", "fastconv", "info"], True),
        (["-m"], ["python", "-X", "dev", "-mfastconv"], True),
        (["-m", "-m", "fastconv"], ["python", "-m", "other", "-m", "fastconv"], False),
        (["/usr/bin/fastconv", "info"], ["python", "/usr/bin/fastconv", "info"], True),
        (["fastconv.exe"], ["python", "fastconv.exe"], True),
        (["fastconv.py"], ["python", "fastconv.py"], False),
        (["mine.py", "-m", "fastconv"], ["python", "mine.py", "-m", "fastconv"], False),
        (["-c", "-m", "fastconv"], ["python", "-c", "import fastconv", "-m", "fastconv"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_who_is_the_command(argv: list[str], orig_argv: list[str], yes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert fc._on_command_line() is yes


def test_a_bad_environment_is_one_line_for_the_command_only(tmp_path: Path) -> None:
    environment = {**os.environ, "FASTCONV_MAX_ISA": "sse9"}
    script = tmp_path / "fastconv.py"
    script.write_text("import sys; del sys.path[0]; sys.argv.clear() if sys.argv[1:] else None; import fastconv")
    for words, traceback in (
        (["-m", "fastconv", "info"], False),
        ([str(script)], True),
        ([str(script), "without arguments"], True),
    ):
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) is traceback, done.stderr
        assert "FASTCONV_MAX_ISA" in done.stderr


def test_import_leaves_the_environment_alone() -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    code = f"import os, fastconv; print([os.environ.get(name) for name in {names!r}])"
    for given in ({}, {"KMP_BLOCKTIME": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "3"}):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env={**clean, **given})
        assert done.stdout.strip() == str([given.get(name) for name in names])


# --- within this process --------------------------------------------------------------------------------------------


def raises(error: BaseException) -> Any:
    def command(_: Any) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 1, "fastconv: interrupted"),
        (RuntimeError("one\n\n  two"), 1, "fastconv: one two"),
        (AssertionError(), 1, "fastconv: AssertionError"),
        (MemoryError("12 TB"), 1, "fastconv: out of memory 12 TB"),
        (
            ImportError("takes Pillow: pip install fastconv[cli]"),
            1,
            "fastconv: takes Pillow: pip install fastconv[cli]",
        ),
    ],
)
def test_any_failure_is_one_line(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_info", raises(error))
    assert cli.main(["info"]) == status
    assert capsys.readouterr() == ("", line + "\n")


def test_bench_is_delegated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    harness: Any = types.ModuleType("fastconv.benchmarks.cli")
    package: Any = types.ModuleType("fastconv.benchmarks")
    package.cli = harness
    harness.add_arguments = lambda parser: parser.add_argument("--suite", choices=["quick"])
    harness.run = lambda args: 7 if args.suite == "quick" else 0
    monkeypatch.setitem(sys.modules, "fastconv.benchmarks", package)
    monkeypatch.setitem(sys.modules, "fastconv.benchmarks.cli", harness)
    assert cli.main(["bench", "--suite", "quick"]) == 7
    assert cli.main(["bench"]) == 0
    assert cli.main(["bench", "--suite", "slow"]) == 2
    assert "fastconv bench" in capsys.readouterr().err


def test_other_commands_do_not_load_the_harness() -> None:
    program = (
        "import sys; from fastconv import cli; status = cli.main(['info']); "
        "print([name for name in sys.modules if name.startswith(('fastconv.benchmarks', 'PIL', 'tqdm'))], status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_main_leaves_the_process_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert cli.main(["summary", "nothing"]) == 2
    out, err = capsys.readouterr()
    assert out == f"fastconv {fc.__version__}\n"
    assert len(err.splitlines()) == 1


# --- terminals ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="no POSIX pipes")
def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = [sys.executable, "-m", "fastconv", "summary", "resnet152"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(300) == 1


@pytest.mark.skipif(os.name == "nt", reason="no POSIX signals")
def test_interrupt_is_one_line() -> None:
    program = (
        "import signal, sys; from fastconv import cli, image\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a background job
        "print('ready', flush=True)\n"
        "sys.exit(cli.main(['classify', '--model', 'resnet152', *[image.sample_path()] * 3000]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(2)  # into the work, which would take minutes
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (1, "", "fastconv: interrupted\n")


def test_ascii_terminal(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "bücher.png"
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(path)
    command = [sys.executable, "-m", "fastconv", "classify", "--model", "resnet18", str(path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "b\\xfccher.png" in done.stdout
