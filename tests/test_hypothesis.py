"""Drawn problems: shapes, strides in memory, padding forms, dilation, groups, algorithm, layout, ISA level. Exact on
integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import (
    LAYOUTS,
    MEMORY_FORMS,
    WRITABLE_FORMS,
    cpu_conv_kernels,
    forced_name,
    integers,
    max_isa,
    usable_levels,
)

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ALGORITHMS = [
    "auto",
    *sorted({name for row in cpu_conv_kernels() for name in (str(row["algorithm"]), forced_name(row))}),
]

# Derandomised, so that two runs of the suite test the same; the slow run draws more and anew.
quick = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
long = settings(max_examples=6000, deadline=None, suppress_health_check=[HealthCheck.too_slow])

small = st.integers(1, 3)
# Extents around the register tiles and vectors as often as small ones.
extent = st.one_of(st.integers(1, 9), st.sampled_from([13, 14, 15, 16, 17, 28, 31, 32, 33]))
channels = st.one_of(st.integers(1, 6), st.sampled_from([8, 9, 15, 16, 17, 31, 32, 33, 48]))
seeds = st.integers(0, 2**32 - 1)


@st.composite
def paddings(draw: st.DrawFn, *, pooling: tuple[int, int] | None = None) -> Any:
    """Any form; for pooling at most half of the reach given."""
    words = ["valid", "same", "same_lower"] + ([] if pooling else ["full"])
    limits = (pooling[0] // 2, pooling[1] // 2) if pooling else (4, 4)
    rows, columns = st.integers(0, limits[0]), st.integers(0, limits[1])
    return draw(
        st.one_of(
            st.integers(0, min(limits)),
            st.tuples(rows, columns),
            st.tuples(st.tuples(rows, rows), st.tuples(columns, columns)),
            st.sampled_from(words),
        )
    )


@st.composite
def conv_problems(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.one_of(st.just(1), st.integers(1, 6), st.sampled_from([8, 16, 17, 33])))
    if groups > 6:
        icg, ocg = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    else:
        icg, ocg = draw(channels), draw(channels)
        icg, ocg = max(1, icg // groups), max(1, ocg // groups)
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    return {
        "n": draw(small),
        "groups": groups,
        "icg": icg,
        "ocg": ocg,
        "size": (draw(extent), draw(extent)),
        "kernel": kernel,
        "stride": draw(st.one_of(st.just((1, 1)), st.tuples(st.integers(1, 5), st.integers(1, 5)))),
        "dilation": draw(st.one_of(st.just((1, 1)), st.tuples(small, small))),
        "padding": draw(paddings()),
        "bias": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, "relu"])),
        "algorithm": draw(st.sampled_from(ALGORITHMS)),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "weight_layout": draw(st.sampled_from([None, "OIHW", "OHWI", "HWIO"])),
        "isa": draw(st.sampled_from(usable_levels())),
        "batched": draw(st.booleans()),
        "forms": [draw(st.sampled_from(sorted(MEMORY_FORMS))) for _ in range(4)],
        "out": draw(st.one_of(st.none(), st.sampled_from(sorted(WRITABLE_FORMS)))),
        "seed": draw(seeds),
    }


def check_conv(problem: dict[str, Any]) -> None:
    rng = np.random.default_rng(problem["seed"])
    layout, groups = problem["layout"], problem["groups"]
    ic, oc = problem["icg"] * groups, problem["ocg"] * groups
    geometry = (problem["size"], problem["kernel"], problem["stride"], problem["dilation"])
    sides = ref.resolve_padding(problem["padding"], *geometry)
    size = [
        ref.conv_output_size(
            problem["size"][i], problem["kernel"][i], problem["stride"][i], sides[i], problem["dilation"][i]
        )
        for i in (0, 1)
    ]
    weight_layout = problem["weight_layout"] or ("OIHW" if layout == "NCHW" else "OHWI")
    first, second, third, fourth = (MEMORY_FORMS[form] for form in problem["forms"])
    lead = (problem["n"],) if problem["batched"] else ()
    x = first(np.ascontiguousarray(ref.from_nchw(integers(rng, *lead, ic, *problem["size"]), layout)))
    w = second(
        np.ascontiguousarray(ref.weight_from_oihw(integers(rng, oc, problem["icg"], *problem["kernel"]), weight_layout))
    )
    options: dict[str, Any] = {
        name: problem[name]
        for name in ("stride", "padding", "dilation", "groups", "activation", "layout", "weight_layout")
    }
    if problem["bias"]:
        options["bias"] = third(integers(rng, oc))
    with max_isa(problem["isa"]):
        if min(size) < 1:
            with pytest.raises(ValueError, match="kernel"):
                fc.conv2d(x, w, algorithm=problem["algorithm"], **options)
            return
        if problem["residual"]:
            options["residual"] = fourth(np.ascontiguousarray(ref.from_nchw(integers(rng, *lead, oc, *size), layout)))
        expected = ref.conv2d(x, w, **options)
        if problem["out"]:
            options["out"] = WRITABLE_FORMS[problem["out"]](np.full(expected.shape, np.nan, np.float32))
        try:
            actual = fc.conv2d(x, w, algorithm=problem["algorithm"], **options)
        except NotImplementedError as refusal:
            assert problem["algorithm"] not in ("auto", "reference", "direct", "im2col"), refusal
            return
    assert not problem["out"] or actual is options["out"]
    ref.assert_exact(actual, expected)


@given(conv_problems())
@quick
def test_conv2d(problem: dict[str, Any]) -> None:
    check_conv(problem)


@pytest.mark.slow
@given(conv_problems())
@long
def test_conv2d_long(problem: dict[str, Any]) -> None:
    check_conv(problem)


@st.composite
def pool_problems(draw: st.DrawFn) -> dict[str, Any]:
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    average = draw(st.booleans())
    dilation = (1, 1) if average else draw(st.one_of(st.just((1, 1)), st.tuples(small, small)))
    reach = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
    return {
        "shape": (draw(small), draw(channels), draw(extent), draw(extent)),
        "kernel": kernel,
        "average": average,
        "stride": draw(st.one_of(st.none(), st.tuples(st.integers(1, 5), st.integers(1, 5)))),
        "dilation": dilation,
        "padding": draw(paddings(pooling=reach)),
        "ceil_mode": draw(st.booleans()),
        "include": draw(st.booleans()),
        "divisor": draw(st.sampled_from([None, 1, 2, 3, -4])),
        "special": draw(st.sampled_from([None, np.nan, np.inf, -np.inf])),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "isa": draw(st.sampled_from(usable_levels())),
        "form": draw(st.sampled_from(sorted(MEMORY_FORMS))),
        "seed": draw(seeds),
    }


def check_pool(problem: dict[str, Any]) -> None:
    rng = np.random.default_rng(problem["seed"])
    layout, kernel, ceil_mode = problem["layout"], problem["kernel"], problem["ceil_mode"]
    stride = problem["stride"] or kernel
    x = integers(rng, *problem["shape"])
    if problem["special"] is not None and not problem["average"]:
        x[rng.random(x.shape) < 0.1] = problem["special"]
    x = problem["form"] and MEMORY_FORMS[problem["form"]](np.ascontiguousarray(ref.from_nchw(x, layout)))
    sides = ref.resolve_padding(problem["padding"], problem["shape"][2:], kernel, stride, problem["dilation"])
    size = [
        ref.pool_output_size(problem["shape"][2 + i], kernel[i], stride[i], sides[i], problem["dilation"][i], ceil_mode)
        for i in (0, 1)
    ]
    too_small = any(
        problem["shape"][2 + i] + sum(sides[i]) < problem["dilation"][i] * (kernel[i] - 1) + 1 or size[i] < 1
        for i in (0, 1)
    )
    with max_isa(problem["isa"]):
        if problem["average"]:
            arguments: tuple[Any, ...] = (
                kernel,
                problem["stride"],
                problem["padding"],
                ceil_mode,
                problem["include"],
                problem["divisor"],
            )
            if too_small:
                with pytest.raises(ValueError, match="kernel"):
                    fc.avg_pool2d(x, *arguments, layout=layout)
                return
            ref.assert_avg_pool_close(
                fc.avg_pool2d(x, *arguments, layout=layout), ref.avg_pool2d(x, *arguments, layout=layout), integers=True
            )
            return
        arguments = (kernel, problem["stride"], problem["padding"], problem["dilation"], ceil_mode)
        if too_small:
            with pytest.raises(ValueError, match="kernel"):
                fc.max_pool2d(x, *arguments, layout=layout)
            return
        values, indices = ref.max_pool2d(x, *arguments, layout=layout)
        got_values, got_indices = fc.max_pool2d(x, *arguments, return_indices=True, layout=layout)
    ref.assert_exact(got_values, values)
    chosen = indices >= 0
    np.testing.assert_array_equal(got_indices[chosen], indices[chosen])


@given(pool_problems())
@quick
def test_pooling(problem: dict[str, Any]) -> None:
    check_pool(problem)


@pytest.mark.slow
@given(pool_problems())
@long
def test_pooling_long(problem: dict[str, Any]) -> None:
    check_pool(problem)


@given(
    shape=st.lists(st.one_of(st.integers(1, 4), st.sampled_from([7, 8, 15, 16, 17, 33])), min_size=1, max_size=4),
    dim=st.integers(0, 3),
    scale=st.sampled_from([0.0, 0.5, 8.0, 60.0]),
    form=st.sampled_from(sorted(MEMORY_FORMS)),
    isa=st.sampled_from(usable_levels()),
    seed=seeds,
)
@quick
def test_softmax_and_relu(shape: list[int], dim: int, scale: float, form: str, isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = MEMORY_FORMS[form]((rng.standard_normal(shape) * scale).astype(np.float32))
    axis = dim % len(shape)
    with max_isa(isa):
        ref.assert_softmax_close(fc.softmax(x, axis), x, axis)
        ref.assert_exact(fc.relu(x), np.maximum(x, 0))


@given(
    shape=st.tuples(small, channels, extent, extent),
    layout=st.sampled_from(LAYOUTS),
    form=st.sampled_from(sorted(MEMORY_FORMS)),
    isa=st.sampled_from(usable_levels()),
    seed=seeds,
)
@quick
def test_batch_norm_and_convert(shape: tuple[int, ...], layout: str, form: str, isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = MEMORY_FORMS[form](np.ascontiguousarray(ref.from_nchw(integers(rng, *shape), layout)))
    mean, weight, bias = (integers(rng, shape[1]) for _ in range(3))
    var = (4.0 ** rng.integers(-2, 3, shape[1])).astype(np.float32)
    other = "NHWC" if layout == "NCHW" else "NCHW"
    with max_isa(isa):
        actual = fc.batch_norm(x, mean, var, weight, bias, eps=0.0, layout=layout)
        ref.assert_exact(actual, ref.batch_norm(x, mean, var, weight, bias, eps=0.0, layout=layout))
        ref.assert_exact(fc.convert_layout(x, layout, other), ref.convert_layout(x, layout, other))


@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    form=st.sampled_from(sorted(MEMORY_FORMS)),
    isa=st.sampled_from(usable_levels()),
    seed=seeds,
)
@quick
def test_linear(rows: int, inputs: int, outputs: int, bias: bool, form: str, isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    make = MEMORY_FORMS[form]
    x, w = make(integers(rng, rows, inputs)), make(integers(rng, outputs, inputs))
    b = make(integers(rng, outputs)) if bias else None
    with max_isa(isa):
        ref.assert_exact(fc.linear(x, w, b), ref.linear(x, w, b))
