"""The benchmark's ops: operands, ours prepared, and what they and whole networks must give."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from fastconv.benchmarks import ops, oracle, problem

import fastconv

RNG_SEED = 20
ONE_OF_EACH = [
    "c ic6 ih9 iw8 oc8 kh3 kw2 sh2 sw1 ph1 pw0 dh1 dw2 g2 n5",
    "dw ic6 ih9 oc6 kh3 ph1 g6 n2",
    "pixel ic20 ih1 oc12 kh1 n3",
    "fc linear ic33 oc7 n6",
    "m max_pool2d ic5 ih9 iw11 kh3 kw2 sh2 sw1 ph1 pw1 dh2 dw1 n5",
    "a avg_pool2d ic5 ih9 iw11 kh3 kw2 sh2 sw1 ph1 pw1 n5",
    "gap global_avg_pool2d ic19 ih7 iw5 n5",
    "r relu ic5 ih7 iw3 n5",
    "rpixel relu ic5 ih1",
    "b batch_norm ic19 ih5 iw4 n5",
    "s softmax ic21 ih5 iw4 n5",
    "row softmax ic100 n6",
    "turn convert_layout ic19 ih5 iw4 n5",
]


def parse(text: str) -> problem.Problem:
    return problem.parse_problem(text)


# --- operands, ours, and what it must be ------------------------------------------------------------------------------


def check(p: problem.Problem, layout: str, algorithm: str) -> ops.Prepared:
    """Prepares, calls, and compares every picture of the batch with the oracle."""
    given = ops.operands(p)
    right = ops.expected(p, given)
    ready = ops.prepare(p, given, layout, algorithm)
    ready.out.fill(np.nan)
    ready.call()
    result = ready.result
    assert np.shares_memory(result, ready.out) and ready.out.flags.c_contiguous
    assert result.shape == p.output_shape and right.shape == (min(p.n, ops.DISTINCT), *p.output_shape[1:])
    for i in range(p.n):
        k = i % ops.DISTINCT
        error = oracle.compare(result[i : i + 1], right[k : k + 1])
        allowed = ops.max_relative_l2(p, str(ready.plan["algorithm"]))
        assert error.relative_l2 <= allowed, (problem.format_problem(p), layout, algorithm, i)
    assert ready.plan["conversions"] == [] and ready.plan["kernel"]
    return ready


@pytest.mark.parametrize("name", problem.suite_names())
def test_every_layer_of_every_suite_runs_and_is_right(name: str) -> None:
    for p in problem.load_suite(name).problems:
        assert parse(problem.format_problem(p)) == p
        small = dataclasses.replace(p, n=5)
        for letter, most in (("ih", 13), ("ic", 29), ("oc", 29)):
            if letter in problem.format_problem(p) and getattr(small, letter) > most:
                small = small.replace_size(letter, most)
        for layout in ("nchw", "nhwc") if small.has_layout else ("-",):
            check(small, layout, "auto")


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_every_algorithm_that_can_be_chosen_is_right(text: str) -> None:
    p = parse(text).with_batch(5)
    layouts = ("nchw", "nhwc") if p.has_layout else ("-",)
    names = ops.algorithms(p.op)
    assert names and "reference" not in names
    done = 0
    for layout, name in itertools.product(layouts, names):
        try:
            ready = check(p, layout, name)
        except NotImplementedError as refused:
            assert str(refused)
            continue
        assert ready.plan["algorithm"] == name
        done += 1
    assert done >= len(layouts), "what auto takes can also be named"


def test_algorithms_are_those_of_the_kernels_on_this_machine() -> None:
    assert {"direct", "im2col"} <= set(ops.algorithms("conv2d"))
    assert ops.algorithms("global_avg_pool2d") == ops.algorithms("avg_pool2d") == ["direct"]


@pytest.mark.parametrize(
    ("text", "layout", "algorithm", "reason"),
    [
        ("p max_pool2d ic3 ih4 kh2", "nchw", "im2col", "max_pool2d has no algorithm 'im2col'"),
        ("p global_avg_pool2d ic3 ih4", "nhwc", "reference", "fastconv.adaptive_avg_pool2d takes no algorithm"),
        ("p softmax ic3", "-", "fft", "softmax has no algorithm 'fft'"),
    ],
)
def test_what_cannot_be_chosen_is_refused(text: str, layout: str, algorithm: str, reason: str) -> None:
    p = parse(text)
    with pytest.raises(NotImplementedError, match=reason):
        ops.prepare(p, ops.operands(p), layout, algorithm)


def test_linear_has_one_algorithm_at_a_time() -> None:
    p = parse("linear ic64 oc32 n4")
    chosen = ops.prepare(p, ops.operands(p), "-", "auto").plan["algorithm"]
    others = [name for name in ops.algorithms("linear") if name != chosen]
    assert chosen in ops.algorithms("linear") and others
    with pytest.raises(NotImplementedError, match=f"fastconv.Linear takes no algorithm, .* chooses {chosen}"):
        ops.prepare(p, ops.operands(p), "-", others[0])


def test_bad_layouts_and_missing_operands_are_said() -> None:
    p, flat = parse("p ic3 ih4 oc3 kh1"), parse("f linear ic3 oc3")
    with pytest.raises(ValueError, match="layout: p has 'nchw' or 'nhwc', got '-'"):
        ops.prepare(p, ops.operands(p), "-", "auto")
    with pytest.raises(ValueError, match="layout: f has '-', got 'nchw'"):
        ops.prepare(flat, ops.operands(flat), "nchw", "auto")
    bare = ops.Operands(ops.operands(p).x)
    with pytest.raises(ValueError, match="operands: weight is None"):
        ops.prepare(p, bare, "nchw", "auto")
    with pytest.raises(ValueError, match="operands: weight is None"):
        ops.expected(p, bare)


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_a_prepared_call_reads_its_x_and_writes_its_out(text: str) -> None:
    p = parse(text).with_batch(2)
    for layout in ("nchw", "nhwc") if p.has_layout else ("-",):
        ready = ops.prepare(p, ops.operands(p), layout, "auto")
        ready.out.fill(np.nan)
        ready.call()
        first = ready.out.copy()
        assert np.isfinite(first).all()
        ready.x[...] = np.roll(ready.x, 1, axis=1) + np.float32(0.25)
        ready.call()
        assert not np.array_equal(first, ready.out)


def test_operands_are_the_same_for_the_same_layer_and_repeat() -> None:
    p = parse("ic3 ih5 oc4 kh3 n10")
    a, b = ops.operands(p), ops.operands(p)
    assert np.array_equal(a.x, b.x) and np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias)
    assert not np.array_equal(a.x, ops.operands(parse("other ic3 ih5 oc4 kh3 n10")).x)
    assert np.array_equal(a.x[:4], a.x[4:8]) and np.array_equal(a.x[:2], a.x[8:])
    assert not np.array_equal(a.x[0], a.x[1])
    for text in ONE_OF_EACH:
        given = ops.operands(parse(text))
        for name, array in vars(given).items():
            assert array is None or (array.dtype == np.float32 and array.flags.c_contiguous), (text, name)


# --- the oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_oracle_convolution_is_the_definition(groups: int) -> None:
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


def test_oracle_pools_are_the_definition() -> None:
    """Against windows cut out one by one; no padding is chosen where all is negative, and NaN stays."""
    x = np.random.default_rng(RNG_SEED).integers(-40, 0, (2, 3, 7, 8)).astype(np.float32)
    x[1, 2, 3, 4] = np.nan
    largest = oracle.max_pool2d_float64(x, (3, 2), (2, 1), (1, 1), (1, 2))
    assert largest.shape == (2, 3, 4, 8)
    for (n, c, i, j), value in np.ndenumerate(largest):
        seen = [x[n, c, h, w] for h in range(2 * i - 1, 2 * i + 2) for w in (j - 1, j + 1) if 0 <= h < 7 and 0 <= w < 8]
        np.testing.assert_equal(value, np.max(seen))
    mean = oracle.avg_pool2d_float64(x, (3, 2), (2, 1), (1, 1))
    assert mean.shape == (2, 3, 4, 9)
    for (n, c, i, j), value in np.ndenumerate(mean):
        seen = [x[n, c, h, w] for h in range(2 * i - 1, 2 * i + 2) for w in (j - 1, j) if 0 <= h < 7 and 0 <= w < 8]
        np.testing.assert_equal(value, np.float64(sum(seen)) / 6)
    whole = oracle.global_avg_pool2d_float64(x[:1])
    assert whole.shape == (1, 3, 1, 1) and whole[0, 1, 0, 0] == pytest.approx(x[0, 1].sum() / 56)


def test_oracle_of_the_other_ops_is_the_definition() -> None:
    rng = np.random.default_rng(RNG_SEED)
    x = (100 * rng.standard_normal((2, 5, 3, 2))).astype(np.float32)
    soft = oracle.softmax_float64(x)
    for (n, c, i, j), value in np.ndenumerate(soft):
        others = [math.exp(float(v) - float(x[n, c, i, j])) for v in x[n, :, i, j]]
        assert value == pytest.approx(1 / sum(others), rel=1e-12)
    mean, variance, weight, bias = (rng.random(5, np.float32) for _ in range(4))
    normed = oracle.batch_norm_float64(x, mean, variance, weight, bias)
    for (n, c, i, j), value in np.ndenumerate(normed):
        m, v, w, b = (float(vector[c]) for vector in (mean, variance, weight, bias))
        want = (float(x[n, c, i, j]) - m) / math.sqrt(v + 1e-5) * w + b
        assert value == pytest.approx(want, rel=1e-12)
    np.testing.assert_equal(oracle.relu_float64(np.array([-1, 0, 2, np.nan, np.inf])), [0, 0, 2, np.nan, np.inf])
    rows, matrix = x.reshape(2, 30), rng.integers(-3, 4, (4, 30)).astype(np.float32)
    by_hand = [[math.fsum(float(a) * float(b) for a, b in zip(r, m)) for m in matrix] for r in rows]
    np.testing.assert_allclose(oracle.linear_float64(rows, matrix, None), by_hand, rtol=1e-12)
    np.testing.assert_allclose(oracle.linear_float64(rows, matrix, bias[:4]), by_hand + bias[:4], rtol=1e-12)


@pytest.mark.parametrize("depth", [18, 50])
def test_oracle_network_equals_torch(depth: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import torch_resnet

    rng = np.random.default_rng(RNG_SEED)
    state = {k: v.astype(np.float64) for k, v in fastconv.models.init_state(depth).items()}
    for key, value in state.items():  # statistics that are not the neutral ones
        if value.ndim == 1 and not key.startswith("fc"):
            state[key] = value + rng.uniform(0.0, 0.3, value.shape)
    x = rng.standard_normal((2, 3, 64, 64))
    net = torch_resnet.ResNet(depth).double().eval()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    with torch.no_grad():
        want = net(torch.from_numpy(x)).numpy()
    assert oracle.compare(oracle.resnet_float64(depth, state, x), want).relative_l2 < 1e-12


def test_oracle_network_equals_ours_and_knows_its_depths() -> None:
    state = fastconv.models.init_state(34)
    x = np.random.default_rng(RNG_SEED).standard_normal((1, 3, 64, 64), np.float32)
    logits = fastconv.models.resnet34(state, layout="NCHW")(x)
    assert oracle.compare(logits, oracle.resnet_float64(34, state, x)).relative_l2 < oracle.MAX_NETWORK_L2
    with pytest.raises(ValueError, match="depth: must be one of 18, 34, 50, 101, 152, got 20"):
        oracle.resnet_float64(20, state, x)


def test_compare_of_what_is_not_finite() -> None:
    error = oracle.compare(np.array([1.0, np.nan], np.float32), np.array([1.0, 2.0]))
    assert error.max_scaled == error.relative_l2 == float("inf")
    with pytest.raises(ValueError, match="shape"):
        oracle.compare(np.zeros((2, 2), np.float32), np.zeros(4))
