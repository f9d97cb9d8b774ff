"""The GEMM leaf by itself: every row height, every column tail, and sums that are cut into parts."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv as fc
from helpers import integers

LEAVES = [
    pytest.param(row["ukernel"], marks=() if row["supported"] else pytest.mark.skip(reason=row["reason"]))
    for row in fc.kernels("conv2d")
    if row["driver"] == "conv_direct" and row["device"] == "cpu"
]


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("leaf", LEAVES)
def test_sums_in_parts(leaf: str, parts: int, sums: bool, rng: np.random.Generator) -> None:
    for m in (*range(1, 16), 29):
        for n in (1, 5, 6, 12, 16, 17, 21, 24, 25, 31, 32, 40):
            a, b = integers(rng, m, 12), integers(rng, 12, n)
            assert np.array_equal(fc._core.gemm_by_leaf(leaf, a, b, parts, sums), a @ b), (m, n)


def test_refusals(rng: np.random.Generator) -> None:
    a, b = integers(rng, 2, 6), integers(rng, 6, 3)
    leaf = "gemm_f32_4x8_scalar"
    with pytest.raises(ValueError, match=r"parts.*6.*4"):
        fc._core.gemm_by_leaf(leaf, a, b, 4)
    with pytest.raises(ValueError, match="nothing"):
        fc._core.gemm_by_leaf("nothing", a, b, 1)
    with pytest.raises(ValueError, match="fit"):
        fc._core.gemm_by_leaf(leaf, a, a, 1)
