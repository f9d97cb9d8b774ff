"""Arrays on a CUDA device: taken from any library, given back to it, ordered between streams, refused where needed.

On the shim ("shim") the producers are made up; what only a GPU can show is marked `gpu` and uses torch.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastconv as fc
import reference as ref
from cuda_producers import Foreign, ImportedArray, InterfaceOnly, Library, OldForeign, public
from helpers import MEMORY_FORMS, integers

Array = NDArray[Any]


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Iterator[Any]:
    with public(str(request.param)) as module:
        yield module


@pytest.fixture
def shim() -> Iterator[Any]:
    with public("shim") as module:
        yield module


def x_of(rng: np.random.Generator, *shape: int) -> Array:
    return integers(rng, *(shape or (2, 3, 5, 7)))


# --- Array ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 4), (1, 1, 1, 1, 1, 2)])
def test_numpy_and_back(cuda: Any, rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> None:
    x = rng.standard_normal(shape).astype(dtype)
    a = fc.cuda.asarray(x)
    assert (a.shape, a.ndim, a.size, a.dtype, a.nbytes) == (x.shape, x.ndim, x.size, x.dtype, x.nbytes)
    back = a.numpy()
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)
    assert repr(a) == f"fastconv.cuda.Array(shape={shape}, dtype={dtype}, device=0)"


def test_numpy_arrays_of_any_memory(cuda: Any, rng: np.random.Generator) -> None:
    x = x_of(rng)
    for form, make in MEMORY_FORMS.items():
        np.testing.assert_array_equal(fc.cuda.asarray(make(x)).numpy(), x, err_msg=form)


def test_bfloat16_is_bits_without_ml_dtypes(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ml_dtypes", raising=False)
    values = np.array([1.0, -2.5, 3.1415927, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    a = fc.cuda.asarray(values, dtype="bfloat16")
    assert a.dtype == "bfloat16"
    bits = a.numpy()
    assert bits.dtype == np.uint16
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(back, np.array([1.0, -2.5, 3.140625, 1.0, 1.015625], np.float32))
    np.testing.assert_array_equal(fc.cuda.asarray(bits, dtype="bfloat16").numpy(), bits)
    np.testing.assert_array_equal(fc.cuda.asarray(values, dtype=np.float16).numpy(), values.astype(np.float16))


def test_what_is_no_array_of_a_known_dtype(cuda: Any) -> None:
    with pytest.raises(TypeError, match=r"x must be float32, float16 or bfloat16, got float64"):
        fc.cuda.asarray(np.zeros(3))
    with pytest.raises(TypeError, match=r"dtype must be float32, float16 or bfloat16, got int8"):
        fc.cuda.asarray(np.zeros(3, np.float32), dtype="int8")
    with pytest.raises(TypeError, match=r"dtype must be .* got float64"):
        fc.cuda.empty(3, "float64")
    with pytest.raises(ValueError, match=r"shape must be at least 0, got -1"):
        fc.cuda.empty((2, -1))
    with pytest.raises(ValueError, match=r"device must be less than the number of CUDA devices"):
        fc.cuda.empty(2, device=99)
    with pytest.raises(TypeError, match=r"made by fastconv.cuda.asarray"):
        fc.cuda.Array(np.zeros(3))


def test_an_array_is_a_dlpack_producer(cuda: Any, rng: np.random.Generator) -> None:
    x = x_of(rng)
    a = fc.cuda.asarray(x)
    assert a.__dlpack_device__() == (2, 0)
    again = fc.cuda.from_dlpack(Wrapped(a))
    np.testing.assert_array_equal(again.numpy(), x)
    assert again.__cuda_array_interface__["data"] == a.__cuda_array_interface__["data"], "not copied"
    copied = cuda.from_dlpack(a.__dlpack__(copy=True), "x")
    assert copied.pointer != a.__cuda_array_interface__["data"][0]
    assert "dltensor_versioned" in repr(a.__dlpack__(max_version=(1, 1)))
    assert "dltensor_versioned" not in repr(a.__dlpack__())
    with pytest.raises(BufferError, match=r"dl_device must be \(2, 0\), got \(1, 0\)"):
        a.__dlpack__(dl_device=(1, 0))
    with pytest.raises(ValueError, match="stream must not be 0"):
        a.__dlpack__(stream=0)
    a.__dlpack__(stream=-1)  # an unused capsule frees what it holds
    del a
    gc.collect()
    np.testing.assert_array_equal(again.numpy(), x, err_msg="the memory lives as long as the last view")


class Wrapped:
    """Only the DLPack side of an array."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **more: Any) -> Any:
        return self._array.__dlpack__(**more)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, device = self._array.__dlpack_device__()
        return kind, device


def test_the_cuda_array_interface_of_an_array(cuda: Any, rng: np.random.Generator) -> None:
    x = x_of(rng)
    a = fc.cuda.asarray(x)
    told = a.__cuda_array_interface__
    assert (told["shape"], told["typestr"], told["strides"]) == (x.shape, x.dtype.str, x.strides)
    assert (told["version"], told["stream"]) == (3, 1)
    np.testing.assert_array_equal(fc.relu(SimpleNamespace(__cuda_array_interface__=told)).numpy(), ref.relu(x))
    with pytest.raises(AttributeError, match="bfloat16"):
        _ = fc.cuda.asarray(x, dtype="bfloat16").__cuda_array_interface__


# --- producers --------------------------------------------------------------------------------------------------------

PRODUCERS: dict[str, Callable[[Array], Any]] = {
    "versioned DLPack": Foreign,
    "old DLPack": OldForeign,
    "managed memory": lambda x: Foreign(x, kind=13),
    "interface": InterfaceOnly,
    "interface with a stream": lambda x: InterfaceOnly(x, stream=1),
    "interface of version 2": lambda x: InterfaceOnly(x, version=2),
}


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("form", MEMORY_FORMS)
def test_any_producer_in_any_memory(shim: Any, rng: np.random.Generator, producer: str, form: str) -> None:
    x = x_of(rng)
    if form == "misaligned":
        pytest.skip("CUDA arrays are aligned to their elements")
    y = fc.relu(PRODUCERS[producer](MEMORY_FORMS[form](x)))
    assert isinstance(y, fc.cuda.Array)
    np.testing.assert_array_equal(y.numpy(), ref.relu(x))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dtypes_of_producers(shim: Any, rng: np.random.Generator, dtype: str) -> None:
    x = x_of(rng).astype(dtype)
    for make in (Foreign, InterfaceOnly):
        y = fc.relu(make(x))
        assert y.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(y.numpy(), np.maximum(x, 0))
    bits = np.array([0x3F80, 0xC020], np.uint16)  # 1, -2.5
    np.testing.assert_array_equal(fc.relu(Foreign(bits)).numpy().view(np.uint16), [0x3F80, 0])


def test_the_same_library_comes_out(shim: Any, rng: np.random.Generator) -> None:
    x = x_of(rng)
    y = fc.relu(Library(x))
    assert isinstance(y, ImportedArray)
    np.testing.assert_array_equal(y.numpy(), ref.relu(x))


def test_producers_are_told_the_stream(shim: Any) -> None:
    x = Foreign(np.zeros((2, 3), np.float32))
    own = fc.cuda.Stream()
    fc.relu(x)
    fc.relu(x, stream=0)
    fc.relu(x, stream=1)
    fc.relu(x, stream=2)
    fc.relu(x, stream=own)
    fc.relu(x, stream=SimpleNamespace(ptr=own.ptr))
    fc.relu(x, stream=SimpleNamespace(cuda_stream=own.ptr))
    fc.relu(x, stream=SimpleNamespace(__cuda_stream__=lambda: (0, own.ptr)))
    assert x.streams == [1, 1, 1, 2, own.ptr, own.ptr, own.ptr, own.ptr]
    assert own.__cuda_stream__() == (0, own.ptr)
    own.synchronize()


@pytest.mark.parametrize("stream", ["default", 1.5, object(), True])
def test_what_is_no_stream(shim: Any, stream: Any) -> None:
    with pytest.raises(TypeError, match="stream must be"):
        fc.relu(Foreign(np.zeros(3, np.float32)), stream=stream)


def test_streams_of_the_cpu_are_refused(shim: Any) -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match="stream is for arrays on a CUDA device, but input is not on one"):
        fc.relu(x, stream=0)
    with pytest.raises(ValueError, match="stream is for arrays"):
        fc.max_pool2d(x, 2, stream=0)
    with pytest.raises(ValueError, match="stream must be at least 0, got -1"):
        fc.relu(Foreign(x), stream=-1)


# --- out= -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["c", "fortran", "negative", "gaps", "rolled_axes"])
def test_out_in_any_memory(shim: Any, rng: np.random.Generator, form: str) -> None:
    x = x_of(rng)
    if form not in MEMORY_FORMS and form != "c":
        pytest.skip(f"no memory form {form}")
    memory = np.full(x.shape, np.nan, np.float32) if form == "c" else MEMORY_FORMS[form](np.full_like(x, np.nan))
    out = Foreign(memory)
    assert fc.relu(Foreign(x), out=out) is out
    np.testing.assert_array_equal(memory, ref.relu(x))


def test_outs_that_cannot_be(shim: Any) -> None:
    x = np.zeros((2, 3, 4, 4), np.float32)
    with pytest.raises(ValueError, match="out is read-only"):
        fc.relu(Foreign(x), out=Foreign(x.copy(), read_only=True))
    frozen = x.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fc.relu(Foreign(x), out=InterfaceOnly(frozen))
    with pytest.raises(ValueError, match=r"out must have shape \(2, 3, 4, 4\), got \(2, 3, 4\)"):
        fc.relu(Foreign(x), out=Foreign(np.zeros((2, 3, 4), np.float32)))
    with pytest.raises(TypeError, match=r"out must be float32, as input is; got float16"):
        fc.relu(Foreign(x), out=Foreign(x.astype(np.float16)))
    with pytest.raises(ValueError, match="out overlaps input in memory"):
        fc.relu(Foreign(x), out=Foreign(x))
    with pytest.raises(ValueError, match="out overlaps itself"):
        fc.relu(Foreign(x), out=Foreign(np.broadcast_to(np.zeros(4, np.float32), x.shape)))
    both = np.zeros((2, 3, 4, 8), np.float32)  # interleaved: no element is shared
    fc.relu(Foreign(both[..., ::2]), out=Foreign(both[..., 1::2]))


def test_an_array_as_out(cuda: Any, rng: np.random.Generator) -> None:
    x = x_of(rng)
    out = fc.cuda.empty(x.shape)
    assert fc.relu(fc.cuda.asarray(x), out=out) is out
    np.testing.assert_array_equal(out.numpy(), ref.relu(x))


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_arguments_on_both_sides_are_an_error(cuda: Any) -> None:
    host = np.zeros((1, 2, 4, 4), np.float32)
    weight = np.zeros((3, 2, 1, 1), np.float32)
    x, w = fc.cuda.asarray(host), fc.cuda.asarray(weight)
    for call in (
        lambda: fc.conv2d(x, weight),
        lambda: fc.conv2d(host, w),
        lambda: fc.conv2d(x, w, np.zeros(3, np.float32)),
        lambda: fc.conv2d(x, w, residual=np.zeros((1, 3, 4, 4), np.float32)),
        lambda: fc.conv2d(x, w, out=np.zeros((1, 3, 4, 4), np.float32)),
        lambda: fc.relu(host, out=x),
        lambda: fc.batch_norm(x, np.zeros(2, np.float32), np.ones(2, np.float32)),
        lambda: fc.linear(fc.cuda.asarray(host[0, 0]), host[0, 0]),
    ):
        with pytest.raises(ValueError, match=r"\w+ lies on the CPU, but \w+ on a CUDA device"):
            call()
    with pytest.raises(TypeError, match=r"weight must be an array on a CUDA device, as input is; got list"):
        fc.conv2d(x, [[1.0]])
    with pytest.raises(ValueError, match=r"weight lies on DLPack device type 10, but input on a CUDA device"):
        fc.conv2d(x, Foreign(weight, kind=10))


def test_two_devices_are_an_error(shim: Any) -> None:
    if fc.cuda.device_count() < 2:
        pytest.skip("one device only")
    x = fc.cuda.asarray(np.zeros((1, 2), np.float32), device=0)
    w = fc.cuda.asarray(np.zeros((3, 2), np.float32), device=1)
    assert (x.device, w.device) == (0, 1)
    with pytest.raises(
        (ValueError, NotImplementedError), match=r"weight lies on CUDA device 1, but input on CUDA device 0"
    ):
        fc.linear(x, w)
    y = fc.relu(w)
    assert y.device == 1
    assert fc.cuda._backend.backend().current_device() == 0, "the caller's device is left alone"


def test_dtypes_must_agree(cuda: Any) -> None:
    x = fc.cuda.asarray(np.zeros((1, 2), np.float16))
    w = fc.cuda.asarray(np.zeros((3, 2), np.float32))
    with pytest.raises(TypeError, match=r"weight must be float16 here, got float32"):
        fc.linear(x, w)


def test_dtypes_that_are_not_known(shim: Any) -> None:
    with pytest.raises(TypeError, match=r"input must be float32, float16 or bfloat16, got int64"):
        fc.relu(Foreign(np.zeros(3, np.int64)))
    with pytest.raises(TypeError, match=r"input must be float32 or float16 here, got <f8"):
        fc.relu(InterfaceOnly(np.zeros(3)))
    with pytest.raises(ValueError, match=r"input has a mask"):
        fc.relu(InterfaceOnly(np.zeros(3, np.float32), mask=object()))
    with pytest.raises(ValueError, match=r"input must have strides of whole elements"):
        fc.relu(InterfaceOnly(np.zeros(3, np.float32), strides=(6,)))
    known = InterfaceOnly(np.zeros(5, np.float32))
    pointer = known.__cuda_array_interface__["data"][0]
    with pytest.raises(ValueError, match=r"input must be aligned"):
        fc.relu(InterfaceOnly(np.zeros(4, np.float32), data=(pointer + 2, False)))
    with pytest.raises(ValueError, match=r"input does not point to memory of a CUDA device"):
        fc.relu(InterfaceOnly(np.zeros(4, np.float32), data=(np.zeros(4, np.float32).ctypes.data, False)))
    with pytest.raises(ValueError, match=r"input: stream 0"):
        fc.relu(InterfaceOnly(np.zeros(3, np.float32), stream=0))


def test_broken_producers(shim: Any) -> None:
    class Broken(Foreign):
        def __dlpack__(self, **more: Any) -> Any:
            raise BufferError("busy")

    class Twice(Foreign):
        capsule: Any = None

        def __dlpack__(self, **more: Any) -> Any:
            Twice.capsule = Twice.capsule or super().__dlpack__(**more)
            return Twice.capsule

    x = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="input cannot be shared through DLPack: busy"):
        fc.relu(Broken(x))
    twice = Twice(x)
    fc.relu(twice)
    with pytest.raises(ValueError, match=r'input: __dlpack__ gave a capsule "used_dltensor_versioned"'):
        fc.relu(twice)
    gradients = Foreign(x)
    gradients.requires_grad = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"input carries gradients .* pass input.detach\(\)"):
        fc.relu(gradients)


def test_errors_are_those_of_the_cpu(cuda: Any) -> None:
    x, w = np.zeros((1, 4, 5, 5), np.float32), np.zeros((6, 3, 3, 3), np.float32)
    calls: list[Callable[[Callable[[Array], Any]], Any]] = [
        lambda put: fc.conv2d(put(x), put(w)),
        lambda put: fc.conv2d(put(x), put(w), layout="NCWH"),  # type: ignore[arg-type]
        lambda put: fc.conv2d(put(x[0, 0]), put(w)),
        lambda put: fc.conv2d(put(x[:, :3]), put(w), residual=put(x)),
        lambda put: fc.max_pool2d(put(x), 2, padding=2),
        lambda put: fc.max_pool2d(put(x), 7),
        lambda put: fc.avg_pool2d(put(x), 2, divisor_override=0),
        lambda put: fc.softmax(put(x), 4),
        lambda put: fc.linear(put(x), put(x[0, 0, :4, :4])),
        lambda put: fc.batch_norm(put(x), put(x[0, 0, 0]), put(x[0, 0, 0])),
        lambda put: fc.convert_layout(put(x), "NCHW", "CHWN"),  # type: ignore[arg-type]
        lambda put: fc.relu(put(np.zeros((3, 0), np.float32))),
    ]
    for call in calls:
        with pytest.raises((ValueError, TypeError)) as expected:
            call(np.ascontiguousarray)
        with pytest.raises(type(expected.value)) as actual:
            call(fc.cuda.asarray)
        assert str(actual.value) == str(expected.value)


def test_empty_batches(cuda: Any) -> None:
    y = fc.relu(fc.cuda.asarray(np.zeros((0, 3), np.float32)))
    assert y.shape == (0, 3)
    assert y.numpy().shape == (0, 3)


# --- lifetimes and graphs ---------------------------------------------------------------------------------------------


def test_inputs_are_kept_while_a_stream_reads_them(shim: Any) -> None:
    """A library that does not know streams would take its memory back at once."""
    gone: list[int] = []

    class Counted(Foreign):
        def __del__(self) -> None:
            gone.append(1)

    for _ in range(4):
        fc.relu(Counted(np.zeros(3, np.float32)))
    gc.collect()
    assert 3 <= len(gone) <= 4, "what is done is let go at the next call"


def test_arrays_are_freed_after_use_on_other_streams(cuda: Any, rng: np.random.Generator) -> None:
    x = x_of(rng)
    streams = [fc.cuda.Stream() for _ in range(3)]
    a = fc.cuda.asarray(x)
    for stream in [*streams, None, *streams]:
        a = fc.relu(a, stream=stream)
    np.testing.assert_array_equal(a.numpy(stream=streams[1]), ref.relu(x))
    del streams, a
    gc.collect()
    fc.cuda.synchronize()


def test_a_stream_outlives_its_object(cuda: Any) -> None:
    """Other libraries keep handles, and free memory by them when they like: handles are lent again, never destroyed."""
    first = fc.cuda.Stream()
    handle = first.ptr
    second = fc.cuda.Stream()
    assert second.ptr != handle, "one user at a time"
    del first
    gc.collect()
    assert fc.cuda.Stream().ptr == handle


def test_streams_are_numbered_alike_in_every_form(cuda: Any) -> None:
    from fastconv.cuda._streams import handle_of

    forms = (
        0,
        1,
        SimpleNamespace(cuda_stream=1),
        SimpleNamespace(ptr=0),
        SimpleNamespace(__cuda_stream__=lambda: (0, 1)),
    )
    assert [handle_of(form) for form in forms] == [0] * 5
    assert handle_of(2) == 2


def test_host_copies_are_no_part_of_a_graph(cuda: Any) -> None:
    a = fc.cuda.asarray(np.zeros(3, np.float32))
    recording = cuda.Recording(0)
    recording.begin()
    with pytest.raises(RuntimeError, match="copies between host and device wait"):
        a.numpy(stream=recording.stream)
    fc.relu(a, out=fc.cuda.empty(3), stream=recording.stream)
    recording.end()  # the capture is whole


def test_ops_can_be_captured(cuda: Any, rng: np.random.Generator) -> None:
    """Copies of strided arrays and all other temporary memory belong to the graph."""
    x = x_of(rng)
    source, out = fc.cuda.asarray(x), fc.cuda.empty(x.shape)
    recording = cuda.Recording(0)
    recording.begin()
    fc.relu(source, out=out, stream=recording.stream)
    recording.end()
    for scale in (1, -1):
        cuda.copy_host(source._view, np.ascontiguousarray(x * scale), True, 0)
        recording.time(1)
        np.testing.assert_array_equal(out.numpy(), ref.relu(x * scale))


# --- torch ------------------------------------------------------------------------------------------------------------


class FakeTorch(ModuleType):
    """torch as far as the CUDA path needs it; keeps which stream memory was made for, and which were recorded."""

    float32, float16, int64 = np.float32, np.float16, np.int64

    def __init__(self) -> None:
        super().__init__("torch")
        self.current = self.active = 0
        self.recorded: list[tuple[int, int]] = []
        fake = self

        class Tensor(Foreign):
            def __init__(self, array: Array, stream: int = 0) -> None:
                super().__init__(array)
                self.stream, self.device = stream, SimpleNamespace(index=0)

            def __dlpack__(self, *, stream: Any = None, **more: Any) -> Any:
                if fake.active != self.device.index:
                    raise BufferError("Can't export tensors on a different CUDA device index.")
                return super().__dlpack__(stream=stream, **more)

            def record_stream(self, stream: Any) -> None:
                fake.recorded.append((id(self), stream.cuda_stream))

        Tensor.__module__ = "torch"
        self.Tensor = Tensor

        class Entered:
            def __init__(self, stream: Any) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                self.before, fake.current = fake.current, self.stream.cuda_stream

            def __exit__(self, *error: Any) -> None:
                fake.current = self.before

        class Active:
            def __init__(self, device: int) -> None:
                self.device = device

            def __enter__(self) -> None:
                self.before, fake.active = fake.active, self.device

            def __exit__(self, *error: Any) -> None:
                fake.active = self.before

        self.cuda = SimpleNamespace(
            current_stream=lambda device: SimpleNamespace(cuda_stream=fake.current),
            default_stream=lambda device: SimpleNamespace(cuda_stream=0),
            ExternalStream=lambda handle, device: SimpleNamespace(cuda_stream=handle),
            stream=Entered,
            current_device=lambda: self.active,
            device=Active,
        )

    def device(self, kind: str, index: int) -> Any:
        return (kind, index)

    def empty(self, shape: Any, dtype: Any, device: Any) -> Any:
        assert device == ("cuda", 0)
        return self.Tensor(np.full(shape, 7, dtype), self.current)


def test_torch_computes_on_its_current_stream(
    shim: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    values = x_of(rng)
    x = fake.Tensor(values)
    y = fc.relu(x)
    assert (type(y), y.stream, fake.recorded, x.streams) == (fake.Tensor, 0, [], [-1])
    np.testing.assert_array_equal(y.array, ref.relu(values))

    own = fc.cuda.Stream()
    fake.current = own.ptr
    y = fc.relu(x)
    assert (y.stream, fake.recorded, x.streams[-1]) == (own.ptr, [], -1)

    fake.active = 1  # another device is torch's current one: it would refuse to export the array
    np.testing.assert_array_equal(fc.relu(x).array, ref.relu(values))
    assert fake.active == 1


def test_torch_is_told_of_another_stream(shim: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    x, out, own = fake.Tensor(x_of(rng)), fake.Tensor(np.zeros((2, 3, 5, 7), np.float32)), fc.cuda.Stream()
    waits: list[tuple[int, int, int]] = []
    real = shim.wait
    monkeypatch.setattr(shim, "wait", lambda *given: (waits.append(given), real(*given)))
    y = fc.relu(x, stream=own)
    assert waits[0] == (0, own.ptr, 0), "the stream waits for torch's current one"
    assert y.stream == own.ptr, "memory of the stream that writes it"
    assert fake.recorded == [(id(x), own.ptr)]
    assert fc.relu(x, out=out, stream=own) is out
    assert fake.recorded[1:] == [(id(x), own.ptr), (id(out), own.ptr)]


gpu = pytest.mark.gpu


@pytest.fixture
def torch_cuda(torch: Any) -> Iterator[Any]:
    with public("gpu"):
        if not torch.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")
        yield torch


@gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_in_torch_out(torch_cuda: Any, dtype: str) -> None:
    torch = torch_cuda
    x = torch.randn(2, 8, 9, 9, device="cuda").to(getattr(torch, dtype))
    y = fc.relu(x)
    assert y.is_cuda and y.dtype == x.dtype
    assert torch.equal(y, torch.relu(x))
    strided = x.permute(0, 2, 3, 1)[:, ::2]
    assert torch.equal(fc.relu(strided), torch.relu(strided))
    out = torch.empty_like(x)
    assert fc.relu(x, out=out) is out and torch.equal(out, torch.relu(x))
    a = fc.cuda.from_dlpack(x)
    assert torch.equal(torch.from_dlpack(fc.relu(a)), torch.relu(x))
    with pytest.raises(ValueError, match="input carries gradients"):
        fc.relu(x.float().requires_grad_())


@gpu
def test_torch_streams_are_obeyed(torch_cuda: Any) -> None:
    """A long kernel on the current stream, then the op: without the right order it reads old values."""
    torch = torch_cuda
    big = torch.randn(4096, 4096, device="cuda")
    x = torch.zeros(1 << 20, device="cuda")
    for side in (torch.cuda.Stream(), torch.cuda.current_stream()):
        with torch.cuda.stream(side):
            for _ in range(10):
                big = (big @ big).clamp_(-1, 1)
            x.fill_(3)
            y = fc.relu(x)
            z = y + 1
        side.synchronize()
        assert bool((z == 4).all())
        x.zero_()
        torch.cuda.synchronize()
    side = torch.cuda.Stream()
    x.fill_(5)
    y = fc.relu(x, stream=side)  # another than the current one: it waits for x, and x is kept for it
    del x
    noise = [torch.full((1 << 20,), 9.0, device="cuda") for _ in range(4)]
    side.synchronize()
    assert bool((y == 5).all()), len(noise)


@gpu
def test_torch_graph_capture(torch_cuda: Any) -> None:
    torch = torch_cuda
    x = torch.randn(2, 8, 16, 16, device="cuda")
    fc.relu(x.permute(0, 2, 3, 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fc.relu(x.permute(0, 2, 3, 1))  # a temporary copy is part of the graph
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, torch.relu(x).permute(0, 2, 3, 1))


@gpu
def test_calls_do_not_wait_for_the_device(torch_cuda: Any) -> None:
    torch = torch_cuda
    x = torch.randn(1 << 20, device="cuda")
    out = torch.empty_like(x)
    fc.relu(x, out=out)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    done = torch.cuda.Event()
    fc.relu(x, out=out)
    done.record()
    assert not done.query(), "the call came back while the stream is still busy"
    torch.cuda.synchronize()
