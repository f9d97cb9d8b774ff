"""Convolution on the CUDA cores against the float64 oracle: direct, depthwise, im2col, implicit GEMM, the stem and its
max-pool, in every dtype and layout they take."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference as ref
from cases import CONV_CASES, DEPTHWISE_CASES, GROUPED_CASES, ConvCase, case_id
from cuda_backend import bfloat16_bits, host_module, rounded
from test_cuda_on_cpu import check

Array = NDArray[Any]

DIRECT, DEPTHWISE, STEM = "conv_direct", "conv_direct_depthwise", "conv_stem_7x7"
IMPLICIT, IM2COL = "conv_implicit_gemm_f32", "conv_im2col_gemm_f32"
KERNELS = [DIRECT, DEPTHWISE, STEM, IMPLICIT, IM2COL]
DTYPES = ["float32", "float16", "bfloat16"]
LAYOUTS = ["NCHW", "NHWC"]

# Relative L2 errors of the project's contract: the sums are float32's, 16-bit results are rounded once more.
REL_L2 = {"float32": ref.CONV_REL_L2, "float16": 1e-3, "bfloat16": 5e-3}

REFUSALS = {
    DEPTHWISE: "more than one input channel a group, or one group",
    STEM: "only 7x7 kernels with stride 2, padding 3 and three input channels",
    IMPLICIT: "float32 only",
}


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def module(request: pytest.FixtureRequest) -> Any:
    """The extension module, built for the host or for a GPU."""
    if request.param == "shim":
        found: Any = host_module()
    else:
        try:
            found = importlib.import_module("fastconv._cuda")
        except ImportError:
            pytest.skip("fastconv was built without CUDA")
        found = found.why_unavailable() or found
    if isinstance(found, str):
        pytest.skip(found)
    return found


@dataclass
class Device:
    """Arrays of one dtype on a device; values that the dtype holds, as float32 on this side."""

    module: Any
    dtype: str
    misaligned: bool = False  # arrays start one element behind an aligned address

    def empty(self, shape: tuple[int, ...], dtype: str | None = None) -> Any:
        dtype = dtype or self.dtype
        if not self.misaligned:
            return self.module.empty(shape, dtype, 0, 0)
        whole = self.module.empty((int(np.prod(shape)) + 1,), dtype, 0, 0)
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        at = whole.pointer + whole.itemsize
        return self.module.from_pointer(at, shape, strides, dtype, 0, False, whole, "misaligned")

    def put(self, values: Array | None, dtype: str | None = None) -> Any:
        if values is None:
            return None
        dtype = dtype or self.dtype
        view = self.empty(values.shape, dtype)
        host = bfloat16_bits(values) if dtype == "bfloat16" else np.ascontiguousarray(values, dtype)
        whole = host
        if self.misaligned:  # copies from the host are whole arrays
            source = replace(self, misaligned=False).put(values, dtype)
            self.module.copy(source, view, 0)
        else:
            self.module.copy_host(view, whole, True, 0)
        return view

    def get(self, view: Any) -> Array:
        if self.misaligned:
            aligned = replace(self, misaligned=False)
            copied = aligned.empty(tuple(view.shape))
            self.module.copy(view, copied, 0)
            return aligned.get(copied)
        host = np.empty(view.shape, np.uint16 if self.dtype == "bfloat16" else self.dtype)
        self.module.copy_host(view, host, False, 0)
        if self.dtype == "bfloat16":
            return (host.astype(np.uint32) << 16).view(np.float32)
        return host.astype(np.float32)


@dataclass
class Arrays:
    """The operands of a case in NCHW and OIHW."""

    x: Array
    w: Array
    bias: Array | None
    residual: Array | None

    def oracle(self, case: ConvCase, *, pool: bool = False) -> Array:
        y = ref.conv2d(self.x, self.w, self.bias, layout="NCHW", residual=self.residual, **case.options())
        return ref.max_pool2d(y, 3, 2, 1, layout="NCHW")[0] if pool else y


def arrays_for(case: ConvCase, draw: Callable[[tuple[int, ...]], Array], dtype: str) -> Arrays:
    def made(*shape: int) -> Array:
        return rounded(draw(shape), dtype)

    return Arrays(
        made(case.n, case.ic, case.ih, case.iw),
        made(case.oc, case.ic // case.groups, case.kh, case.kw),
        made(case.oc) if case.bias else None,
        made(case.n, case.oc, *case.output_size) if case.residual else None,
    )


def integers(rng: np.random.Generator) -> Callable[[tuple[int, ...]], Array]:
    return lambda shape: rng.integers(-3, 4, shape).astype(np.float32)


def normal(rng: np.random.Generator) -> Callable[[tuple[int, ...]], Array]:
    return lambda shape: rng.standard_normal(shape).astype(np.float32)


def run(
    device: Device,
    case: ConvCase,
    a: Arrays,
    layout: str,
    kernel: str,
    *,
    pool: bool = False,
    weight_layout: str | None = None,
) -> Array:
    """The kernel's result, in NCHW."""
    weight_layout = weight_layout or ("OIHW" if layout == "NCHW" else "OHWI")
    x, w = ref.from_nchw(a.x, layout), ref.weight_from_oihw(a.w, weight_layout)
    oh, ow = case.output_size
    if pool:
        oh, ow = (oh - 1) // 2 + 1, (ow - 1) // 2 + 1
    shape = (case.n, case.oc, oh, ow) if layout == "NCHW" else (case.n, oh, ow, case.oc)
    out = device.put(np.full(shape, np.nan, np.float32)) if case.n else device.empty(shape)
    (top, bottom), (left, right) = case.sides
    device.module.conv2d(
        x.shape, w.shape, device.put(x), device.put(w), device.put(a.bias, "float32"),
        None if a.residual is None else device.put(ref.from_nchw(a.residual, layout)), out, case.stride,
        (top, bottom, left, right), case.dilation, case.groups, layout, weight_layout, [kernel], case.activation,
        "float32", 0, pool,
    )  # fmt: skip
    return ref.to_nchw(device.get(out), layout)


def plan_of(module: Any, case: ConvCase, layout: str, kernel: str, dtype: str = "float32", pool: bool = False) -> Any:
    x = (case.n, case.ic, case.ih, case.iw) if layout == "NCHW" else (case.n, case.ih, case.iw, case.ic)
    w = (case.oc, case.ic // case.groups, case.kh, case.kw)
    (top, bottom), (left, right) = case.sides
    return module.explain_conv2d(
        x, w, case.bias, case.residual, case.stride, (top, bottom, left, right), case.dilation, case.groups, layout,
        "OIHW", [kernel], case.activation, dtype, "float32", 0, pool,
    )  # fmt: skip


def does(kernel: str, case: ConvCase, dtype: str = "float32") -> bool:
    if kernel == DEPTHWISE:
        return case.groups == case.ic and case.groups > 1
    if kernel == STEM:
        window = (case.ic, case.kh, case.kw, case.stride, case.dilation, case.sides)
        return window == (3, 7, 7, (2, 2), (1, 1), ((3, 3), (3, 3))) and not case.residual
    return kernel != IMPLICIT or (dtype == "float32" and max(case.kh, case.kw) <= 16)


@pytest.mark.parametrize("case", [*CONV_CASES, *DEPTHWISE_CASES, *GROUPED_CASES], ids=case_id)
def test_integers_are_exact(module: Any, rng: np.random.Generator, case: ConvCase) -> None:
    a = arrays_for(case, integers(rng), "float32")
    expected = a.oracle(case)
    for layout in LAYOUTS:
        for kernel in KERNELS:
            if does(kernel, case):
                ref.assert_exact(run(Device(module, "float32"), case, a, layout, kernel), expected)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", [*CONV_CASES[::4], *DEPTHWISE_CASES, *GROUPED_CASES], ids=case_id)
def test_16_bit_integers_are_exact(module: Any, rng: np.random.Generator, case: ConvCase, dtype: str) -> None:
    """The sums are exact in float32; the stored value is the nearest to them."""
    a = arrays_for(case, integers(rng), dtype)
    expected = rounded(a.oracle(case), dtype)
    for layout in LAYOUTS:
        for kernel in KERNELS:
            if does(kernel, case, dtype):
                ref.assert_exact(run(Device(module, dtype), case, a, layout, kernel), expected)


EPILOGUE = ConvCase("epilogue", 2, 20, 9, 8, 36, 3, 3, (1, 1), 1, bias=True, residual=True, activation="relu")
DEEP = ConvCase("deep", 1, 256, 7, 7, 64, 3, 3, (1, 1), 1, bias=True, residual=True, activation="relu")
DEEP_ODD = ConvCase("deep_odd", 2, 131, 5, 7, 35, 3, 3, (1, 1), 1, bias=True, residual=True)
POINTS = ConvCase("points", 3, 600, 4, 5, 72, 1, 1, bias=True, activation="relu")
ROWS = ConvCase("rows", 5, 1030, 1, 1, 130, 1, 1, bias=True)  # a linear layer
CHANNELS = ConvCase("channels", 2, 40, 9, 7, 40, 3, 3, (2, 1), 1, groups=40, bias=True, residual=True)
RANDOM = [EPILOGUE, DEEP, DEEP_ODD, POINTS, ROWS, CHANNELS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", RANDOM, ids=case_id)
def test_random_numbers(module: Any, rng: np.random.Generator, case: ConvCase, dtype: str) -> None:
    """Against the oracle, and twice the same bits."""
    a = arrays_for(case, normal(rng), dtype)
    expected = a.oracle(case)
    for layout in LAYOUTS:
        for kernel in KERNELS:
            if not does(kernel, case, dtype):
                continue
            first = run(Device(module, dtype), case, a, layout, kernel)
            ref.assert_rel_l2(first, expected, REL_L2[dtype])
            again = run(Device(module, dtype), case, a, layout, kernel)
            assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [DEEP, DEEP_ODD, POINTS, ROWS], ids=case_id)
def test_these_are_cut_into_parts(module: Any, case: ConvCase, layout: str) -> None:
    """The random numbers above go through the workspace of split-K."""
    if module.why_unavailable() == "" and module.devices()[0]["multiprocessors"] < 40:
        pytest.skip("a device so small is full without")
    for kernel in (IMPLICIT, IM2COL):
        plan = plan_of(module, case, layout, kernel)
        assert "split_k" in str(plan), plan


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [EPILOGUE, POINTS, CHANNELS], ids=case_id)
def test_arrays_off_16_bytes(module: Any, rng: np.random.Generator, case: ConvCase, dtype: str) -> None:
    a = arrays_for(case, integers(rng), dtype)
    expected = rounded(a.oracle(case), dtype)
    for layout in LAYOUTS:
        for kernel in KERNELS:
            if does(kernel, case, dtype):
                ref.assert_exact(run(Device(module, dtype, True), case, a, layout, kernel), expected)


@pytest.mark.parametrize("weight_layout", ["OIHW", "OHWI", "HWIO"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_weight_layouts(module: Any, rng: np.random.Generator, kernel: str, weight_layout: str) -> None:
    case = ConvCase("groups", 1, 6, 5, 6, 10, 3, 2, groups=2)
    if kernel == DEPTHWISE:
        case = ConvCase("depthwise", 1, 5, 5, 6, 10, 3, 2, groups=5)
    if kernel == STEM:
        case = ConvCase("stem", 1, 3, 12, 11, 66, 7, 7, (2, 2), 3)
    a = arrays_for(case, integers(rng), "float32")
    for layout in LAYOUTS:
        got = run(Device(module, "float32"), case, a, layout, kernel, weight_layout=weight_layout)
        ref.assert_exact(got, a.oracle(case))


STEMS = [
    ConvCase(f"{n}x{h}x{w}_oc{oc}", n, 3, h, w, oc, 7, 7, (2, 2), 3, bias=bias, activation=activation)
    for n, h, w, oc, bias, activation in [
        (1, 32, 30, 64, True, "relu"),
        (2, 33, 31, 20, False, "relu"),
        (1, 70, 61, 70, True, None),
        (1, 7, 8, 5, False, None),
        (1, 1, 1, 3, True, "relu"),
        (1, 2, 90, 64, True, "relu"),
    ]
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", STEMS, ids=case_id)
def test_stem(module: Any, rng: np.random.Generator, case: ConvCase, dtype: str) -> None:
    exact, random = arrays_for(case, integers(rng), dtype), arrays_for(case, normal(rng), dtype)
    for pool in (False, True):
        for layout in LAYOUTS:
            got = run(Device(module, dtype), case, exact, layout, STEM, pool=pool)
            ref.assert_exact(got, rounded(exact.oracle(case, pool=pool), dtype))
            got = run(Device(module, dtype), case, random, layout, STEM, pool=pool)
            ref.assert_rel_l2(got, random.oracle(case, pool=pool), REL_L2[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stem_keeps_nan(module: Any, rng: np.random.Generator, layout: str) -> None:
    case = STEMS[0]
    a = arrays_for(case, integers(rng), "float32")
    a.x[0, 1, 20, 3] = np.nan
    a.x[0, 2, 0, 29] = -np.inf
    for pool in (False, True):
        got = run(Device(module, "float32"), case, a, layout, STEM, pool=pool)
        with np.errstate(invalid="ignore"):
            ref.assert_exact(got, a.oracle(case, pool=pool).astype(np.float32))


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_and_infinity_stay_where_they_are(module: Any, rng: np.random.Generator, kernel: str) -> None:
    """Tails of the tiles read zeros: an infinity beside them must not become NaN."""
    case = ConvCase("infinite", 2, 11, 5, 7, 13, 3, 3, (1, 1), 1, bias=True, activation="relu")
    if kernel == DEPTHWISE:
        case = replace(case, oc=11, groups=11)
    if kernel == STEM:
        case = ConvCase("infinite", 2, 3, 9, 9, 13, 7, 7, (2, 2), 3, bias=True, activation="relu")
    a = arrays_for(case, lambda shape: rng.integers(1, 4, shape).astype(np.float32), "float32")
    a.x[0, -1, 2, 3] = np.inf
    a.x[1, -1, -1, -1] = -np.inf
    a.x[1, 0, 0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        expected = a.oracle(case).astype(np.float32)
    for layout in LAYOUTS:
        np.testing.assert_array_equal(run(Device(module, "float32"), case, a, layout, kernel), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_images(module: Any, rng: np.random.Generator, kernel: str) -> None:
    case = STEMS[0] if kernel == STEM else ConvCase("none", 1, 4, 5, 6, 4, 3, 3, groups=4)
    case = replace(case, n=0)
    a = arrays_for(case, integers(rng), "float32")
    for layout in LAYOUTS:
        shape = run(Device(module, "float32"), case, a, layout, kernel).shape
        assert shape == (0, case.oc, *case.output_size)


@pytest.mark.parametrize("kernel", list(REFUSALS))
def test_refusals_are_told(module: Any, kernel: str) -> None:
    case = ConvCase("refused", 1, 4, 5, 6, 4, 3, 3)
    with pytest.raises(NotImplementedError, match=REFUSALS[kernel]):
        plan_of(module, case, "NCHW", kernel, "float16")


def test_large_kernels(module: Any, rng: np.random.Generator) -> None:
    """16 rows and columns are the most for implicit GEMM; its tails ask for taps that no such pixel has."""
    patches = ConvCase("patches", 2, 3, 35, 34, 20, 16, 16, (16, 16), 2)
    larger = ConvCase("larger", 1, 2, 20, 19, 5, 17, 3, (1, 1), 8)
    device = Device(module, "float32")
    for case in (patches, larger):
        a = arrays_for(case, integers(rng), "float32")
        for layout in LAYOUTS:
            for kernel in (IMPLICIT, IM2COL, DIRECT):
                if does(kernel, case):
                    ref.assert_exact(run(device, case, a, layout, kernel), a.oracle(case))
    with pytest.raises(NotImplementedError, match="a kernel of more than 16 rows or columns"):
        plan_of(module, larger, "NCHW", IMPLICIT)


@pytest.mark.parametrize("name", ["implicit_gemm", "im2col"])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_tile(name: str, seed: int) -> None:
    """With one, two and three parts of the reduction, whatever the tile choice would take."""
    said = check(name, program="check_gemm_f32", seed=seed).splitlines()
    assert len(said) == 1 and said[0].endswith(" cases, 0 wrong") and int(said[0].split()[0]) > 300, said
