"""`fastconv tune` from the command line: what it measures, stores, shows and clears, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks.cases import LayerUnit
from fastconv.benchmarks.tune import choices, measure, store

import fastconv as fc
from fastconv import _core, _tuning, cli
from helpers import run_python
from tune_files import TuneFile, choice, text_of

TINY = ["--problem", "tiny ic8 ih9 oc8 kh3 ph1", "--threads", "1", "--batch", "1"]
QUICK = [*TINY, "--max-time", "1.5"]
#: A layer on which im2col is far slower than direct: 7x7 taps of three channels.
STEM = ["--problem", "stem ic3 ih64 oc32 kh7 sh2 ph3", "--layouts", "nhwc", "--threads", "1", "--batch", "1,2"]
FASTEST = "conv_winograd_f44_phases"  # of what can do the stem, twice as fast as the next one


def tune(*words: str) -> int:
    return cli.main(["tune", *words])


@pytest.fixture
def im2col_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuner takes im2col for what "auto" does by itself, so that it has something to find."""
    monkeypatch.setattr(LayerUnit, "_picked_by_auto", lambda *_: ("im2col", "conv_im2col"))


# --- measuring --------------------------------------------------------------------------------------------------------


def test_a_tiny_problem(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(*QUICK, "--json", str(tuned.path.with_name("out.json"))) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if not line.startswith("note: ")]
    assert lines[0].split() == ["layer", "layout", "untuned", "tuned", "ratio", "95", "%", "interval", "others"]
    assert [line.split()[:2] for line in lines[2:4]] == [["tiny", "NCHW"], ["tiny", "NHWC"]]
    assert " of 2 layers take another driver than the default" in lines[4]
    assert lines[5].endswith(repr(str(tuned.path))) and printed.err == ""
    data = json.loads(tuned.path.with_name("out.json").read_text())
    assert (data["schema"], data["tool"], data["stored"]) == (_tuning.SCHEMA, _tuning.TOOL, str(tuned.path))
    assert data["settings"]["threads"] == [1] and data["settings"]["batches"] == [1]
    for layer in data["layers"]:
        assert {way["kernel"] for way in layer["ways"]} | {layer["untuned"]} <= set(_tuning.kernels())
        found = [c for c in (tuned.stored() if tuned.path.exists() else []) if c["layout"] == layer["layout"]]
        assert [c["kernel"] for c in found] == ([layer["tuned"]] if layer["changed"] else [])
    assert sorted(os.listdir(tuned.path.parent)) >= ["out.json"]
    assert not [name for name in os.listdir(tuned.path.parent) if name.endswith(".part")]


@pytest.mark.usefixtures("im2col_by_default")
def test_what_is_found_is_stored_and_taken(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.use(choice("ic1 ih1 iw1 oc1 oh1 ow1 kh1 kw1 sh1 sw1", "conv_direct"))
    assert tune(*STEM, "--max-time", "6", "--json", "-") == 0
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert "1 of 1 layers take another driver" in printed.err, printed.err
    (layer,) = data["layers"]
    assert (layer["untuned"], layer["tuned"], layer["changed"]) == ("conv_im2col", FASTEST, True)
    (way,) = [way for way in layer["ways"] if way["kernel"] == FASTEST]
    assert [(s["threads"], s["batch"]) for s in way["settings"]] == [(1, 1), (1, 2)]
    assert way["ratio"] < 0.97 and way["interval"][0] <= way["ratio"] <= way["interval"][1]
    old, new = tuned.stored()
    assert old["problem"].startswith("ic1 ") and new["kernel"] == FASTEST and new["untuned"] == "conv_im2col"
    assert new["settings"] == [{"threads": 1, "batch": 1}, {"threads": 1, "batch": 2}]
    plan = fc.explain("conv2d", (5, 64, 64, 3), (32, 7, 7, 3), stride=2, padding=3, layout="NHWC")
    assert plan["tuned"], "this process goes by it at once"
    code = (
        "import fastconv as fc\n"
        'p = fc.explain("conv2d", (5, 64, 64, 3), (32, 7, 7, 3), stride=2, padding=3, layout="NHWC")\n'
        'print(p["tuned"], p["kernel"])\n'
    )
    done = run_python(code, env={"FASTCONV_TUNE_FILE": str(tuned.path)})
    assert done.stdout.split() == ["True", FASTEST], done.stderr


@pytest.mark.usefixtures("im2col_by_default")
def test_dry_run_writes_nothing(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(*STEM, "--max-time", "5", "--dry-run") == 0
    assert "nothing was stored (--dry-run)" in capsys.readouterr().out
    assert os.listdir(tuned.path.parent) == []
    tuned.path.write_text("somebody's notes")
    with pytest.warns(RuntimeWarning, match="is no JSON"):
        assert tune(*QUICK, "--dry-run") == 0
    assert tuned.path.read_text() == "somebody's notes"


@pytest.mark.usefixtures("im2col_by_default")
def test_an_old_choice_is_not_in_force_while_measuring(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    """And is replaced, as one that is not faster any more is dropped."""
    problem = "ic3 ih64 iw64 oc32 oh32 ow32 kh7 kw7 sh2 sw2 pt3 pb3 pl3 pr3"
    tuned.use(choice(problem, "conv_im2col", "NHWC"))
    seen = []
    real = measure.TunedLayer.build

    def build(self: Any) -> Any:
        seen.append(fc.explain("conv2d", (1, 64, 64, 3), (32, 7, 7, 3), stride=2, padding=3, layout="NHWC")["tuned"])
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure.TunedLayer, "build", build)
        assert tune(*STEM, "--max-time", "5") == 0
    assert seen and not any(seen)
    (new,) = tuned.stored()
    assert (new["problem"], new["kernel"]) == (problem, FASTEST)
    capsys.readouterr()


def test_a_network(tuned: TuneFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers inside of ResNet-18; one of them is made to win, so that the network is timed with it, too."""
    real = measure.decide

    def decide(*args: Any) -> list[choices.Decision]:
        found = real(*args)
        for d in found:
            if d.layer == "layer4.0.downsample.0":
                d.tuned, d.ratio = "conv_im2col", choices.Ratio(0.9, 0.89, 0.91)
        return found

    monkeypatch.setattr(measure, "decide", decide)
    words = ["--model", "resnet18", "--layouts", "nhwc", "--threads", "2", "--batch", "1", "--max-time", "8"]
    assert tune(*words, "--json", "-") == 0
    data = json.loads(capsys.readouterr().out)
    names = {layer["layer"] for layer in data["layers"]}
    assert {"conv1", "layer1.0.conv1", "layer4.0.downsample.0"} <= names and "fc" not in names and len(names) == 11
    for layer in data["layers"]:
        assert layer["layout"] == "NHWC" and layer["ways"], layer["layer"]
    (network,) = data["networks"]
    assert (network["model"], network["layout"], network["threads"], network["batch"]) == ("resnet18", "NHWC", 2, 1)
    assert all(value > 0 for value in network["median_ms"])
    steps = fc.models.resnet18().program((3, 224, 224, 3)).steps()
    told = [step for step in steps if step["tuned"]]
    assert "conv_im2col" in {step["kernel"] for step in told}


def test_a_wrong_result_is_not_stored(
    tuned: TuneFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure.oracle, "MAX_RELATIVE_L2", 1e-12)
    assert tune(*QUICK, "--layouts", "nhwc") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("fastconv tune: wrong result in layer tiny") and printed.err.count("\n") == 1
    assert os.listdir(tuned.path.parent) == []


def test_an_interruption_keeps_what_was_clear(
    tuned: TuneFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = [0]
    real = measure.TunedLayer.visit

    def visit(self: Any, limit: float) -> None:
        visits[0] += 1
        if visits[0] > 2:
            raise KeyboardInterrupt
        real(self, limit)

    monkeypatch.setattr(measure.TunedLayer, "visit", visit)
    tuned.use(choice("ic1 ih1 iw1 oc1 oh1 ow1 kh1 kw1 sh1 sw1", "conv_im2col"))
    assert tune(*TINY, "--max-time", "20") == 1
    printed = capsys.readouterr()
    assert printed.err == "fastconv tune: interrupted: what was clear by then is kept\n"
    assert "tiny" in printed.out
    assert tuned.stored()[0]["problem"].startswith("ic1 ")
    assert _tuning.load().here, "and the file's choices are in force again"


# --- showing and clearing ---------------------------------------------------------------------------------------------

HERE = choice("ic8 ih9 iw9 oc8 oh9 ow9 kh3 kw3 sh1 sw1 pt1 pb1 pl1 pr1", "conv_im2col", layer="mine", ratio=0.9)
ELSEWHERE = {**HERE, "machine": {**_tuning.this_machine(), "cpu": "another"}}


def test_show(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("--show") == 0
    assert capsys.readouterr().out == f"0 choices for this machine, of 0 in {str(tuned.path)!r}\n"
    tuned.use(HERE, ELSEWHERE)
    assert tune("--show") == 0
    text = capsys.readouterr().out
    assert "mine" in text and "im2col" in text and "0.900" in text and "1 choices for this machine, of 2" in text
    assert tune("--show", "--json", "-") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["choices_here"], data["choices"], data["stored"]) == (1, 2, [HERE])


def test_clear_is_for_this_machine(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.use(HERE, ELSEWHERE, {**HERE, "fastconv": "0.0.1"})
    assert tune("--clear") == 0
    assert "2 choices of this machine are forgotten" in capsys.readouterr().out
    assert tuned.stored() == [ELSEWHERE]
    tuned.use(HERE)
    assert tune("--clear", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(tuned.path), "cleared": 1}
    assert not tuned.path.exists()
    assert tune("--clear") == 0
    assert "0 choices" in capsys.readouterr().out


def test_info_tells_the_file(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.use(HERE, ELSEWHERE)
    assert cli.main(["info"]) == 0
    assert f"1 choices for this machine, of 2 in {str(tuned.path)!r}" in capsys.readouterr().out
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tuning"] == {
        "file": str(tuned.path), "used": True, "choices_here": 1, "choices": 2, "problem": "",
    }  # fmt: skip


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "nope"], "unknown name 'nope'; known:"),
        (["--model", "vgg99"], "--model: unknown name 'vgg99'; known: resnet18"),
        (["--problem", "ic3"], "missing"),
        (["--problem", "relu ic3 ih3"], "there is no convolution in these layers"),
        (["--suite", "pooling"], "there is no convolution"),
        (["--match", "x"], "--match is for the layers of a --suite"),
        (["--suite", "quick", "--match", "nothing-like-it"], "no layer of suite"),
        ([*TINY, "--layouts", "chwn"], "'chwn'; known: nchw, nhwc"),
        ([*TINY, "--layouts", ","], "--layouts: empty"),
        ([*TINY, "--isa", "sse9"], "'sse9'; known: scalar"),
        ([*TINY, "--threads", "0"], "'0' is not a whole number"),
        ([*TINY, "--batch", "max"], "'max' is not"),
        ([*TINY, "--max-time", "soon"], "'soon'"),
        ([*TINY, "--json", "/nonexistent/x.json"], "folder"),
        (["--show", "--suite", "quick"], "--show measures nothing: it has no use for --suite"),
        (["--clear", "--max-time", "3"], "--clear measures nothing: it has no use for --max-time"),
        (["--show", "--clear"], "not allowed with"),
        (["--suite", "quick", "--model", "resnet50"], "not allowed with"),
        (["surplus"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    tuned: TuneFile, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1
    assert os.listdir(tuned.path.parent) == []


@pytest.mark.parametrize(("name", "value"), [("FASTCONV_KERNEL", "im2col"), ("FASTCONV_WINOGRAD", "0")])
def test_settings_that_bias_are_refused(
    tuned: TuneFile, monkeypatch: pytest.MonkeyPatch, name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert tune(*TINY) == 2
    assert capsys.readouterr().err == f"fastconv tune: {name}={value} forbids what is to be measured: unset it\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [("my notes", "is no JSON"), ('{"a": 1}', "was not written by"), ("[" * 99, "is no JSON")],
)
def test_somebody_elses_file_is_never_written_over(
    tuned: TuneFile, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.path.write_text(content)
    for arguments in (TINY, ["--clear"]):
        assert tune(*arguments) == 1
        printed = capsys.readouterr()
        assert words in printed.err and "remove it first" in printed.err and printed.err.count("\n") == 1
        assert printed.out == "" and tuned.path.read_text() == content


@pytest.mark.filterwarnings("ignore:tuned choices are ignored")
def test_our_own_damaged_or_old_file_is_replaced(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (text_of([HERE, {}]), text_of([HERE], schema=0)):
        tuned.path.write_text(content)
        assert tune(*QUICK) == 0
        assert not tuned.path.exists() or {c["layer"] for c in tuned.stored()} == {"tiny"}
    capsys.readouterr()


def test_no_place_to_write(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    monkeypatch.setenv("FASTCONV_TUNE_FILE", str(file / "below" / "tune.json"))
    assert tune(*TINY) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "a file" in printed.err
    monkeypatch.setenv("FASTCONV_TUNE_FILE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "nowhere")
    assert tune(*TINY) == 1
    assert "FASTCONV_TUNE_FILE" in capsys.readouterr().err


def test_from_the_shell(tmp_path: Path) -> None:
    """As users call it: the folder is made, the help says what there is."""
    file = tmp_path / "new" / "folder" / "tune.json"
    environment = {**os.environ, "FASTCONV_TUNE_FILE": "", "XDG_CACHE_HOME": str(tmp_path / "caches")}
    command = [sys.executable, "-m", "fastconv", "tune"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    for word in ("--suite", "--problem", "--model", "--dry-run", "--clear", "--show", "--max-time", "--json"):
        assert word in done.stdout
    for given in ({}, {"FASTCONV_TUNE_FILE": str(file)}):
        env = {**environment, **given}
        done = subprocess.run([*command, *QUICK], capture_output=True, text=True, timeout=120, check=False, env=env)
        assert (done.returncode, done.stderr) == (0, "")
    assert file.parent.is_dir() and (tmp_path / "caches" / "fastconv").is_dir()


# --- several writers --------------------------------------------------------------------------------------------------


def _decision(number: int) -> choices.Decision:
    found = choices.Decision("l", f"ic{number}", "NHWC", _core.isa(), "conv_direct", [], [(1, 1)])
    found.tuned, found.ratio = "conv_im2col", choices.Ratio(0.9, 0.89, 0.91)
    return found


def test_merging(tuned: TuneFile) -> None:
    assert store.merge(tuned.path, [_decision(1), _decision(2)]) == 2
    assert store.merge(tuned.path, [_decision(3)]) == 3
    kept = _decision(2)
    kept.tuned, kept.ratio = kept.untuned, None
    assert store.merge(tuned.path, [kept]) == 2, "it went back to its default"
    unsure = _decision(3)
    unsure.tuned, unsure.ratio, unsure.sure = unsure.untuned, None, False
    assert store.merge(tuned.path, [unsure]) == 2, "what was not judged keeps what it had"
    assert [c["problem"] for c in tuned.stored()] == ["ic1", "ic3"]
    assert store.merge(tuned.path, [_decision(1)]) == 2
    assert [c["problem"] for c in tuned.stored()] == ["ic3", "ic1"], "the newest last"


def test_a_full_file_forgets_the_oldest(tuned: TuneFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tuning, "MAX_CHOICES", 5)
    assert store.merge(tuned.path, [_decision(i) for i in range(4)]) == 4
    assert store.merge(tuned.path, [_decision(i) for i in range(10, 13)]) == 5
    assert [c["problem"] for c in tuned.stored()] == ["ic2", "ic3", "ic10", "ic11", "ic12"]
    tuned.path.unlink()
    monkeypatch.setattr(_tuning, "MAX_BYTES", 1500)
    store.merge(tuned.path, [_decision(i) for i in range(5)])
    assert tuned.path.stat().st_size <= 1500 and tuned.stored()[-1]["problem"] == "ic4"
    assert _tuning.read(str(tuned.path)) == tuned.stored()


def test_processes_that_write_at_once_lose_nothing(tuned: TuneFile) -> None:
    code = """
import sys
from pathlib import Path
from fastconv.benchmarks.tune import choices, store
first = int(sys.argv[1])
for i in range(first, first + 20):
    d = choices.Decision("l", f"ic{i}", "NHWC", "avx2", "conv_direct", [], [(1, 1)])
    d.tuned, d.ratio = "conv_im2col", choices.Ratio(0.9, 0.89, 0.91)
    store.merge(Path(sys.argv[2]), [d])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(100 * i), str(tuned.path)], env=env) for i in range(4)]
    while any(writer.poll() is None for writer in writers):  # a reader never sees half a file
        assert _tuning.read(str(tuned.path)) is not None
    assert [writer.returncode for writer in writers] == [0] * 4
    found = {c["problem"] for c in tuned.stored()}
    assert found == {f"ic{100 * i + j}" for i in range(4) for j in range(20)}


def test_a_writer_that_never_ends_is_told(tuned: TuneFile, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="this system has no such locks")
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.05)
    with open(tuned.path.with_name("tune.json.lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match=r"tune\.json\.lock"):
            store.merge(tuned.path, [_decision(1)])
    assert store.merge(tuned.path, [_decision(1)]) == 1


def test_a_file_of_choices_changes_no_bits_of_a_tuned_layer(tuned: TuneFile, rng: np.random.Generator) -> None:
    """The direct driver by name, and the same by a choice."""
    x, w = rng.standard_normal((3, 9, 9, 8), np.float32), rng.standard_normal((8, 3, 3, 8), np.float32)
    expected = fc.conv2d(x, w, padding=1, layout="NHWC", algorithm="im2col")
    tuned.use({**HERE, "layout": "NHWC"})
    assert fc.explain("conv2d", x, w, padding=1, layout="NHWC")["tuned"]
    assert np.array_equal(fc.conv2d(x, w, padding=1, layout="NHWC"), expected)
