"""The result in words, and where a winner changes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import crossover, problem, verdict

from bench_helpers import RNG_SEED, data, noisy, row


def _words(*rows: dict[str, Any], **changes: Any) -> list[str]:
    return verdict.verdict(data(list(rows), **changes))


@pytest.fixture
def make() -> Any:
    rng = np.random.default_rng(RNG_SEED)
    return lambda median, **changes: row(*noisy(rng, median), **changes)


def test_words_weigh_by_repeat_count(make: Any) -> None:
    """NHWC loses the layer that runs once and wins the one that runs ten times."""
    last = _words(
        make(2.0, layer="once", layout="NHWC"), make(1.0, layer="once", layout="NCHW"),
        make(1.0, layer="often", layout="NHWC", repeat=10), make(1.5, layer="often", layout="NCHW", repeat=10),
    )[-1]  # fmt: skip
    assert last.startswith("Use NHWC with im2col here (2 threads, batch 1): 2 layers, 11 with repeats take ")
    times = [float(number) for number in re.findall(r"(\d+\.\d+) ms", last)]
    assert times == pytest.approx([12.0, 16.0], rel=0.03) and "NCHW im2col" in last and "within the noise" not in last


def test_words_admit_noise_and_partial_algorithms(make: Any) -> None:
    rows = [make(1.0), make(1.005, layout="NCHW")]
    assert "within the noise" in _words(*rows, make(9.0, layer="l2"), make(9.0, layer="l2", layout="NCHW"))[-1]
    few = [row([1.0] * 15), row([2.0] * 15, layout="NCHW")]
    assert all("oo few samples to be sure" in line for line in _words(*few))
    rows += [make(0.1, layer="l2", algorithm="depthwise"), make(0.2, layer="l2")]
    assert any("NHWC depthwise runs 1 of 2" in line for line in _words(*rows))
    assert _words() == ["Nothing was measured that could be compared."]


def test_a_sure_but_small_difference_is_no_noise() -> None:
    exact = np.tile([1.0, 1.0001, 1.0002, 1.0003, 1.0004], 20)
    for kind in ("layer", "network"):
        last = _words(row(exact, kind=kind), row(1.01 * exact, kind=kind, layout="NCHW"))[-1]
        assert last.startswith("Use NHWC") and "too small to matter" in last and "noise" not in last


def test_the_last_line_says_what_to_use(make: Any) -> None:
    def net(median: float, **changes: Any) -> dict[str, Any]:
        return make(median, kind="network", algorithm="auto", layer="resnet50", **changes)  # type: ignore[no-any-return]

    # The network alone, in both layouts and in one.
    last = _words(net(9.0), net(5.0, layout="NCHW"))[-1]
    assert last.startswith("Use NCHW here (2 threads, batch 1): resnet50 end to end takes ")
    assert "NHWC 9." in last or "NHWC 8.9" in last
    (last,) = _words(net(9.0))
    assert last.startswith("Use NHWC here (2 threads, batch 1; only NHWC was measured): resnet50")
    # Layers of one layout.
    last = _words(make(1.0), make(2.0, algorithm="direct"))[-1]
    assert last.startswith("Use NHWC with im2col here (2 threads, batch 1; only NHWC was measured): ")
    # Layers and network that disagree.
    last = _words(make(1.0), make(2.0, layout="NCHW"), net(9.0), net(5.0, layout="NCHW"))[-1]
    assert last.startswith("Use NHWC with im2col") and last.endswith("End to end, resnet50 is faster in NCHW.")
    # No algorithm that runs all layers; no layout that does.
    parts = [make(1.0, algorithm="direct"), make(1.0, layer="l2"), make(9.0, layer="l2", layout="NCHW")]
    assert _words(*parts)[-1].startswith("Use NHWC with the fastest algorithm of each layer here (2 threads")
    parts = [make(1.0), make(1.0, layer="l2", layout="NCHW")]
    assert _words(*parts)[-1].startswith("Use the fastest row of each layer (2 threads, batch 1)")
    # Several numbers of threads: alike and not.
    two, one = [make(1.0), make(2.0, layout="NCHW")], [make(2.0, threads=1), make(3.0, threads=1, layout="NCHW")]
    last = _words(*two, *one)[-1]
    assert last == "Use NHWC with im2col here, in all that was measured: 2 threads, batch 1; 1 thread, batch 1."
    one = [make(4.0, threads=1), make(3.0, threads=1, layout="NCHW")]
    last = _words(*two, *one)[-1]
    assert last == "Use here: NHWC with im2col for 2 threads, batch 1; NCHW with im2col for 1 thread, batch 1."
    # ISA levels are named where there are several.
    lines = _words(make(1.0), make(2.0, isa="scalar"))
    assert "avx2, 2 threads, batch 1" in lines[-1] and "scalar, 2 threads, batch 1" in lines[-1]


def test_the_way_through_nhwc_and_peers_have_their_words(make: Any) -> None:
    rows = [make(2.0, layout="NCHW"), make(1.0), make(1.2, layout="NCHW", via="NHWC", algorithm="auto")]
    lines = _words(*rows)
    assert any(line.startswith("NCHW arrays (l1): ") and "the way through NHWC is 1." in line for line in lines)
    assert lines[-1].startswith("Use NHWC with im2col")  # a row with conversions stands for no layout
    peers = [
        make(2.0, provider="onnx", layout="NCHW", algorithm="-", isa=""),
        make(0.1, provider="torch", algorithm="-", dtype="bfloat16", isa=""),
        make(4.0, provider="onnx", layout="NCHW", algorithm="-", isa="", kind="network", layer="resnet50"),
        make(3.0, kind="network", layer="resnet50", algorithm="auto"),
    ]
    lines = _words(*rows, *peers)
    assert any("ahead on 1 of 1, geometric mean 0.5" in line or "geometric mean 0.49" in line for line in lines)
    assert any(line.startswith("resnet50 (2 threads, batch 1) against the best peer, onnx NCHW: ") for line in lines)


# --- crossover --------------------------------------------------------------------------------------------------------


def test_grid_and_where_to_look_next() -> None:
    assert crossover.grid(1, 64) == [1, 2, 4, 8, 16, 32, 64]
    assert crossover.grid(5, 5) == [5]
    with pytest.raises(ValueError, match="got 8 and 4"):
        crossover.grid(8, 4)
    found = {v: crossover.Winner(v, "a" if v < 20 else "b", {}) for v in (1, 4, 16, 64)}
    assert crossover.between(found) == [32]
    found[32] = crossover.Winner(32, "b", {})
    assert crossover.between(found) == [23]
    assert crossover.between(found, step=8) == [24]
    assert crossover.between({1: crossover.Winner(1, "a", {}), 2: crossover.Winner(2, "b", {})}) == []


def test_the_crossing_is_found_to_the_value(make: Any) -> None:
    """A made-up machine on which NCHW takes 10 + v and NHWC 40: the search must end at 29 | 31, with ties between."""
    found: dict[int, crossover.Winner] = {}
    values = crossover.grid(1, 128)
    for _ in range(8):
        for v in values:
            rows = [make(10.0 + v, layout="NCHW"), make(40.0)]
            found[v] = crossover.winner(rows, v)
        values = crossover.between(found)
    names = {v: w.name for v, w in found.items()}
    assert names[1] == "NCHW im2col" and names[128] == "NHWC im2col"
    assert max(v for v, n in names.items() if n == "NCHW im2col") >= 26
    assert min(v for v, n in names.items() if n == "NHWC im2col") <= 35
    lines = crossover.sentences("l1", "width", found)
    assert lines[-1].startswith("Use NCHW im2col below; from a width between ")
    assert lines[-1].endswith("on NHWC im2col is faster than NCHW im2col.")
    assert lines[0].startswith("l1, width 1 to ")


def test_words_of_a_crossover_without_a_crossing() -> None:
    same = {v: crossover.Winner(v, "NHWC direct", {}) for v in (1, 2, 4)}
    assert (
        crossover.sentences("l", "batch", same)[-1] == "Use NHWC direct: the winner does not change from batch 1 to 4."
    )
    tie = {v: crossover.Winner(v, None, {}) for v in (1, 2)}
    assert crossover.sentences("l", "batch", tie)[-1].startswith("No way is faster by more than the noise")
    assert crossover.sentences("l", "batch", {}) == ["l: nothing was measured."]


def test_a_sweep_ends_with_its_own_words(make: Any) -> None:
    sweep = {"vary": "n", "layer": "l1", "values": [1], "sentences": ["Use NHWC im2col: so it is."]}
    assert _words(make(1.0), make(2.0, layout="NCHW"), sweep=sweep)[-1] == "Use NHWC im2col: so it is."


def test_values_that_do_not_fit_the_layer_are_refused_at_once() -> None:
    from fastconv.benchmarks import runner

    layer = problem.parse_problem("l ic64 ih9 oc64 kh3 ph1")
    settings = runner.Settings(problem.Suite("typed", (layer,)))
    assert crossover.Search(layer, "width", 3, 9, settings).values[0] == 3
    tall = problem.parse_problem("l ic64 ih9 oc64 kh7")
    with pytest.raises(ValueError, match="fit"):
        crossover.Search(tall, "width", 3, 9, settings)
