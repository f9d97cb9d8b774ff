"""Prepared layers: the same bits as the ops, pickled and copied as weights and options, explained."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from cases import CONV_CASES, DEPTHWISE_CASES, GROUPED_CASES, case_id
from fastconv import layers
from helpers import (
    MEMORY_FORMS,
    conv_data,
    cpu_conv_kernels,
    explain_conv,
    integers,
    kernel_id,
    max_isa,
    normal,
    usable_levels,
)
from test_conv2d import ACCEPT_ALL, skip_if_unsupported


def layer_of(
    case: Any, layout: str, algorithm: Any = "auto", kind: str = "integers"
) -> tuple[Any, dict[str, Any], Any]:
    """A Conv2d of the case, its call's keywords and its input."""
    data = conv_data(case, kind)
    x, w = data.operands(layout)
    options = data.options(layout)
    residual = options.pop("residual")
    layer = fc.Conv2d(w, options.pop("bias"), algorithm=algorithm, **options)
    return layer, {"residual": residual}, x


@pytest.mark.parametrize("case", [*CONV_CASES[::4], *DEPTHWISE_CASES[::3], *GROUPED_CASES[::2]], ids=case_id)
def test_conv_layer_is_the_op(case: Any, isa: str, layout: str) -> None:
    """Bit for bit, on random input, which would show another order of the sum."""
    data = conv_data(case, "normal")
    x, w = data.operands(layout)
    for algorithm in ("auto", "direct", "im2col"):
        layer, more, _ = layer_of(case, layout, algorithm, "normal")
        y = layer(x, **more)
        ref.assert_exact(y, fc.conv2d(x, w, algorithm=algorithm, **data.options(layout)))
        ref.assert_rel_l2(y, data.expected(layout), ref.conv_tolerance(layer.explain()["algorithm"]))


@pytest.mark.parametrize("case", [CONV_CASES[0], CONV_CASES[-1], DEPTHWISE_CASES[0], GROUPED_CASES[2]], ids=case_id)
@pytest.mark.parametrize("kernel", cpu_conv_kernels(), ids=kernel_id)
def test_conv_layer_runs_the_forced_kernel(kernel: dict[str, Any], case: Any, layout: str) -> None:
    skip_if_unsupported(kernel)
    with max_isa(kernel["isa"]):
        try:
            layer, more, x = layer_of(case, layout, kernel["algorithm"])
            y = layer(x, **more)
        except NotImplementedError as refusal:
            assert kernel["algorithm"] not in ACCEPT_ALL
            assert kernel["algorithm"] in str(refusal)
            return
        plan = layer.explain()
        assert plan["algorithm"] == kernel["algorithm"]
        assert plan["isa"] == kernel["isa"]
    ref.assert_conv(y, conv_data(case).expected(layout), kernel["algorithm"])


def test_conv_layer_explain(layout: str) -> None:
    """The same words as `explain` for the call that the layer made."""
    layer, more, x = layer_of(CONV_CASES[0], layout)
    layer(x, **more)
    plan = layer.explain()
    same = explain_conv(conv_data(CONV_CASES[0]), layout)
    for key in ("op", "algorithm", "ukernel", "isa", "packed_bytes", "workspace_bytes", "conversions"):
        assert plan[key] == same[key], key


def test_conv_layer_takes_any_batch_and_size(layout: str, rng: np.random.Generator) -> None:
    """One layer, one set of packed weights; shapes come with the calls."""
    w, b = integers(rng, 20, 6, 3, 3), integers(rng, 20)
    layer = fc.Conv2d(w, b, 2, 1, layout=layout, weight_layout="OIHW")
    for shape in ((1, 6, 9, 9), (4, 6, 9, 9), (2, 6, 5, 12), (6, 7, 8), (1, 6, 9, 9), (0, 6, 9, 9)):
        x = ref.from_nchw(integers(rng, *shape), layout)
        ref.assert_exact(layer(x), ref.conv2d(x, w, b, 2, 1, layout=layout, weight_layout="OIHW"))


def test_conv_layer_out_and_residual(layout: str, rng: np.random.Generator) -> None:
    x, w = ref.from_nchw(integers(rng, 2, 5, 6, 7), layout), integers(rng, 9, 5, 1, 1)
    residual = ref.from_nchw(integers(rng, 2, 9, 6, 7), layout)
    layer = fc.Conv2d(w, layout=layout, weight_layout="OIHW", activation="relu")
    expected = ref.conv2d(x, w, layout=layout, weight_layout="OIHW", activation="relu", residual=residual)
    for make in MEMORY_FORMS.values():
        ref.assert_exact(layer(make(x), residual=make(residual)), expected)
    out = np.zeros(expected.shape, np.float32)
    assert layer(x, residual=residual, out=out) is out
    ref.assert_exact(out, expected)
    plain = ref.conv2d(x, w, layout=layout, weight_layout="OIHW", activation="relu")
    ref.assert_exact(layer(x), plain)


@pytest.mark.parametrize("form", MEMORY_FORMS)
def test_weights_in_any_memory(form: str, layout: str) -> None:
    data = conv_data(CONV_CASES[4])
    x, w = data.operands(layout)
    layer = fc.Conv2d(MEMORY_FORMS[form](w), padding=1, layout=layout)
    ref.assert_exact(layer(x), data.expected(layout))


def pickled(protocol: int, layer: Any) -> Any:
    return pickle.loads(pickle.dumps(layer, protocol))


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle{n}": partial(pickled, n) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_layers_are_copied_and_pickled(
    duplicate: Callable[[Any], Any], used: bool, layout: str, rng: np.random.Generator
) -> None:
    x = ref.from_nchw(normal(rng, 2, 6, 9, 8), layout)
    w, b = normal(rng, 10, 3, 3, 3), normal(rng, 10)
    conv = fc.Conv2d(
        w, b, (2, 1), "same", (1, 2), 2, layout=layout, weight_layout="OIHW", algorithm=["im2col"], activation="relu"
    )
    layers = [
        (conv, x),
        (fc.MaxPool2d(3, 2, 1, layout=layout), x),
        (fc.AvgPool2d(3, 2, 1, count_include_pad=False, layout=layout), x),
        (fc.Linear(normal(rng, 4, 7), normal(rng, 4)), normal(rng, 3, 7)),
    ]
    for layer, data in layers:
        if used:
            layer(data)
        twin = duplicate(layer)
        assert type(twin) is type(layer)
        expected = layer(data)
        ref.assert_exact(twin(data), expected)
        assert twin.explain()["algorithm"] == layer.explain()["algorithm"]
    assert layers[0][0].explain()["algorithm"] == "im2col"


def test_linear_layer(isa: str, rng: np.random.Generator) -> None:
    w, b = normal(rng, 33, 50), normal(rng, 33)
    for bias in (None, b):
        layer = fc.Linear(w, bias)
        for shape in ((50,), (1, 50), (7, 50), (2, 3, 50), (0, 50)):
            x = normal(rng, *shape)
            ref.assert_exact(layer(x), fc.linear(x, w, bias))
        out = np.zeros((7, 33), np.float32)
        x = normal(rng, 7, 50)
        assert layer(x, out=out) is out
        ref.assert_exact(out, fc.linear(x, w, bias))


def test_pool_layers(isa: str, layout: str, rng: np.random.Generator) -> None:
    x = ref.from_nchw(integers(rng, 2, 19, 9, 10), layout)
    biggest = fc.MaxPool2d(3, 2, 1, 1, True, layout=layout)
    ref.assert_exact(biggest(x), ref.max_pool2d(x, 3, 2, 1, 1, True, layout=layout)[0])
    average = fc.AvgPool2d((2, 3), None, (1, 0), True, False, layout=layout)
    expected = ref.avg_pool2d(x, (2, 3), None, (1, 0), True, False, layout=layout)
    ref.assert_avg_pool_close(average(x), expected, integers=True)
    out = np.zeros(expected.shape, np.float32)
    assert average(x, out=out) is out
    ref.assert_exact(out, average(x))


def test_errors_come_when_the_layer_is_made(layout: str) -> None:
    """What needs no input is checked without one."""
    w = np.zeros((4, 3, 3, 3), np.float32)
    for options, error, word in (
        ({"stride": 0}, ValueError, "stride"),
        ({"padding": -1}, ValueError, "padding"),
        ({"layout": "CHWN"}, ValueError, "layout"),
        ({"activation": "gelu"}, ValueError, "activation"),
        ({"algorithm": "fft"}, ValueError, "algorithm"),
        ({"groups": 3}, ValueError, "groups"),
    ):
        with pytest.raises(error, match=word):
            fc.Conv2d(w, **{"layout": layout, "weight_layout": "OIHW", **options})
    with pytest.raises(TypeError, match="float64"):
        fc.Conv2d(w.astype(np.float64))
    with pytest.raises(ValueError, match="bias"):
        fc.Conv2d(w, np.zeros(5, np.float32), layout=layout, weight_layout="OIHW")


def test_errors_of_a_call(layout: str) -> None:
    layer = fc.Conv2d(np.zeros((4, 3, 3, 3), np.float32), layout=layout, weight_layout="OIHW")
    shape = (1, 5, 8, 8) if layout == "NCHW" else (1, 8, 8, 5)
    with pytest.raises(ValueError, match="5"):
        layer(np.zeros(shape, np.float32))
    with pytest.raises(TypeError, match="float64"):
        layer(np.zeros((1, 3, 8, 8)))
    with pytest.raises(ValueError, match="input"):
        layer(np.zeros((8, 8), np.float32))


# --- explain, the programs kept ---------------------------------------------------------------------------------------


def test_explain_is_of_the_last_call_that_succeeded(rng: np.random.Generator) -> None:
    conv = fc.Conv2d(normal(rng, 4, 3, 3, 3), padding=1)
    with pytest.raises(ValueError, match="input shape"):
        conv.explain()
    asked = conv.explain((2, 3, 9, 9))
    assert asked["output_shape"] == (2, 4, 9, 9)
    with pytest.raises(ValueError, match="input shape"):
        conv.explain()
    conv(normal(rng, 1, 3, 6, 6))
    conv.explain((2, 3, 9, 9))
    with pytest.raises(ValueError, match="input"):
        conv(normal(rng, 1, 5, 9, 9))
    with pytest.raises(ValueError, match="out"):
        conv(normal(rng, 1, 3, 8, 8), out=np.zeros(3, np.float32))
    assert conv.explain()["output_shape"] == (1, 4, 6, 6)
    other = fc.Conv2d(normal(rng, 4, 3, 3, 3), padding=1)
    other(normal(rng, 1, 3, 6, 6))
    for size in range(10, 10 + 2 * layers.MAX_PROGRAMS):  # the program of the call is long gone from the cache
        other.explain((1, 3, size, 5))
    assert other.explain()["output_shape"] == (1, 4, 6, 6)
    assert len(other._programs) == layers.MAX_PROGRAMS


def test_explain_judges_the_shape(rng: np.random.Generator) -> None:
    conv, line = fc.Conv2d(normal(rng, 4, 3, 3, 3)), fc.Linear(normal(rng, 4, 7))
    for layer in (conv, fc.MaxPool2d(2), fc.AvgPool2d(2)):
        for bad, error in (((3, 4), ValueError), ((1, 3, 8, -1), ValueError), (8, TypeError), (("8",) * 4, TypeError)):
            with pytest.raises(error, match="input"):
                layer.explain(bad)
    for bad, error in (((2, 6), ValueError), ((), ValueError), ((2, 0, 7), ValueError), (7, TypeError)):
        with pytest.raises(error, match="input_shape"):
            line.explain(bad)
    assert line.explain((2, 3, 7))["op"] == "linear"
    line(normal(rng, 7))
    assert line.explain()["op"] == "linear"
    assert conv.explain(normal(rng, 1, 3, 6, 6))["output_shape"] == (1, 4, 4, 4)
    for residual in (False, True):
        same = fc.explain("conv2d", (1, 3, 6, 6), (4, 3, 3, 3), residual=(1, 4, 4, 4) if residual else None)
        assert conv.explain((1, 3, 6, 6), residual=residual)["problem"] == same["problem"]
    assert len(conv._programs) == 2, "one with a residual, one without"
    with pytest.raises(TypeError, match="residual"):
        conv.explain((1, 3, 6, 6), residual=1)


def test_options_cannot_be_changed_from_outside(rng: np.random.Generator) -> None:
    padding: Any = [[1, 0], [2, 1]]
    algorithm = ["im2col"]
    x, w = normal(rng, 1, 3, 6, 6), normal(rng, 4, 3, 3, 3)
    conv, pool = fc.Conv2d(w, padding=padding, algorithm=algorithm), fc.MaxPool2d(4, 1, padding)
    array = np.array([[1, 0], [2, 1]])
    same = fc.Conv2d(w, padding=array)
    before = [layer(x) for layer in (conv, pool, same)]
    padding[0][0], algorithm[0], array[0, 0] = 0, "direct", 0
    for layer, y in zip((conv, pool, same), before, strict=True):
        ref.assert_exact(layer(np.concatenate([x, x]))[:1], y)
        assert "((1, 0), (2, 1))" in repr(layer)
    ref.assert_exact(before[2], fc.conv2d(x, w, padding=((1, 0), (2, 1))))
    assert conv.explain((1, 3, 7, 7))["algorithm"] == "im2col"


def test_threads_that_meet_a_shape_together_build_once(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = fc._core.Program, []

    def slow() -> Any:
        made.append(threading.get_ident())
        time.sleep(0.2)
        return real()

    monkeypatch.setattr(fc._core, "Program", slow)
    x = normal(rng, 2, 6, 8, 8)
    for layer, data in (
        (fc.Conv2d(normal(rng, 4, 6, 3, 3)), x),
        (fc.MaxPool2d(2), x),
        (fc.Linear(normal(rng, 4, 8)), x),
    ):
        made.clear()
        start = threading.Barrier(4)

        def call(_: int, layer: Any = layer, data: Any = data, start: Any = start) -> Any:
            start.wait()
            return layer(data)

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(call, range(4)))
        assert len(made) == 1
        assert all(np.array_equal(y, results[0]) for y in results)


def test_a_failed_build_keeps_nothing(rng: np.random.Generator) -> None:
    layer = fc.Conv2d(normal(rng, 4, 3, 3, 3), algorithm="conv_direct_depthwise")
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="depthwise"):
            layer(normal(rng, 1, 3, 6, 6))
    assert len(layer._programs) == 0


@pytest.mark.parametrize("name", ["direct", "conv_direct", "conv_im2col", "reference"])
def test_drivers_are_names_everywhere(name: str, rng: np.random.Generator) -> None:
    x, w = normal(rng, 1, 3, 6, 6), normal(rng, 4, 3, 3, 3)
    layer = fc.Conv2d(w, algorithm=name)
    ref.assert_exact(layer(x), fc.conv2d(x, w, algorithm=name))
    assert name in (layer.explain()["algorithm"], layer.explain()["kernel"])
    assert fc.models.resnet18(num_classes=3, algorithm=name).algorithm == name
    for call in (
        lambda: fc.conv2d(x, w, algorithm="fft"),
        lambda: fc.Conv2d(w, algorithm=["direct", "fft"]),
        lambda: fc.explain("conv2d", x, w, algorithm="fft"),
        lambda: fc.models.resnet18(algorithm="fft"),
    ):
        with pytest.raises(ValueError, match=r"must be one of 'auto', .*'direct'.*'im2col'.*; got 'fft'$") as e:
            call()
        assert "conv_" not in str(e.value), "drivers are for tests; the message lists the public names"


# --- the warning ------------------------------------------------------------------------------------------------------

# Too large for direct's scratch and for im2col's patch, and yet a million multiply-adds.
SLOW_C = (1 << 18) + 1


def slow_problem() -> tuple[Any, Any, dict[str, Any]]:
    x, w = np.ones((1, SLOW_C, 1, 1), np.float32), np.ones((1, SLOW_C, 2, 2), np.float32)
    return x, w, {"padding": 4, "dilation": 8}


def warned(call: Callable[[], Any]) -> list[Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [w for w in caught if issubclass(w.category, fc.PerformanceWarning)]


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def test_the_warning_is_for_auto_alone() -> None:
    x, w, options = slow_problem()
    assert fc.explain("conv2d", x, w, **options)["algorithm"] == "reference"
    for algorithm, expected in (
        ("auto", 1),
        (["direct", "auto"], 1),
        (["auto", "reference"], 1),
        ("reference", 0),
        ("conv_reference", 0),
        (["reference", "auto"], 0),
        (["im2col", "conv_reference", "auto"], 0),
    ):
        layer = fc.Conv2d(w, algorithm=algorithm, **options)
        assert len(warned(partial(fc.conv2d, x, w, algorithm=algorithm, **options))) == expected, algorithm
        assert len(warned(partial(layer, x))) == expected, algorithm
        assert len(warned(partial(layer.explain, x))) == 0


def test_the_warning_points_at_the_callers_line() -> None:
    x, w, options = slow_problem()
    (caught,) = warned(lambda: fc.conv2d(x, w, **options))
    assert (caught.filename, caught.lineno) == (__file__, here() - 1)
    layer = fc.Conv2d(w, **options)
    (caught,) = warned(lambda: layer(x))
    assert (caught.filename, caught.lineno) == (__file__, here() - 1)


def test_every_layer_is_warned_of() -> None:
    """By default a line is warned of once; that line must be the user's, or the second layer would go unnoticed."""
    x, w, options = slow_problem()
    first, second = fc.Conv2d(w, **options), fc.Conv2d(w, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            first(x)
        second(x)
    assert len([w for w in caught if issubclass(w.category, fc.PerformanceWarning)]) == 2


def test_networks_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fc.models.resnet18(num_classes=3)
    x = np.zeros((1, 32, 32, 3), np.float32)
    assert warned(lambda: net(x)) == []
    monkeypatch.setattr(fc._programs, "fell_back", lambda algorithm, names: "auto" in names)
    net = fc.models.resnet18(num_classes=3)
    (caught,) = warned(lambda: net(x))
    assert (caught.filename, caught.lineno) == (__file__, here() - 1)
    picture = np.zeros((40, 40, 3), np.uint8)
    pytest.importorskip("PIL", reason="Pillow is not installed")
    (caught,) = warned(lambda: net.predict(picture))
    assert (caught.filename, caught.lineno) == (__file__, here() - 1)
    assert "resnet18" in str(caught.message)


def test_the_environment_is_no_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fc._programs.fell_back("reference", ("auto",))
    monkeypatch.setenv("FASTCONV_KERNEL", "reference")
    assert not fc._programs.fell_back("reference", ("auto",))
    assert not fc._programs.fell_back("direct", ("auto",))


# --- calls like the one before ----------------------------------------------------------------------------------------


def short_ways(layout: str) -> dict[str, tuple[Callable[..., Any], tuple[int, ...]]]:
    """Calls that skip the checks in Python where plain arrays come in and go out, and the shape of their results from
    (2, 6, 8, 16)."""
    channels = 16 if layout == "NHWC" else 6
    conv = fc.Conv2d(np.ones((4, channels, 1, 1), np.float32), layout=layout, weight_layout="OIHW")
    pool = fc.MaxPool2d(2, layout=layout)
    other = "NHWC" if layout == "NCHW" else "NCHW"
    return {
        "Conv2d": (conv, (2, 6, 8, 4) if layout == "NHWC" else (2, 4, 8, 16)),
        "MaxPool2d": (pool, (2, 3, 4, 16) if layout == "NHWC" else (2, 6, 4, 8)),
        "relu": (fc.relu, (2, 6, 8, 16)),
        "adaptive_avg_pool2d": (
            lambda x, out=None: fc.adaptive_avg_pool2d(x, 1, layout=layout, out=out),
            (2, 1, 1, 16) if layout == "NHWC" else (2, 6, 1, 1),
        ),
        "convert_layout": (
            lambda x, out=None: fc.convert_layout(x, layout, other, out=out),
            (2, 16, 6, 8) if layout == "NHWC" else (2, 8, 16, 6),
        ),
    }


@pytest.mark.parametrize("name", ["Conv2d", "MaxPool2d", "adaptive_avg_pool2d", "relu", "convert_layout"])
def test_a_second_call_checks_as_the_first(name: str, layout: str, rng: np.random.Generator) -> None:
    call, shape = short_ways(layout)[name]
    x = integers(rng, 2, 6, 8, 16)
    expected = call(x)
    out = np.empty(shape, np.float32)
    for _ in range(3):
        out[...] = np.nan
        assert call(x, out=out) is out
        np.testing.assert_array_equal(out, expected)
    closed = np.empty(shape, np.float32)
    closed.flags.writeable = False
    room = np.zeros(x.size + 8, np.float32)
    inner = room[: x.size].reshape(x.shape)
    for wrong, error, match in [
        (np.empty((*shape[:3], shape[3] + 1), np.float32), ValueError, "out must have shape"),
        (np.empty(shape, np.float64), TypeError, "out must be float32, got float64"),
        (closed, ValueError, "out is read-only"),
    ]:
        with pytest.raises(error, match=match):
            call(x, out=wrong)
    with pytest.raises(ValueError, match="out overlaps input"):
        call(inner, out=room[4 : 4 + expected.size].reshape(shape))
    with pytest.raises(TypeError, match="input must be float32, got float64"):
        call(x.astype(np.float64), out=out)
    # Other memory and other classes take the long way to the same values.
    apart = np.empty((*shape[:3], 2 * shape[3]), np.float32)[..., ::2]
    assert call(x, out=apart) is apart
    np.testing.assert_array_equal(apart, expected)
    masked = np.ma.masked_array(x)
    np.testing.assert_array_equal(np.asarray(call(masked, out=out)), expected)
    np.testing.assert_array_equal(call(np.asfortranarray(x), out=out), expected)
    # Another shape, then the first one again.
    if name != "relu":
        assert call(x[:1].copy(), out=out[:1]) is not None
        np.testing.assert_array_equal(out[:1], expected[:1])
    call(x, out=out)
    np.testing.assert_array_equal(out, expected)


def test_a_second_call_plans_anew_for_another_level(layout: str, rng: np.random.Generator) -> None:
    pool = fc.MaxPool2d(2, layout=layout)
    x = integers(rng, 2, 6, 8, 16)
    out = pool(x)
    pool(x, out=out)
    with max_isa("scalar"):
        pool(x, out=out)
        assert pool.explain()["isa"] == "scalar"
    pool(x, out=out)
    assert pool.explain()["isa"] == usable_levels()[-1]


def test_the_warning_comes_at_every_call() -> None:
    x, w, options = slow_problem()
    layer = fc.Conv2d(w, **options)
    out = np.empty(layer.explain(x)["output_shape"], np.float32)
    assert [len(warned(lambda: layer(x, out=out))) for _ in range(3)] == [1, 1, 1]
