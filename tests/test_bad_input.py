"""Bad input: the contract's error with the argument's name and the numbers that disagree. Nothing may crash the
interpreter."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from helpers import Array, run_python

X = np.zeros((2, 4, 8, 9), np.float32)  # NCHW
W = np.zeros((6, 4, 3, 3), np.float32)
B = np.zeros(6, np.float32)
C = np.zeros(4, np.float32)  # per channel
ROWS = np.zeros((3, 5), np.float32)
MATRIX = np.zeros((7, 5), np.float32)


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def refused(
    error: type[Exception] | tuple[type[Exception], ...], words: tuple[Any, ...], call: Callable[[], Any]
) -> None:
    """The call raises the error and its message holds every word, numbers as whole numbers."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        pattern = rf"(?<!\d){word}(?!\d)" if isinstance(word, int) else re.escape(str(word))
        assert re.search(pattern, message), f"{word!r} is not in: {message}"
    assert "\n" not in message


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "conv2d": (fc.conv2d, {"input": X, "weight": W, "bias": B}),
    "max_pool2d": (fc.max_pool2d, {"input": X, "kernel_size": 2}),
    "avg_pool2d": (fc.avg_pool2d, {"input": X, "kernel_size": 2}),
    "adaptive_avg_pool2d": (fc.adaptive_avg_pool2d, {"input": X, "output_size": 2}),
    "relu": (fc.relu, {"input": X}),
    "softmax": (fc.softmax, {"input": X}),
    "linear": (fc.linear, {"input": ROWS, "weight": MATRIX, "bias": zeros(7)}),
    "batch_norm": (fc.batch_norm, {"input": X, "running_mean": C, "running_var": C, "weight": C, "bias": C}),
    "convert_layout": (fc.convert_layout, {"input": X, "source": "NCHW", "target": "NHWC"}),
}
every_op = pytest.mark.parametrize("op", CALLS)
ARRAYS = [
    (op, name)
    for op, (_, arguments) in CALLS.items()
    for name, value in arguments.items()
    if isinstance(value, np.ndarray)
]
IMAGES = ["conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "convert_layout"]


def call(op: str, **changed: Any) -> Any:
    function, arguments = CALLS[op]
    return function(**{**arguments, **changed})


# --- kinds and dtypes -------------------------------------------------------------------------------------------------

DTYPES = [
    "float64",
    "float16",
    "int8",
    "int32",
    "int64",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "object",
    "U1",
    "M8[s]",
]


@pytest.mark.parametrize(("op", "name"), ARRAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(op: str, name: str, dtype: str) -> None:
    """Never a silent conversion: the message names the argument and what it got."""
    array = np.zeros(CALLS[op][1][name].shape, dtype)
    refused(TypeError, (name, str(array.dtype), "float32"), lambda: call(op, **{name: array}))


@pytest.mark.parametrize(("op", "name"), ARRAYS)
@pytest.mark.parametrize(
    "thing", [3, 2.5, "text", b"bytes", [[1.0, 2.0]], {"a": 1}, object(), ..., np.float32(3)], ids=repr
)
def test_things_that_are_no_arrays(op: str, name: str, thing: Any) -> None:
    refused(
        (TypeError, ValueError) if isinstance(thing, np.generic) else TypeError,
        (name,),
        lambda: call(op, **{name: thing}),
    )


@pytest.mark.parametrize(
    ("op", "name"), [pair for pair in ARRAYS if pair[1] in ("input", "running_mean", "running_var")]
)
def test_none_for_an_array(op: str, name: str) -> None:
    refused(TypeError, (name,), lambda: call(op, **{name: None}))


@every_op
def test_structured_and_masked(op: str) -> None:
    structured = np.zeros(CALLS[op][1]["input"].shape, [("a", "f4")])
    refused(TypeError, ("input",), lambda: call(op, input=structured))


# --- ranks and extents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", IMAGES)
@pytest.mark.parametrize("shape", [(), (5,), (4, 8), (1, 2, 4, 8, 9)], ids=str)
def test_rank_of_input(op: str, shape: tuple[int, ...]) -> None:
    refused(ValueError, ("input", len(shape)), lambda: call(op, input=zeros(*shape)))


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 5])
def test_rank_of_weight(rank: int) -> None:
    refused(ValueError, ("weight", rank), lambda: fc.conv2d(X, zeros(*[1] * rank)))


@pytest.mark.parametrize("rank", [0, 2, 3])
def test_rank_of_bias(rank: int) -> None:
    refused(ValueError, ("bias", rank), lambda: fc.conv2d(X, W, zeros(*[6] * rank)))


@pytest.mark.parametrize("op", IMAGES)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_zero_extents(op: str, axis: int) -> None:
    shape = list(X.shape)
    shape[axis] = 0
    refused(ValueError, ("0",), lambda: call(op, input=zeros(*shape)))
    refused(ValueError, ("0",), lambda: call(op, input=zeros(*shape[1:])))


@pytest.mark.parametrize("op", ["relu", "softmax", "linear"])
def test_zero_extents_of_other_ops(op: str) -> None:
    refused(ValueError, ("input", "0"), lambda: call(op, input=zeros(3, 0)))
    refused(ValueError, ("input", "0"), lambda: call(op, input=zeros(3, 0, 5)))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_zero_extents_of_weight(axis: int) -> None:
    shape = list(W.shape)
    shape[axis] = 0
    refused(ValueError, ("weight", 0), lambda: fc.conv2d(X, zeros(*shape)))


@every_op
def test_an_empty_batch_is_still_checked(op: str) -> None:
    name = {"linear": "weight", "conv2d": "weight", "batch_norm": "running_mean"}.get(op)
    empty = CALLS[op][1]["input"][:0]
    assert np.asarray(call(op, input=empty)).shape[0] == 0
    if name:
        wrong = zeros(*[s + 1 for s in CALLS[op][1][name].shape])
        refused(ValueError, (name,), lambda: call(op, input=empty, **{name: wrong}))


# --- shapes that do not fit -------------------------------------------------------------------------------------------


def test_channels_that_differ() -> None:
    refused(ValueError, ("input", "weight", 4, 5), lambda: fc.conv2d(X, zeros(6, 5, 3, 3)))
    refused(ValueError, ("input", "weight", 9, 4), lambda: fc.conv2d(X, zeros(6, 3, 3, 4), layout="NHWC"))
    refused(ValueError, ("input", "weight", 4, 6), lambda: fc.conv2d(X, zeros(4, 3, 3, 6), weight_layout="OHWI"))


def test_bias_that_does_not_fit() -> None:
    refused(ValueError, ("bias", 6, 5), lambda: fc.conv2d(X, W, zeros(5)))
    refused(ValueError, ("bias", 7, 6), lambda: fc.linear(ROWS, MATRIX, zeros(6)))


def test_residual_that_does_not_fit() -> None:
    for shape in ((2, 6, 6, 8), (1, 6, 6, 7), (6, 6, 7), (2, 6, 7, 6), (2, 6, 1, 1)):
        refused(
            ValueError,
            ("residual", str((2, 6, 6, 7)), str(shape)),
            lambda shape=shape: fc.conv2d(X, W, residual=zeros(*shape)),
        )
    refused(TypeError, ("residual", "float64"), lambda: fc.conv2d(X, W, residual=zeros(2, 6, 6, 7, dtype=np.float64)))


def test_linear_that_does_not_fit() -> None:
    refused(ValueError, ("input", "weight", 5, 4), lambda: fc.linear(ROWS, zeros(7, 4)))
    refused(ValueError, ("weight", 3), lambda: fc.linear(ROWS, zeros(7, 5, 1)))
    refused(ValueError, ("weight", 1), lambda: fc.linear(ROWS, zeros(5)))
    refused(ValueError, ("input",), lambda: fc.linear(zeros(), MATRIX))
    refused(ValueError, ("weight", 0), lambda: fc.linear(ROWS, zeros(0, 5)))


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("shape", [(), (3,), (5,), (4, 1)], ids=str)
def test_channel_values_that_do_not_fit(name: str, shape: tuple[int, ...]) -> None:
    numbers = (4, *shape[:1]) if len(shape) == 1 else (4,)
    refused(ValueError, (name, *numbers), lambda: call("batch_norm", **{name: zeros(*shape)}))


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "numbers"),
    [
        ((9, 3), 0, 1, (9, 8)),
        ((3, 10), 0, 1, (10, 9)),
        ((5, 1), 0, 3, (13, 8)),
        ((13, 1), 2, 1, (13, 12)),
        ((1, 6), ((0, 0), (1, 0)), 2, (11, 10)),
    ],
)
def test_kernel_larger_than_the_padded_input(
    kernel: tuple[int, int], padding: Any, dilation: int, numbers: tuple[int, int]
) -> None:
    """The effective kernel and the padded input are the numbers that disagree."""
    weight = zeros(6, 4, *kernel)
    for algorithm in ("auto", "direct", "im2col", "reference"):
        refused(
            ValueError,
            ("kernel", *numbers),
            lambda a=algorithm: fc.conv2d(X, weight, None, 1, padding, dilation, algorithm=a),
        )


def test_pooling_window_larger_than_the_padded_input() -> None:
    for op in ("max_pool2d", "avg_pool2d"):
        refused(ValueError, ("kernel", 10, 8), lambda op=op: call(op, kernel_size=10))
        refused(ValueError, ("kernel", 12, 10), lambda op=op: call(op, kernel_size=(12, 2), padding=1))
    refused(ValueError, ("kernel", 11, 8), lambda: fc.max_pool2d(X, 3, dilation=5))


# --- whole numbers ----------------------------------------------------------------------------------------------------

NUMBERS = [
    *((op, "stride") for op in ("conv2d", "max_pool2d", "avg_pool2d")),
    *((op, "dilation") for op in ("conv2d", "max_pool2d")),
    *((op, "kernel_size") for op in ("max_pool2d", "avg_pool2d")),
    ("adaptive_avg_pool2d", "output_size"),
]


@pytest.mark.parametrize(("op", "name"), NUMBERS)
@pytest.mark.parametrize(
    "value", [0, -1, -(2**31), -(2**62), -(2**63), -(2**80), (0, 1), (1, 0), (-1, 1), (1, -(2**63))], ids=str
)
def test_numbers_below_one(op: str, name: str, value: Any) -> None:
    wrong = min(value) if isinstance(value, tuple) else value
    refused(ValueError, (name, str(wrong)), lambda: call(op, **{name: value}))


@pytest.mark.parametrize(
    ("op", "name"), [*NUMBERS, ("conv2d", "padding"), ("max_pool2d", "padding"), ("avg_pool2d", "padding")]
)
@pytest.mark.parametrize(
    "value",
    [1.0, 2.5, np.nan, np.float32(1), True, (1, 1.0), (True, 1), 1j, object(), {1, 2}, {"a": 1}, b"1"],
    ids=repr,
)
def test_numbers_of_the_wrong_kind(op: str, name: str, value: Any) -> None:
    refused(TypeError, (name,), lambda: call(op, **{name: value}))


@pytest.mark.parametrize(("op", "name"), NUMBERS)
def test_words_for_numbers(op: str, name: str) -> None:
    refused((TypeError, ValueError), (name,), lambda: call(op, **{name: "2"}))


@pytest.mark.parametrize(
    ("op", "name"), [*NUMBERS, ("conv2d", "padding"), ("max_pool2d", "padding"), ("avg_pool2d", "padding")]
)
@pytest.mark.parametrize("length", [0, 3, 4, 1000, 100_000])
def test_sequences_of_the_wrong_length(op: str, name: str, length: int) -> None:
    refused(ValueError, (name,), lambda: call(op, **{name: (1,) * length}))
    refused(ValueError, (name,), lambda: call(op, **{name: [1] * length}))


@pytest.mark.parametrize("op", ["conv2d", "max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize(
    "value", [-1, (-1, 0), (0, -1), ((0, -1), (0, 0)), ((0, 0), (-1, 0)), -(2**62), -(2**80)], ids=str
)
def test_negative_padding(op: str, value: Any) -> None:
    refused(ValueError, ("padding", "-"), lambda: call(op, padding=value))


@pytest.mark.parametrize("op", ["conv2d", "max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize(
    "value", [((1, 1), 1), ((1,), (1, 1)), ((1, 1, 1), (1, 1)), (((1, 1), (1, 1)), (1, 1)), ((), ())], ids=str
)
def test_paddings_of_the_wrong_form(op: str, value: Any) -> None:
    refused((ValueError, TypeError), ("padding",), lambda: call(op, padding=value))


@pytest.mark.parametrize("op", ["conv2d", "max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("word", ["SAME", "same_upper", "", "reflect", "1", "x" * 100_000], ids=lambda word: word[:12])
def test_unknown_words_for_padding(op: str, word: str) -> None:
    refused(ValueError, ("padding", "same", "valid", "same_lower"), lambda: call(op, padding=word))


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_pooling_knows_no_full_padding(op: str) -> None:
    refused(ValueError, ("padding", "full"), lambda: call(op, padding="full"))


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize(
    ("kernel", "padding"), [(2, 2), (3, 2), (1, 1), ((4, 3), (1, 2)), (3, ((0, 2), (0, 0))), (3, ((0, 0), (2, 1)))]
)
def test_pooling_padding_limit(op: str, kernel: Any, padding: Any) -> None:
    """At most half of the effective kernel, on each side."""
    refused(ValueError, ("padding",), lambda: call(op, kernel_size=kernel, padding=padding))


def test_pooling_padding_limit_counts_the_dilation() -> None:
    assert fc.max_pool2d(X, 3, 1, 2, dilation=2).shape == (2, 4, 8, 9)
    refused(ValueError, ("padding", 3, 5), lambda: fc.max_pool2d(X, 3, 1, 3, dilation=2))
    assert fc.avg_pool2d(X, 2, 1, 1).shape == (2, 4, 9, 10)


HUGE = [2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1]


@pytest.mark.parametrize("value", HUGE)
def test_huge_strides_leave_one_window(value: int) -> None:
    """A stride beyond the input is legal; it must not overflow."""
    one = np.ones((1, 2, 5, 5), np.float32)
    weight = np.ones((3, 2, 3, 3), np.float32)
    for algorithm in ("direct", "im2col", "reference"):
        y = fc.conv2d(one, weight, None, value, 1, algorithm=algorithm)
        assert y.tolist() == [[[[8.0]]] * 3]
        assert fc.conv2d(one, weight, None, (value, 1), algorithm=algorithm).shape == (1, 3, 1, 3)
    assert fc.max_pool2d(one, 2, value).tolist() == [[[[1.0]]] * 2]
    assert fc.max_pool2d(one, 2, value, ceil_mode=True).shape == (1, 2, 1, 1)
    assert fc.avg_pool2d(one, 2, value).tolist() == [[[[1.0]]] * 2]
    assert fc.conv2d(one, weight, None, value, "same").shape == (1, 3, 1, 1)


@pytest.mark.parametrize("value", HUGE)
def test_huge_dilations(value: int) -> None:
    """Without effect for a 1x1 kernel, larger than any input for another."""
    one = np.ones((1, 2, 5, 5), np.float32)
    for algorithm in ("direct", "im2col", "reference"):
        y = fc.conv2d(one, np.ones((3, 2, 1, 1), np.float32), dilation=value, algorithm=algorithm)
        assert np.array_equal(y, np.full((1, 3, 5, 5), 2, np.float32))
        refused(
            ValueError, ("kernel",), lambda a=algorithm: fc.conv2d(one, zeros(3, 2, 3, 1), dilation=value, algorithm=a)
        )
    refused(ValueError, ("kernel",), lambda: fc.max_pool2d(one, 3, dilation=value))


@pytest.mark.parametrize("value", [2**40, 2**62, 2**63 - 1])
def test_huge_paddings(value: int) -> None:
    """An output of more elements than memory, or than numbers."""
    one = np.ones((1, 2, 5, 5), np.float32)
    for algorithm in ("auto", "direct", "im2col", "reference"):
        refused(
            (ValueError, MemoryError),
            (),
            lambda a=algorithm: fc.conv2d(one, zeros(3, 2, 3, 3), padding=value, algorithm=a),
        )
    refused(ValueError, ("padding",), lambda: fc.max_pool2d(one, 3, padding=value))


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, 2**62, 2**63 - 1])
def test_huge_windows_and_outputs(value: int) -> None:
    one = np.ones((1, 2, 5, 5), np.float32)
    for op in (fc.max_pool2d, fc.avg_pool2d):
        refused(ValueError, ("kernel",), lambda op=op: op(one, value))
    refused((ValueError, MemoryError), (), lambda: fc.adaptive_avg_pool2d(one, value))


@pytest.mark.parametrize(("op", "name"), [*NUMBERS, ("conv2d", "padding"), ("conv2d", "groups")])
@pytest.mark.parametrize("value", [2**63, 2**64 + 1, 10**30])
def test_numbers_beyond_64_bits(op: str, name: str, value: int) -> None:
    refused((ValueError, MemoryError), (name,), lambda: call(op, **{name: value}))


@every_op
def test_inputs_larger_than_any_memory(op: str) -> None:
    """Arrays of zero strides take none themselves; their results would take 2^48 bytes and more."""
    big = np.broadcast_to(np.float32(1), (2**23, 2**23) if op == "linear" else (1, 4, 2**22, 2**22))
    more: dict[str, Any] = {"input": big}
    if op == "linear":
        more["weight"] = np.broadcast_to(np.float32(1), (7, 2**23))
    if op in ("max_pool2d", "avg_pool2d"):
        more["stride"] = 1
    if op == "adaptive_avg_pool2d":
        more["output_size"] = 2**22
    refused((MemoryError, ValueError), (), lambda: call(op, **more))


# --- groups -----------------------------------------------------------------------------------------------------------


def test_groups_that_do_not_divide() -> None:
    refused(ValueError, ("groups", 3, 4), lambda: fc.conv2d(X, zeros(6, 1, 3, 3), groups=3))
    refused(ValueError, ("groups", 4, 6), lambda: fc.conv2d(X, zeros(6, 1, 3, 3), groups=4))
    refused(ValueError, ("weight", 4, 2), lambda: fc.conv2d(X, W, groups=2))
    refused(ValueError, ("groups", 5, 4), lambda: fc.conv2d(X, W, groups=5))


@pytest.mark.parametrize("groups", [0, -1, -(2**62), 2**40, 2**62])
def test_groups_out_of_range(groups: int) -> None:
    refused(ValueError, ("groups", str(groups)), lambda: fc.conv2d(X, W, groups=groups))


@pytest.mark.parametrize("groups", [1.0, "2", None, True, (1, 1)], ids=repr)
def test_groups_of_the_wrong_kind(groups: Any) -> None:
    refused(TypeError, ("groups",), lambda: fc.conv2d(X, W, groups=groups))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in IMAGES if op != "convert_layout"])
@pytest.mark.parametrize("layout", ["nchw", "NHCW", "", "CHWN", "NCHW ", "NCHW\0"])
def test_unknown_layout(op: str, layout: str) -> None:
    refused(ValueError, ("layout", "NCHW", "NHWC"), lambda: call(op, layout=layout))


@pytest.mark.parametrize("op", [op for op in IMAGES if op != "convert_layout"])
@pytest.mark.parametrize("layout", [None, 3, b"NCHW", ("N", "C", "H", "W"), np.float32], ids=repr)
def test_layout_of_the_wrong_kind(op: str, layout: Any) -> None:
    refused(TypeError, ("layout",), lambda: call(op, layout=layout))


def test_unknown_source_and_target() -> None:
    refused(ValueError, ("source", "NCHW", "NHWC"), lambda: fc.convert_layout(X, "HWCN", "NCHW"))
    refused(ValueError, ("target", "NCHW", "NHWC"), lambda: fc.convert_layout(X, "NCHW", "nhwc"))
    refused(TypeError, ("target",), lambda: fc.convert_layout(X, "NCHW", None))


def test_unknown_weight_layout() -> None:
    refused(ValueError, ("weight_layout", "OIHW", "OHWI", "HWIO"), lambda: fc.conv2d(X, W, weight_layout="IOHW"))
    refused(TypeError, ("weight_layout",), lambda: fc.conv2d(X, W, weight_layout=4))


@pytest.mark.parametrize(
    "algorithm", ["fft", "", "Direct", "im2col ", "auto\0", "x" * 100_000], ids=lambda word: word[:10]
)
def test_unknown_algorithm(algorithm: str) -> None:
    for value in (algorithm, [algorithm], ["direct", algorithm][::-1]):
        refused(ValueError, ("algorithm", "auto", "direct", "im2col"), lambda v=value: fc.conv2d(X, W, algorithm=v))


def test_an_unknown_algorithm_is_found_at_any_place_of_the_list() -> None:
    refused(ValueError, ("algorithm", "fft"), lambda: fc.conv2d(X, W, algorithm=["direct", "fft"]))


def test_algorithms_of_the_wrong_kind() -> None:
    refused(ValueError, ("algorithm",), lambda: fc.conv2d(X, W, algorithm=[]))
    for value in (None, 3, [3], ["direct", None], b"direct", {"direct"}):
        refused(TypeError, ("algorithm",), lambda v=value: fc.conv2d(X, W, algorithm=v))


@pytest.mark.parametrize("activation", ["gelu", "", "ReLU", "none"])
def test_unknown_activation(activation: str) -> None:
    refused(ValueError, ("activation", "relu"), lambda: fc.conv2d(X, W, activation=activation))


@pytest.mark.parametrize("activation", [3, False, np.tanh], ids=repr)
def test_activation_of_the_wrong_kind(activation: Any) -> None:
    refused(TypeError, ("activation",), lambda: fc.conv2d(X, W, activation=activation))


@every_op
def test_unknown_arguments(op: str) -> None:
    refused(TypeError, ("colour",), lambda: call(op, colour=3))


# --- other arguments --------------------------------------------------------------------------------------------------


def test_divisor_override() -> None:
    refused(ValueError, ("divisor_override", 0), lambda: fc.avg_pool2d(X, 2, divisor_override=0))
    for value in (1.5, "2", True, (1, 1)):
        refused(TypeError, ("divisor_override",), lambda v=value: fc.avg_pool2d(X, 2, divisor_override=v))
    refused(ValueError, ("divisor_override",), lambda: fc.avg_pool2d(X, 2, divisor_override=2**64))


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("max_pool2d", "ceil_mode"),
        ("max_pool2d", "return_indices"),
        ("avg_pool2d", "ceil_mode"),
        ("avg_pool2d", "count_include_pad"),
    ],
)
@pytest.mark.parametrize("value", ["yes", None, 2.0, (True,)], ids=repr)
def test_flags_of_the_wrong_kind(op: str, name: str, value: Any) -> None:
    refused(TypeError, (name,), lambda: call(op, **{name: value}))


@pytest.mark.parametrize("dim", [4, -5, 2**31, -(2**62), 2**80])
def test_softmax_dim_out_of_range(dim: int) -> None:
    refused(ValueError, ("dim", str(dim)), lambda: fc.softmax(X, dim))


@pytest.mark.parametrize("dim", [1.0, "1", (1,), True], ids=repr)
def test_softmax_dim_of_the_wrong_kind(dim: Any) -> None:
    refused(TypeError, ("dim",), lambda: fc.softmax(X, dim))


def test_softmax_of_a_number() -> None:
    refused(ValueError, ("input", 0), lambda: fc.softmax(zeros(), 0))


@pytest.mark.parametrize("eps", ["1e-5", None, (1e-5,), True, 1j], ids=repr)
def test_batch_norm_eps_of_the_wrong_kind(eps: Any) -> None:
    refused(TypeError, ("eps",), lambda: call("batch_norm", eps=eps))


@pytest.mark.parametrize("value", [(2, 2, 2), (), 0, -3, (3, 0)], ids=str)
def test_adaptive_output_size(value: Any) -> None:
    refused(ValueError, ("output_size",), lambda: fc.adaptive_avg_pool2d(X, value))


# --- out --------------------------------------------------------------------------------------------------------------


@every_op
def test_out_of_the_wrong_shape(op: str) -> None:
    right = np.asarray(call(op)).shape
    wrong_shapes = {(*right[:-1], right[-1] + 1), right[1:], (1, *right), (*right[:-2], right[-1], right[-2]), ()} - {
        right
    }
    for shape in wrong_shapes:
        refused(ValueError, ("out", str(right), str(shape)), lambda shape=shape: call(op, out=zeros(*shape)))


@every_op
@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool", "complex64", "object"])
def test_out_of_the_wrong_dtype(op: str, dtype: str) -> None:
    out = np.zeros(np.asarray(call(op)).shape, dtype)
    refused(TypeError, ("out", dtype, "float32"), lambda: call(op, out=out))


@every_op
def test_read_only_out(op: str) -> None:
    out = np.asarray(call(op)).copy()
    out.flags.writeable = False
    refused(ValueError, ("out", "read-only"), lambda: call(op, out=out))
    refused(ValueError, ("out",), lambda: call(op, out=np.broadcast_to(np.float32(0), out.shape)))


@every_op
@pytest.mark.parametrize("out", [3, "x", [0.0], object()], ids=repr)
def test_out_that_is_no_array(op: str, out: Any) -> None:
    refused(TypeError, ("out",), lambda: call(op, out=out))


@every_op
def test_a_refused_call_writes_nothing(op: str) -> None:
    out = np.full(np.asarray(call(op)).shape, 42.0, np.float32)
    first = next(iter(CALLS[op][1]))
    with pytest.raises(TypeError):
        call(op, out=out, **{first: CALLS[op][1][first].astype(np.float64)})
    assert (out == 42.0).all()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, -(2**40)])
def test_set_num_threads_below_one(value: int) -> None:
    before = fc.get_num_threads()
    refused(ValueError, (str(value),), lambda: fc.set_num_threads(value))
    refused(ValueError, (str(value),), lambda: fc.threads(value).__enter__())
    assert fc.get_num_threads() == before


@pytest.mark.parametrize("value", ["x", "2", 1.5, None, True, (2,)], ids=repr)
def test_set_num_threads_of_the_wrong_kind(value: Any) -> None:
    before = fc.get_num_threads()
    refused(TypeError, (), lambda: fc.set_num_threads(value))
    refused(TypeError, (), lambda: fc.threads(value).__enter__())
    assert fc.get_num_threads() == before


def test_absurd_numbers_of_threads_do_not_crash() -> None:
    """Either refused or served; in a process of its own, since a runtime that cannot start its threads may end the
    process."""
    code = """
import numpy as np, fastconv as fc
for n in (5000, 2**31 - 1, 2**31, 2**40, 2**70):
    try:
        fc.set_num_threads(n)
    except ValueError as refusal:
        assert str(n) in str(refusal), refusal
    assert np.allclose(fc.conv2d(np.ones((1, 64, 30, 30), np.float32), np.ones((64, 64, 3, 3), np.float32)), 576)
print("done")
"""
    done = run_python(code)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


@pytest.mark.parametrize("value", ["0", "-3", "two", "1.5", "99999999999999999999"])
def test_bad_number_of_threads_in_the_environment(value: str) -> None:
    done = run_python("import fastconv", env={"FASTCONV_NUM_THREADS": value})
    assert done.returncode == 1, "an exception"
    assert "FASTCONV_NUM_THREADS" in done.stderr and value in done.stderr


def test_set_max_isa() -> None:
    for value in ("sse9", "AVX-512", " "):
        refused(ValueError, ("scalar", "avx2", "avx512"), lambda v=value: fc._core.set_max_isa(v))
    assert fc._core.machine()["isa"] in ("scalar", "avx2", "avx512", "amx")


# --- everything at once -----------------------------------------------------------------------------------------------


HOSTILE = r"""
import itertools, sys, numpy as np, fastconv as fc
x, w = np.ones((1, 2, 4, 5), np.float32), np.ones((2, 2, 2, 2), np.float32)
images = {"NCHW": x, "NHWC": x.transpose(0, 2, 3, 1)}
numbers = [1, 2, 2**31 - 1, 2**32, 2**62, 2**63 - 1]
refusals = (ValueError, MemoryError, NotImplementedError)
for stride, padding, dilation in itertools.product(numbers, [0, 1, 2**31, 2**62, 2**63 - 1, "same", "full"], numbers):
    for layout in ("NCHW", "NHWC"):
        options = dict(stride=stride, padding=padding, dilation=dilation, layout=layout, weight_layout="OIHW")
        results = {}
        for algorithm in ("reference", "im2col", "direct", "auto"):
            print(algorithm, options, flush=True)
            try:
                results[algorithm] = fc.conv2d(images[layout], w, algorithm=algorithm, **options)
            except refusals:
                pass
        assert all(np.array_equal(y, results["reference"]) for y in results.values())
    for op in (fc.max_pool2d, fc.avg_pool2d):
        for ceil in (False, True):
            print(op.__name__, stride, padding, ceil, flush=True)
            try:
                op(x, 2, stride, padding, ceil_mode=ceil)
            except refusals:
                pass
print("done")
"""


def test_hostile_arguments_never_crash() -> None:
    """Combinations of extreme numbers, in another process: an error of the contract, or the reference's own result."""
    try:
        done = run_python(HOSTILE, timeout=60)
    except subprocess.TimeoutExpired as late:
        last = (late.stdout or b"").decode().splitlines()[-1:]
        pytest.fail(f"hangs in {last}")
    last = done.stdout.splitlines()[-1:]
    assert (done.returncode, last) == (0, ["done"]), f"ends in {last}: {done.stderr[-1000:]}"


@pytest.mark.parametrize("value", [np.array([1, 2, 3]), np.array(1.5), np.ones((2, 2)), [1, 2.0]], ids=repr)
def test_what_is_no_whole_number_is_named(value: Any) -> None:
    """NumPy's own words would not say which argument it is."""
    for name, make in (
        ("groups", lambda: call("conv2d", groups=value)),
        ("dim", lambda: call("softmax", dim=value)),
        ("divisor_override", lambda: call("avg_pool2d", divisor_override=value)),
        ("n", lambda: fc.set_num_threads(value)),
    ):
        refused(TypeError, (f"{name} must be an integer",), make)


def test_arrays_as_padding_and_stride() -> None:
    """As the lists that they hold."""
    x, w = np.ones((1, 4, 8, 9), np.float32), np.ones((6, 4, 3, 3), np.float32)
    for padding in ([[1, 0], [2, 1]], [1, 2], [[0, 0], [0, 0]]):
        expected = fc.conv2d(x, w, padding=padding)  # type: ignore[arg-type]
        assert np.array_equal(fc.conv2d(x, w, padding=np.array(padding)), expected)  # type: ignore[arg-type]
    strided = fc.conv2d(x, w, stride=np.array([2, 1]))  # type: ignore[arg-type]
    assert np.array_equal(strided, fc.conv2d(x, w, stride=(2, 1)))
    refused(ValueError, ("padding",), lambda: fc.conv2d(x, w, padding=np.ones((2, 3), int)))  # type: ignore[arg-type]
    refused(TypeError, ("padding",), lambda: fc.conv2d(x, w, padding=np.ones((2, 2, 2), int)))  # type: ignore[arg-type]
    refused(TypeError, ("padding",), lambda: fc.conv2d(x, w, padding=np.ones((2, 2))))  # type: ignore[arg-type]
