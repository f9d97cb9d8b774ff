"""Two runs compared, and the file that holds one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import compare, resampling, schema

from bench_helpers import RNG_SEED, data, noisy, row


def _rng() -> np.random.Generator:
    return np.random.default_rng(RNG_SEED)


def test_ten_per_cent_slower_is_slower_and_equal_runs_are_the_same() -> None:
    """What is asked of two equal runs (5 % UNSURE, 1 % wrong), on noise like that of a shared machine: rows whose
    visits differ by 2 %, while the whole machine is up to 10 % slower in the second run."""
    rng = _rng()
    counts = {"slower": 0, "faster": 0, "unsure": 0, "wrong": 0}
    for _ in range(300):
        speed = rng.uniform(0.9, 1.0)
        a, b = row(*noisy(rng, 1.0, between=0.02)), row(*noisy(rng, 1.0, between=0.02, clock=[speed] * 5))
        slow = row(*noisy(rng, 1.1, between=0.02, clock=[speed] * 5))
        counts["slower"] += compare.compare_rows(a, slow).verdict == "SLOWER"
        counts["faster"] += compare.compare_rows(slow, a).verdict == "FASTER"
        equal = compare.compare_rows(a, b).verdict
        counts["unsure"] += equal == "UNSURE"
        counts["wrong"] += equal in ("SLOWER", "FASTER")
    assert counts["slower"] >= 295 and counts["faster"] >= 295
    assert counts["unsure"] <= 15 and counts["wrong"] <= 3


def test_the_interval_knows_that_visits_differ() -> None:
    """95 % intervals of the ratio of two equal rows must hold 1 most of the time, though visits differ more than
    bursts do."""
    rng = _rng()
    held = 0
    for _ in range(200):
        change = compare.compare_rows(row(*noisy(rng, 1.0, 6, between=0.03)), row(*noisy(rng, 1.0, 6, between=0.03)))
        held += change.low <= 1.0 <= change.high
    assert held >= 174  # a bootstrap of six visits is a little too narrow; of bursts alone it would hold about 100


def test_runs_are_set_to_one_clock_on_one_machine_only() -> None:
    rng = _rng()
    a = data([row(*noisy(rng, 1.0))])
    b = data([row(*noisy(rng, 1.0, clock=[0.8] * 5))])
    (change,) = compare.compare(a, b)
    assert change.verdict == "SAME" and change.raw == pytest.approx(1.25, rel=0.03)
    assert change.ratio == pytest.approx(1.0, abs=0.03)
    assert compare.compare(a, b, one_clock=False)[0].verdict == "SLOWER"
    assert any("clock in B was -20" in line for line in compare.differences(a, b))
    b["environment"] = {"machine": {"cpu": "another", "isa": "avx2", "isa_found": "avx2"}, "versions": {}}
    assert compare.compare(a, b)[0].verdict == "SLOWER"
    assert any("processor differs" in line for line in compare.differences(a, b))


def test_rows_that_memory_bounds_do_not_follow_the_core_clock() -> None:
    rng = _rng()
    a = row(*noisy(rng, 1.0), bound="l3")
    b = row(noisy(rng, 1.0)[0], a["visits"], [320.0] * 5, bound="l3")  # a slower clock, the same time
    assert compare.compare_rows(a, b).verdict == "SAME"
    assert compare.compare_rows({**a, "bound": "l2"}, {**b, "bound": "l2"}).verdict == "FASTER"


@pytest.mark.parametrize(
    ("ratio", "low", "high", "word"),
    [
        (1.06, 1.03, 1.09, "SLOWER"),
        (1.06, 1.02, 1.10, "UNSURE"),
        (1.04, 1.03, 1.05, "SAME"),
        (1.0, 0.95, 1.09, "SAME"),
        (1.0, 0.85, 1.2, "UNSURE"),
        (1.04, 1.0, 1.12, "UNSURE"),
        (0.94, 0.90, 0.97, "FASTER"),
        (0.94, 0.90, 0.98, "UNSURE"),
    ],
)
def test_the_rule_of_the_words(ratio: float, low: float, high: float, word: str) -> None:
    assert compare.word(ratio, low, high, 0.05) == word


def test_little_evidence_is_unsure() -> None:
    rng = _rng()
    assert compare.compare_rows(row([1.0] * 5), row([2.0] * 5)).verdict == "UNSURE"
    wild = rng.uniform(0.5, 1.5, 50)
    assert compare.compare_rows(row(wild), row(rng.uniform(0.5, 1.5, 50))).verdict == "UNSURE"


def test_compare_pairs_rows_and_fails_on_a_limit() -> None:
    rng = _rng()
    a = data([row(*noisy(rng, 1.0)), row(*noisy(rng, 3.0), layout="NCHW"), row([1.0] * 5, layer="gone")])
    b = data([row(*noisy(rng, 3.0), layout="NCHW"), row(*noisy(rng, 1.1)), row([1.0] * 5, via="NHWC")])
    changes = compare.compare(a, b)
    assert [(c.row["layout"], c.verdict) for c in changes] == [("NHWC", "SLOWER"), ("NCHW", "SAME")]
    assert compare.geometric_mean(changes) == pytest.approx(1.1**0.5, rel=0.03)
    assert [c.row["layout"] for c in compare.failures(changes, compare.parse_threshold("median:5%"))] == ["NHWC"]
    assert compare.failures(changes, compare.parse_threshold("median:20%")) == []
    assert any("1 row only in A" in line for line in compare.differences(a, b))
    with pytest.raises(ValueError, match="no row in common"):
        compare.compare(a, data([row([1.0] * 5, layer="other")]))


def test_a_limit_below_the_margin_can_fail() -> None:
    """3 % slower is the SAME with a margin of 6 %, and yet more than 1 %."""
    rng = _rng()
    a, b = (data([row(*noisy(rng, level, 10, 10, between=0.002))]) for level in (1.0, 1.03))
    changes = compare.compare(a, b, margin=0.06)
    assert changes[0].verdict == "SAME"
    for limit, fails in (("1%", True), ("2.9%", False), ("5%", False)):
        found = compare.failures(changes, compare.parse_threshold(f"median:{limit}"))
        assert bool(found) is fails, limit
    assert compare.failures(changes, compare.parse_threshold("p10:1%")) == changes


def test_a_limit_on_the_tail_fails_by_the_tail() -> None:
    """The median stays; every fifth call takes twice as long."""
    usual = 1 + 0.01 * _rng().random(200)
    tail = usual.copy()
    tail[::5] *= 2
    changes = compare.compare(data([row(usual)]), data([row(tail)]))
    failing = {
        name for name in ("median", "min", "p10", "p90")
        if compare.failures(changes, compare.parse_threshold(f"{name}:50%"))
    }  # fmt: skip
    assert failing == {"p90"}
    same = compare.compare(data([row(tail)]), data([row(tail)]))
    assert compare.failures(same, compare.parse_threshold("p90:1%")) == []


@pytest.mark.parametrize("text", ["median", "mean:5%", "median:x%", "median:-5%", ""])
def test_bad_threshold(text: str) -> None:
    with pytest.raises(ValueError, match=r"fail-if.*median:5%"):
        compare.parse_threshold(text)


def test_threshold_forms() -> None:
    assert compare.parse_threshold("median:5%") == compare.Threshold("median", 0.05)
    assert compare.parse_threshold("p90:0.1") == compare.Threshold("p90", 0.1)


def test_resampling_repeats_and_spreads() -> None:
    one = row(*noisy(_rng(), 2.0))
    first, again = (resampling.resampled_medians(one, 7) for _ in range(2))
    assert (first == again).all() and first.std() > 0
    low, high = resampling.interval(first)
    assert low < 2.0 * 1.02 and high > 2.0 * 0.98 and high - low < 0.2


# --- the file ---------------------------------------------------------------------------------------------------------


def test_file_round_trip(tmp_path: Path) -> None:
    result = data([row(*noisy(_rng(), 1.0))])
    path = tmp_path / "a.json"
    path.write_text("old")
    schema.save(result, path)
    assert schema.load(path) == result
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError):
        schema.save({**result, "noise": {"within_percent": float("nan")}}, path)
    assert schema.load(path) == result


def _without(key: str) -> Any:
    return lambda d: d.pop(key)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without("schema"), "not a result"),
        (lambda d: d.update(schema=1), "schema 1, from an older fastconv"),
        (lambda d: d.update(schema=3), "schema 3 is not 2"),
        (_without("rows"), "'rows' is missing"),
        (_without("sweep"), "'sweep' is missing"),
        (lambda d: d.update(rows={}), "'rows' is of the wrong kind"),
        (lambda d: d.update(notes=[3]), "'notes' holds something"),
        (lambda d: d.update(skipped=[{}]), "skipped 1 has not layer"),
        (lambda d: d["rooflines"][0].pop("fma_gflops"), "roofline 1 has not fma_gflops"),
        (lambda d: d["rooflines"][0]["bandwidth"].update(l2=0), "a bandwidth is not"),
        (lambda d: d["rows"].append(3), "row 2 is not an object"),
        (lambda d: d["rows"][0].pop("median_ms"), "row 1: 'median_ms' is missing"),
        (lambda d: d["rows"][0].update(threads="2"), "'threads' is of the wrong kind"),
        (lambda d: d["rows"][0].update(burst=0), "'burst' is 0"),
        (lambda d: d["rows"][0].update(samples_ms=[]), "no samples"),
        (lambda d: d["rows"][0].update(samples_ms=[1.0, None]), "a time of None"),
        (lambda d: d["rows"][0].update(samples_ms=[1.0, -1.0]), "a time of -1.0"),
        (lambda d: d["rows"][0].update(cold_ms=[0]), "a time of 0"),
        (lambda d: d["rows"][0].update(visits=[9]), "'visits' does not add up to the 10 samples"),
        (lambda d: d["rows"][0].update(clock=[]), "'clock' has not a number for each"),
        (lambda d: d["rows"][0].update(median_ms=float("nan")), "a time of nan"),
    ],
)
def test_damaged_files_say_so(damage: Any, words: str, tmp_path: Path) -> None:
    result = copy.deepcopy(data([row([1.0] * 10)]))
    damage(result)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError) as caught:
        schema.load(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3"])
def test_files_that_are_no_result(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        schema.load(path)
