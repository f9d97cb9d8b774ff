"""`fastconv bench` from the command line: options, exit statuses, one line for what is wrong, files that survive."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import cli, problem, roofline, schema, timing

import fastconv


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roofs and noise in a moment: their values do not matter here."""
    monkeypatch.setattr(roofline, "_MAX_STREAM_BYTES", 8 << 20)
    monkeypatch.setattr(roofline, "NOISE_SECONDS", 0.05)


def _bench(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="bench")
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(list(words)))


def test_options_hold_before_and_after_the_word_run() -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    for words in (["--suite", "quick"], ["run", "--suite", "quick"], ["--suite", "quick", "run"]):
        args = parser.parse_args(words)
        assert (args.suite, args.layouts) == ("quick", "nchw,nhwc")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "nope"], "unknown name 'nope'; known:"),
        (["run", "--match", "("], "not a regular expression"),
        (["--match", "nothing-like-it"], "no layer of suite"),
        (["--layouts", "nchw,chwn"], "'chwn'; known: nchw, nhwc"),
        (["--layouts", ","], "empty"),
        (["--algorithms", "fft"], "'fft'; known: auto"),
        (["--isa", "sse9"], "'sse9'; known: scalar"),
        (["--threads", "0"], "'0' is not a whole number"),
        (["--threads", "99999999999999999999"], "not a whole number"),
        (["--batch", "max"], "'max' is not"),
        (["--device", "tpu"], "'tpu'"),
        (["--peers", "caffe"], "'caffe'; known: pytorch"),
        (["--cache", "hot"], "'hot' is neither warm nor both"),
        (["--rows", "some"], "'some' is neither compact nor all"),
        (["--max-time", "soon"], "'soon'"),
        (["--max-time", "nan"], "'nan'"),
        (["--problem", "ic3"], "missing"),
        (["--problem", "ic3 ih3 oc3 kh1", "--suite", "quick"], "not both"),
        (["--json", "/nonexistent/x.json"], "folder"),
        (["list", "--suite", "nope"], "known:"),
        (["compare", "a", "b", "--fail-if", "x"], "median:5%"),
        (["compare", "a", "b", "--margin", "x"], "--margin"),
        (["crossover", "ic3 ih3 oc3 kh1", "--vary", "height"], "'height'; known: batch"),
        (["crossover", "ic3 ih3 oc3 kh1", "--from", "9", "--to", "3"], "got 9 and 3"),
        (["crossover", "ic3"], "missing"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(words: list[str], message: str, capsys: Any) -> None:
    assert _bench(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_list(capsys: Any) -> None:
    assert _bench("list") == 0
    text = capsys.readouterr().out
    for word in ("resnet50", "resnet18", "vgg16", "mobilenet_v2", "pooling", "quick", "im2col", "pytorch", "ncnn"):
        assert word in text
    assert _bench("list", "--suite", "quick") == 0
    assert "conv1 ic3 ih224" in capsys.readouterr().out
    assert _bench("list", "--json") == 0
    assert {s["suite"] for s in json.loads(capsys.readouterr().out)["suites"]} >= {"quick", "resnet50"}


def test_typed_problem_compare_and_report(tmp_path: Path, capsys: Any) -> None:
    first, second, page = (str(tmp_path / name) for name in ("a.json", "b.json", "a.html"))
    for path in (first, second):
        words = ["--problem", "mine ic8 ih9 oc8 kh3 ph1", "--max-time", "4", "--threads", "1", "--json", path]
        assert _bench("run", *words) == 0
    text = capsys.readouterr().out
    assert "mine" in text and text.splitlines()[-1].startswith("Use ")
    assert _bench("compare", first, second, "--margin", "10000%") == 0
    assert "geometric mean" in capsys.readouterr().out
    data = schema.load(second)
    for row in data["rows"]:
        row["samples_ms"] = [4 * s for s in row["samples_ms"]]
        row.update({key: 4 * row[key] for key in ("median_ms", "p10_ms", "p90_ms", "min_ms")})
    schema.save(data, second)
    assert _bench("compare", first, second, "--json", "--raw", "--fail-if", "median:5%") == 1
    printed = capsys.readouterr()
    assert {row["verdict"] for row in json.loads(printed.out)["rows"]} >= {"SLOWER"}
    assert printed.err.startswith("fastconv bench: slower by more than median:5%: mine")
    assert _bench("report", first, "-o", page) == 0
    assert "<!doctype html>" in Path(page).read_text(encoding="utf-8").lower()
    assert _bench("report", first, "-o", str(tmp_path / "a.md")) == 0
    assert "| mine" in (tmp_path / "a.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert _bench("report", first, "--rows", "all") == 0
    assert "im2col" in capsys.readouterr().out
    assert _bench("report", first, "-o", str(tmp_path / "a.doc")) == 2
    assert "ends in none of" in capsys.readouterr().err
    with pytest.raises(OSError):
        _bench("compare", first, str(tmp_path / "none.json"))
    (tmp_path / "old.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="older fastconv"):
        _bench("report", str(tmp_path / "old.json"))


def test_json_to_standard_output_stands_alone(capsys: Any) -> None:
    assert _bench("--problem", "ic8 ih9 oc8 kh3 ph1", "--max-time", "1", "--json", "-") == 0
    printed = capsys.readouterr()
    assert schema.validate(json.loads(printed.out))["complete"] and "problem1" in printed.err


def test_wrong_result_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    real = fastconv.Conv2d

    class Wrong:
        def __init__(self, layer: Any) -> None:
            self.layer, self.explain = layer, layer.explain

        def __call__(self, x: Any, out: Any = None) -> Any:
            y = self.layer(x, out=out)
            y[0, 0, 0, 0] = np.float32(1e6)
            return y

    monkeypatch.setattr(fastconv, "Conv2d", lambda *args, **options: Wrong(real(*args, **options)))
    path = tmp_path / "a.json"
    assert _bench("--problem", "broken ic8 ih9 oc8 kh3", "--max-time", "1", "--json", str(path)) == 1
    printed = capsys.readouterr()
    assert "wrong result in layer broken" in printed.err and printed.err.count("\n") == 1
    assert not schema.load(path)["complete"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_keeps_what_it_has(
    end: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if signal.getsignal(end) == signal.SIG_IGN:  # as in a shell's background job
        request.addfinalizer(lambda: signal.signal(end, signal.SIG_IGN))
        signal.signal(end, signal.default_int_handler)
    before = signal.getsignal(end)
    real = timing.Sampler.visit
    calls = [0]

    def visit(self: timing.Sampler, *args: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:  # the noise, the first layer, then the second
            signal.raise_signal(end)
        real(self, *args, **options)

    monkeypatch.setattr(timing.Sampler, "visit", visit)
    path = tmp_path / "a.json"
    words = ["--problem", "one ic8 ih9 oc8 kh3", "--problem", "two ic8 ih9 oc8 kh1", "--max-time", "2"]
    assert _bench(*words, "--json", str(path)) == 1
    printed = capsys.readouterr()
    data = schema.load(path)
    assert {row["layer"] for row in data["rows"]} == {"one"} and not data["complete"]
    assert "interrupted" in printed.err and f"{len(data['rows'])} rows are kept in {path}" in printed.err
    assert any("interrupted" in note for note in data["notes"])
    assert signal.getsignal(end) == before


def test_a_missing_peer_is_a_note(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert _bench("--problem", "ic8 ih9 oc8 kh3", "--max-time", "1", "--peers", "openvino") == 0
    assert "peer openvino is left out" in capsys.readouterr().out


def test_quick_suite_from_the_shell(tmp_path: Path) -> None:
    """Starved of time, so that this stays short: a row or two of every kind, the words, no progress bar off a
    terminal."""
    path = tmp_path / "quick.json"
    command = [sys.executable, "-m", "fastconv", "bench", "--suite", "quick", "--max-time", "4", "--json", str(path)]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    data = schema.load(path)
    assert {row["layer"] for row in data["rows"]} & {p.name for p in problem.load_suite("quick").problems}
    assert done.stdout.strip().splitlines()[-1].startswith(("Use ", "Nothing"))
    assert data["noise"]["sentence"] in done.stdout
    assert time.monotonic() - begin < 120
