"""Tuned choices in the package: taken by everything that says "auto", told by explain, never in the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from fastconv import _core, _tuning
from helpers import LAYOUTS, max_isa, normal, run_python, usable_levels
from tune_files import TuneFile, choice, choice_of, text_of

# One problem that every test can turn to another driver: by itself it is direct's.
X, W = (1, 8, 12, 13), (16, 8, 3, 3)
DIRECT, OTHER = "conv_direct", "conv_im2col"


def plan(n: int = 1, layout: str = "NCHW", **options: Any) -> dict[str, Any]:
    x, w = ((n, *X[1:]), W) if layout == "NCHW" else ((n, 12, 13, 8), (16, 3, 3, 8))
    return fc.explain("conv2d", x, w, padding=1, layout=layout, **options)


# --- taken and told ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_choice_is_taken_and_told(tuned: TuneFile, layout: str) -> None:
    before = plan(layout=layout)
    assert (before["kernel"], before["tuned"]) == (DIRECT, False)
    state = tuned.use(choice_of(before, OTHER))
    assert (state.total, len(state.here), state.problem) == (1, 1, "")
    after = plan(layout=layout)
    assert (after["kernel"], after["algorithm"], after["tuned"]) == (OTHER, "im2col", True)
    other = plan(layout="NHWC" if layout == "NCHW" else "NCHW")
    assert (other["kernel"], other["tuned"]) == (DIRECT, False), "a choice is for one layout"
    tuned.use()
    assert plan(layout=layout) == before


def test_a_choice_holds_for_all_that_does_not_change_the_sums(tuned: TuneFile) -> None:
    tuned.use(choice_of(plan(), OTHER))
    for options in (
        {},
        {"bias": (16,)},
        {"activation": "relu"},
        {"residual": (1, 16, 12, 13)},
        {"weight_layout": "OIHW"},
        {"algorithm": ("winograd_f43", "auto")},
    ):
        found = plan(**{k: v for k, v in options.items() if k != "algorithm"})
        assert (found["kernel"], found["tuned"]) == (OTHER, True), options
    for n in (0, 1, 2, 300):
        assert plan(n)["kernel"] == OTHER
    assert fc.explain("conv2d", X, W, padding=0)["kernel"] == DIRECT
    assert fc.explain("conv2d", X, W, padding=1, stride=2)["kernel"] == DIRECT
    assert fc.explain("conv2d", X, W, padding=2, dilation=2)["kernel"] == DIRECT
    assert fc.explain("conv2d", X, (16, 4, 3, 3), padding=1, groups=2)["kernel"] == DIRECT


def test_a_choice_is_for_one_isa_level(tuned: TuneFile) -> None:
    levels = usable_levels()
    tuned.use(choice_of(plan(), OTHER, isa=levels[0]))
    for level in levels:
        with max_isa(level):
            assert plan()["tuned"] is (level == levels[0])


def test_lone_calls_layers_and_networks_see_a_new_table(tuned: TuneFile, rng: np.random.Generator) -> None:
    """Also those that were prepared before: plans of an older table are not taken up again."""
    x, w = normal(rng, *X), normal(rng, *W)
    layer, net = fc.Conv2d(w, padding=1), fc.models.resnet18(layout="NCHW", num_classes=10)
    pictures = normal(rng, 1, 3, 32, 32)
    fc.conv2d(x, w, padding=1), layer(x), net(pictures)
    steps = net.program(pictures.shape).steps()
    found = next(step for step in steps if step["op"] == "conv2d" and step["kernel"] == DIRECT)
    tuned.use(choice_of(plan(), OTHER), choice_of(found, OTHER))
    assert fc.explain("conv2d", x, w, padding=1)["tuned"]
    layer(x)
    assert layer.explain()["tuned"] and layer.explain(x.shape)["kernel"] == OTHER
    assert _core.conv2d(x, w, None, None, np.empty((1, 16, 12, 13), np.float32), (1, 1), (1, 1, 1, 1), (1, 1), 1,
                        "NCHW", "OIHW", ("auto",), None) == "im2col"  # fmt: skip
    net(pictures)
    again = net.program(pictures.shape).steps()
    same = [step for step in again if step["op"] == "conv2d" and step["problem"] == found["problem"]]
    assert same and all(step["tuned"] and step["kernel"] == OTHER for step in same)
    assert any("im2col" in row["kernel"] for row in net.summary(height=32, width=32).rows)
    tuned.use()
    layer(x)
    assert not layer.explain()["tuned"]
    assert net.program(pictures.shape).steps() == steps


def test_linear_goes_by_its_convolution(tuned: TuneFile, rng: np.random.Generator) -> None:
    before = fc.explain("linear", (3, 24), (5, 24))
    assert before["kernel"] == DIRECT
    tuned.use(choice_of(before, OTHER))
    x, w = normal(rng, 3, 24), normal(rng, 5, 24)
    layer = fc.Linear(w)
    expected = x.astype(np.float64) @ w.T
    assert fc.explain("linear", x, w)["tuned"] and layer.explain(x.shape)["tuned"]
    np.testing.assert_allclose(fc.linear(x, w), expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(layer(x), fc.linear(x, w))


# --- who wins ---------------------------------------------------------------------------------------------------------


def test_a_caller_who_names_an_algorithm_wins(tuned: TuneFile) -> None:
    tuned.use(choice_of(plan(), OTHER))
    for name in ("direct", "conv_direct", ("conv_direct", "auto"), "reference", "winograd_f23"):
        found = plan(algorithm=name)
        assert not found["tuned"] and found["kernel"] != OTHER
    assert plan(algorithm=("conv_direct_planes", "auto"))["tuned"], "the named one cannot do it; then it is auto"
    named = plan(algorithm="im2col")
    assert (named["kernel"], named["tuned"]) == (OTHER, False)


TOLD = """
import fastconv as fc
p = fc.explain("conv2d", (1, 8, 12, 13), (16, 8, 3, 3), padding=1)
print(p["kernel"], p["tuned"])
"""


def test_the_environment_wins_over_the_file(tuned: TuneFile) -> None:
    tuned.use(choice_of(plan(), OTHER))
    file = {"FASTCONV_TUNE_FILE": str(tuned.path)}
    for env, expected in (
        ({}, f"{OTHER} True"),
        ({"FASTCONV_TUNE": "1"}, f"{OTHER} True"),
        ({"FASTCONV_TUNE": "0"}, f"{DIRECT} False"),
        ({"FASTCONV_KERNEL": "winograd_f23"}, "conv_winograd_f23 False"),
        ({"FASTCONV_KERNEL": "im2col"}, f"{OTHER} False"),
        ({"FASTCONV_KERNEL": "softmax_direct"}, f"{OTHER} True"),  # not of this op
    ):
        done = run_python(TOLD, env={**file, **env})
        assert (done.stdout.strip(), done.stderr) == (expected, ""), env
    done = run_python(TOLD, env={**file, "FASTCONV_TUNE": "maybe"})
    assert done.returncode == 1 and "FASTCONV_TUNE must be 0 or 1; got 'maybe'" in done.stderr


def test_winograd_may_still_be_forbidden(tuned: TuneFile) -> None:
    tuned.use(choice_of(plan(), "conv_winograd_f23"))
    assert plan()["kernel"] == "conv_winograd_f23"
    found = plan(winograd=False)
    assert (found["kernel"], found["tuned"]) == (DIRECT, False)
    assert "FASTCONV_WINOGRAD" in found["refused"]["winograd_f23 (conv_winograd_f23)"]
    w = np.zeros(W, np.float32)
    assert fc.Conv2d(w, padding=1, winograd=False).explain(X)["kernel"] == DIRECT
    file = {"FASTCONV_TUNE_FILE": str(tuned.path)}
    assert run_python(TOLD, env={**file, "FASTCONV_WINOGRAD": "0"}).stdout.strip() == f"{DIRECT} False"
    assert run_python(TOLD, env=file).stdout.strip() == "conv_winograd_f23 True"


def test_a_choice_that_cannot_do_the_problem_is_passed_over(tuned: TuneFile) -> None:
    tuned.use(choice_of(plan(), "conv_direct_depthwise"))
    found = plan()
    assert (found["kernel"], found["tuned"]) == (DIRECT, False)
    assert found["refused"]["direct (conv_direct_depthwise)"]


# --- same bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [None, *_tuning.kernels()])
def test_same_bits_for_every_batch_and_number_of_threads(
    tuned: TuneFile, rng: np.random.Generator, layout: str, kernel: str | None
) -> None:
    x = np.ascontiguousarray(ref.from_nchw(normal(rng, 7, 16, 15, 14), layout))
    w = normal(rng, 24, 16, 3, 3)
    options: dict[str, Any] = {"padding": 1, "layout": layout, "weight_layout": "OIHW"}
    if kernel is not None:
        tuned.use(choice_of(fc.explain("conv2d", x.shape, w.shape, **options), kernel))
    chosen = fc.explain("conv2d", x, w, **options)
    assert chosen["tuned"] is (kernel is not None and chosen["kernel"] == kernel)
    layer = fc.Conv2d(w, **options)
    expected = fc.conv2d(x, w, **options)
    for threads in (1, 2, 5):
        with fc.threads(threads):
            assert np.array_equal(fc.conv2d(x, w, **options), expected)
            for first, count in ((0, 1), (3, 1), (6, 1), (1, 4), (0, 7)):
                part = x[first : first + count]
                assert np.array_equal(fc.conv2d(part, w, **options), expected[first : first + count])
                assert np.array_equal(layer(part), expected[first : first + count])


def test_a_network_has_the_same_bits_for_every_batch_and_number_of_threads(
    tuned: TuneFile, rng: np.random.Generator
) -> None:
    """Each layer takes another driver than by itself where one can, in turn."""
    for layout in LAYOUTS:
        net = fc.models.resnet18(layout=layout, num_classes=10)
        x = np.ascontiguousarray(ref.from_nchw(normal(rng, 3, 3, 48, 40), layout))
        steps = [step for step in net.program(x.shape).steps() if step["op"] == "conv2d"]
        names = _tuning.kernels()
        choices = [choice_of(step, names[i % len(names)]) for i, step in enumerate(steps)]
        tuned.use(*choices)
        assert any(step["tuned"] for step in net.program(x.shape).steps())
        expected = net(x)
        for threads in (1, 2, 3):
            with fc.threads(threads):
                assert np.array_equal(net(x), expected)
                for i in range(3):
                    assert np.array_equal(net(x[i : i + 1])[0], expected[i])
        tuned.use()


# --- which file -------------------------------------------------------------------------------------------------------


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTCONV_TUNE_FILE", "some.json")
    assert _tuning.default_path() == "some.json"
    monkeypatch.setenv("FASTCONV_TUNE_FILE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _tuning.default_path() == str(tmp_path / "fastconv" / "tune.json")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert _tuning.default_path() == str(tmp_path / "home" / ".cache" / "fastconv" / "tune.json")
    monkeypatch.setenv("HOME", "nowhere")
    assert _tuning.default_path() is None
    assert _tuning.State().describe() == "no file: there is no folder for caches"


def test_nothing_is_read_before_the_first_plan(tuned: TuneFile) -> None:
    """Not at import, not by calls that plan no convolution, and once for all that do."""
    tuned.use(choice_of(plan(), OTHER))
    code = f"""
import os, sys
opened, file = [], {str(tuned.path)!r}
sys.addaudithook(lambda event, args: opened.append(file) if event == "open" and args[0] == file else None)
import numpy as np, fastconv as fc
fc.relu(np.ones(5, np.float32)), fc.softmax(np.ones(5, np.float32)), fc.kernels()
fc.conv2d(np.ones((1, 8, 12, 13), np.float32), np.ones((16, 8, 3, 3), np.float32), algorithm="direct")
print(len(opened))
w = np.ones((16, 8, 3, 3), np.float32)
fc.conv2d(np.ones((1, 8, 12, 13), np.float32), w, padding=1)
print(fc.Conv2d(w, padding=1).explain((1, 8, 12, 13))["tuned"], len(opened))
"""
    done = run_python(code, env={"FASTCONV_TUNE_FILE": str(tuned.path)})
    assert done.stdout.split() == ["0", "True", "1"], done.stderr


def test_the_first_plan_imports_nothing(tuned: TuneFile) -> None:
    """A child that is forked while another thread imports would wait for that import for ever."""
    tuned.use(choice_of(plan(), OTHER))
    code = """
import sys
import numpy as np, fastconv as fc
imported = []
sys.addaudithook(lambda event, args: imported.append(args[0]) if event == "import" else None)
w = np.ones((16, 8, 3, 3), np.float32)
fc.conv2d(np.ones((1, 8, 12, 13), np.float32), w, padding=1)
print(imported, fc.Conv2d(w, padding=1).explain((1, 8, 12, 13))["tuned"])
"""
    done = run_python(code, env={"FASTCONV_TUNE_FILE": str(tuned.path)})
    assert done.stdout.split() == ["[]", "True"], done.stdout + done.stderr


# --- files of no use --------------------------------------------------------------------------------------------------

GOOD = choice("ic8 ih12 iw13 oc16 oh12 ow13 kh3 kw3 sh1 sw1 pt1 pb1 pl1 pr1", OTHER)


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


USELESS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is no JSON"),
    "truncated": (text_of([GOOD])[:-20], "is no JSON"),
    "binary": (bytes(range(256)), "is no JSON"),
    "lines": ("one\ntwo\nthree", "is no JSON"),
    "deep": ("[" * 100_000, "is no JSON"),
    "long number": ('{"schema": ' + "1" * 100_000 + "}", "is no JSON"),
    "large": (" " * (_tuning.MAX_BYTES + 1), f"is larger than {_tuning.MAX_BYTES} bytes"),
    "list": ("[]", "was not written by `fastconv tune`"),
    "another tool's": ('{"schema": 2, "tool": "fastconv bench"}', "was not written by `fastconv tune`"),
    "older": (text_of([GOOD], schema=0), "has schema 0, this version reads 1: run `fastconv tune` again"),
    "newer": (text_of([GOOD], schema=7), "has schema 7, this version reads 1"),
    "schema of words": (text_of([GOOD], schema="\n" * 99), "has schema"),
    "schema true": (text_of([GOOD], schema=True), "has schema True"),
    "no schema": ('{"tool": "fastconv tune", "choices": []}', "has schema None"),
    "no choices": (text_of(None), "is damaged: it has no list of choices"),
    "too many": (text_of([GOOD] * (_tuning.MAX_CHOICES + 1)), "holds 4097 choices, at most 4096 are read"),
    "no object": (text_of([GOOD, 3]), "is damaged: choice 2 is no object"),
    "no kernel": (text_of([_without("kernel")]), "choice 1 has no 'kernel'"),
    "kernel of no word": (text_of([{**GOOD, "kernel": "../../x\n"}]), "choice 1 has a 'kernel' that means nothing"),
    "problem of no letters": (text_of([{**GOOD, "problem": "ic8; drop"}]), "a 'problem' that means nothing"),
    "long problem": (text_of([{**GOOD, "problem": "ic8 " * 999}]), "a 'problem' that means nothing"),
    "number for a word": (text_of([{**GOOD, "isa": 3}]), "a 'isa' that means nothing"),
    "no machine": (text_of([_without("machine")]), "does not say which machine"),
    "half a machine": (text_of([{**GOOD, "machine": {"cpu": "x"}}]), "does not say which machine"),
    "machine of words": (text_of([{**GOOD, "machine": dict.fromkeys(_tuning.MACHINE, "x")}]), "which machine"),
}


@pytest.mark.parametrize("name", USELESS)
def test_a_file_of_no_use_is_one_warning_and_no_choices(tuned: TuneFile, name: str) -> None:
    content, words = USELESS[name]
    tuned.path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(RuntimeWarning) as caught:
        state = _tuning.reload()
    (text,) = (str(warning.message) for warning in caught)
    assert words in text and repr(str(tuned.path)) in text and "\n" not in text and len(text) < 600
    assert words in state.problem and state.describe().startswith(f"{str(tuned.path)!r} is ignored: ")
    assert (plan()["kernel"], plan()["tuned"]) == (DIRECT, False)
    assert _tuning.load() is state, "and told once"


def test_what_is_no_file_is_one_warning(tuned: TuneFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(path: str) -> str:
        monkeypatch.setenv("FASTCONV_TUNE_FILE", path)
        with pytest.warns(RuntimeWarning) as caught:
            _tuning.reload()
        (text,) = (str(warning.message) for warning in caught)
        return text

    assert "is no regular file" in warned(str(tuned.path.parent))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tuned.path)
        assert "is no regular file" in warned(str(tuned.path)), "and nobody waits for a writer"
    assert "cannot be read" in warned(str(tuned.path.parent / ("x" * 300)))
    file = tuned.path.with_name("closed.json")
    file.write_text(text_of([GOOD]))
    file.chmod(0)
    if not os.access(file, os.R_OK):  # root reads all
        assert "cannot be read" in warned(str(file))


def test_a_file_of_no_use_is_one_line_on_stderr(tuned: TuneFile) -> None:
    tuned.path.write_text("{")
    code = "import numpy as np, fastconv as fc\nx = np.ones((1, 8, 12, 13), np.float32)\n" + (
        "w = np.ones((16, 8, 3, 3), np.float32)\nprint(fc.conv2d(x, w)[0, 0, 0, 0], fc.Conv2d(w)(x)[0, 0, 0, 0])\n"
    )
    done = run_python(code, env={"FASTCONV_TUNE_FILE": str(tuned.path)})
    assert done.stdout.split() == ["72.0", "72.0"]
    (line,) = done.stderr.splitlines()
    assert "RuntimeWarning" in line and "tuned choices are ignored" in line and str(tuned.path) in line


def test_a_warning_that_is_an_error_leaves_a_package_that_works(tuned: TuneFile) -> None:
    tuned.path.write_text("{")
    code = """
import warnings, fastconv as fc
warnings.simplefilter("error")
def told():
    try:
        return fc.explain("conv2d", (1, 8, 12, 13), (16, 8, 3, 3), padding=1)["kernel"]
    except RuntimeWarning:
        return "warned"
print(told(), told(), told())
"""
    done = run_python(code, env={"FASTCONV_TUNE_FILE": str(tuned.path)})
    assert done.stdout.split() == ["warned", DIRECT, DIRECT], done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": {**_tuning.this_machine(), "cpu": "another"}},
        {"machine": {**_tuning.this_machine(), "l2_bytes": 3}},
        {"fastconv": "0.0.1"},
        {"dtype": "bfloat16"},
        {"kernel": "conv_of_tomorrow"},
        {"kernel": "conv_reference"},
        {"kernel": "relu_direct"},
    ],
)
def test_what_is_not_for_us_is_passed_over_without_a_word(
    tuned: TuneFile, recwarn: pytest.WarningsRecorder, changes: dict[str, Any]
) -> None:
    state = tuned.use({**GOOD, **changes})
    assert (state.total, state.here, state.problem) == (1, [], "")
    assert state.describe() == f"0 choices for this machine, of 1 in {str(tuned.path)!r}"
    assert plan()["kernel"] == DIRECT
    assert not recwarn.list


def test_no_file_is_no_choices(tuned: TuneFile, recwarn: pytest.WarningsRecorder) -> None:
    state = _tuning.reload()
    assert (state.total, state.here, state.problem, plan()["kernel"]) == (0, [], "", DIRECT)
    assert not recwarn.list


def test_the_core_judges_for_itself() -> None:
    with pytest.raises(ValueError, match="conv_nonsense"):
        _core.set_tuned([("avx2", "NCHW", "ic1", "conv_nonsense")])
    with pytest.raises(TypeError):
        _core.set_tuned([("avx2", "NCHW", "ic1")])  # type: ignore[list-item]
    before = _core.plan_epoch()
    try:
        _core.set_tuned([("no level", "no layout", "nothing", "conv_direct")] * 3)
        assert _core.plan_epoch() != before
        assert plan()["kernel"] == DIRECT
    finally:
        _core.set_tuned([])
    after = _core.plan_epoch()
    _core.set_tuned([])
    assert _core.plan_epoch() == after, "the same choices again: plans stay good"


# --- threads and forks ------------------------------------------------------------------------------------------------

START = """
import os, threading
import numpy as np, fastconv as fc
x, w = np.ones((1, 8, 12, 13), np.float32), np.ones((16, 8, 3, 3), np.float32)
"""


def test_threads_that_plan_at_once_all_see_the_file(tuned: TuneFile) -> None:
    tuned.use(choice_of(plan(), OTHER))
    code = f"""{START}
gate, found = threading.Barrier(8), []
def work():
    gate.wait()
    layer = fc.Conv2d(w, padding=1)
    layer(x)
    found.append((layer.explain()["tuned"], fc.explain("conv2d", x, w, padding=1)["tuned"]))
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print(set(found))
"""
    done = run_python(code, env={"FASTCONV_TUNE_FILE": str(tuned.path)})
    assert done.stdout.strip() == "{(True, True)}", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_fork_while_the_file_is_read(tuned: TuneFile) -> None:
    """Another thread holds the lock of the reading at that moment, and is not there in the child."""
    tuned.use(choice_of(plan(), OTHER))
    code = f"""{START}
import signal
from fastconv import _tuning
held, go = threading.Event(), threading.Event()
read = _tuning.read
def slowly(path):
    held.set()
    go.wait(20)
    return read(path)
_tuning.read = slowly
worker = threading.Thread(target=fc.conv2d, args=(x, w))
worker.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    _tuning.read = read
    os._exit(0 if fc.explain("conv2d", x, w, padding=1)["tuned"] else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
worker.join()
print(code, fc.explain("conv2d", x, w, padding=1)["tuned"])
"""
    done = run_python(code, env={"FASTCONV_TUNE_FILE": str(tuned.path)})
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_tables_that_change_while_others_compute(tuned: TuneFile, rng: np.random.Generator) -> None:
    """Every answer is that of one driver or of the other, and a plan never outlives its table."""
    x, w = normal(rng, *X), normal(rng, *W)
    tables = [[], [(_core.isa(), "NCHW", _tuning.problem_of(plan()), "conv_winograd_f43")]]
    answers = []
    for table in tables:
        _core.set_tuned(table)  # type: ignore[arg-type]
        answers.append(fc.conv2d(x, w, padding=1))
    assert not np.array_equal(*answers), "the two have different bits, else this shows nothing"
    layer, end, wrong = fc.Conv2d(w, padding=1), threading.Event(), []

    def compute(call: Callable[[], Any]) -> None:
        while not end.is_set():
            found = call()
            if not any(np.array_equal(found, answer) for answer in answers):
                wrong.append(found)

    calls = (lambda: fc.conv2d(x, w, padding=1), lambda: layer(x))
    threads = [threading.Thread(target=compute, args=(call,)) for call in calls * 2]
    for thread in threads:
        thread.start()
    for i in range(200):
        _core.set_tuned(tables[i % 2])  # type: ignore[arg-type]
        assert plan()["tuned"] is (i % 2 == 1)
    end.set()
    for thread in threads:
        thread.join()
    assert not wrong


# --- told by info and show_config -------------------------------------------------------------------------------------


def test_show_config_tells_the_file(tuned: TuneFile, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.use(choice_of(plan(), OTHER), {**GOOD, "fastconv": "0.0.1"})
    expected = f"1 choices for this machine, of 2 in {str(tuned.path)!r}"
    config = fc.show_config(as_dict=True)
    assert config is not None and config["tuning"] == expected
    fc.show_config()
    assert expected in capsys.readouterr().out


def test_show_config_when_nothing_is_used(tuned: TuneFile, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.use(choice_of(plan(), OTHER))
    monkeypatch.setenv("FASTCONV_TUNE", "0")
    state = _tuning.reload()
    assert state.describe() == "ignored (FASTCONV_TUNE=0)"
    assert state.as_dict() == {
        "file": str(tuned.path), "used": False, "choices_here": 0, "choices": 0, "problem": "",
    }  # fmt: skip
    assert not plan()["tuned"]
