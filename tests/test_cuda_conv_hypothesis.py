"""Convolutions drawn at random on the CUDA cores, on small integers: exact in every kernel that takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import reference as ref
from cases import ConvCase
from test_cuda_conv import KERNELS, LAYOUTS, Device, arrays_for, does, integers, module, run

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

__all__ = ["module"]  # a fixture

allowed = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
quick = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=allowed)
long = settings(max_examples=4000, deadline=None, suppress_health_check=allowed)

small = st.integers(1, 3)
extent = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17]))
channels = st.one_of(st.integers(1, 9), st.sampled_from([16, 31, 32, 33, 64, 65]))


@st.composite
def convolutions(draw: st.DrawFn) -> ConvCase:
    kh, kw = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    stride, dilation = (draw(small), draw(small)), (draw(small), draw(small))
    pads = [draw(st.integers(0, 3)) for _ in range(4)]
    # The image holds at least one window.
    ih = draw(extent) + max(0, dilation[0] * (kh - 1) - pads[0] - pads[1])
    iw = draw(extent) + max(0, dilation[1] * (kw - 1) - pads[2] - pads[3])
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    icg, ocg = draw(channels), draw(channels)
    if groups > 1:
        icg, ocg = draw(st.sampled_from([1, 1, 2, 4])), draw(st.sampled_from([1, 1, 3, 4]))
    return ConvCase(
        "drawn", draw(small), icg * groups, ih, iw, ocg * groups, kh, kw, stride,
        ((pads[0], pads[1]), (pads[2], pads[3])), dilation, groups, draw(st.booleans()), draw(st.booleans()),
        draw(st.sampled_from([None, "relu"])),
    )  # fmt: skip


def check_case(module: Any, case: ConvCase, seed: int) -> None:
    a = arrays_for(case, integers(np.random.default_rng(seed)), "float32")
    expected = a.oracle(case)
    for layout in LAYOUTS:
        for kernel in KERNELS:
            if does(kernel, case):
                ref.assert_exact(run(Device(module, "float32"), case, a, layout, kernel), expected)


@quick
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_drawn(module: Any, case: ConvCase, seed: int) -> None:
    check_case(module, case, seed)


@pytest.mark.slow
@long
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_drawn_at_length(module: Any, case: ConvCase, seed: int) -> None:
    check_case(module, case, seed)
