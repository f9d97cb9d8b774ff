"""What the tuner makes of samples: another driver only where it is clearly faster, for all settings together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks.tune import choices, measure

import bench_helpers
from fastconv import _tuning

PROBLEM = "ic64 ih56 iw56 oc64 oh56 ow56 kh3 kw3 sh1 sw1 pt1 pb1 pl1 pr1"
SETTINGS = [(1, 1), (2, 8)]
DEFAULT, OTHER, THIRD = "conv_direct", "conv_im2col", "conv_winograd_f23"


def rows(times: dict[str, Any], seed: int = 0, settings: Any = SETTINGS, **changes: Any) -> list[dict[str, Any]]:
    """Rows of one layer, the first driver the default's. `times`: ms in each setting, or (warm, cold)."""
    rng = np.random.default_rng(seed)
    found = []
    for at, (threads, batch) in enumerate(settings):
        # The machine's speed goes up and down from visit to visit and from round to round, for all drivers alike.
        speed = np.repeat(1 + 0.3 * np.abs(rng.standard_normal((5, 6))), 5)
        for number, (driver, given) in enumerate(times.items()):
            warm, cold = given[at] if isinstance(given[at], tuple) else (given[at], None)
            samples = warm * speed * (1 + 0.02 * np.abs(rng.standard_normal(150)))
            cold_ms = [] if cold is None else list(cold * (1 + 0.05 * np.abs(rng.standard_normal(8))))
            row = bench_helpers.row(
                samples, [30] * 5, algorithm=driver, auto=number == 0, threads=threads, batch=batch, cold_ms=cold_ms,
                planned=("NHWC", PROBLEM),
            )  # fmt: skip
            found.append({**row, **changes})
    return found


def decided(times: dict[str, Any], **options: Any) -> choices.Decision:
    (found,) = choices.decide(rows(times, **options), options.get("settings", SETTINGS))
    return found


def test_a_clearly_faster_driver_is_taken() -> None:
    found = decided({DEFAULT: (1.0, 4.0), OTHER: (0.9, 3.6), THIRD: (0.95, 3.8)})
    assert (found.untuned, found.tuned, found.changed, found.sure) == (DEFAULT, OTHER, True, True)
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.9, abs=0.01)
    assert found.ratio.low < found.ratio.value < found.ratio.high < 0.93
    assert "winograd_f23: 0.95" in found.why()


@pytest.mark.parametrize("seed", range(8))
def test_equal_drivers_stay(seed: int) -> None:
    """The machine's speed varies by tens of per cent; the ratios do not."""
    found = decided({DEFAULT: (1.0, 4.0), OTHER: (1.0, 4.0), THIRD: (0.98, 3.92)}, seed=seed)
    assert (found.tuned, found.changed, found.sure, found.ratio) == (DEFAULT, False, True, None)


def test_all_settings_count_alike() -> None:
    """10 % slower in one and 16 % faster in the other are nothing that a choice could use; nor is a harm of 12 %."""
    assert not decided({DEFAULT: (1.0, 4.0), OTHER: (1.04, 3.8)}).changed
    assert decided({DEFAULT: (1.0, 4.0), OTHER: (1.02, 3.2)}).changed
    harmful = decided({DEFAULT: (1.0, 4.0), OTHER: (1.12, 2.0)})
    assert not harmful.changed
    assert "but 1.12 with 1 thread, batch 1" in harmful.why()
    second = decided({DEFAULT: (1.0, 4.0), OTHER: (1.12, 2.0), THIRD: (0.9, 3.6)})
    assert second.tuned == THIRD, "the best of those that harm nowhere"


def test_cold_calls_are_half_of_a_setting() -> None:
    one = [(2, 1)]
    found = decided({DEFAULT: [(1.0, 2.0)], OTHER: [(0.8, 2.5)]}, settings=one)
    assert not found.changed and found.ways[0].overall is not None
    assert found.ways[0].overall.value == pytest.approx(1.0, abs=0.03)
    found = decided({DEFAULT: [(1.0, 2.0)], OTHER: [(0.8, 2.0)]}, settings=one)
    assert found.ratio is not None and found.ratio.value == pytest.approx(0.8**0.5, abs=0.03)


def test_too_few_samples_decide_nothing() -> None:
    given = rows({DEFAULT: (1.0, 4.0), OTHER: (0.5, 2.0)})
    for row in given:
        row.update(samples_ms=row["samples_ms"][:60], visits=[30, 30])  # two visits
    (found,) = choices.decide(given, SETTINGS)
    assert (found.changed, found.sure, found.why()) == (False, False, "im2col: too few samples")
    given = [row for row in rows({DEFAULT: (1.0, 4.0), OTHER: (0.5, 2.0)}) if row["batch"] == 1]
    (found,) = choices.decide(given, SETTINGS)
    assert (found.changed, found.sure) == (False, False), "a setting is missing"
    cold = rows({DEFAULT: [(1.0, 2.0)], OTHER: [(0.5, 1.0)]}, settings=[(1, 1)])
    for row in cold:
        row["cold_ms"] = row["cold_ms"][:2]
    (found,) = choices.decide(cold, [(1, 1)])
    assert not found.changed and not found.sure


def test_what_was_given_up_is_judged() -> None:
    given = [row for row in rows({DEFAULT: (1.0, 4.0), OTHER: (3.0, 2.0)}) if row["batch"] == 1 or row["auto"]]
    (found,) = choices.decide(given, SETTINGS, {("avx2", "NHWC", PROBLEM, OTHER)})
    assert (found.changed, found.sure, found.why()) == (False, True, "im2col: far slower")


def test_layers_layouts_and_levels_are_apart() -> None:
    given = []
    for isa in ("avx2", "avx512"):
        for layout in ("NHWC", "NCHW"):
            for problem in ("ic1", "ic2"):
                fast = 0.5 if (isa, layout, problem) == ("avx512", "NCHW", "ic2") else 1.0
                given += rows({DEFAULT: (1.0, 4.0), OTHER: (fast, 4 * fast)}, isa=isa, planned=(layout, problem))
    given.append(bench_helpers.row([1.0], kind="network", algorithm="tuned"))
    found = choices.decide(given, SETTINGS)
    assert len(found) == 8
    assert [(d.isa, d.layout, d.problem) for d in found if d.changed] == [("avx512", "NCHW", "ic2")]
    lines = choices.table(found)
    assert len(lines) == 10 and lines[0].split()[:5] == ["layer", "layout", "isa", "untuned", "tuned"]


def test_a_choice_in_the_file_is_one_that_the_package_reads(tuned: Any) -> None:
    import fastconv as fc

    decision = decided({DEFAULT: (1.0, 4.0), OTHER: (0.9, 3.6)}, isa=fc._core.isa())
    state = tuned.use(decision.choice())
    assert (state.problem, len(state.here)) == ("", 1)
    assert _tuning.key_of(decision.choice()) == _tuning.key_of(decision.key())
    lines = choices.stored_table(state.here)
    assert lines[-1].split()[:6] == ["l1", "NHWC", fc._core.isa(), "direct", "im2col", f"{decision.ratio.value:.3f}"]
    hostile = {**decision.choice(), "layer": "\x1b[2J\n" * 99, "ratio": "x"}
    line = choices.stored_table([hostile])[-1]
    assert line.isprintable() and len(line) < 400


def test_no_two_that_follow_each_other_are_changed_at_once() -> None:
    assert measure.apart(["a", "b", "a", "b", "c", "c", "a"]) == [["a"], ["b"], ["c"]]
    assert measure.apart(["stem", "x", "y", "x", "y", "z"]) == [["stem", "y"], ["x", "z"]]
    assert measure.apart(["alone"]) == [["alone"]]
