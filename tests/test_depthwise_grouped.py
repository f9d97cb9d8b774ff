"""Grouped and depthwise convolution: every kernel at every ISA level in both layouts, and the rules of `groups`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from cases import DEPTHWISE_CASES, GROUPED_CASES, ConvCase, case_id
from helpers import conv_data, cpu_conv_kernels, integers, kernel_id, normal
from test_conv2d import check_exact, skip_if_unsupported

every_kernel = pytest.mark.parametrize("kernel", cpu_conv_kernels(), ids=kernel_id)


@pytest.mark.parametrize("case", [*DEPTHWISE_CASES, *GROUPED_CASES], ids=case_id)
@every_kernel
def test_exact_on_integers(kernel: dict[str, Any], case: ConvCase, layout: str) -> None:
    skip_if_unsupported(kernel)
    check_exact(kernel, case, layout)


def test_each_group_sees_only_its_channels(isa: str, layout: str, rng: np.random.Generator) -> None:
    """Groups computed together equal groups computed alone, and output channels come in the groups' order."""
    groups, icg, ocg = 3, 5, 18
    x, w = integers(rng, 2, groups * icg, 7, 8), integers(rng, groups * ocg, icg, 3, 3)
    whole = fc.conv2d(ref.from_nchw(x, layout), w, groups=groups, padding=1, layout=layout, weight_layout="OIHW")
    for g in range(groups):
        part = fc.conv2d(
            ref.from_nchw(x[:, g * icg : (g + 1) * icg], layout),
            w[g * ocg : (g + 1) * ocg],
            padding=1,
            layout=layout,
            weight_layout="OIHW",
        )
        ref.assert_exact(ref.to_nchw(whole, layout)[:, g * ocg : (g + 1) * ocg], ref.to_nchw(part, layout))


def test_a_nan_stays_in_its_group(isa: str, layout: str, rng: np.random.Generator) -> None:
    """Channels of several groups share a vector; a NaN in one lane must not reach another."""
    channels = 19
    x, w = integers(rng, 1, channels, 6, 9), integers(rng, channels, 1, 3, 3)
    x[0, 7, 3, 4] = np.nan
    view = ref.from_nchw(x, layout)
    for algorithm in ("auto", "direct", "im2col"):
        y = fc.conv2d(view, w, padding=1, groups=channels, layout=layout, weight_layout="OIHW", algorithm=algorithm)
        ref.assert_exact(y, ref.conv2d(view, w, padding=1, groups=channels, layout=layout, weight_layout="OIHW"))


@pytest.mark.parametrize("name", ["dw_c33", "dw_stride2", "dw_5x5", "dw_multiplier3", "g32_resnext"])
def test_random_input_near_float64(name: str, isa: str, layout: str) -> None:
    data = conv_data(next(case for case in [*DEPTHWISE_CASES, *GROUPED_CASES] if case.name == name), "normal")
    x, w = data.operands(layout)
    for algorithm in ("auto", "direct", "im2col"):
        ref.assert_rel_l2(
            fc.conv2d(x, w, algorithm=algorithm, **data.options(layout)), data.expected(layout), ref.CONV_REL_L2
        )


@pytest.mark.parametrize("width", [3, 15, 16, 17, 31, 33, 48, 50, 64, 65, 81, 97, 112, 128, 129, 160])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_number_of_vectors_in_a_row(
    width: int, stride: int, isa: str, layout: str, rng: np.random.Generator
) -> None:
    """Rows are computed some vectors at a time; the ends of such a group need not be those of the row."""
    for columns in {width * stride, width * stride - stride + 1}:
        for rows in (1, 2, 5):
            x, w = integers(rng, 1, 3, rows, columns), integers(rng, 3, 1, 3, 3)
            view = np.ascontiguousarray(ref.from_nchw(x, layout))
            options: dict[str, Any] = {
                "stride": stride, "padding": 1, "groups": 3, "layout": layout, "weight_layout": "OIHW"
            }  # fmt: skip
            ref.assert_exact(fc.conv2d(view, w, **options), ref.conv2d(view, w, **options))


@pytest.mark.slow
@pytest.mark.parametrize("size", [7, 14, 28, 56, 112])
@pytest.mark.parametrize("stride", [1, 2])
def test_mobilenet_sizes(size: int, stride: int, isa: str, layout: str, rng: np.random.Generator) -> None:
    channels = 14336 // size // 2
    x, w = integers(rng, 1, channels, size, size), integers(rng, channels, 1, 3, 3)
    view = np.ascontiguousarray(ref.from_nchw(x, layout))
    options: dict[str, Any] = {
        "stride": stride,
        "padding": 1,
        "groups": channels,
        "layout": layout,
        "weight_layout": "OIHW",
    }
    expected = ref.conv2d(view, w, **options)
    for algorithm in ("auto", "direct", "im2col"):
        ref.assert_exact(fc.conv2d(view, w, algorithm=algorithm, **options), expected)


def test_against_torch_float32(torch: Any, layout: str, rng: np.random.Generator) -> None:
    x, w, b = normal(rng, 2, 40, 13, 14), normal(rng, 40, 1, 3, 3), normal(rng, 40)
    theirs = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, w, b)), stride=2, padding=1, groups=40).numpy()
    ours = fc.conv2d(ref.from_nchw(x, layout), w, b, 2, 1, groups=40, layout=layout, weight_layout="OIHW")
    ref.assert_rel_l2(ours, ref.from_nchw(theirs, layout), ref.CONV_REL_L2)
