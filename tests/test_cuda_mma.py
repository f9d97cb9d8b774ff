"""The implicit GEMM on tensor cores by mma.sync against the float64 oracle: float16, bfloat16, tf32 and 3xtf32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import reference
from cases import CONV_CASES, ConvCase, case_id
from cuda_backend import Array, rounded
from cuda_raw import BACKENDS, Raw, raw
from test_cuda_on_cpu import check

KERNEL = "conv_implicit_gemm_mma_sm80"
# (dtype, compute) and the relative L2 error that the project's contract allows.
FORMS = {
    ("float16", "float32"): 1e-3,
    ("bfloat16", "float32"): 5e-3,
    ("float32", "tf32"): 1e-3,
    ("float32", "3xtf32"): reference.CONV_REL_L2,
}
CASES = [c for c in CONV_CASES if c.groups == 1]


@pytest.fixture(params=BACKENDS)
def cuda(request: pytest.FixtureRequest) -> Raw:
    return raw(str(request.param))


@pytest.fixture(params=list(FORMS), ids=lambda form: "-".join(form))
def form(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


def pads(case: ConvCase) -> tuple[int, int, int, int]:
    (top, bottom), (left, right) = case.sides
    return top, bottom, left, right


class Operands:
    """Arrays of a case in a layout, as float32 that `dtype` holds exactly."""

    def __init__(self, case: ConvCase, layout: str, dtype: str, draw: Any) -> None:
        self.case, self.layout, self.dtype = case, layout, dtype
        oh, ow = case.output_size
        nchw = layout == "NCHW"
        x, w = (case.n, case.ic, case.ih, case.iw), (case.oc, case.ic, case.kh, case.kw)
        y = (case.n, case.oc, oh, ow)
        self.out_shape = y if nchw else (y[0], y[2], y[3], y[1])
        self.x = rounded(draw(x if nchw else (x[0], x[2], x[3], x[1])), dtype)
        self.weight = rounded(draw(w if nchw else (w[0], w[2], w[3], w[1])), dtype)
        self.bias = rounded(draw((case.oc,)), dtype) if case.bias else None
        self.residual = rounded(draw(self.out_shape), dtype) if case.residual else None

    def expected(self) -> Array:
        return reference.conv2d(
            self.x, self.weight, self.bias, layout=self.layout, residual=self.residual, **self.case.options()
        )

    def run(self, cuda: Raw, compute: str, *, algorithms: Sequence[str] = (KERNEL,), askew: bool = False) -> Array:
        case = self.case
        put = cuda.put_misaligned if askew else cuda.put
        out = (cuda.empty_misaligned if askew else cuda.empty)(self.out_shape, self.dtype)
        cuda.module.conv2d(
            self.x.shape, self.weight.shape, put(self.x, self.dtype), cuda.put(self.weight, self.dtype),
            None if self.bias is None else cuda.put(self.bias),
            None if self.residual is None else put(self.residual, self.dtype),
            out, case.stride, pads(case), case.dilation, case.groups, self.layout,
            "OIHW" if self.layout == "NCHW" else "OHWI", list(algorithms), case.activation, compute, cuda.stream,
        )  # fmt: skip
        return cuda.get(out)


def integers(rng: np.random.Generator, largest: int = 3) -> Any:
    return lambda shape: rng.integers(-largest, largest + 1, shape).astype(np.float32)


def normal(rng: np.random.Generator) -> Any:
    return lambda shape: rng.standard_normal(shape).astype(np.float32)


def plan_of(cuda: Raw, case: ConvCase, layout: str, form: tuple[str, str]) -> Any:
    nchw = layout == "NCHW"
    x = (case.n, case.ic, case.ih, case.iw) if nchw else (case.n, case.ih, case.iw, case.ic)
    icg = case.ic // case.groups
    w = (case.oc, icg, case.kh, case.kw) if nchw else (case.oc, case.kh, case.kw, icg)
    return cuda.module.explain_conv2d(
        x, w, case.bias, case.residual, case.stride, pads(case), case.dilation, case.groups, layout,
        "OIHW" if nchw else "OHWI", [KERNEL], case.activation, *form, cuda.device,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["float16", "bfloat16", "tf32", "3xtf32"])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_instantiation(name: str, seed: int) -> None:
    said = check(name, program="check_implicit_gemm_mma", seed=seed).splitlines()
    assert len(said) == 1 and said[0].endswith(" cases") and int(said[0].split()[0]) > 100, said


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_integers_are_exact(
    cuda: Raw, rng: np.random.Generator, case: ConvCase, layout: str, form: tuple[str, str]
) -> None:
    """Sums below 2^24 are exact in float32; the stored value is the nearest to them."""
    operands = Operands(case, layout, form[0], integers(rng))
    expected = rounded(operands.expected(), form[0])
    reference.assert_exact(operands.run(cuda, form[1]), expected)


EPILOGUES = ConvCase("epilogue", 2, 40, 9, 7, 72, 3, 3, (1, 1), 1, bias=True, residual=True, activation="relu")
ODD = ConvCase("odd", 1, 37, 7, 9, 67, 3, 3, (2, 2), 1, bias=True, residual=True, activation="relu")
DEEP = ConvCase("deep", 1, 256, 7, 7, 64, 3, 3, (1, 1), 1, bias=True, residual=True, activation="relu")
POINTS = ConvCase("points", 1, 128, 14, 14, 72, 1, 1, bias=True)
RANDOM = [EPILOGUES, ODD, DEEP, POINTS]


@pytest.mark.parametrize("case", RANDOM, ids=case_id)
def test_random_numbers(
    cuda: Raw, rng: np.random.Generator, case: ConvCase, layout: str, form: tuple[str, str]
) -> None:
    operands = Operands(case, layout, form[0], normal(rng))
    reference.assert_rel_l2(operands.run(cuda, form[1]), operands.expected(), FORMS[form])


@pytest.mark.parametrize("case", [EPILOGUES, ODD], ids=case_id)
def test_arrays_that_are_not_aligned(
    cuda: Raw, rng: np.random.Generator, case: ConvCase, layout: str, form: tuple[str, str]
) -> None:
    operands = Operands(case, layout, form[0], integers(rng))
    reference.assert_exact(operands.run(cuda, form[1], askew=True), rounded(operands.expected(), form[0]))


def test_parts_of_the_reduction_repeat_bit_for_bit(
    cuda: Raw, rng: np.random.Generator, layout: str, form: tuple[str, str]
) -> None:
    assert "split_k" in str(plan_of(cuda, DEEP, layout, form)), "this case is meant to be split"
    operands = Operands(DEEP, layout, form[0], normal(rng))
    first = operands.run(cuda, form[1])
    for _ in range(3):
        np.testing.assert_array_equal(operands.run(cuda, form[1]).view(np.uint32), first.view(np.uint32))
    exact = Operands(DEEP, layout, form[0], integers(rng))
    reference.assert_exact(exact.run(cuda, form[1]), rounded(exact.expected(), form[0]))


def test_nan_stays_where_its_windows_are(
    cuda: Raw, rng: np.random.Generator, layout: str, form: tuple[str, str]
) -> None:
    """Neither padding nor what lies behind the reduction or the image may carry it elsewhere; ReLU keeps it."""
    case = ConvCase("nan", 1, 5, 9, 9, 8, 3, 3, (1, 1), 1, activation="relu")
    operands = Operands(case, layout, form[0], integers(rng))
    operands.x[(0, 2, 4, 0) if layout == "NCHW" else (0, 4, 0, 2)] = np.nan
    reference.assert_exact(operands.run(cuda, form[1]), rounded(operands.expected(), form[0]))


@pytest.mark.parametrize("weight_layout", ["OIHW", "OHWI", "HWIO"])
def test_weights_in_any_order(
    cuda: Raw, rng: np.random.Generator, layout: str, form: tuple[str, str], weight_layout: str
) -> None:
    case = ConvCase("weights", 1, 12, 5, 6, 10, 3, 2)
    operands = Operands(case, layout, form[0], integers(rng))
    oihw = operands.weight if layout == "NCHW" else operands.weight.transpose(0, 3, 1, 2)
    order = {"OIHW": (0, 1, 2, 3), "OHWI": (0, 2, 3, 1), "HWIO": (2, 3, 1, 0)}[weight_layout]
    weight = np.ascontiguousarray(oihw.transpose(order))
    out = cuda.empty(operands.out_shape, form[0])
    cuda.module.conv2d(
        operands.x.shape, weight.shape, cuda.put(operands.x, form[0]), cuda.put(weight, form[0]), None, None, out,
        case.stride, pads(case), case.dilation, 1, layout, weight_layout, [KERNEL], None, form[1], cuda.stream,
    )  # fmt: skip
    reference.assert_exact(cuda.get(out), rounded(operands.expected(), form[0]))


@pytest.mark.parametrize(
    "case, form, reason",
    [
        (ConvCase("groups", 1, 8, 5, 5, 8, 3, 3, groups=2), ("float16", "float32"), "groups other than 1"),
        (ConvCase("float32", 1, 8, 5, 5, 8, 3, 3), ("float32", "float32"), "products of float32 are asked for"),
        (ConvCase("long", 1, 8, 5, 40, 8, 1, 17), ("float16", "float32"), "more than 16 rows or columns"),
    ],
    ids=lambda value: value.name if isinstance(value, ConvCase) else "",
)
def test_refusals_say_why(cuda: Raw, case: ConvCase, form: tuple[str, str], reason: str) -> None:
    with pytest.raises(NotImplementedError, match=reason):
        plan_of(cuda, case, "NCHW", form)
