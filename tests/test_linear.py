"""linear: shapes at the edges of the tiles, every ISA level, any number of leading axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from helpers import MEMORY_FORMS, fenced, integers, normal


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 14, 15, 29])
@pytest.mark.parametrize("outputs", [1, 3, 8, 15, 16, 17, 31, 32, 33, 65])
@pytest.mark.parametrize("inputs", [1, 7, 16, 50])
def test_exact_on_integers(rows: int, outputs: int, inputs: int, isa: str, rng: np.random.Generator) -> None:
    x, w, b = integers(rng, rows, inputs), integers(rng, outputs, inputs), integers(rng, outputs)
    ref.assert_exact(fc.linear(x, w, b), ref.linear(x, w, b))


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 1000, 2048), (3, 1000, 512), (64, 10, 4096)])
def test_real_sizes(rows: int, outputs: int, inputs: int, isa: str, rng: np.random.Generator) -> None:
    x, w, b = integers(rng, rows, inputs), integers(rng, outputs, inputs), integers(rng, outputs)
    ref.assert_exact(fc.linear(x, w, b), ref.linear(x, w, b))
    x, w, b = normal(rng, rows, inputs), normal(rng, outputs, inputs), normal(rng, outputs)
    ref.assert_rel_l2(fc.linear(x, w, b), ref.linear(x, w, b), ref.LINEAR_REL_L2)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (2, 1, 4)], ids=str)
def test_leading_axes(lead: tuple[int, ...], rng: np.random.Generator) -> None:
    x, w = integers(rng, *lead, 9), integers(rng, 5, 9)
    y = fc.linear(x, w)
    assert y.shape == (*lead, 5)
    ref.assert_exact(y, ref.linear(x, w))


@pytest.mark.parametrize("form", MEMORY_FORMS)
def test_memory_forms(form: str, rng: np.random.Generator) -> None:
    make = MEMORY_FORMS[form]
    x, w, b = integers(rng, 7, 13), integers(rng, 18, 13), integers(rng, 18)
    ref.assert_exact(fc.linear(make(x), make(w), make(b)), ref.linear(x, w, b))


def test_out_and_surroundings(isa: str, rng: np.random.Generator) -> None:
    x, w, b = integers(rng, 5, 19), integers(rng, 21, 19), integers(rng, 21)
    out, intact = fenced(np.zeros((5, 21), np.float32), fence=7.0)
    assert fc.linear(fenced(x)[0], fenced(w)[0], fenced(b)[0], out=out) is out
    ref.assert_exact(out, ref.linear(x, w, b))
    assert intact()


def test_empty_batch() -> None:
    y = fc.linear(np.zeros((0, 4), np.float32), np.zeros((3, 4), np.float32), np.zeros(3, np.float32))
    assert (y.shape, y.dtype) == ((0, 3), np.float32)


def test_against_torch(torch: Any, rng: np.random.Generator) -> None:
    x, w, b = normal(rng, 4, 300), normal(rng, 70, 300), normal(rng, 70)
    theirs = torch.nn.functional.linear(*map(torch.from_numpy, (x, w, b))).numpy()
    ref.assert_rel_l2(fc.linear(x, w, b), theirs, ref.LINEAR_REL_L2)
