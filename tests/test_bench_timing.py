"""The benchmark's sampling: visits, turns, statistics of bursts, pinned threads, the yardstick."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import affinity, machine, roofline, timing

from bench_helpers import RNG_SEED


def _series(milliseconds: Any, visits: list[int] | None = None) -> timing.Series:
    values = [float(v) / 1e3 for v in milliseconds]
    return timing.Series(samples=values, visits=visits or [len(values)])


def test_summary_of_known_samples() -> None:
    summary = timing.summarise(_series(range(1, 102)))
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


def test_spread_knows_that_visits_differ() -> None:
    """Calls within a visit agree closely, visits do not: the spread must be the visits'."""
    rng = np.random.default_rng(RNG_SEED)
    levels = np.repeat([1.0, 1.06, 0.97, 1.03], 50)
    samples = levels * rng.normal(1.0, 0.005, 200)
    assert timing.median_spread(samples, 5, [200]) < timing.median_spread(samples, 5, [50] * 4)
    assert timing.median_spread(samples, 5, [50] * 4) > 0.03


def test_spread_of_too_few_bursts_is_infinite() -> None:
    assert timing.median_spread([1.0] * 10, 5) == float("inf")


def test_bursts_do_not_cross_visits() -> None:
    parts = timing.split_bursts([1, 1, 9, 2, 2, 2, 3, 3], 2, [3, 5])
    assert [part.tolist() for part in parts] == [[1.0], [2.0, 2.5]]
    assert [part.tolist() for part in timing.split_bursts([7.0], 5, [1])] == [[7.0]]


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


def _sampler(clock: _Clock, **options: Any) -> timing.Sampler:
    return timing.Sampler(clock=clock, sleep=clock.sleep, **options)


def test_a_visit_interleaves_in_changing_order_and_keeps_all_samples() -> None:
    clock, log = _Clock(), []
    candidates = [_fake(clock, name, [0.001 * i], log) for i, name in enumerate("abc", start=1)]
    sampler = _sampler(clock, warm_up=0.0)
    for _ in range(3):
        sampler.visit(candidates, 1.0)
    for number, candidate in enumerate(candidates, start=1):
        series = candidate.series
        assert len(series.visits) == 3 and sum(series.visits) == len(series.samples)
        assert series.samples == pytest.approx([0.001 * number] * len(series.samples))
        assert series.moments == sorted(series.moments)
    text = "".join(log)
    turns = {text[i : i + 6] for i in range(len(text)) if text[i : i + 6] == text[i] * 6}
    assert turns >= {"aaaaaa", "bbbbbb", "cccccc"}
    followers = {text[i : i + 2] for i in range(len(text) - 1)}
    assert {"ab", "ac", "ba", "bc", "ca", "cb"} <= followers  # nobody always comes after the same one


def test_visits_end_when_all_is_known_or_the_limit_is_met() -> None:
    noise = list(np.random.default_rng(RNG_SEED).uniform(0.001, 0.003, 997))
    clock = _Clock()
    hurried = _fake(clock, "a", noise, [])
    _sampler(clock).visit([hurried], 0.2)
    assert timing.BURST <= len(hurried.series.samples) < 10 * timing.BURST and clock.now < 0.4
    steady = _fake(clock, "b", [0.001], [])
    sampler = _sampler(clock)
    for _ in range(timing.MIN_VISITS):
        assert not steady.series.known()
        sampler.visit([steady], 0.05)
    assert steady.series.known()
    before = clock.now
    sampler.visit([steady], 10.0)
    assert clock.now - before < 0.2  # one burst, no more


def test_slow_calls_get_short_bursts_and_at_least_one_sample() -> None:
    clock = _Clock()
    slow = _fake(clock, "a", [2.0], [])
    _sampler(clock).visit([slow], 0.0)
    assert (slow.series.burst, len(slow.series.samples)) == (1, 1)


def test_an_interrupted_visit_keeps_its_samples() -> None:
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
        _sampler(clock).visit([candidate], 10.0)
    assert 10 <= len(candidate.series.samples) < 20
    assert sum(candidate.series.visits) == len(candidate.series.samples)


def test_cold_calls_come_right_after_an_eviction_and_a_warm_input() -> None:
    clock, log = _Clock(), []
    candidate = _fake(clock, "a", [0.001], log)

    class Input:
        def max(self) -> None:
            log.append("input")

    candidate.inputs = (Input(),)  # type: ignore[assignment]
    sampler = _sampler(clock, evict=lambda: log.append("evict"))
    sampler.visit([candidate], 0.05, cold=2)
    assert len(candidate.series.cold) == 2 and log[-6:] == ["evict", "input", "a"] * 2


def test_the_yardstick_is_called_in_every_round() -> None:
    clock, calls = _Clock(), []
    candidate = _fake(clock, "a", list(np.random.default_rng(1).uniform(0.001, 0.003, 97)), [])
    _sampler(clock, yardstick=lambda: calls.append(clock.now)).visit([candidate], 0.3)
    assert len(calls) == len(candidate.series.samples) // candidate.series.burst > 3


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not affinity.available(), reason="this system does not let a process pin its threads")
def test_the_busy_thread_is_found_and_pinned_and_the_caller_is_put_back() -> None:
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("one processor")
    go, done, stop = threading.Event(), threading.Event(), []
    ids: list[int] = []

    def worker() -> None:
        ids.append(threading.get_native_id())
        while True:
            go.wait()
            go.clear()
            if stop:
                return
            end = time.thread_time() + 0.05
            while time.thread_time() < end:
                pass
            done.set()

    thread = threading.Thread(target=worker)
    thread.start()

    def call() -> None:
        done.clear()
        go.set()
        done.wait()

    try:
        place = affinity.Pinner(1).learn(call)
        assert len(os.sched_getaffinity(ids[0])) == 1
        with place():
            assert os.sched_getaffinity(0) == everywhere  # the caller only waits, it stays free
    finally:
        stop.append(True)
        go.set()
        thread.join()

    def own() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    place = affinity.Pinner(1).learn(own)
    with place():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == everywhere


def test_more_threads_than_processors_are_not_pinned() -> None:
    pinner = affinity.Pinner(100_000)
    assert pinner.why_not is not None
    called = []
    with pinner.learn(lambda: called.append(1))():
        assert called == [1]


# --- the machine ------------------------------------------------------------------------------------------------------


def test_roofs_are_measured_and_the_bound_is_the_higher_floor() -> None:
    roofs = roofline.measure_roofs(roofline.levels()[0], 1)
    assert roofs.fma > 1e8 and set(roofs.bandwidth) == {"l2", "l3", "memory"}
    assert all(value > 1e8 for value in roofs.bandwidth.values())
    l2, l3 = roofline.caches()
    known = roofline.Roofs("avx2", 2, 100e9, {"l2": 200e9, "l3": 50e9, "memory": 10e9})
    assert known.level_of(2 * l2) == "l2" and known.level_of(2 * l2 + 1) == "l3" and known.level_of(l3 + 1) == "memory"
    assert known.bound(100e9, 4) == ("compute", 1.0)
    where, seconds = known.bound(1.0, 2 * l2 + 4)
    assert where == "l3" and seconds == pytest.approx((2 * l2 + 4) / 50e9)


def test_the_isa_level_is_put_back() -> None:
    before = roofline.float32_isa()
    with roofline.isa_level("scalar"):
        assert roofline.float32_isa() == "scalar"
    assert roofline.float32_isa() == before


def test_the_yardstick_tells_the_speed_around_a_moment() -> None:
    yardstick = roofline.Yardstick("scalar", 1)
    assert yardstick.around(0.0) == 0.0
    yardstick.moments, yardstick.values = [float(i) for i in range(40)], [1.0] * 20 + [2.0] * 20
    assert yardstick.around(5.0) == 1.0 and yardstick.around(35.0) == 2.0
    assert yardstick.around(1000.0) == 1.5  # nothing near: all of it
    yardstick()
    assert yardstick.values[-1] > 1e8


def test_noise_is_estimated_in_words_and_numbers() -> None:
    noise = roofline.estimate_noise(1, roofline.Yardstick(roofline.float32_isa(), 1), 0.3)
    assert noise["sentence"].startswith("Noise before the run (1 thread)") and "entered twice" in noise["sentence"]
    for key in ("within_percent", "drift_percent", "kernel_percent", "twice_percent"):
        assert 0 <= noise[key] < 1000


def test_busy_machine_is_said() -> None:
    assert machine.busy_warning(3.0, 2) is not None
    assert machine.busy_warning(0.3, 2) is None and machine.busy_warning(None, 2) is None


def test_environment_names_no_path_or_user() -> None:
    import json

    text = json.dumps({k: v for k, v in machine.environment().items() if k != "variables"})
    assert os.path.expanduser("~") == "/" or os.path.expanduser("~") not in text
    assert os.uname().nodename not in text
