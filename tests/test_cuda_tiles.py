"""The choice of tiles for float32 on the CUDA cores, over ResNet-50's layers: pure arithmetic, no device."""

from __future__ import annotations

import re
from dataclasses import replace
from math import ceil
from typing import Any

import pytest

from cases import RESNET50_CONVS, ConvCase, case_id
from cuda_backend import host_module
from test_cuda_conv import IM2COL, IMPLICIT, LAYOUTS

BATCHES = [1, 8, 32, 256]
# The shim's devices and their multiprocessors: an A100 and an H200.
DEVICES = {0: 108, 1: 132}
TILES = {(128, 128): 2, (128, 64): 4, (64, 64): 6, (64, 32): 10}  # and the blocks of it that an SM holds
STEP = 8
MAX_WORKSPACE = 64 << 20


@pytest.fixture(scope="module")
def module() -> Any:
    found: Any = host_module()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def explain(module: Any, case: ConvCase, layout: str, device: int, kernel: str = IMPLICIT) -> dict[str, Any]:
    x = (case.n, case.ic, case.ih, case.iw) if layout == "NCHW" else (case.n, case.ih, case.iw, case.ic)
    (top, bottom), (left, right) = case.sides
    plan: dict[str, Any] = module.explain_conv2d(
        x, (case.oc, case.ic, case.kh, case.kw), False, False, case.stride, (top, bottom, left, right), (1, 1), 1,
        layout, "OIHW", [kernel], None, "float32", "float32", device,
    )  # fmt: skip
    return plan


def tile_of(plan: dict[str, Any]) -> tuple[int, int, int]:
    """Pixels, channels, parts of the reduction."""
    numbers = {word: int(number) for word, number in re.findall(r"([a-z_]+)(\d+)", plan["blocking"])}
    assert numbers["k"] == STEP
    return numbers["m"], numbers["n"], numbers.get("split_k", 1)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer", RESNET50_CONVS, ids=case_id)
def test_resnet50(module: Any, layer: ConvCase, batch: int) -> None:
    case = replace(layer, n=batch)
    oh, ow = case.output_size
    rows, columns, k = batch * oh * ow, case.oc, case.ic * case.kh * case.kw
    for device, multiprocessors in DEVICES.items():
        plans = [explain(module, case, layout, device) for layout in LAYOUTS]
        assert tile_of(plans[0]) == tile_of(plans[1])
        m, n, split = tile_of(plans[0])
        assert (m, n) in TILES
        part = ceil(ceil(k / split) / STEP) * STEP
        assert ceil(k / part) == split, "an empty part"
        assert plans[0]["workspace_bytes"] == (split * rows * columns * 4 if split > 1 else 0) <= MAX_WORKSPACE
        blocks = ceil(rows / m) * ceil(columns / n) * split
        # A device with idle multiprocessors has too little to share: parts of a few steps, or the smallest tiles.
        if blocks < 0.7 * multiprocessors:
            assert k // (split + 1) < 8 * STEP or (m, n) == (64, 32), (m, n, split, blocks)
        if batch >= 32:
            # The share of the fullest multiprocessor's work that is of use, if all had as much.
            rounds = ceil(blocks / multiprocessors)
            share = rows * columns * k / (rounds * multiprocessors * m * n * part)
            assert share > 0.7, (m, n, split, share)
            assert m * n >= 64 * 64


def test_weights_are_packed_alike_for_all_batches(module: Any) -> None:
    for layer in RESNET50_CONVS:
        sizes = {explain(module, replace(layer, n=n), "NHWC", d)["packed_bytes"] for n in BATCHES for d in DEVICES}
        assert len(sizes) == 1


def test_small_results_are_cut_along_the_reduction(module: Any) -> None:
    last = replace(RESNET50_CONVS[-1], n=1)  # 49 pixels, 512 channels, 4608 products each
    assert tile_of(explain(module, last, "NCHW", 1))[2] >= 8
    assert tile_of(explain(module, replace(last, n=256), "NCHW", 1))[2] <= 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_im2col_has_a_bounded_workspace(module: Any, layout: str) -> None:
    for layer in RESNET50_CONVS:
        for batch in BATCHES:
            plan = explain(module, replace(layer, n=batch), layout, 1, IM2COL)
            assert 0 < plan["workspace_bytes"] <= 2 * MAX_WORKSPACE


def test_choice_is_repeatable(module: Any) -> None:
    case = replace(RESNET50_CONVS[10], n=32)
    assert explain(module, case, "NHWC", 1)["blocking"] == explain(module, case, "NHWC", 1)["blocking"]
