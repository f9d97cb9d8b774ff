"""The benchmark's own parts: layers as strings, statistics, verdicts, the JSON file, and the command from end to
end."""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import cli, compare, machine, oracle, peers, problem, report, runner, schema, timing, verdict

import fastconv

RNG_SEED = 20


# --- layers as strings ------------------------------------------------------------------------------------------------


def test_problem_reads_every_letter() -> None:
    p = problem.parse_problem("stem ic4 ih20 iw30 oc8 kh5 kw3 sh2 sw1 ph2 pw1 dh2 dw3 g2 n7 x9")
    assert (p.name, p.ic, p.ih, p.iw, p.oc, p.kh, p.kw) == ("stem", 4, 20, 30, 8, 5, 3)
    assert (p.sh, p.sw, p.ph, p.pw, p.dh, p.dw, p.g, p.n, p.x) == (2, 1, 2, 1, 2, 3, 2, 7, 9)
    assert problem.parse_problem(problem.format_problem(p)) == p


def test_problem_fills_in_partners() -> None:
    p = problem.parse_problem("ic64,ih56,oc64,kh3,ph1,sh2")
    assert (p.iw, p.kw, p.pw, p.sw, p.dh, p.dw, p.g, p.x, p.n) == (56, 3, 1, 2, 1, 1, 1, 1, 0)
    assert p.name == "problem"
    assert (p.oh, p.ow) == (28, 28)
    assert p.macs == 64 * 28 * 28 * 64 * 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("ic64 ih56 oc64", "kh missing"),
        ("ic64 ih56 oc64 kh3 zz4", "'zz4'"),
        ("ic64 ih56 oc64 kh-3", "'kh-3'"),
        ("ic64 ih56 oc64 kh3 ic32", "twice (64 and 32)"),
        ("ic64 ih56 oc64 kh0", "kh must be at least 1, got 0"),
        ("ic64 ih56 oc64 kh3 g3", "ic64 is not a multiple of g3"),
        ("ic64 ih2 oc64 kh5", "does not fit the padded input (2 x 2)"),
    ],
)
def test_problem_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        problem.parse_problem(text)
    assert words in str(caught.value)


def test_resnet50_suite_is_the_network() -> None:
    suite = problem.load_suite("resnet50")
    assert (len(suite.problems), sum(p.x for p in suite.problems)) == (23, 53)
    classifier = 2048 * 1000
    assert sum(p.macs * p.x for p in suite.problems) + classifier == 4_089_184_256
    assert suite.network == "resnet50"


def test_every_suite_loads() -> None:
    assert {"resnet50", "quick", "mobilenet_v2"} <= set(problem.suite_names())
    for name in problem.suite_names():
        suite = problem.load_suite(name)
        assert suite.problems and suite.about and suite.max_time > 0
        for p in suite.problems:
            assert problem.parse_problem(problem.format_problem(p)) == p
    assert not problem.load_suite("quick").peers
    depthwise = problem.load_suite("mobilenet_v2").problems
    assert all(p.g == p.ic == p.oc for p in depthwise) and sum(p.x for p in depthwise) == 17


def test_unknown_suite_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'resnet5'; known: .*quick.*resnet50"):
        problem.load_suite("resnet5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@speed 3", "line 1: unknown setting @speed"),
        ("a ic1 ih1 oc1 kh1\na ic2 ih1 oc1 kh1", "two layers are named 'a'"),
        ("# only words\nb ic1", "line 2"),
    ],
)
def test_bad_suite_names_the_line(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        problem.parse_suite("mine", text)
    assert words in str(caught.value)


def test_match_selects_by_name() -> None:
    suite = problem.load_suite("resnet50")
    found, network = runner.selected(suite, r"^l4\.")
    assert [p.name for p in found] == [p.name for p in suite.problems if p.name.startswith("l4.")]
    assert network is None
    assert runner.selected(suite, "resnet50") == ((), "resnet50")
    with pytest.raises(ValueError, match="not a regular expression"):
        runner.selected(suite, "(")
    with pytest.raises(ValueError, match="no layer of suite 'resnet50'"):
        runner.selected(suite, "nothing")


# --- statistics -------------------------------------------------------------------------------------------------------


def test_summary_of_known_samples() -> None:
    summary = timing.summarise([i / 1000 for i in range(1, 102)])
    assert summary.median == pytest.approx(51.0)
    assert summary.p10 == pytest.approx(11.0)
    assert summary.p90 == pytest.approx(91.0)
    assert summary.iqr == pytest.approx(50.0)
    assert (summary.minimum, summary.count) == (pytest.approx(1.0), 101)


def test_spread_covers_the_true_median() -> None:
    """About 95 of 100 intervals must hold the median that the samples were drawn around."""
    rng = np.random.default_rng(RNG_SEED)
    covered = 0
    for _ in range(400):
        samples = rng.normal(1.0, 0.05, 200)
        covered += abs(np.median(samples) - 1.0) <= timing.median_spread(samples, 5) * np.median(samples)
    assert 0.90 <= covered / 400 <= 0.99


def test_spread_of_too_few_bursts_is_infinite() -> None:
    assert timing.median_spread([1.0] * 10, 5) == float("inf")


class _Clock:
    """Time that only passes when somebody sleeps or a call takes some."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def _fake(clock: _Clock, name: str, seconds: list[float], log: list[str]) -> timing.Candidate:
    calls = [0]

    def call() -> None:
        log.append(name)
        clock.now += seconds[calls[0] % len(seconds)]
        calls[0] += 1

    return timing.Candidate(name, call)


def test_sampling_interleaves_and_keeps_all_samples() -> None:
    clock, log = _Clock(), []
    candidates = [_fake(clock, "a", [0.001], log), _fake(clock, "b", [0.002], log)]
    assert timing.measure(candidates, 10.0, clock=clock, sleep=clock.sleep)
    assert [len(c.samples) for c in candidates] == [timing.MIN_ROUNDS * timing.BURST] * 2
    assert candidates[1].samples == pytest.approx([0.002] * len(candidates[1].samples))
    turns = "".join(log).lstrip("a").lstrip("b")
    assert turns.startswith("a" * (timing.BURST + 1) + "b" * (timing.BURST + 1) + "a")


def test_sampling_goes_on_while_the_spread_is_large_and_stops_at_the_limit() -> None:
    noise = list(np.random.default_rng(RNG_SEED).uniform(0.001, 0.003, 997))
    clock = _Clock()
    patient = _fake(clock, "a", noise, [])
    timing.measure([patient], 100.0, clock=clock, sleep=clock.sleep)
    assert len(patient.samples) == timing.MAX_SAMPLES
    clock = _Clock()
    hurried = _fake(clock, "a", noise, [])
    assert not timing.measure([hurried], 0.2, clock=clock, sleep=clock.sleep)
    assert timing.BURST <= len(hurried.samples) < timing.MAX_SAMPLES
    assert clock.now < 0.4


def test_slow_calls_get_short_bursts_and_at_least_one_sample() -> None:
    clock = _Clock()
    slow = _fake(clock, "a", [2.0], [])
    assert not timing.measure([slow], 0.0, clock=clock, sleep=clock.sleep)
    assert (slow.burst, len(slow.samples)) == (1, 1)


def test_interrupted_sampling_keeps_samples() -> None:
    clock = _Clock()
    candidate = _fake(clock, "a", [0.01], [])
    calls = [0]
    inner = candidate.call

    def call() -> None:
        calls[0] += 1
        if calls[0] == 20:
            raise KeyboardInterrupt
        inner()

    candidate.call = call
    with pytest.raises(KeyboardInterrupt):
        timing.measure([candidate], 10.0, clock=clock, sleep=clock.sleep)
    assert 10 <= len(candidate.samples) < 20


# --- the oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_oracle_is_the_definition(groups: int) -> None:
    """Against the sum written out, on small whole numbers."""
    rng = np.random.default_rng(RNG_SEED)
    x = rng.integers(-4, 5, (2, 6, 9, 8)).astype(np.float32)
    w = rng.integers(-4, 5, (6, 6 // groups, 3, 2)).astype(np.float32)
    b = rng.integers(-4, 5, 6).astype(np.float32)
    got = oracle.conv2d_float64(x, w, b, (2, 1), (1, 2), (2, 3), groups)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2)))
    for (n, o, i, j), value in np.ndenumerate(got):
        c = o // (6 // groups) * (6 // groups)
        window = padded[n, c : c + 6 // groups, 2 * i : 2 * i + 5 : 2, j : j + 4 : 3]
        assert value == (window.astype(np.float64) * w[o]).sum() + b[o]


def test_oracle_network_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    state = {k: v.astype(np.float64) for k, v in fastconv.models.init_state(50).items()}
    x = np.random.default_rng(RNG_SEED).standard_normal((2, 3, 64, 64))
    folded = peers.fold_batch_norm(fastconv.models.init_state(50))
    library = peers.PyTorch()
    call = library.network(folded, x.astype(np.float32), "nchw", torch.get_num_threads())
    call.run()
    error = oracle.compare(call.result(), oracle.resnet50_float64(state, x.astype(np.float32)))
    assert error.relative_l2 < oracle.MAX_NETWORK_L2


def test_compare_of_what_is_not_finite() -> None:
    error = oracle.compare(np.array([1.0, np.nan], np.float32), np.array([1.0, 2.0]))
    assert error.max_scaled == error.relative_l2 == float("inf")
    with pytest.raises(ValueError, match="shape"):
        oracle.compare(np.zeros((2, 2), np.float32), np.zeros(4))


# --- verdicts ---------------------------------------------------------------------------------------------------------


def _row(samples: Any, **changes: Any) -> dict[str, Any]:
    summary = timing.summarise(list(np.asarray(samples) / 1e3))
    row = {
        "kind": "conv", "op": "conv2d", "suite": "s", "layer": "l1", "problem": "l1 ic1", "repeat": 1, "layout": "NHWC",
        "algorithm": "im2col", "provider": "fastconv", "kernel": "k", "threads": 2, "batch": 1, "device": "cpu",
        "dtype": "float32", "macs": 10**8, "auto": False, "samples_ms": [float(s) for s in samples], "burst": 5,
        "median_ms": summary.median, "p10_ms": summary.p10, "p90_ms": summary.p90, "min_ms": summary.minimum,
        "iqr_ms": summary.iqr, "spread": summary.spread,
    }  # fmt: skip
    return {**row, **changes}


def _noisy(rng: np.random.Generator, median: float, bursts: int = 20) -> np.ndarray:
    """Bursts that differ by 1.5 % and calls within one by 1 %, with a slow outlier now and then, as machines do."""
    level = median * (1 + 0.015 * rng.standard_normal((bursts, 1)))
    samples = level * (1 + 0.01 * np.abs(rng.standard_normal((bursts, 5))))
    samples[rng.random((bursts, 5)) < 0.03] *= 2.5
    return samples.ravel()


def _data(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schema": 1, "tool": schema.TOOL, "complete": True, "notes": [], "settings": {}, "rows": rows, "skipped": [],
        "environment": {"machine": {"cpu": "test", "isa": "avx2"}, "versions": {}}, "peaks": {"2": 2e11},
    }  # fmt: skip


def test_ten_per_cent_slower_is_slower_and_equal_runs_are_the_same() -> None:
    rng = np.random.default_rng(RNG_SEED)
    counts = {"slower": 0, "faster": 0, "same": 0, "wrong": 0}
    for _ in range(200):
        a, b = _row(_noisy(rng, 1.0)), _row(_noisy(rng, 1.0))
        slow = _row(_noisy(rng, 1.1))
        counts["slower"] += compare.compare_rows(a, slow).verdict == "SLOWER"
        counts["faster"] += compare.compare_rows(slow, a).verdict == "FASTER"
        counts["same"] += compare.compare_rows(a, b).verdict == "SAME"
        counts["wrong"] += compare.compare_rows(a, b).verdict in ("SLOWER", "FASTER")
    assert counts["slower"] >= 198 and counts["faster"] >= 198
    assert counts["same"] >= 190 and counts["wrong"] == 0


def test_little_evidence_is_unsure() -> None:
    rng = np.random.default_rng(RNG_SEED)
    assert compare.compare_rows(_row([1.0] * 5), _row([2.0] * 5)).verdict == "UNSURE"
    wild = rng.uniform(0.5, 1.5, 50)
    assert compare.compare_rows(_row(wild), _row(rng.uniform(0.5, 1.5, 50))).verdict == "UNSURE"


def test_compare_pairs_rows_and_fails_on_a_limit() -> None:
    rng = np.random.default_rng(RNG_SEED)
    a = _data([_row(_noisy(rng, 1.0)), _row(_noisy(rng, 3.0), layout="NCHW"), _row([1.0] * 5, layer="gone")])
    b = _data([_row(_noisy(rng, 3.0), layout="NCHW"), _row(_noisy(rng, 1.1))])
    changes = compare.compare(a, b)
    assert [(c.row["layout"], c.verdict) for c in changes] == [("NHWC", "SLOWER"), ("NCHW", "SAME")]
    assert compare.geometric_mean(changes) == pytest.approx(1.1**0.5, rel=0.02)
    assert [c.row["layout"] for c in compare.failures(changes, compare.parse_threshold("median:5%"))] == ["NHWC"]
    assert compare.failures(changes, compare.parse_threshold("median:20%")) == []
    assert any("1 row only in A" in line for line in compare.differences(a, b))
    with pytest.raises(ValueError, match="no row in common"):
        compare.compare(a, _data([_row([1.0] * 5, layer="other")]))


def test_a_limit_below_the_margin_can_fail() -> None:
    """3 % slower is the SAME with a margin of 4 %, and yet more than 1 %."""
    rng = np.random.default_rng(RNG_SEED)
    a, b = _data([_row(_noisy(rng, 1.0, 80))]), _data([_row(_noisy(rng, 1.03, 80))])
    changes = compare.compare(a, b, margin=0.06)
    assert changes[0].verdict == "SAME"
    for limit, fails in (("1%", True), ("2.9%", False), ("5%", False)):
        found = compare.failures(changes, compare.parse_threshold(f"median:{limit}"))
        assert bool(found) is fails, limit
    assert compare.failures(changes, compare.parse_threshold("p10:1%")) == changes


def test_a_limit_on_the_tail_fails_by_the_tail() -> None:
    """The median stays; every fifth call takes twice as long."""
    rng = np.random.default_rng(RNG_SEED)
    usual = 1 + 0.01 * rng.random(200)
    tail = usual.copy()
    tail[::5] *= 2
    changes = compare.compare(_data([_row(usual)]), _data([_row(tail)]))
    failing = {
        name for name in ("median", "min", "p10", "p90")
        if compare.failures(changes, compare.parse_threshold(f"{name}:50%"))
    }  # fmt: skip
    assert failing == {"p90"}
    same = compare.compare(_data([_row(tail)]), _data([_row(tail)]))
    assert compare.failures(same, compare.parse_threshold("p90:1%")) == []


@pytest.mark.parametrize("text", ["median", "mean:5%", "median:x%", "median:-5%", ""])
def test_bad_threshold(text: str) -> None:
    with pytest.raises(ValueError, match=r"fail-if.*median:5%"):
        compare.parse_threshold(text)


def test_threshold_forms() -> None:
    assert compare.parse_threshold("median:5%") == compare.Threshold("median", 0.05)
    assert compare.parse_threshold("p90:0.1") == compare.Threshold("p90", 0.1)


def test_words_weigh_by_repeat_count() -> None:
    """NHWC loses the layer that runs once and wins the one that runs ten times."""
    rng = np.random.default_rng(RNG_SEED)
    rows = [
        _row(_noisy(rng, 2.0), layer="once", layout="NHWC"),
        _row(_noisy(rng, 1.0), layer="once", layout="NCHW"),
        _row(_noisy(rng, 1.0), layer="often", layout="NHWC", repeat=10),
        _row(_noisy(rng, 1.5), layer="often", layout="NCHW", repeat=10),
    ]
    last = verdict.verdict(rows)[-1]
    assert last.startswith("Use NHWC with im2col here (2 threads, batch 1): 2 layers, 11 convolutions take 12.")
    assert "NCHW im2col 16." in last and "within the noise" not in last


def test_words_admit_noise_and_partial_algorithms() -> None:
    rng = np.random.default_rng(RNG_SEED)
    rows = [_row(_noisy(rng, 1.0)), _row(_noisy(rng, 1.005), layout="NCHW")]
    lines = verdict.verdict(
        [*rows, _row(_noisy(rng, 9.0), layer="l2"), _row(_noisy(rng, 9.0), layer="l2", layout="NCHW")]
    )
    assert "within the noise" in lines[-1]
    few = [_row([1.0] * 15), _row([2.0] * 15, layout="NCHW")]
    assert all("oo few samples to be sure" in line for line in verdict.verdict(few))
    rows.append(_row(_noisy(rng, 0.1), layer="l2", algorithm="depthwise"))
    rows.append(_row(_noisy(rng, 0.2), layer="l2"))
    assert any("NHWC depthwise runs 1 of 2" in line for line in verdict.verdict(rows))
    assert verdict.verdict([]) == ["Nothing was measured that could be compared."]


def test_a_sure_but_small_difference_is_no_noise() -> None:
    exact = np.tile([1.0, 1.0001, 1.0002, 1.0003, 1.0004], 20)
    for kind in ("conv", "network"):
        rows = [_row(exact, kind=kind), _row(1.01 * exact, kind=kind, layout="NCHW")]
        last = verdict.verdict(rows)[-1]
        assert last.startswith("Use NHWC") and "too small to matter" in last and "noise" not in last


def test_the_last_line_says_what_to_use() -> None:
    rng = np.random.default_rng(RNG_SEED)

    def row(median: float, **changes: Any) -> dict[str, Any]:
        return _row(_noisy(rng, median), **changes)

    def net(median: float, **changes: Any) -> dict[str, Any]:
        return row(median, kind="network", algorithm="auto", layer="resnet50", **changes)

    # The network alone, in both layouts and in one.
    last = verdict.verdict([net(9.0), net(5.0, layout="NCHW")])[-1]
    assert last.startswith("Use NCHW here (2 threads, batch 1): resnet50 end to end takes 5.")
    assert "NHWC 9." in last and "times the time" in last
    (last,) = verdict.verdict([net(9.0)])
    assert last.startswith("Use NHWC here (2 threads, batch 1; only NHWC was measured): resnet50")
    # Layers of one layout.
    last = verdict.verdict([row(1.0), row(2.0, algorithm="direct")])[-1]
    assert last.startswith("Use NHWC with im2col here (2 threads, batch 1; only NHWC was measured): ")
    # Layers and network that disagree.
    last = verdict.verdict([row(1.0), row(2.0, layout="NCHW"), net(9.0), net(5.0, layout="NCHW")])[-1]
    assert last.startswith("Use NHWC with im2col") and last.endswith("End to end, resnet50 is faster in NCHW.")
    # No algorithm that runs all layers; no layout that does.
    parts = [row(1.0, algorithm="direct"), row(1.0, layer="l2"), row(9.0, layer="l2", layout="NCHW")]
    assert verdict.verdict(parts)[-1].startswith("Use NHWC with the fastest algorithm of each layer here (2 threads")
    parts = [row(1.0), row(1.0, layer="l2", layout="NCHW")]
    assert verdict.verdict(parts)[-1].startswith("Use the fastest row of each layer (2 threads, batch 1)")
    # Several numbers of threads: alike and not.
    two, one = [row(1.0), row(2.0, layout="NCHW")], [row(2.0, threads=1), row(3.0, threads=1, layout="NCHW")]
    last = verdict.verdict(two + one)[-1]
    assert last == "Use NHWC with im2col here, in all that was measured: 2 threads, batch 1; 1 thread, batch 1."
    one = [row(4.0, threads=1), row(3.0, threads=1, layout="NCHW")]
    last = verdict.verdict(two + one)[-1]
    assert last == "Use here: NHWC with im2col for 2 threads, batch 1; NCHW with im2col for 1 thread, batch 1."


# --- the file ---------------------------------------------------------------------------------------------------------


def test_file_round_trip(tmp_path: Path) -> None:
    data = _data([_row(_noisy(np.random.default_rng(RNG_SEED), 1.0))])
    path = tmp_path / "a.json"
    path.write_text("old")
    schema.save(data, path)
    assert schema.load(path) == data
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError):
        schema.save({**data, "peaks": {"2": float("nan")}}, path)
    assert schema.load(path) == data


def _without(key: str) -> Any:
    return lambda d: d.pop(key)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without("schema"), "not a result"),
        (lambda d: d.update(schema=0), "schema 0 is not 1"),
        (lambda d: d.update(schema=2), "schema 2 is not 1"),
        (_without("rows"), "'rows' is missing"),
        (lambda d: d.update(rows={}), "'rows' is of the wrong kind"),
        (lambda d: d["rows"].append(3), "row 2 is not an object"),
        (lambda d: d["rows"][0].pop("median_ms"), "row 1: 'median_ms' is missing"),
        (lambda d: d["rows"][0].update(threads="2"), "'threads' is of the wrong kind"),
        (lambda d: d["rows"][0].update(burst=0), "'burst' is 0"),
        (lambda d: d["rows"][0].update(samples_ms=[]), "no samples"),
        (lambda d: d["rows"][0].update(samples_ms=[1.0, None]), "a time of None"),
        (lambda d: d["rows"][0].update(samples_ms=[1.0, -1.0]), "a time of -1.0"),
        (lambda d: d["rows"][0].update(median_ms=float("nan")), "a time of nan"),
    ],
)
def test_damaged_files_say_so(damage: Any, words: str, tmp_path: Path) -> None:
    data = copy.deepcopy(_data([_row([1.0] * 10)]))
    damage(data)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError) as caught:
        schema.load(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3"])
def test_files_that_are_no_result(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        schema.load(path)


def test_report_is_one_page_and_escapes(tmp_path: Path) -> None:
    rng = np.random.default_rng(RNG_SEED)
    rows = [_row(_noisy(rng, 1.0), layer="<b>&x", gflops=10.0), _row(_noisy(rng, 2.0), layer="<b>&x", layout="NCHW")]
    page = report.page(_data(rows))
    assert "&lt;b&gt;&amp;x" in page and "<b>&x" not in page
    assert "http" not in page.replace("http://www.w3.org", "")  # the names of SVG itself
    assert "Use NHWC with im2col here" in page
    text = report.terminal(_data(rows))
    assert text.splitlines()[-1].startswith("Use NHWC with im2col here")


# --- a run ------------------------------------------------------------------------------------------------------------

TINY = problem.Suite("tiny", (problem.parse_problem("little ic8 ih9 iw7 oc16 kh3 ph1 x2"),))


def _settings(**changes: Any) -> runner.Settings:
    return runner.Settings(**{"suite": TINY, "max_time": 60.0, **changes})


def test_run_has_every_layout_and_algorithm() -> None:
    saved: list[dict[str, Any]] = []
    run = runner.Run(_settings(batches=(1, 6)), save=saved.append)
    run.execute()
    data = schema.validate(run.data())
    assert data["complete"] and len(saved) >= 3
    convs = [row for row in data["rows"] if row["kind"] == "conv"]
    refused = [item for item in data["skipped"] if item["layer"] == "little"]
    assert len(convs) + len(refused) == 2 * 2 * len(runner.cpu_algorithms())
    for algorithm in ("direct", "im2col"):
        for batch in (1, 6):
            assert {r["layout"] for r in convs if (r["algorithm"], r["batch"]) == (algorithm, batch)} == {
                "NCHW",
                "NHWC",
            }
    for row in convs:
        assert row["peak_percent"] == pytest.approx(1e11 * row["gflops"] / data["peaks"]["1"])
        assert row["gflops"] == pytest.approx(2 * row["macs"] / row["median_ms"] / 1e6)
        assert row["macs"] == row["batch"] * 16 * 63 * 72
        assert 0 <= row["relative_l2"] <= oracle.MAX_RELATIVE_L2 and row["kernel"]
    assert {row["layout"] for row in data["rows"] if row["kind"] == "convert"} == {"NCHW->NHWC", "NHWC->NCHW"}
    for layout in ("NCHW", "NHWC"):
        assert sum(row["auto"] for row in convs if (row["layout"], row["batch"]) == (layout, 1)) == 1
    assert json.loads(schema.dumps(data)) == data
    assert report.terminal(data).splitlines()[-1].startswith(("Use ", "No single algorithm"))


class _Wrong:
    """A prepared layer with one wrong number in its output."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.explain = layer.explain

    def __call__(self, x: Any, out: Any = None) -> Any:
        y = self.layer(x, out=out)
        y[(0,) * y.ndim] += 1.0
        return y


def _inject(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fastconv.Conv2d
    monkeypatch.setattr(fastconv, "Conv2d", lambda *args, **options: _Wrong(real(*args, **options)))


def test_a_wrong_result_fails_the_run_with_the_layer_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _inject(monkeypatch)
    run = runner.Run(_settings())
    with pytest.raises(runner.WrongResultError, match=r"wrong result in layer little .*relative L2 error"):
        run.execute()
    assert run.rows == [] and not run.complete


def test_the_last_picture_of_a_batch_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fastconv.Conv2d

    class WrongAtTheEnd(_Wrong):
        def __call__(self, x: Any, out: Any = None) -> Any:
            y = self.layer(x, out=out)
            y[-1, 0, 0, 0] = np.nan
            return y

    monkeypatch.setattr(fastconv, "Conv2d", lambda *args, **options: WrongAtTheEnd(real(*args, **options)))
    with pytest.raises(runner.WrongResultError, match="little"):
        runner.Run(_settings(batches=(6,))).execute()


def test_a_plan_that_converts_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fastconv.Conv2d

    class Converting(_Wrong):
        def __init__(self, layer: Any) -> None:
            super().__init__(layer)
            self.explain = lambda: {**layer.explain(), "conversions": ["NCHW->NHWC"]}

        def __call__(self, x: Any, out: Any = None) -> Any:
            return self.layer(x, out=out)

    monkeypatch.setattr(fastconv, "Conv2d", lambda *args, **options: Converting(real(*args, **options)))
    run = runner.Run(_settings())
    run.execute()
    assert not [row for row in run.rows if row["kind"] == "conv"]
    assert any("converts the layout" in item["reason"] for item in run.skipped)


def test_busy_machine_is_said() -> None:
    assert machine.busy_warning(3.0, 2) is not None
    assert machine.busy_warning(0.3, 2) is None and machine.busy_warning(None, 2) is None


def test_environment_names_no_path_or_user() -> None:
    text = json.dumps({k: v for k, v in machine.environment().items() if k != "variables"})
    assert os.path.expanduser("~") == "/" or os.path.expanduser("~") not in text
    assert os.uname().nodename not in text


def test_a_missing_peer_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found, messages = peers.load_peers(["onnxruntime"])
    assert found == [] and "onnxruntime is left out" in messages[0]
    with pytest.raises(ValueError, match="unknown name 'caffe'; known: pytorch"):
        peers.load_peers(["caffe"])


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_peers_agree_with_the_oracle(name: str) -> None:
    found, messages = peers.load_peers([name])
    if not found:
        pytest.skip(messages[0])
    peer = found[0]
    rng = np.random.default_rng(RNG_SEED)
    for text in ("ic6 ih9 iw8 oc8 kh3 kw2 sh2 ph1 pw2 dh2 g2", "ic6 ih9 iw8 oc6 kh3 ph1 g6", "ic3 ih5 oc4 kh1"):
        p = problem.parse_problem(text)
        x = rng.standard_normal((2, p.ic, p.ih, p.iw), np.float32)
        weight = rng.standard_normal((p.oc, p.ic // p.g, p.kh, p.kw), np.float32)
        bias = rng.standard_normal(p.oc, np.float32)
        for layout in peer.layouts:
            call = peer.conv(p, x, weight, bias, layout, 1)
            call.run()
            error = oracle.compare(call.result(), oracle.problem_float64(p, x, weight, bias))
            assert error.relative_l2 < peers.MAX_PEER_L2
    state = fastconv.models.init_state(50)
    x = rng.standard_normal((1, 3, 64, 64), np.float32)
    for layout in peer.layouts:
        call = peer.network(peers.fold_batch_norm(state), x, layout, 1)
        call.run()
        error = oracle.compare(call.result(), oracle.resnet50_float64(state, x))
        assert error.relative_l2 < oracle.MAX_NETWORK_L2


# --- the command ------------------------------------------------------------------------------------------------------


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
        (["--threads", "0"], "'0' is not a whole number"),
        (["--threads", "99999999999999999999"], "not a whole number"),
        (["--batch", "max"], "'max' is not"),
        (["--device", "tpu"], "'tpu'"),
        (["--peers", "caffe"], "'caffe'; known: pytorch"),
        (["--max-time", "soon"], "'soon'"),
        (["--max-time", "nan"], "'nan'"),
        (["--problem", "ic3"], "missing"),
        (["--problem", "ic3 ih3 oc3 kh1", "--suite", "quick"], "not both"),
        (["--json", "/nonexistent/x.json"], "folder"),
        (["list", "--suite", "nope"], "known:"),
        (["compare", "a", "b", "--fail-if", "x"], "median:5%"),
        (["compare", "a", "b", "--margin", "x"], "--margin"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(words: list[str], message: str, capsys: Any) -> None:
    assert _bench(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_list(capsys: Any) -> None:
    assert _bench("list") == 0
    text = capsys.readouterr().out
    assert "resnet50" in text and "quick" in text and "im2col" in text and "pytorch" in text
    assert _bench("list", "--suite", "quick") == 0
    assert "conv1 ic3 ih224" in capsys.readouterr().out
    assert _bench("list", "--json") == 0
    assert {s["suite"] for s in json.loads(capsys.readouterr().out)["suites"]} >= {"quick", "resnet50"}


def test_typed_problem_compare_and_report(tmp_path: Path, capsys: Any) -> None:
    first, second, page = (str(tmp_path / name) for name in ("a.json", "b.json", "a.html"))
    for path in (first, second):
        words = ["--problem", "mine ic8 ih9 oc8 kh3 ph1", "--max-time", "60", "--threads", "1", "--json", path]
        assert _bench("run", *words) == 0
    text = capsys.readouterr().out
    assert "mine" in text and "im2col" in text and text.splitlines()[-1].startswith("Use ")
    assert _bench("compare", first, second, "--margin", "10000%") == 0
    assert "geometric mean" in capsys.readouterr().out
    data = schema.load(second)
    for row in data["rows"]:
        row["samples_ms"] = [2 * s for s in row["samples_ms"]]
        row.update({key: 2 * row[key] for key in ("median_ms", "p10_ms", "p90_ms", "min_ms")})
    schema.save(data, second)
    assert _bench("compare", first, second, "--json", "--fail-if", "median:5%") == 1
    printed = capsys.readouterr()
    assert {row["verdict"] for row in json.loads(printed.out)["rows"]} >= {"SLOWER"}
    assert printed.err.startswith("fastconv bench: slower by more than median:5%: mine")
    assert _bench("report", first, "-o", page) == 0
    assert "<!doctype html>" in Path(page).read_text(encoding="utf-8")
    with pytest.raises(OSError):
        _bench("compare", first, str(tmp_path / "none.json"))


def test_json_to_standard_output_stands_alone(capsys: Any) -> None:
    assert _bench("--problem", "ic8 ih9 oc8 kh3 ph1", "--max-time", "60", "--json", "-") == 0
    printed = capsys.readouterr()
    assert schema.validate(json.loads(printed.out))["complete"] and "Convolutions" in printed.err


def test_wrong_result_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    _inject(monkeypatch)
    path = tmp_path / "a.json"
    assert _bench("--problem", "broken ic8 ih9 oc8 kh3", "--max-time", "60", "--json", str(path)) == 1
    printed = capsys.readouterr()
    assert "wrong result in layer broken" in printed.err and printed.err.count("\n") == 1
    assert not schema.load(path)["complete"]


def test_interrupted_run_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    real = timing.measure
    calls = [0]

    def measure(candidates: Any, *args: Any, **options: Any) -> bool:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(candidates, *args, **options)

    monkeypatch.setattr(timing, "measure", measure)
    path = tmp_path / "a.json"
    words = [
        "--problem",
        "one ic8 ih9 oc8 kh3",
        "--problem",
        "two ic8 ih9 oc8 kh1",
        "--max-time",
        "60",
        "--json",
        str(path),
    ]
    assert _bench(*words) == 1
    printed = capsys.readouterr()
    data = schema.load(path)
    assert {row["layer"] for row in data["rows"]} == {"one"} and not data["complete"]
    assert "interrupted" in printed.err and f"{len(data['rows'])} rows are kept in {path}" in printed.err


def test_a_missing_peer_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert _bench("--problem", "ic8 ih9 oc8 kh3", "--max-time", "60", "--peers", "openvino") == 0
    assert "note: peer openvino is left out" in capsys.readouterr().out


def test_quick_suite_from_the_shell(tmp_path: Path) -> None:
    """Starved of time, so that this stays short: a row or two of every kind, the words, no progress bar off a
    terminal."""
    path = tmp_path / "quick.json"
    command = [sys.executable, "-m", "fastconv", "bench", "--suite", "quick", "--max-time", "1.5", "--json", str(path)]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    data = schema.load(path)
    assert {row["layer"] for row in data["rows"]} & {p.name for p in problem.load_suite("quick").problems}
    assert done.stdout.strip().splitlines()[-1].startswith(("Use ", "Nothing"))
    assert time.monotonic() - begin < 120
