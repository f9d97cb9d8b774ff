"""conv2d: every kernel at every ISA level in both layouts, exact on integers; padding forms, epilogues, values that are
not finite."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from cases import CONV_CASES, DEPTHWISE_CASES, GROUPED_CASES, RESNET50_CONVS, ConvCase, case_id, thin
from helpers import (
    F32,
    LAYOUTS,
    conv_data,
    cpu_conv_kernels,
    explain_conv,
    fenced,
    forced_name,
    integers,
    kernel_id,
    max_isa,
    missing_level,
    normal,
    run_conv,
    usable_levels,
)

KERNELS = cpu_conv_kernels()
ACCEPT_ALL = {"reference", "direct", "im2col"}
"""Algorithms that take every convolution, by contract; any other may refuse, with a reason."""

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=kernel_id)


def skip_if_unsupported(kernel: dict[str, Any]) -> None:
    if not kernel["supported"]:
        assert kernel["reason"], f"{kernel['name']} is not supported but says no reason"
        pytest.skip(f"{kernel['name']}: {kernel['reason']}")


def check_exact(kernel: dict[str, Any], case: ConvCase, layout: str) -> None:
    """Runs one row of `kernels` on one case: by its algorithm's name and, where that leads elsewhere, its driver's."""
    data = conv_data(case)
    algorithm, driver = kernel["algorithm"], kernel["driver"]
    with max_isa(kernel["isa"]):
        for name in (algorithm, driver):
            try:
                plan = explain_conv(data, layout, name)
            except NotImplementedError as refusal:
                assert name not in ACCEPT_ALL, f"{name} must accept {case}: {refusal}"
                assert name in str(refusal)
                with pytest.raises(NotImplementedError, match=name):
                    run_conv(data, layout, name)
                continue
            assert plan["algorithm"] == algorithm
            assert plan["isa"] == kernel["isa"]
            ref.assert_conv(run_conv(data, layout, name), data.expected(layout), algorithm)
            if plan["kernel"] == driver:
                assert plan["ukernel"] == kernel["ukernel"]
                return


# --- every kernel -----------------------------------------------------------------------------------------------------


def test_the_list_of_kernels_covers_the_contract() -> None:
    """direct and im2col at every ISA level of the build, and a reference."""
    rows = {(row["algorithm"], row["isa"]) for row in KERNELS}
    levels = {isa for _, isa in rows}
    assert "scalar" in levels
    for algorithm, level in itertools.product(("direct", "im2col"), levels - {"amx"}):
        assert (algorithm, level) in rows
    assert "reference" in {algorithm for algorithm, _ in rows}
    for row in KERNELS:
        assert row["isa"] in ("scalar", "avx2", "avx512", "amx", "neon"), row
        assert row["supported"] == (missing_level(row["isa"]) is None), row


@pytest.mark.parametrize("case", CONV_CASES, ids=case_id)
@every_kernel
def test_exact_on_integers(kernel: dict[str, Any], case: ConvCase, layout: str) -> None:
    skip_if_unsupported(kernel)
    check_exact(kernel, case, layout)


@every_kernel
def test_every_kernel_runs_somewhere(kernel: dict[str, Any]) -> None:
    """A row that refuses every case of every ladder would pass the other tests unseen; so would one that another row
    hides."""
    skip_if_unsupported(kernel)
    with max_isa(kernel["isa"]):
        for case in [*DEPTHWISE_CASES, *GROUPED_CASES, *CONV_CASES]:
            for layout in LAYOUTS:
                try:
                    plan = explain_conv(conv_data(case), layout, forced_name(kernel))
                except NotImplementedError:
                    continue
                if (plan["kernel"], plan["ukernel"]) == (kernel["driver"], kernel["ukernel"]):
                    return
    pytest.fail(f"no case reaches {kernel['name']}")


@pytest.mark.parametrize("case", [thin(case) for case in RESNET50_CONVS], ids=case_id)
@every_kernel
def test_resnet50_shapes_thin(kernel: dict[str, Any], case: ConvCase, layout: str) -> None:
    skip_if_unsupported(kernel)
    check_exact(kernel, case, layout)


@pytest.mark.parametrize("case", RESNET50_CONVS, ids=case_id)
def test_resnet50_shapes(case: ConvCase, layout: str) -> None:
    """The full shapes, as the plan itself would run them, at each ISA level but the slow one."""
    data = conv_data(case)
    for level in [level for level in usable_levels() if level != "scalar"] or ["scalar"]:
        with max_isa(level):
            ref.assert_conv(run_conv(data, layout), data.expected(layout), explain_conv(data, layout)["algorithm"])


@pytest.mark.slow
@pytest.mark.parametrize("case", RESNET50_CONVS, ids=case_id)
@every_kernel
def test_resnet50_shapes_with_every_kernel(kernel: dict[str, Any], case: ConvCase, layout: str) -> None:
    skip_if_unsupported(kernel)
    check_exact(kernel, case, layout)


RANDOM_CASES = [
    ConvCase("random_3x3", 1, 64, 14, 14, 48, 3, 3, (1, 1), 1, bias=True),
    ConvCase("random_deep", 1, 512, 4, 4, 33, 3, 3, (1, 1), 1),
    ConvCase("random_1x1", 1, 2048, 3, 5, 40, 1, 1),
    ConvCase("random_stem", 1, 3, 40, 40, 64, 7, 7, (2, 2), 3),
    ConvCase("random_grouped", 1, 64, 9, 9, 64, 3, 3, (2, 2), 1, groups=4),
    ConvCase("random_depthwise", 1, 48, 15, 15, 48, 3, 3, (1, 1), 1, groups=48),
    ConvCase("random_epilogue", 2, 100, 7, 7, 50, 3, 3, (1, 1), 1, bias=True, residual=True, activation="relu"),
]


@pytest.mark.parametrize("case", RANDOM_CASES, ids=case_id)
@every_kernel
def test_random_input_near_float64(kernel: dict[str, Any], case: ConvCase, layout: str) -> None:
    skip_if_unsupported(kernel)
    data = conv_data(case, "normal")
    with max_isa(kernel["isa"]):
        try:
            actual = run_conv(data, layout, forced_name(kernel))
        except NotImplementedError as refusal:
            assert forced_name(kernel) in str(refusal)
            return
        ref.assert_rel_l2(actual, data.expected(layout), ref.conv_tolerance(kernel["algorithm"]))


@pytest.mark.slow
@pytest.mark.parametrize("case", RESNET50_CONVS, ids=case_id)
def test_resnet50_random_input(case: ConvCase, isa: str, layout: str) -> None:
    data = conv_data(case, "normal")
    for algorithm in ("direct", "im2col"):
        ref.assert_rel_l2(run_conv(data, layout, algorithm), data.expected(layout), ref.CONV_REL_L2)


# --- choice of the algorithm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*CONV_CASES[::5], *DEPTHWISE_CASES[::4], *GROUPED_CASES[::2]], ids=case_id)
def test_auto_is_exact_and_never_silently_the_reference(case: ConvCase, isa: str, layout: str) -> None:
    data = conv_data(case)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = run_conv(data, layout)
    ref.assert_conv(actual, data.expected(layout), explain_conv(data, layout)["algorithm"])
    warned = any(issubclass(w.category, fc.PerformanceWarning) for w in caught)
    assert warned == (explain_conv(data, layout)["algorithm"] == "reference")


def test_algorithms_in_order_of_preference(layout: str) -> None:
    data = conv_data(CONV_CASES[0])
    for order in (["im2col", "direct"], ("direct", "im2col"), ["reference"], ("im2col",)):
        assert explain_conv(data, layout, order)["algorithm"] == order[0]
        ref.assert_exact(run_conv(data, layout, order), data.expected(layout))


def test_a_refusal_moves_on_to_the_next_of_the_list(layout: str) -> None:
    """Asked of every driver that the machine lists; those that refuse this problem must not end the search."""
    data = conv_data(next(case for case in GROUPED_CASES if case.name == "g7_dilated"))
    for algorithm in {row["driver"] for row in KERNELS if row["supported"]}:
        try:
            first = explain_conv(data, layout, algorithm)["kernel"]
        except NotImplementedError as refusal:
            assert len(str(refusal)) > len(algorithm) + 10, "a refusal says its reason"
            plan = explain_conv(data, layout, [algorithm, "im2col"])
            assert plan["algorithm"] == "im2col"
            assert any(algorithm in name for name in plan["refused"])
            ref.assert_exact(run_conv(data, layout, [algorithm, "im2col"]), data.expected(layout))
        else:
            assert first == algorithm


# --- forms of the arguments -------------------------------------------------------------------------------------------

PADDING_FORMS: list[tuple[Any, ref.Sides]] = [
    (0, ((0, 0), (0, 0))),
    (2, ((2, 2), (2, 2))),
    ((1, 2), ((1, 1), (2, 2))),
    ([1, 2], ((1, 1), (2, 2))),
    (((0, 1), (2, 3)), ((0, 1), (2, 3))),
    ([[0, 1], [2, 3]], ((0, 1), (2, 3))),
    (np.int64(1), ((1, 1), (1, 1))),
    ("valid", ((0, 0), (0, 0))),
    ("full", ((2, 2), (4, 4))),
    ("same", ((0, 1), (1, 2))),
    ("same_lower", ((1, 0), (2, 1))),
]


@pytest.mark.parametrize(("padding", "sides"), PADDING_FORMS, ids=lambda value: str(value))
def test_padding_forms(padding: Any, sides: ref.Sides, layout: str, rng: np.random.Generator) -> None:
    """6x8, kernel 3x3, stride 2, dilation (1, 2): TensorFlow's rule pads (1, 3), the extra at the bottom right."""
    x = integers(rng, 2, 3, 6, 8)
    w = integers(rng, 5, 3, 3, 3)
    stride, dilation = (2, 2), (1, 2)
    assert (
        ref.resolve_padding(padding if not isinstance(padding, np.integer) else 1, (6, 8), (3, 3), stride, dilation)
        == sides
    )
    expected = ref.from_nchw(ref.conv2d(x, w, None, stride, sides, dilation), layout)
    actual = fc.conv2d(
        ref.from_nchw(x, layout), w, None, stride, padding, dilation, layout=layout, weight_layout="OIHW"
    )
    ref.assert_exact(actual, expected)


def test_same_at_stride_one_keeps_the_size(layout: str, rng: np.random.Generator) -> None:
    x = ref.from_nchw(integers(rng, 1, 2, 9, 8), layout)
    for kh, kw in itertools.product(range(1, 6), repeat=2):
        w = integers(rng, 2, 2, kh, kw)
        y = fc.conv2d(x, w, padding="same", layout=layout, weight_layout="OIHW")
        assert y.shape == x.shape
        ref.assert_exact(y, ref.conv2d(x, w, padding="same", layout=layout, weight_layout="OIHW"))


@pytest.mark.parametrize("weight_layout", ["OIHW", "OHWI", "HWIO"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_weight_layouts(weight_layout: str, groups: int, isa: str, layout: str, rng: np.random.Generator) -> None:
    x = ref.from_nchw(integers(rng, 2, 6, 7, 8), layout)
    w = integers(rng, 12, 6 // groups, 3, 2)
    expected = ref.conv2d(x, w, groups=groups, padding=1, layout=layout, weight_layout="OIHW")
    stored = np.ascontiguousarray(ref.weight_from_oihw(w, weight_layout))
    for algorithm in ("auto", "direct", "im2col", "reference"):
        actual = fc.conv2d(
            x, stored, groups=groups, padding=1, layout=layout, weight_layout=weight_layout, algorithm=algorithm
        )
        ref.assert_exact(actual, expected)


def test_weight_layout_defaults_follow_the_layout(rng: np.random.Generator) -> None:
    x, w = integers(rng, 1, 3, 5, 5), integers(rng, 3, 3, 3, 3)
    nhwc = np.ascontiguousarray(ref.from_nchw(x, "NHWC"))
    ref.assert_exact(fc.conv2d(x, w), ref.conv2d(x, w, weight_layout="OIHW"))
    ref.assert_exact(fc.conv2d(nhwc, w, layout="NHWC"), ref.conv2d(nhwc, w, layout="NHWC", weight_layout="OHWI"))


def test_layout_is_never_guessed_from_strides(rng: np.random.Generator) -> None:
    """An NCHW view of NHWC memory is NCHW; a shape that would fit both is what `layout` says."""
    memory = integers(rng, 2, 5, 5, 5)
    view = memory.transpose(0, 3, 1, 2)
    w = integers(rng, 4, 5, 3, 3)
    ref.assert_exact(fc.conv2d(view, w), ref.conv2d(view, w))
    ref.assert_exact(
        fc.conv2d(view, w, layout="NHWC", weight_layout="OIHW"),
        ref.conv2d(view, w, layout="NHWC", weight_layout="OIHW"),
    )


@pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col", "reference"])
def test_three_dimensional_input(algorithm: str, layout: str, rng: np.random.Generator) -> None:
    x = ref.from_nchw(integers(rng, 6, 7, 9), layout)
    w = integers(rng, 11, 6, 3, 3)
    b = integers(rng, 11)
    residual = ref.from_nchw(integers(rng, 11, 5, 7), layout)
    options: dict[str, Any] = {"layout": layout, "weight_layout": "OIHW", "residual": residual, "activation": "relu"}
    y = fc.conv2d(x, w, b, algorithm=algorithm, **options)
    assert y.ndim == 3
    ref.assert_exact(y, ref.conv2d(x, w, b, **options))
    out = np.empty_like(y)
    assert fc.conv2d(x, w, b, algorithm=algorithm, out=out, **options) is out
    ref.assert_exact(out, y)


def test_positional_arguments_are_those_of_torch(rng: np.random.Generator) -> None:
    x, w, b = integers(rng, 2, 4, 9, 9), integers(rng, 6, 2, 3, 3), integers(rng, 6)
    ref.assert_exact(fc.conv2d(x, w, b, (2, 1), (1, 2), (1, 2), 2), ref.conv2d(x, w, b, (2, 1), (1, 2), (1, 2), 2))
    by_name = fc.conv2d(input=x, weight=w, bias=b, stride=2, padding=1, dilation=2, groups=2)
    ref.assert_exact(by_name, ref.conv2d(x, w, b, 2, 1, 2, 2))


@pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col", "reference"])
def test_empty_batch(algorithm: str, layout: str) -> None:
    shape = (0, 3, 8, 9) if layout == "NCHW" else (0, 8, 9, 3)
    y = fc.conv2d(
        np.zeros(shape, np.float32),
        np.zeros((4, 3, 3, 3), np.float32),
        stride=2,
        layout=layout,
        weight_layout="OIHW",
        algorithm=algorithm,
    )
    assert y.shape == ((0, 4, 3, 4) if layout == "NCHW" else (0, 3, 4, 4))
    assert y.dtype == np.float32


def test_inputs_are_left_alone(layout: str) -> None:
    data = conv_data(next(case for case in CONV_CASES if case.name == "epilogue3x3_bias_residual_relu"))
    before = [
        array.copy()
        for array in (*data.operands(layout), data.options(layout)["bias"], data.options(layout)["residual"])
    ]
    for algorithm in ("direct", "im2col", "reference"):
        run_conv(data, layout, algorithm)
    after = [*data.operands(layout), data.options(layout)["bias"], data.options(layout)["residual"]]
    for old, new in zip(before, after, strict=True):
        ref.assert_exact(new, old)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*CONV_CASES[::3], *DEPTHWISE_CASES[::2], *GROUPED_CASES[::2]], ids=case_id)
def test_nothing_outside_the_arrays_is_used(case: ConvCase, isa: str, layout: str) -> None:
    """Every operand lies between NaNs, which a read past an edge would bring into the sums; `out` lies in a buffer that
    must keep its surroundings."""
    data = conv_data(case)
    x, w = data.operands(layout)
    options = data.options(layout)
    for name in ("bias", "residual"):
        if options[name] is not None:
            options[name] = fenced(options[name])[0]
    for algorithm in ("direct", "im2col"):
        out, intact = fenced(np.full(data.expected(layout).shape, np.nan, np.float32), fence=7.0)
        fc.conv2d(fenced(x)[0], fenced(w)[0], algorithm=algorithm, out=out, **options)
        ref.assert_exact(out, data.expected(layout))
        assert intact(), f"{algorithm} wrote outside of out"


@pytest.mark.parametrize("algorithm", ["direct", "im2col", "reference"])
def test_im2col_workspace_is_bounded(algorithm: str, layout: str) -> None:
    """The full matrix of this problem would be 64*49*1024*1024 floats, 13 GB; the arrays here have zero strides and no
    memory."""
    shape = (1, 64, 1024, 1024) if layout == "NCHW" else (1, 1024, 1024, 64)
    x = np.broadcast_to(np.float32(1), shape)
    w = np.ones((64, 64, 7, 7), np.float32)
    plan = fc.explain("conv2d", x, w, padding=3, layout=layout, weight_layout="OIHW", algorithm=algorithm)
    assert 0 <= plan["workspace_bytes"] <= 64 << 20


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_values_that_are_not_finite_stay_in_their_windows(
    value: float, kernel_size: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    """Positive weights and no padding (0 * inf is NaN): exactly the windows that hold the value show it."""
    x = np.abs(integers(rng, 2, 5, 9, 19)) + 1
    x[1, 2, 4, 7] = value
    w = np.abs(integers(rng, 35, 5, kernel_size, kernel_size)) + 1
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    expected = ref.conv2d(view, w, layout=layout, weight_layout="OIHW")
    assert 0 < np.count_nonzero(~np.isfinite(expected)) == 35 * kernel_size**2
    for algorithm in ("direct", "im2col", "reference"):
        ref.assert_exact(fc.conv2d(view, w, layout=layout, weight_layout="OIHW", algorithm=algorithm), expected)


def test_relu_epilogue_keeps_nan(isa: str, layout: str) -> None:
    x: F32 = np.array([np.nan, -1.0, 2.0, -np.inf, np.inf, 0.0], np.float32).reshape(1, 1, 2, 3)
    w = np.ones((33, 1, 1, 1), np.float32)
    view = ref.from_nchw(x, layout)
    expected = ref.from_nchw(np.broadcast_to(np.array([[np.nan, 0, 2], [0, np.inf, 0]]), (1, 33, 2, 3)), layout)
    for algorithm in ("direct", "im2col", "reference"):
        y = fc.conv2d(view, w, layout=layout, weight_layout="OIHW", activation="relu", algorithm=algorithm)
        ref.assert_exact(y, expected)


def test_subnormals_are_kept(isa: str, layout: str) -> None:
    x = np.array([1e-40, -3e-42, 2.0**-149, 1.0], np.float32).reshape(1, 1, 2, 2)
    w = np.ones((18, 1, 1, 1), np.float32)
    view = ref.from_nchw(x, layout)
    expected = ref.from_nchw(np.broadcast_to(x, (1, 18, 2, 2)), layout)
    for algorithm in ("direct", "im2col", "reference"):
        ref.assert_exact(fc.conv2d(view, w, layout=layout, weight_layout="OIHW", algorithm=algorithm), expected)


def test_residual_is_added_before_the_activation(layout: str) -> None:
    """conv = -3, residual = +1 gives relu(-2) = 0, not relu(-3) + 1; conv = 3 and residual = -1 gives 2."""
    x = ref.from_nchw(np.array([-3.0, 3.0], np.float32).reshape(1, 1, 1, 2), layout)
    residual = ref.from_nchw(np.array([1.0, -1.0], np.float32).reshape(1, 1, 1, 2), layout)
    w = np.ones((1, 1, 1, 1), np.float32)
    for algorithm in ("direct", "im2col", "reference"):
        y = fc.conv2d(x, w, layout=layout, activation="relu", residual=residual, algorithm=algorithm)
        assert y.ravel().tolist() == [0.0, 2.0]


def test_against_torch_float32(torch: Any, layout: str, rng: np.random.Generator) -> None:
    """The drop-in claim: the same call, the same numbers within rounding."""
    x, w, b = normal(rng, 2, 16, 15, 17), normal(rng, 24, 8, 3, 3), normal(rng, 24)
    theirs = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, w, b)), stride=2, padding=1, groups=2).numpy()
    view = ref.from_nchw(x, layout)
    ours = fc.conv2d(view, w, b, stride=2, padding=1, groups=2, layout=layout, weight_layout="OIHW")
    ref.assert_rel_l2(ours, ref.from_nchw(theirs, layout), ref.CONV_REL_L2)
