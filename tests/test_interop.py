"""Arrays as users have them: any strides in, any strides out, overlaps refused, DLPack in and out without copies."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastconv as fc
import reference as ref
from helpers import MEMORY_FORMS, WRITABLE_FORMS, Array, integers

NUMPY = tuple(int(part) for part in np.__version__.split(".")[:3] if part.isdigit())


@dataclass(frozen=True)
class Call:
    """One op with small integer operands, whose result is exact in float32."""

    op: Callable[..., Any]
    arrays: dict[str, Array]
    options: dict[str, Any]
    expected: Array

    def __call__(self, **changed: Any) -> Any:
        return self.op(**{**self.arrays, **self.options, **changed})


def make_call(name: str) -> Call:
    rng = np.random.default_rng(7)
    op, _, layout = name.partition("-")
    x = np.ascontiguousarray(ref.from_nchw(integers(rng, 2, 6, 5, 7), layout or "NCHW"))
    arrays: dict[str, Array] = {"input": x}
    options: dict[str, Any] = {"layout": layout} if layout else {}
    if op == "conv2d":
        w = integers(rng, 9, 6, 3, 3)
        arrays["weight"] = w if layout == "NCHW" else np.ascontiguousarray(ref.weight_from_oihw(w, "OHWI"))
        arrays["bias"] = integers(rng, 9)
        arrays["residual"] = np.ascontiguousarray(ref.from_nchw(integers(rng, 2, 9, 5, 7), layout))
        options["padding"] = 1
        expected = ref.conv2d(**arrays, **options)
    elif op == "linear":
        arrays.update(weight=integers(rng, 4, 7), bias=integers(rng, 4))
        expected = ref.linear(**arrays)
    elif op == "max_pool2d":
        options.update(kernel_size=3, stride=2, padding=1)
        expected = ref.max_pool2d(**arrays, **options)[0]
    elif op == "avg_pool2d":
        options.update(kernel_size=2, stride=1)
        expected = ref.avg_pool2d(**arrays, **options)
    elif op == "adaptive_avg_pool2d":
        arrays["input"] = x = np.ascontiguousarray(ref.from_nchw(integers(rng, 2, 6, 4, 8), layout))
        options["output_size"] = (2, 4)
        expected = ref.adaptive_avg_pool2d(**arrays, **options)
    elif op == "relu":
        expected = ref.relu(x)
    elif op == "softmax":
        arrays["input"] = x = np.ascontiguousarray(np.broadcast_to(x[..., :1], (*x.shape[:-1], 8)))
        expected = np.full(x.shape, 0.125)
    elif op == "batch_norm":
        arrays.update(
            running_mean=integers(rng, 6),
            running_var=np.full(6, 4.0, np.float32),
            weight=integers(rng, 6),
            bias=integers(rng, 6),
        )
        options["eps"] = 0.0
        expected = ref.batch_norm(**arrays, **options)
    else:
        assert op == "convert_layout"
        del options["layout"]
        options.update(source=layout, target="NHWC" if layout == "NCHW" else "NCHW")
        expected = ref.convert_layout(x, options["source"], options["target"])
    return Call(getattr(fc, op), arrays, options, np.ascontiguousarray(expected))


WITH_LAYOUT = ["conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "convert_layout"]
CALLS = [f"{op}-{layout}" for op in WITH_LAYOUT for layout in ("NCHW", "NHWC")] + ["relu", "softmax", "linear"]
every_call = pytest.mark.parametrize("call", [make_call(name) for name in CALLS], ids=CALLS)

# --- NumPy memory -----------------------------------------------------------------------------------------------------


@every_call
def test_the_plain_call(call: Call) -> None:
    result = call()
    assert type(result) is np.ndarray
    ref.assert_exact(result, call.expected)


@every_call
@pytest.mark.parametrize("form", MEMORY_FORMS)
def test_inputs_in_any_memory(call: Call, form: str) -> None:
    for name, array in call.arrays.items():
        awkward = MEMORY_FORMS[form](array)
        assert np.array_equal(awkward, array)
        ref.assert_exact(call(**{name: awkward}), call.expected)
    everything = {name: MEMORY_FORMS[form](array) for name, array in call.arrays.items()}
    ref.assert_exact(call(**everything), call.expected)


@every_call
def test_inputs_of_zero_strides(call: Call) -> None:
    """A broadcast array is the same as its copy, along every axis."""
    for name, array in call.arrays.items():
        if call.op is fc.softmax or name == "running_var":
            continue
        for axis in range(array.ndim):
            flat = np.broadcast_to(
                array[tuple(slice(0, 1) if a == axis else slice(None) for a in range(array.ndim))], array.shape
            )
            assert array.shape[axis] == 1 or 0 in flat.strides
            ref.assert_exact(call(**{name: flat}), call(**{name: flat.copy()}))


@every_call
@pytest.mark.parametrize("form", WRITABLE_FORMS)
def test_out_in_any_memory(call: Call, form: str) -> None:
    out = WRITABLE_FORMS[form](np.full(call.expected.shape, -9.0, np.float32))
    result = call(out=out)
    assert result is out
    ref.assert_exact(out, call.expected)


@every_call
def test_out_leaves_its_gaps_alone(call: Call) -> None:
    wide = np.full([3 * s for s in call.expected.shape], 77.0, np.float32)
    view = wide[tuple(slice(1, None, 3) for _ in call.expected.shape)]
    call(out=view)
    ref.assert_exact(view, call.expected)
    assert np.count_nonzero(wide != 77.0) <= view.size
    view[...] = 77.0
    assert (wide == 77.0).all()


def test_array_subclasses_are_arrays(rng: np.random.Generator) -> None:
    class Sub(np.ndarray):
        pass

    x = integers(rng, 1, 2, 4, 4)
    ref.assert_exact(np.asarray(fc.relu(x.view(Sub))), ref.relu(x))
    masked = np.ma.masked_array(x, mask=x > 0)
    ref.assert_exact(np.asarray(fc.relu(masked)), ref.relu(x))


@every_call
def test_foreign_byte_order_is_never_wrong(call: Call) -> None:
    swapped = call.arrays["input"].astype(">f4")
    try:
        result = call(input=swapped)
    except TypeError as refusal:
        assert "input" in str(refusal) and ">f4" in str(refusal)
    else:
        ref.assert_exact(result, call.expected)


# --- overlaps ---------------------------------------------------------------------------------------------------------


@every_call
def test_out_must_not_overlap_an_input(call: Call) -> None:
    """Each input in turn lies in memory that `out` begins in, ends in, or is."""
    size = call.expected.size
    for name, array in call.arrays.items():
        for offset in (0, array.size - 1, array.size // 2):
            memory = np.zeros(size + 2 * array.size, np.float32)
            operand = memory[size : size + array.size].reshape(array.shape)
            operand[...] = array
            start = size + offset
            out = (
                memory[start : start + size]
                if start + size <= memory.size
                else memory[size + array.size - offset - size :][:size]
            )
            out = out.reshape(call.expected.shape)
            assert np.shares_memory(out, operand)
            with pytest.raises(ValueError, match=rf"out.*{name}|{name}.*out"):
                call(**{name: operand}, out=out)
            ref.assert_exact(operand, array)


def test_out_equal_to_the_input_is_an_overlap(rng: np.random.Generator) -> None:
    x = integers(rng, 3, 4)
    with pytest.raises(ValueError, match=r"out.*input"):
        fc.relu(x, out=x)
    with pytest.raises(ValueError, match=r"out.*input"):
        fc.softmax(x, out=x[::-1])


def test_neighbours_that_share_no_element_do_not_overlap(rng: np.random.Generator) -> None:
    """Even and odd columns of one array: the address ranges overlap, no element does."""
    both = integers(rng, 5, 8)
    even, odd = both[:, ::2], both[:, 1::2]
    expected = ref.relu(even)
    assert fc.relu(even, out=odd) is odd
    ref.assert_exact(odd, expected)


@every_call
def test_out_must_not_overlap_itself(call: Call) -> None:
    shape = call.expected.shape
    memory = np.zeros(int(np.prod(shape)), np.float32)
    usual = np.zeros(shape, np.float32).strides
    for axis in range(len(shape)):
        if shape[axis] == 1:
            continue
        strides = list(usual)
        strides[axis] = 0
        with pytest.raises(ValueError, match="out"):
            call(out=as_strided(memory, shape, strides))
    rows = as_strided(memory, shape, [4 * (len(shape) - i) for i in range(len(shape))])
    with pytest.raises(ValueError, match="out"):
        call(out=rows)


# --- DLPack -----------------------------------------------------------------------------------------------------------


class OnlyDLPack:
    """What the protocol demands and nothing more, around a NumPy array."""

    def __init__(self, array: Array, device: tuple[int, int] = (1, 0)) -> None:
        self._array = array
        self._device = device
        self.exports = 0

    def __dlpack__(self, **arguments: Any) -> Any:
        self.exports += 1
        return self._array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


class OldDLPack(OnlyDLPack):
    """A producer from before 2023.12: no max_version, dl_device or copy."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        self.exports += 1
        return self._array.__dlpack__()


@every_call
@pytest.mark.parametrize("producer", [OnlyDLPack, OldDLPack])
def test_any_dlpack_object(call: Call, producer: type[OnlyDLPack]) -> None:
    wrapped = {name: producer(array) for name, array in call.arrays.items()}
    result = call(**wrapped)
    ref.assert_exact(np.asarray(result), call.expected)
    assert all(array.exports == 1 for array in wrapped.values()), "each is read through the protocol, once"


@every_call
@pytest.mark.skipif(NUMPY < (2, 2, 5), reason="NumPy before 2.2.5 reads through DLPack what it may not write")
def test_dlpack_out(call: Call) -> None:
    memory = np.zeros(call.expected.shape, np.float32)
    out = OnlyDLPack(memory)
    assert call(out=out) is out
    ref.assert_exact(memory, call.expected)


def test_an_output_that_numpy_may_not_write_is_an_error() -> None:
    """A producer from before DLPack 1.0 cannot say that its memory may be written."""
    with pytest.raises(ValueError, match=r"out is read-only.*DLPack.*pass a NumPy array"):
        fc.relu(np.ones(3, np.float32), out=OldDLPack(np.zeros(3, np.float32)))


def test_dlpack_strides(rng: np.random.Generator) -> None:
    x = integers(rng, 2, 6, 5, 7)
    for form in ("fortran", "negative", "gaps", "rolled_axes"):
        ref.assert_exact(np.asarray(fc.max_pool2d(OnlyDLPack(MEMORY_FORMS[form](x)), 2)), ref.max_pool2d(x, 2)[0])
    broadcast = np.broadcast_to(np.float32(3), (1, 2, 4, 4))
    assert np.array_equal(np.asarray(fc.relu(OnlyDLPack(broadcast.copy()))), broadcast)


@pytest.mark.parametrize(
    ("device", "word"), [((2, 0), "cuda"), ((13, 0), "cuda"), ((10, 0), "rocm"), ((8, 0), "metal")]
)
def test_other_devices_are_named(device: tuple[int, int], word: str) -> None:
    if word == "cuda" and fc.cuda.is_available():
        pytest.skip("CUDA arrays are computed with here")
    array = np.zeros((1, 1, 2, 2), np.float32)
    elsewhere = OnlyDLPack(array, device)
    with pytest.raises((ValueError, TypeError), match=rf"(?i)input.*{word}"):
        fc.relu(elsewhere)
    with pytest.raises((ValueError, TypeError), match=rf"(?i)weight.*{word}"):
        fc.conv2d(array, elsewhere)
    with pytest.raises((ValueError, TypeError), match=rf"(?i)out.*{word}"):
        fc.relu(array, out=elsewhere)
    assert elsewhere.exports == 0, "memory of another device is not even asked for"


def test_dlpack_dtypes_are_checked() -> None:
    with pytest.raises(TypeError, match=r"input.*float64"):
        fc.relu(OnlyDLPack(np.zeros(3)))
    with pytest.raises(TypeError, match=r"weight.*int32"):
        fc.linear(np.zeros((1, 3), np.float32), OnlyDLPack(np.zeros((2, 3), np.int32)))


class Broken:
    """Producers that fail in their own ways."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __dlpack__(self, **arguments: Any) -> Any:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize(
    "result", [None, 5, "capsule", BufferError("no"), ValueError("no"), RuntimeError("no")], ids=repr
)
def test_broken_producers_are_clear_errors(result: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="input"):
        fc.relu(Broken(result))


def test_plain_inputs_are_not_copied() -> None:
    """What NumPy allocates during the call is traced: a copy of 32 MB would show."""
    x = np.zeros((1, 2, 2048, 2048), np.float32)
    fc.max_pool2d(x, 64)
    for array in (x, OnlyDLPack(x)):
        tracemalloc.start()
        fc.max_pool2d(array, 64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes // 8


# --- PyTorch ----------------------------------------------------------------------------------------------------------


@every_call
def test_torch_in_torch_out(call: Call, torch: Any) -> None:
    tensors = {name: torch.from_numpy(array.copy()) for name, array in call.arrays.items()}
    result = call(**tensors)
    assert type(result) is torch.Tensor
    assert result.dtype == torch.float32
    ref.assert_exact(result.numpy(), call.expected)
    result += 1  # its memory is writable and its own


@every_call
def test_torch_out(call: Call, torch: Any) -> None:
    """`out` is filled where it lies, whether the inputs are tensors or not."""
    for tensors in ({}, {name: torch.from_numpy(array.copy()) for name, array in call.arrays.items()}):
        out = torch.zeros(call.expected.shape)
        address = out.data_ptr()
        assert call(**tensors, out=out) is out
        assert out.data_ptr() == address
        ref.assert_exact(out.numpy(), call.expected)
        strided = torch.zeros([2 * s for s in call.expected.shape])[
            tuple(slice(None, None, 2) for _ in call.expected.shape)
        ]
        assert call(**tensors, out=strided) is strided
        ref.assert_exact(strided.numpy(), call.expected)


def test_torch_is_not_copied(torch: Any) -> None:
    x = torch.zeros(1, 2, 2048, 2048)
    fc.max_pool2d(x, 64)
    tracemalloc.start()
    fc.max_pool2d(x, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.numel() * 4 // 8


def test_torch_indices(torch: Any, layout: str) -> None:
    x = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(1))
    view = x if layout == "NCHW" else x.permute(0, 2, 3, 1)
    values, indices = fc.max_pool2d(view, 3, 2, 1, return_indices=True, layout=layout)
    assert type(values) is torch.Tensor and type(indices) is torch.Tensor
    assert indices.dtype == torch.int64
    expected = torch.nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True)[1]
    assert torch.equal(indices if layout == "NCHW" else indices.permute(0, 3, 1, 2), expected)


def test_torch_channels_last(torch: Any, rng: np.random.Generator) -> None:
    """A channels_last tensor is NCHW to its owner; permuted, it is a contiguous NHWC array."""
    x, w = integers(rng, 2, 8, 6, 7), integers(rng, 5, 8, 3, 3)
    tensor = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    ref.assert_exact(fc.conv2d(tensor, torch.from_numpy(w)).numpy(), ref.conv2d(x, w))
    nhwc = fc.conv2d(tensor.permute(0, 2, 3, 1), torch.from_numpy(w), layout="NHWC", weight_layout="OIHW")
    ref.assert_exact(nhwc.numpy(), np.ascontiguousarray(ref.conv2d(x, w).transpose(0, 2, 3, 1)))


def test_torch_layers(torch: Any, rng: np.random.Generator) -> None:
    x, w = integers(rng, 2, 3, 6, 7), integers(rng, 5, 3, 3, 3)
    layer = fc.Conv2d(torch.from_numpy(w))
    assert type(layer(x)) is np.ndarray, "the input decides"
    result = layer(torch.from_numpy(x))
    assert type(result) is torch.Tensor
    ref.assert_exact(result.numpy(), ref.conv2d(x, w))


def test_torch_tensors_that_cannot_be_shared(torch: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"input.*detach"):
        fc.relu(torch.zeros(3, requires_grad=True))
    for dtype, name in (
        (torch.float64, "float64"),
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float16"),
        (torch.int64, "int64"),
    ):
        with pytest.raises(TypeError, match=f"^input must be float32, got {name}$"):
            fc.relu(torch.zeros(3, dtype=dtype))
        with pytest.raises(TypeError, match=f"^out must be float32, got {name}$"):
            fc.relu(torch.zeros(3), out=torch.zeros(3, dtype=dtype))
    with pytest.raises((TypeError, ValueError), match=r"(?i)input.*meta"):
        fc.relu(torch.zeros(3, device="meta"))


def test_torch_out_does_not_go_through_dlpack(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older NumPys mark what they read through DLPack as read-only."""
    real = np.from_dlpack

    def read_only(x: Any) -> Array:
        array = real(x)
        array.flags.writeable = False
        return array

    monkeypatch.setattr(np, "from_dlpack", read_only)
    out = torch.zeros(3)
    assert fc.relu(torch.ones(3), out=out) is out
    assert out.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"out is read-only.*DLPack.*NumPy array"):
        fc.relu(np.ones(3, np.float32), out=OnlyDLPack(np.zeros(3, np.float32)))
    grad = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"out.*detach"):
        fc.relu(torch.ones(3), out=grad)


def test_torch_subclasses_come_back_as_torch(torch: Any) -> None:
    class Mine(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    x = torch.arange(-2.0, 2.0).as_subclass(Mine)
    result = fc.relu(x)
    assert isinstance(result, torch.Tensor) and result.tolist() == [0, 0, 0, 1]
    out = torch.zeros(4).as_subclass(Mine)
    assert fc.relu(x, out=out) is out and out.tolist() == [0, 0, 0, 1]
    parameter = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    assert isinstance(fc.relu(parameter), torch.Tensor)


def test_torch_parameters(torch: Any, rng: np.random.Generator) -> None:
    """What a module holds carries gradients; detached it is an array like any other."""
    conv = torch.nn.Conv2d(3, 4, 3, bias=True)
    x = integers(rng, 1, 3, 6, 6)
    ours = fc.conv2d(x, conv.weight.detach(), conv.bias.detach())
    ref.assert_rel_l2(np.asarray(ours), conv(torch.from_numpy(x)).detach().numpy(), ref.CONV_REL_L2)
