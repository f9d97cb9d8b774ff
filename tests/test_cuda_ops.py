"""Pooling, ReLU, softmax, batch norm and copies on the CUDA backend against the float64 oracle, in every dtype and layout."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from cuda_backend import BACKENDS, DTYPES, Raw, raw, rounded


@pytest.fixture(params=BACKENDS)
def cuda(request: pytest.FixtureRequest) -> Raw:
    return raw(str(request.param))


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random values that `dtype` holds exactly."""
    return rounded(rng.standard_normal(shape), dtype)


@pytest.mark.parametrize("elements", [1, 7, 8, 255, 4096, 5003])
@pytest.mark.parametrize("aligned", [True, False])
def test_relu(cuda: Raw, rng: np.random.Generator, dtype: str, elements: int, aligned: bool) -> None:
    x = normal(rng, (elements,), dtype)
    x[::5] = np.nan
    x[3::7] = -np.inf
    src = cuda.put(x, dtype) if aligned else cuda.put_misaligned(x, dtype)
    dst = cuda.empty(x.shape, dtype) if aligned else cuda.empty_misaligned(x.shape, dtype)
    cuda.module.relu(src, dst, cuda.stream)
    np.testing.assert_array_equal(cuda.get(dst), reference.relu(x).astype(np.float32))
