"""How rows become comparisons: the four ways of a layer, the winner, ratios against the peers, sums."""

from __future__ import annotations

import pytest
from fastconv.benchmarks import layouts, report
from fastconv.benchmarks.report import curves, tables

from bench_made import Row, full, made_data, made_row, sweep

MAIN = layouts.Setting(2, 1)


def _four(**changes: float) -> list[Row]:
    """The rows of one layer: median exactly as given, in ms."""
    ms = {"nchw": 3.0, "nhwc": 2.0, "im2col": 1.5, "via": 2.5, "peer": 2.2, "bf16": 0.1, **changes}
    rows = {
        "nchw": made_row(1, layout="NCHW", auto=True),
        "nhwc": made_row(1, layout="NHWC", auto=True),
        "im2col": made_row(1, layout="NHWC", algorithm="im2col"),
        "via": made_row(1, layout="NCHW", via="NHWC", algorithm="auto"),
        "peer": made_row(1, provider="pytorch", layout="NHWC"),
        "bf16": made_row(1, provider="pytorch-bf16", layout="NHWC", dtype="bfloat16"),
    }
    return [{**row, "median_ms": ms[name]} for name, row in rows.items() if ms[name]]


def test_the_four_rows_of_a_layer() -> None:
    (c,) = layouts.comparisons(_four())
    found = {way: row["median_ms"] for way in layouts.WAYS if (row := c.way(way))}
    assert found == {"nchw": 3.0, "nhwc": 2.0, "via": 2.5, "peer": 2.2}  # auto, not im2col; float32, not bfloat16
    assert c.nhwc_fastest is not None and c.nhwc_fastest["median_ms"] == 1.5
    assert (c.winner, c.factor, c.clear) == ("nhwc", pytest.approx(1.1), True)
    assert c.ours is c.nhwc and tables.algorithm(c) == "direct (im2col)"


def test_the_conversions_alone_stand_beside_the_way_through_nhwc() -> None:
    alone = made_row(0.3, kind="convert", layout="NCHW->NHWC->NCHW", algorithm="auto")
    other = {**alone, "layer": "b", "median_ms": 9.0}
    (c,) = layouts.comparisons([*_four(), other, alone])
    assert c.convert_ms == alone["median_ms"]
    assert layouts.comparisons([*_four(), other])[0].convert_ms is None
    assert f"{tables.ms(alone['median_ms'])} converting" in report.page(made_data([*_four(), alone]))


def test_a_close_winner_is_not_clear() -> None:
    for changes, spread, clear in (
        ({}, 0.006, True),
        ({"peer": 2.03}, 0.006, False),  # 1.5 % is more than the noise, but not worth a choice
        ({}, 0.08, False),
        ({}, None, False),
    ):
        (c,) = layouts.comparisons([{**row, "spread": spread} for row in _four(**changes)])
        assert (c.winner, c.clear) == ("nhwc", clear)


def test_a_layer_without_a_layout_is_one_row_for_both() -> None:
    rows = [
        made_row(1.0, op="linear", layer="fc", layout="-", auto=True),
        made_row(2.0, op="linear", layer="fc", layout="-", provider="pytorch"),
    ]
    (c,) = layouts.comparisons(rows)
    assert not c.has_layout and c.nchw is c.nhwc and c.winner == "nchw" and c.factor and c.factor > 1.8
    sums, count = layouts.weighted_sums([c, *layouts.comparisons(_four())])
    assert count == 2 and sums["via"] == pytest.approx(rows[0]["median_ms"] + 2.5)
    assert [r.layout for r in layouts.ratios([c])] == ["best"]
    assert layouts.label(rows[1]) == "pytorch" and layouts.label(rows[0]) == "direct"


def test_ratios_sums_and_means() -> None:
    rows = [*_four(), *({**row, "layer": "b", "repeat": 3} for row in _four(nhwc=8.0, nchw=4.0))]
    compared = layouts.comparisons(rows)
    found = {(r.layer, r.layout): r.ratio for r in layouts.ratios(compared)}
    assert found == {
        ("a", "NHWC"): pytest.approx(2 / 2.2),
        ("a", "best"): pytest.approx(2 / 2.2),
        ("b", "NHWC"): pytest.approx(8 / 2.2),
        ("b", "best"): pytest.approx(4 / 2.2),
    }
    same, best = layouts.against(layouts.ratios(compared))
    assert (same.layers, same.won, same.ours_sum_ms) == (2, 1, pytest.approx(2 + 3 * 8))
    assert best.geometric_mean == pytest.approx((2 / 2.2 * 4 / 2.2) ** 0.5)
    assert best.ratio_of_sums == pytest.approx((2 + 3 * 4) / (2.2 + 3 * 2.2))
    assert layouts.weighted_sums(compared) == ({"nchw": 15.0, "nhwc": 26.0, "via": 10.0, "peer": pytest.approx(8.8)}, 2)
    with pytest.raises(ValueError, match="no values"):
        layouts.geometric_mean([])


def test_sums_only_of_the_same_work() -> None:
    rows = [*_four(), *({**row, "layer": "b"} for row in _four(via=0))]
    assert layouts.weighted_sums(layouts.comparisons(rows))[1] == 1
    totals = {t.label: t for t in layouts.totals(rows, layouts.Setting(1, 1))}
    assert "NCHW via NHWC" not in totals and totals["NCHW"].ms == 6.0 and totals["pytorch"].layers == 2


def test_isa_levels_are_settings_and_peers_belong_to_each() -> None:
    rows = [*_four(), *({**row, "isa": "avx2"} for row in _four(nhwc=4.0) if row["provider"] == "fastconv")]
    compared = layouts.comparisons(rows)
    assert [str(c.setting) for c in compared] == ["1 thread, batch 1, avx512", "1 thread, batch 1, avx2"]
    assert [c.peer["median_ms"] for c in compared if c.peer] == [2.2, 2.2]
    assert [c.nhwc["median_ms"] for c in compared if c.nhwc] == [2.0, 4.0]
    assert layouts.main_setting(rows) == compared[0].setting


def test_settings_of_a_run() -> None:
    data = full(batches=(1, 4))
    found = layouts.settings(data["rows"])
    assert [(s.threads, s.batch) for s in found] == [(t, n) for t in (1, 2) for n in (1, 4)]
    assert layouts.main_setting(data["rows"]) == MAIN and str(MAIN) == "2 threads, batch 1"
    assert layouts.main_setting([]) is None
    totals = layouts.totals(data["rows"], MAIN)
    assert {"NCHW", "NHWC", "NCHW via NHWC", "pytorch NCHW", "openvino", "pytorch-bf16 NHWC"} <= {
        t.label for t in totals
    }


def test_where_the_winner_changes() -> None:
    points = layouts.sweep_points(sweep())
    assert [value for value, _ in points] == [4, 8, 16, 32, 64, 128]
    assert curves.crossings(points) == [(16, 32, "nchw", "nhwc")]
    by_problem = {**sweep(), "rows": [{**r, "sweep_value": 0} for r in sweep()["rows"]]}
    assert layouts.sweep_points(by_problem) == []
    for row in by_problem["rows"]:
        del row["sweep_value"]
    assert [value for value, _ in layouts.sweep_points(by_problem)] == [4, 8, 16, 32, 64, 128]
