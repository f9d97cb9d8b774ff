"""Steps that run by bands of rows, together: the same bits as one whole tensor after the other.

`finalize(l2_bytes=...)` plays machines with a small L2, where small tensors form chains too, and with a huge one, where
none does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastconv as fc
from fastconv import _core
from helpers import max_isa, usable_levels

F32 = NDArray[np.float32]
HUGE = 1 << 40
PAD1 = (1, 1, 1, 1)


@dataclass(frozen=True)
class Conv:
    oc: int
    kernel: int = 1
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    dilation: int = 1
    depthwise: bool = False
    algorithm: str = "auto"


@dataclass(frozen=True)
class MaxPool:
    kernel: int = 3
    stride: int = 2
    padding: int = 1


DIRECT, F23, F43, F44, FIP = "direct", "winograd_f23", "winograd_f43", "winograd_f44", "fip"
IM2COL = "im2col"


def conv3(oc: int, algorithm: str = "auto") -> Conv:
    return Conv(oc, 3, 1, PAD1, algorithm=algorithm)


def depthwise(channels: int, stride: int = 1) -> Conv:
    return Conv(channels, 3, stride, PAD1, depthwise=True)


#: Height, width and channels of the input, and the layers.
CHAINS: dict[str, tuple[tuple[int, int, int], list[Any]]] = {
    "inverted residual": ((40, 36, 16), [Conv(96), depthwise(96), Conv(16)]),
    "inverted residual, stride 2": ((41, 37, 16), [Conv(96), depthwise(96, 2), Conv(24)]),
    "stem and pool": ((97, 90, 3), [Conv(32, 7, 2, (3, 3, 3, 3), algorithm=DIRECT), MaxPool()]),
    "stem by F(4,4), and pool": ((97, 90, 3), [Conv(32, 7, 2, (3, 3, 3, 3), algorithm=F44), MaxPool()]),
    "stem by F(4,4), rows that nobody reads": ((166, 128, 3), [Conv(16, 7, 2, algorithm=F44), Conv(16)]),
    "stem to projection": (
        (101, 64, 3),
        [Conv(32, 3, 2, PAD1), depthwise(32), Conv(16), Conv(96), depthwise(96, 2), Conv(24)],
    ),
    "bottleneck": ((65, 48, 64), [Conv(16), conv3(16, DIRECT), Conv(64)]),
    "bottleneck, F(4,3)": ((64, 62, 32), [Conv(16), conv3(16, F43), Conv(32)]),
    "F(2,3) twice": ((61, 40, 16), [conv3(16, F23), conv3(16, F23)]),
    "F(4,3) after F(2,3)": ((66, 64, 16), [conv3(16, F23), conv3(16, F43)]),
    "the inner product": ((65, 48, 50), [Conv(17, algorithm=FIP), depthwise(17), Conv(50, algorithm=FIP)]),
    "F(4,3) by the inner product": ((64, 62, 32), [Conv(16), conv3(16, "winograd_f43_fip"), Conv(32)]),
    "F(2,3), stride 2, by the inner product": (
        (61, 40, 16),
        [conv3(16, "winograd_f23_fip"), Conv(24, 3, 2, PAD1, algorithm="winograd_f23_fip")],
    ),
    "F(2,3), stride 2": ((61, 40, 16), [conv3(16, F23), Conv(24, 3, 2, PAD1, algorithm=F23)]),
    "F(4,3), stride 2": ((65, 41, 16), [Conv(16), Conv(24, 3, 2, PAD1, algorithm=F43), Conv(16)]),
    "F(4,3), stride 2, rows that nobody reads": ((62, 40, 16), [Conv(16), Conv(24, 3, 2, algorithm=F43)]),
    "im2col": ((30, 31, 8), [conv3(24, IM2COL), Conv(24, 5, 2, (2, 2, 2, 2), algorithm=IM2COL)]),
    "dilated": ((50, 20, 8), [Conv(16, 3, 1, (4,) * 4, 4), Conv(16, 3, 1, (2,) * 4, 2, depthwise=True)]),
    "one-sided padding": ((60, 47, 8), [Conv(16, 3, 1, (2, 0, 0, 2)), Conv(16, 4, 3, (0, 3, 1, 0)), Conv(8)]),
    "rows that nobody reads": ((63, 40, 16), [Conv(32), Conv(32, 1, 3), Conv(32, 2, 3)]),
    "pools": ((60, 41, 24), [MaxPool(2, 1, 0), MaxPool(5, 1, 2), MaxPool(3, 3, 1), Conv(8)]),
    "full vectors of pixels": ((64, 32, 24), [Conv(40), depthwise(40, 2), Conv(24)]),
    "narrow planes, odd channels": ((70, 7, 19), [Conv(33), depthwise(33), Conv(19)]),
}
#: What goes by bands in NCHW too: planes of a band lie apart, which the other algorithms know nothing of.
PLANES = [
    name
    for name, (_, layers) in CHAINS.items()
    if all(isinstance(layer, MaxPool) or layer.algorithm in ("auto", DIRECT, FIP) for layer in layers)
]


def build(
    name: str, batch: int, residual: bool, l2_bytes: int, seed: int = 0, layout: str = "NHWC"
) -> tuple[_core.Program, list[F32], tuple[int, ...]]:
    (height, width, channels), layers = CHAINS[name]
    rng = np.random.default_rng(seed)
    program = _core.Program()
    shape = (batch, height, width, channels) if layout == "NHWC" else (batch, channels, height, width)
    x = program.input(shape)
    inputs = [rng.standard_normal(shape, np.float32)]
    if residual:  # the tensor that is added at the end comes from outside; a program of its own tells the shape
        probe = _core.Program()
        y = add_layers(probe, probe.input(inputs[0].shape), channels, layers, rng, None, layout)
        inputs.append(rng.standard_normal(probe.shape(y)).astype(np.float32))
    rng = np.random.default_rng(seed + 1)
    added = program.input(inputs[1].shape) if residual else None
    y = add_layers(program, x, channels, layers, rng, added, layout)
    program.output(y)
    program.finalize(l2_bytes)
    return program, inputs, program.shape(y)


def add_layers(
    program: _core.Program, x: int, channels: int, layers: list[Any], rng: Any, added: int | None, layout: str
) -> int:
    for i, layer in enumerate(layers):
        if isinstance(layer, MaxPool):
            window = (layer.kernel, layer.kernel)
            x = program.max_pool2d(x, window, (layer.stride,) * 2, (layer.padding,) * 4, (1, 1), False, layout)
            continue
        groups = channels if layer.depthwise else 1
        weight = rng.standard_normal((layer.oc, channels // groups, layer.kernel, layer.kernel)).astype(np.float32)
        weights = _core.ConvWeights(weight, rng.standard_normal(layer.oc).astype(np.float32), "OIHW", groups)
        last = i == len(layers) - 1
        residual = added if last and added is not None else -1
        x = program.conv2d(
            x, weights, (layer.stride,) * 2, layer.padding, (layer.dilation,) * 2, layout, [layer.algorithm],
            "relu" if i % 2 else None, residual,
        )  # fmt: skip
        channels = layer.oc
    return x


def run(program: _core.Program, inputs: list[F32], shape: tuple[int, ...]) -> F32:
    out = np.full(shape, np.nan, np.float32)
    program.run(inputs, [out])
    return out


def small_l2(program: _core.Program) -> int:
    """The smallest L2 in which the weights of all steps have room."""
    return 4 * sum(int(step["packed_bytes"]) for step in program.steps()) + 4


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("name", "layout"), [(n, "NHWC") for n in CHAINS] + [(n, "NCHW") for n in PLANES])
def test_bands_have_the_bits_of_whole_tensors(name: str, layout: str, batch: int) -> None:
    residual = not isinstance(CHAINS[name][1][-1], MaxPool)
    whole, inputs, shape = build(name, batch, residual, HUGE, layout=layout)
    assert whole.chains() == []
    expected = run(whole, inputs, shape)
    room = small_l2(whole)
    for threads in (1, 2, 3, 7):
        with fc.threads(threads):
            banded, _, _ = build(name, batch, residual, room, layout=layout)
            assert threads > 1 or banded.chains()[0][0] == 0
            np.testing.assert_array_equal(run(banded, inputs, shape), expected)
        for other in (1, 2, 5):  # more and fewer threads than it was made for
            with fc.threads(other):
                np.testing.assert_array_equal(run(banded, inputs, shape), expected)


@pytest.mark.parametrize("level", usable_levels())
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("name", ["inverted residual, stride 2", "bottleneck, F(4,3)", "stem and pool"])
def test_every_isa_level(name: str, layout: str, level: str) -> None:
    with max_isa(level):
        whole, inputs, shape = build(name, 2, False, HUGE, layout=layout)
        banded, _, _ = build(name, 2, False, small_l2(whole), layout=layout)
        assert bool(banded.chains()) == (layout == "NHWC" or name in PLANES)
        np.testing.assert_array_equal(run(banded, inputs, shape), run(whole, inputs, shape))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_random_windows(layout: str) -> None:
    rng = np.random.default_rng(5)
    for seed in range(60):
        layers: list[Any] = []
        height, width, channels = (int(v) for v in rng.integers([20, 16, 4], [60, 40, 20]))
        rows, columns = height, width
        for _ in range(int(rng.integers(2, 5))):
            kernel, stride, dilation = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 3))
            window = (kernel - 1) * dilation + 1
            padding = tuple(int(v) for v in rng.integers(0, window, 4))
            rows = (rows + padding[0] + padding[1] - window) // stride + 1
            columns = (columns + padding[2] + padding[3] - window) // stride + 1
            if rows < 1 or columns < 1:
                break
            layers.append(Conv(int(rng.integers(1, 40)), kernel, stride, padding, dilation, algorithm="direct"))  # type: ignore[arg-type]
        if len(layers) < 2:
            continue
        CHAINS["random"] = ((height, width, channels), layers)
        try:
            whole, inputs, shape = build("random", 1, False, HUGE, seed, layout)
            expected = run(whole, inputs, shape)
            for threads in (1, 2, 4):
                with fc.threads(threads):
                    # So small that all tensors are too large for it; weights are never counted out.
                    banded, _, _ = build("random", 1, False, small_l2(whole), seed, layout)
                    np.testing.assert_array_equal(run(banded, inputs, shape), expected, err_msg=f"{CHAINS['random']}")
        finally:
            del CHAINS["random"]


def test_a_tensor_with_two_readers_stays_whole() -> None:
    rng = np.random.default_rng(1)
    program = _core.Program()
    x = program.input((1, 40, 40, 16))
    wide = program.conv2d(x, weights_of(rng, 64, 16), (1, 1), (0,) * 4, (1, 1), "NHWC", ["auto"], "relu")
    narrow = program.conv2d(wide, weights_of(rng, 64, 64), (1, 1), (0,) * 4, (1, 1), "NHWC", ["auto"], None)
    last = program.conv2d(narrow, weights_of(rng, 64, 64), (1, 1), (0,) * 4, (1, 1), "NHWC", ["auto"], "relu", wide)
    program.output(last)
    with fc.threads(1):
        program.finalize(4 * (64 * 64 * 4) * 3)
        assert program.chains() == [(1, 2)]  # what both the second and the third step read is whole
        run(program, [rng.standard_normal((1, 40, 40, 16), np.float32)], (1, 40, 40, 64))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_residual_that_the_chain_reads_is_not_written_over(layout: str) -> None:
    """x is the source of the chain and what a step in it adds: another thread may still read rows that a band adds.

    In NCHW the chain ends there."""
    shape = (2, 64, 64, 16) if layout == "NHWC" else (2, 16, 64, 64)
    for threads in (1, 2, 5):
        with fc.threads(threads):
            results = []
            for l2_bytes in (HUGE, 300 << 10):
                rng = np.random.default_rng(1)
                program = _core.Program()
                outside = program.input(shape)
                x = program.conv2d(outside, weights_of(rng, 16, 16), (1, 1), (0,) * 4, (1, 1), layout, ["auto"], "relu")
                y = program.conv2d(x, weights_of(rng, 96, 16), (1, 1), (0,) * 4, (1, 1), layout, ["auto"], "relu")
                y = program.conv2d(y, weights_of(rng, 96, 96, 3, 96), (1, 1), PAD1, (1, 1), layout, ["auto"], "relu")
                y = program.conv2d(y, weights_of(rng, 16, 96), (1, 1), (0,) * 4, (1, 1), layout, ["auto"], None, x)
                y = program.conv2d(y, weights_of(rng, 16, 16), (1, 1), (0,) * 4, (1, 1), layout, ["auto"], None)
                program.output(y)
                program.finalize(l2_bytes)
                assert bool(program.chains()) == (l2_bytes != HUGE)
                results.append(
                    run(
                        program,
                        [np.random.default_rng(2).standard_normal(shape, np.float32)],
                        shape,
                    )
                )
            np.testing.assert_array_equal(results[0], results[1])


def weights_of(rng: Any, oc: int, ic: int, kernel: int = 1, groups: int = 1) -> _core.ConvWeights:
    weight = rng.standard_normal((oc, ic // groups, kernel, kernel)).astype(np.float32)
    return _core.ConvWeights(weight, rng.standard_normal(oc).astype(np.float32), "OIHW", groups)


def bottlenecks(program: _core.Program, layout: str, batch: int, size: int) -> tuple[int, tuple[int, ...]]:
    """Two bottlenecks and a stem with its pooling; returns what to put out and the input's shape."""
    rng = np.random.default_rng(3)
    shape = (batch, size, size, 3) if layout == "NHWC" else (batch, 3, size, size)

    def conv(
        x: int, oc: int, ic: int, kernel: int = 1, stride: int = 1, activation: str | None = "relu", residual: int = -1
    ) -> int:
        pad = kernel // 2
        weights = weights_of(rng, oc, ic, kernel)
        return program.conv2d(x, weights, (stride,) * 2, (pad,) * 4, (1, 1), layout, ["auto"], activation, residual)

    x = conv(program.input(shape), 16, 3, 3, 2)
    x = program.max_pool2d(x, (3, 3), (2, 2), (1,) * 4, (1, 1), False, layout)
    shortcut = conv(x, 64, 16, activation=None)
    x = conv(conv(conv(x, 16, 16), 16, 16, 3), 64, 16, residual=shortcut)
    x = conv(conv(conv(x, 16, 64), 16, 16, 3), 64, 16, residual=x)
    return program.adaptive_avg_pool2d(x, (1, 1), layout), shape


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(("batch", "threads"), [(2, 1), (4, 2), (6, 3), (9, 2), (8, 8)])
def test_images_one_after_the_other(layout: str, batch: int, threads: int) -> None:
    results = []
    for l3_bytes in (HUGE, 1 << 10):
        program = _core.Program()
        with fc.threads(threads):
            y, shape = bottlenecks(program, layout, batch, 62)
            program.output(y)
            program.finalize(HUGE, l3_bytes)
        assert bool(program.image_groups()) == (l3_bytes != HUGE)
        x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
        for other in (1, 2, 5):
            with fc.threads(other):
                results.append(run(program, [x], program.shape(y)))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_one_image_and_uneven_shares_form_no_groups() -> None:
    for batch, threads in ((1, 1), (1, 2), (3, 2)):
        program = _core.Program()
        with fc.threads(threads):
            y, _ = bottlenecks(program, "NCHW", batch, 62)
            program.output(y)
            program.finalize(HUGE, 1 << 10)
        assert program.image_groups() == []


def test_profile_counts_every_step() -> None:
    whole, inputs, shape = build("inverted residual", 1, True, HUGE)
    banded, _, _ = build("inverted residual", 1, True, small_l2(whole))
    seconds = banded.run_profiled(inputs, [np.empty(shape, np.float32)])
    assert len(seconds) == 3 and all(s > 0 for s in seconds)


def test_a_chain_needs_less_memory() -> None:
    whole, _, _ = build("stem to projection", 1, False, HUGE)
    banded, _, _ = build("stem to projection", 1, False, small_l2(whole))
    assert banded.arena_bytes < whole.arena_bytes / 4


def test_the_environment_switches_it_off() -> None:
    code = (
        "from test_depth_first import build, small_l2, HUGE\n"
        "room = small_l2(build('inverted residual', 1, False, HUGE)[0])\n"
        "print(build('inverted residual', 1, False, room)[0].chains())"
    )
    for value, printed in (("", "[(0, 2)]"), ("1", "[(0, 2)]"), ("0", "[]")):
        env = {**os.environ, "FASTCONV_DEPTH_FIRST": value, "FASTCONV_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=os.path.dirname(__file__)
        )
        assert done.stdout.strip() == printed, done.stderr
    env["FASTCONV_DEPTH_FIRST"] = "no"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=os.path.dirname(__file__)
    )
    assert done.returncode != 0 and "FASTCONV_DEPTH_FIRST must be 0 or 1; got 'no'" in done.stderr
