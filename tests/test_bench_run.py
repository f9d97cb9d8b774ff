"""Whole runs: every layout and algorithm has its row, wrong results stop them, peers and time limits are honest."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import compare, crossover, ops, problem, report, roofline, runner, schema

import fastconv
from bench_helpers import data

TINY = problem.Suite("tiny", (problem.parse_problem("little ic8 ih9 iw7 oc16 kh3 ph1 x2"),))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roofs and noise in a moment: their values do not matter here."""
    monkeypatch.setattr(roofline, "_MAX_STREAM_BYTES", 8 << 20)
    monkeypatch.setattr(roofline, "NOISE_SECONDS", 0.05)


def _settings(**changes: Any) -> runner.Settings:
    return runner.Settings(**{"suite": TINY, "max_time": 1.0, "cold": False, **changes})


def test_run_has_every_layout_and_algorithm() -> None:
    saved: list[dict[str, Any]] = []
    run = runner.Run(_settings(batches=(1, 6), max_time=6.0), save=saved.append)
    run.execute()
    result = schema.validate(run.data())
    assert result["complete"] and saved[-1]["complete"]
    native = [row for row in result["rows"] if row["kind"] == "layer" and not row["via"]]
    refused = [item for item in result["skipped"] if item["layer"] == "little"]
    assert len(native) + len(refused) >= 2 * 2 * len(ops.algorithms("conv2d"))
    for algorithm in ("direct", "im2col"):
        for batch in (1, 6):
            assert {r["layout"] for r in native if (r["algorithm"], r["batch"]) == (algorithm, batch)} == {
                "NCHW",
                "NHWC",
            }
    peak = result["rooflines"][0]["fma_gflops"]
    for row in native:
        assert row["peak_percent"] == pytest.approx(100 * row["gflops"] / peak)
        assert row["gflops"] == pytest.approx(2 * row["macs"] / row["median_ms"] / 1e6)
        assert row["macs"] == row["batch"] * 16 * 63 * 72
        assert row["roofline_percent"] == pytest.approx(100 * row["bound_ms"] / row["median_ms"])
        assert 0 <= row["relative_l2"] <= 5e-6 and row["kernel"] and row["isa"] == roofline.float32_isa()
        assert len(row["visits"]) == len(row["clock"]) >= 1 and all(clock > 0 for clock in row["clock"])
    for batch in (1, 6):
        own = [row for row in result["rows"] if row["batch"] == batch]
        (via,) = [row for row in own if row["via"] == "NHWC"]
        (conversions,) = [row for row in own if row["kind"] == "convert"]
        assert via["layout"] == "NCHW" and via["median_ms"] > 0.5 * conversions["median_ms"]
    for layout in ("NCHW", "NHWC"):
        assert sum(row["auto"] for row in native if (row["layout"], row["batch"]) == (layout, 1)) == 1
    assert json.loads(schema.dumps(result)) == result
    assert report.terminal(result).splitlines()[-1].startswith(("Use ", "No single algorithm"))


def test_other_ops_isa_levels_threads_and_cold_caches() -> None:
    suite = problem.Suite(
        "ops",
        tuple(
            problem.parse_problem(text)
            for text in ("a max_pool2d ic8 ih9 kh3 sh2 ph1", "b softmax ic10", "c relu ic4 ih5", "d linear ic6 oc7")
        ),
    )
    run = runner.Run(
        _settings(suite=suite, isas=tuple(roofline.levels()[:2]), threads=(1, 2), cold=True, max_time=15.0)
    )
    run.execute()
    result = schema.validate(run.data())
    layers = [row for row in result["rows"] if row["kind"] == "layer"]
    for level in roofline.levels()[:2]:
        for threads in (1, 2):
            own = [row for row in layers if (row["isa"], row["threads"]) == (level, threads)]
            assert {(row["layer"], row["layout"]) for row in own} >= {
                ("a", "NCHW"), ("a", "NHWC"), ("b", "-"), ("c", "NCHW"), ("d", "-"),
            }  # fmt: skip
            assert all(level in row["kernel"] or level in row["ukernel"] for row in own if row["layer"] == "a")
    assert all(row["cold_ms"] and row["cold_median_ms"] > 0 for row in result["rows"])
    assert {(roof["isa"], roof["threads"]) for roof in result["rooflines"]} == {
        (level, threads) for level in roofline.levels()[:2] for threads in (1, 2)
    }


class _Wrong:
    """A prepared layer with one wrong number in its output."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.explain = layer.explain

    def __call__(self, x: Any, out: Any = None) -> Any:
        y = self.layer(x, out=out)
        y[(0,) * y.ndim] += 1.0
        return y


def test_a_wrong_result_fails_the_run_with_the_layer_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fastconv.Conv2d
    monkeypatch.setattr(fastconv, "Conv2d", lambda *args, **options: _Wrong(real(*args, **options)))
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


def test_a_result_that_changes_later_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right on the first visit, another last bit on the next: the same bits are promised."""
    real = fastconv.Conv2d
    made = [0]

    class Drifting(_Wrong):
        def __init__(self, layer: Any) -> None:
            super().__init__(layer)
            made[0] += 1
            self.late = made[0] > 8

        def __call__(self, x: Any, out: Any = None) -> Any:
            y = self.layer(x, out=out)
            if self.late:
                y[...] = np.nextafter(y, np.float32(np.inf))
            return y

    monkeypatch.setattr(fastconv, "Conv2d", lambda *args, **options: Drifting(real(*args, **options)))
    run = runner.Run(_settings())
    with pytest.raises(runner.WrongResultError, match=r"little.*not the same bits"):
        run.execute()
    assert run.rows  # of the first visit


def test_a_plan_that_converts_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fastconv.Conv2d

    class Converting(_Wrong):
        def __init__(self, layer: Any) -> None:
            super().__init__(layer)
            self.explain = lambda *a, **k: {**layer.explain(*a, **k), "conversions": ["NCHW->NHWC"]}

        def __call__(self, x: Any, out: Any = None) -> Any:
            return self.layer(x, out=out)

    monkeypatch.setattr(fastconv, "Conv2d", lambda *args, **options: Converting(real(*args, **options)))
    run = runner.Run(_settings())
    run.execute()
    assert not [row for row in run.rows if row["kind"] == "layer" and not row["via"]]
    assert any("converts the layout" in item["reason"] for item in run.skipped)


def test_a_run_out_of_time_says_what_it_left_out() -> None:
    layers = tuple(problem.parse_problem(f"l{i} ic16 ih32 oc16 kh3 ph1") for i in range(6))
    run = runner.Run(_settings(suite=problem.Suite("six", layers), max_time=1e-6))
    run.execute()
    assert {row["layer"] for row in run.rows} == {"l0"} and not run.complete
    assert {item["layer"] for item in run.skipped} >= {"l1", "l5"}
    assert any("time limit" in note for note in run.notes)


class _Visited:
    """A stand-in for a layer: known after so many visits."""

    def __init__(self, name: str, enough: int) -> None:
        self.name, self.enough, self.visits, self.share, self.overhead = name, enough, 0, 1.0, 0.001

    def known(self) -> bool:
        return self.visits >= self.enough

    def width(self) -> float:
        return 1.0 if self.name == "late" else 0.5

    def visit(self, limit: float) -> None:
        self.visits += 1

    def drop(self) -> None:
        pass


def test_a_known_layer_is_visited_again_while_others_are_not_known() -> None:
    """Its samples would stand for the first seconds of the run alone."""
    soon, late = _Visited("soon", 3), _Visited("late", 21)
    units: Any = [soon, late]
    assert runner.Run(_settings())._passes(units, time.perf_counter() + 60.0, 0, 1)
    assert late.visits == 21 and 3 + 5 <= soon.visits <= 3 + 7


def test_a_layer_that_varies_more_is_visited_more_often() -> None:
    narrow, late = _Visited("narrow", 99), _Visited("late", 24)
    units: Any = [narrow, late]
    for number in range(24):
        for unit in runner._due(units, number):
            unit.visit(1.0)
    assert late.visits == 24 and 8 + 8 <= narrow.visits < 8 + 14


def test_writing_the_file_takes_little_of_the_time() -> None:
    run = runner.Run(_settings(), save=lambda data: time.sleep(0.1))
    run._save_now_and_then()
    assert run._save_next - time.perf_counter() > 4.0


def test_a_missing_peer_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    run = runner.Run(_settings(peers=("openvino",)))
    run.execute()
    assert run.complete and any("peer openvino is left out" in note for note in run.notes)


def test_peers_that_cannot_be_capped_are_left_out_of_a_capped_run(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(roofline.levels()) < 2:
        pytest.skip("one ISA level")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    run = runner.Run(_settings(peers=("numpy", "pytorch"), isas=(roofline.levels()[0],)))
    run.execute()
    assert any("peer numpy is left out: it cannot be capped" in note for note in run.notes)
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "SSE41" and any("oneDNN is capped" in note for note in run.notes)


def test_a_crossover_run_is_a_result_file() -> None:
    layer = problem.parse_problem("mine ic4 ih8 oc8 kh3 ph1")
    saved: list[dict[str, Any]] = []
    search = crossover.Search(layer, "batch", 1, 4, _settings(max_time=6.0), save=saved.append)
    search.execute()
    result = schema.validate(search.run.data())
    assert set(result["sweep"]["values"]) >= {1, 2, 4} and result["sweep"]["sentences"]
    assert {row["batch"] for row in result["rows"]} >= {1, 2, 4}
    assert report.terminal(result).splitlines()[-1] == result["sweep"]["sentences"][-1]


@pytest.mark.slow
def test_a_kernel_slowed_by_ten_per_cent_is_called_slower_and_equal_runs_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The instrument itself, on real kernels and this machine: three runs, of which the last has im2col slowed."""
    suite = problem.Suite(
        "three",
        tuple(
            problem.parse_problem(text)
            for text in ("a ic64 ih28 oc64 kh3 ph1", "b ic128 ih28 oc128 kh1", "c ic256 ih14 oc256 kh3 ph1")
        ),
    )
    real = ops.prepare

    def slowed(p: Any, given: Any, layout: str, algorithm: str) -> Any:
        ready = real(p, given, layout, algorithm)
        if algorithm != "im2col":
            return ready
        import dataclasses

        ready.call()
        times = []
        for _ in range(40):
            begin = time.perf_counter()
            ready.call()
            times.append(time.perf_counter() - begin)
        extra = 0.1 * float(np.median(times))

        def call() -> None:
            ready.call()
            end = time.perf_counter() + extra
            while time.perf_counter() < end:
                pass

        return dataclasses.replace(ready, call=call)

    results = []
    for number in range(3):
        if number == 2:
            monkeypatch.setattr(ops, "prepare", slowed)
        run = runner.Run(_settings(suite=suite, max_time=30.0))
        run.execute()
        results.append(schema.validate(run.data()))
    equal = compare.compare(results[0], results[1])
    assert sum(change.verdict == "SAME" for change in equal) >= 0.8 * len(equal)
    for change in compare.compare(results[1], results[2]):
        if change.row["algorithm"] == "im2col" and change.row["kind"] == "layer":
            assert change.verdict == "SLOWER", (change.row["layer"], change.ratio, change.low, change.high)


def test_an_empty_result_has_words() -> None:
    assert report.terminal(data([])).splitlines()[-1] == "Nothing was measured that could be compared."


def test_match_selects_by_name_and_op() -> None:
    suite = problem.load_suite("resnet50")
    problems, network = runner.selected(suite, "^l2")
    assert {p.name[:2] for p in problems} == {"l2"} and network is None
    assert runner.selected(suite, "^resnet") == ((), "resnet50")
    assert {p.op for p in runner.selected(problem.load_suite("pooling"), "avg_pool2d")[0]} >= {"avg_pool2d"}
    with pytest.raises(ValueError, match="no layer of suite 'resnet50'"):
        runner.selected(suite, "nothing")
