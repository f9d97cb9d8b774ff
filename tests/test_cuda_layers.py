"""Ops and prepared layers on CUDA arrays through the public functions, against the float64 oracle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastconv as fc
import reference as ref
from cuda_backend import rounded
from cuda_producers import Foreign, public
from helpers import LAYOUTS, integers, run_python

Array = NDArray[Any]
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Iterator[Any]:
    with public(str(request.param)) as module:
        yield module


@pytest.fixture
def shim() -> Iterator[Any]:
    with public("shim") as module:
        yield module


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def values(array: Any) -> Array:
    """What an `Array` holds, as float32 whatever its dtype."""
    assert isinstance(array, fc.cuda.Array)
    host = array.numpy()
    return (host.astype(np.uint32) << 16).view(np.float32) if host.dtype == np.uint16 else host.astype(np.float32)


def have(op: str, dtype: str = "float32", compute: str = "float32") -> None:
    """Skips where no kernel of this build does the op in this dtype."""
    rows = [row for row in fc.kernels(op) if row["device"] == "cuda" and row["dtype"] == dtype and row["supported"]]
    if not any(row["compute"] == compute for row in rows):
        pytest.skip(f"no CUDA kernel does {op} in {dtype} with compute {compute}")


def images(rng: np.random.Generator, layout: str, c: int = 4, hw: tuple[int, int] = (7, 6)) -> Array:
    shape = (2, c, *hw) if layout == "NCHW" else (2, *hw, c)
    return integers(rng, *shape)


def weights(rng: np.random.Generator, layout: str, o: int = 8, c: int = 4, k: int = 3) -> Array:
    return integers(rng, *((o, c, k, k) if layout == "NCHW" else (o, k, k, c)))


# --- ops --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d(cuda: Any, rng: np.random.Generator, layout: str, dtype: str) -> None:
    have("conv2d", dtype)
    x, w, b = images(rng, layout), weights(rng, layout), integers(rng, 8)
    expected = ref.conv2d(x, w, b, stride=2, padding=1, layout=layout, activation="relu")
    put = fc.cuda.asarray
    for bias_dtype in dict.fromkeys((dtype, "float32")):
        y = fc.conv2d(
            put(x, dtype),
            put(w, dtype),
            put(b, bias_dtype),
            stride=2,
            padding=1,
            layout=layout,  # type: ignore[arg-type]
            activation="relu",
        )
        np.testing.assert_array_equal(values(y), rounded(expected, dtype))


def test_conv2d_of_strided_arrays(shim: Any, rng: np.random.Generator) -> None:
    have("conv2d")
    x, w = images(rng, "NCHW"), weights(rng, "NCHW")
    residual = integers(rng, 2, 8, 7, 6)
    out = Foreign(np.zeros((2, 8, 7, 12), np.float32)[..., ::2])
    y = fc.conv2d(
        Foreign(np.asfortranarray(x)),
        Foreign(w[:, ::-1, ::-1][:, ::-1, ::-1]),
        padding=1,
        residual=Foreign(np.asfortranarray(residual)),
        out=out,
    )
    assert y is out
    np.testing.assert_array_equal(out.array, ref.conv2d(x, w, padding=1, residual=residual))


def test_images_without_a_batch(cuda: Any, rng: np.random.Generator) -> None:
    have("conv2d")
    x, w = images(rng, "NCHW"), weights(rng, "NCHW")
    y = fc.conv2d(fc.cuda.asarray(x[0]), fc.cuda.asarray(w))
    assert y.shape == (8, 5, 4)
    np.testing.assert_array_equal(values(y), ref.conv2d(x[:1], w)[0])


def test_empty_batches(cuda: Any) -> None:
    have("conv2d")
    put = fc.cuda.asarray
    x, w = put(np.zeros((0, 4, 7, 6), np.float32)), put(np.zeros((8, 4, 3, 3), np.float32))
    assert fc.conv2d(x, w).shape == (0, 8, 5, 4)
    assert fc.Conv2d(np.zeros((8, 4, 3, 3), np.float32), device="cuda")(x).shape == (0, 8, 5, 4)
    with pytest.raises(ValueError, match="at least 1 in each dimension"):
        fc.conv2d(put(np.zeros((2, 4, 0, 6), np.float32)), w)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
def test_linear(cuda: Any, rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> None:
    have("linear", dtype)
    x, w, b = integers(rng, *shape, 6), integers(rng, 5, 6), integers(rng, 5)
    put = fc.cuda.asarray
    y = fc.linear(put(x, dtype), put(w, dtype), put(b))
    np.testing.assert_array_equal(values(y), rounded(ref.linear(x, w, b), dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pooling(cuda: Any, rng: np.random.Generator, layout: Any, dtype: str) -> None:
    have("max_pool2d", dtype)
    have("avg_pool2d", dtype)
    have("adaptive_avg_pool2d", dtype)
    x = images(rng, layout, hw=(8, 6))
    a = fc.cuda.asarray(x, dtype)
    y, at = fc.max_pool2d(a, 3, 2, 1, return_indices=True, layout=layout)
    expected, places = ref.max_pool2d(x, 3, 2, 1, layout=layout)
    np.testing.assert_array_equal(values(y), expected)
    assert at.dtype == np.int64
    np.testing.assert_array_equal(at.numpy(), places)
    np.testing.assert_array_equal(
        values(fc.avg_pool2d(a, 2, layout=layout)), rounded(ref.avg_pool2d(x, 2, layout=layout), dtype)
    )
    mean = fc.adaptive_avg_pool2d(a, (2, 3), layout=layout)
    np.testing.assert_array_equal(values(mean), rounded(ref.adaptive_avg_pool2d(x, (2, 3), layout=layout), dtype))


def test_batch_norm_softmax_and_layouts(cuda: Any, rng: np.random.Generator, dtype: str) -> None:
    for op in ("batch_norm", "softmax", "convert_layout"):
        have(op, dtype)
    x = rounded(rng.standard_normal((2, 4, 5, 3)), dtype)
    mean, var = rng.standard_normal(4).astype(np.float32), rng.random(4).astype(np.float32) + 0.5
    put = fc.cuda.asarray
    a = put(x, dtype)
    y = fc.batch_norm(a, put(mean), put(var), put(var), None, eps=1e-3)
    limit = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 5e-3}[dtype]
    ref.assert_rel_l2(values(y), ref.batch_norm(x, mean, var, var, None, eps=1e-3), limit)
    ref.assert_rel_l2(values(fc.softmax(a, 1)), ref.softmax(x, 1), limit)
    np.testing.assert_array_equal(values(fc.convert_layout(a, "NCHW", "NHWC")), x.transpose(0, 2, 3, 1))


def test_named_algorithms(cuda: Any, rng: np.random.Generator) -> None:
    have("conv2d")
    x, w = images(rng, "NHWC"), weights(rng, "NHWC")
    a, b = fc.cuda.asarray(x), fc.cuda.asarray(w)
    rows = [r for r in fc.kernels("conv2d") if r["device"] == "cuda" and r["dtype"] == "float32"]
    ran = 0
    for name in dict.fromkeys(str(r[key]) for r in rows for key in ("algorithm", "driver")):
        try:
            plan = fc.explain("conv2d", a, b, layout="NHWC", algorithm=name)
        except NotImplementedError as error:
            with pytest.raises(NotImplementedError) as raised:
                fc.conv2d(a, b, layout="NHWC", algorithm=name)
            assert str(raised.value) == str(error)
            continue
        assert name in (plan["algorithm"], plan["kernel"])
        ran += 1
        y = fc.conv2d(a, b, layout="NHWC", algorithm=name)
        np.testing.assert_array_equal(values(y), ref.conv2d(x, w, layout="NHWC"))
    assert ran
    with pytest.raises(ValueError, match=r'algorithm must be one of "auto", .* on a CUDA device; got "fft"'):
        fc.conv2d(a, b, layout="NHWC", algorithm="fft")
    with pytest.raises(ValueError, match=r'on a CUDA device; got "fft"'):
        fc.Conv2d(w, layout="NHWC", algorithm="fft", device="cuda")


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv_layer(cuda: Any, rng: np.random.Generator, layout: Any, dtype: str) -> None:
    have("conv2d", dtype)
    x, w, b = images(rng, layout), weights(rng, layout), integers(rng, 8)
    conv = fc.Conv2d(w, b, padding=1, layout=layout, activation="relu", device="cuda", dtype=dtype)  # type: ignore[arg-type]
    residual = integers(rng, *ref.conv2d(x, w, padding=1, layout=layout).shape)
    a, r = fc.cuda.asarray(x, dtype), fc.cuda.asarray(residual, dtype)
    plain = ref.conv2d(x, w, b, padding=1, layout=layout, activation="relu")
    np.testing.assert_array_equal(values(conv(a)), rounded(plain, dtype))
    with_residual = ref.conv2d(x, w, b, padding=1, layout=layout, residual=residual, activation="relu")
    out = fc.cuda.empty(residual.shape, dtype)
    own = fc.cuda.Stream()
    assert conv(a, r, out, stream=own) is out
    np.testing.assert_array_equal(values(out), rounded(with_residual, dtype))
    plan = conv.explain()
    assert (plan["device"], plan["dtype"], plan["op"]) == ("cuda", dtype, "conv2d")
    assert conv.explain(a)["problem"] == plan["problem"]
    for again in (copy.copy(conv), copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert "device='cuda'" in repr(again)
        np.testing.assert_array_equal(values(again(a)), rounded(plain, dtype))


def test_layers_pack_once(cuda: Any, rng: np.random.Generator) -> None:
    have("conv2d")
    conv = fc.Conv2d(weights(rng, "NHWC"), layout="NHWC", device="cuda")
    a = fc.cuda.asarray(images(rng, "NHWC"))
    conv(a)
    packed = conv._packed.packed_bytes
    assert packed > 0
    conv(a)
    assert conv._packed.packed_bytes == packed


def test_layers_can_be_captured(cuda: Any, rng: np.random.Generator) -> None:
    """Also when the first call for a shape is the captured one: weights are packed outside of the graph."""
    have("conv2d")
    w, x = weights(rng, "NHWC"), images(rng, "NHWC")
    conv = fc.Conv2d(w, layout="NHWC", device="cuda")
    a, out = fc.cuda.asarray(x), fc.cuda.empty((2, 5, 4, 8))
    recording = cuda.Recording(0)
    recording.begin()
    conv(a, out=out, stream=recording.stream)
    recording.end()
    for scale in (1, -2):
        cuda.copy_host(a._view, np.ascontiguousarray(x * scale), True, 0)
        recording.time(1)
        np.testing.assert_array_equal(values(out), ref.conv2d(x * scale, w, layout="NHWC"))


def test_weights_from_the_device(cuda: Any, rng: np.random.Generator) -> None:
    have("conv2d", "float16")
    x, w = images(rng, "NHWC"), weights(rng, "NHWC")
    conv = fc.Conv2d(fc.cuda.asarray(w, "float16"), layout="NHWC", device="cuda", dtype="float16")
    y = conv(fc.cuda.asarray(x, "float16"))
    np.testing.assert_array_equal(values(y), rounded(ref.conv2d(x, w, layout="NHWC"), "float16"))


def test_linear_layer(cuda: Any, rng: np.random.Generator, dtype: str) -> None:
    have("linear", dtype)
    x, w, b = integers(rng, 3, 2, 6), integers(rng, 5, 6), integers(rng, 5)
    layer = fc.Linear(w, b, device="cuda", dtype=dtype)  # type: ignore[arg-type]
    a = fc.cuda.asarray(x, dtype)
    np.testing.assert_array_equal(values(layer(a)), rounded(ref.linear(x, w, b), dtype))
    assert layer.explain()["op"] == "linear"
    assert layer.explain(a) == layer.explain()
    assert pickle.loads(pickle.dumps(layer))._options()["device"] == "cuda"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pool_layers(cuda: Any, rng: np.random.Generator, layout: Any, dtype: str) -> None:
    have("max_pool2d", dtype)
    have("avg_pool2d", dtype)
    x = images(rng, layout, hw=(8, 6))
    a = fc.cuda.asarray(x, dtype)
    top = fc.MaxPool2d(3, 2, 1, layout=layout, device="cuda", dtype=dtype)  # type: ignore[arg-type]
    np.testing.assert_array_equal(values(top(a)), ref.max_pool2d(x, 3, 2, 1, layout=layout)[0])
    assert top.explain()["device"] == "cuda"
    mean = fc.AvgPool2d(2, layout=layout, device="cuda", dtype=dtype)  # type: ignore[arg-type]
    out = fc.cuda.empty(ref.avg_pool2d(x, 2, layout=layout).shape, dtype)
    assert mean(a, out, stream=0) is out
    np.testing.assert_array_equal(values(out), rounded(ref.avg_pool2d(x, 2, layout=layout), dtype))
    assert mean.explain(a)["dtype"] == dtype
    assert copy.deepcopy(mean)._options() == mean._options()


@pytest.mark.parametrize("compute", ["tf32", "3xtf32"])
def test_compute(cuda: Any, rng: np.random.Generator, compute: Any) -> None:
    have("conv2d", "float32", compute)
    x, w = rng.standard_normal((2, 6, 5, 16)).astype(np.float32), rng.standard_normal((8, 3, 3, 16)).astype(np.float32)
    conv = fc.Conv2d(w, layout="NHWC", device="cuda", compute=compute)
    y = values(conv(fc.cuda.asarray(x)))
    ref.assert_rel_l2(y, ref.conv2d(x, w, layout="NHWC"), 1e-3 if compute == "tf32" else 2e-6)
    assert conv.explain()["compute"] == compute


def test_what_layers_refuse(cuda: Any, rng: np.random.Generator) -> None:
    w = weights(rng, "NCHW")
    conv = fc.Conv2d(w, device="cuda", dtype="float16")
    host = np.zeros((1, 4, 5, 5), np.float32)
    with pytest.raises(ValueError, match=r"input lies on the CPU, but this layer on a CUDA device"):
        conv(host)
    with pytest.raises(ValueError, match=r"input lies on the CPU, but out on a CUDA device"):
        conv(host, out=fc.cuda.empty(3))
    with pytest.raises(TypeError, match=r"input must be float16 for this layer, got float32"):
        conv(fc.cuda.asarray(host))
    with pytest.raises(ValueError, match=r"explain\(\) needs an input shape"):
        conv.explain()
    with pytest.raises(ValueError, match=r"residual must have the output's shape \(1, 8, 3, 3\), got \(1, 4, 5, 5\)"):
        conv(fc.cuda.asarray(host, "float16"), fc.cuda.asarray(host, "float16"))
    with pytest.raises(ValueError, match=r"compute is for dtype='float32'; got compute='tf32' with dtype='float16'"):
        fc.Conv2d(w, device="cuda", dtype="float16", compute="tf32")
    with pytest.raises(ValueError, match="lies on"):
        fc.Conv2d(w)(fc.cuda.asarray(host))


# --- what the CPU says to these options -------------------------------------------------------------------------------


def test_the_cpu_has_float32_only() -> None:
    w = np.zeros((2, 2, 1, 1), np.float32)
    for make in (
        lambda **o: fc.Conv2d(w, **o),
        lambda **o: fc.Linear(w[..., 0, 0], **o),
        lambda **o: fc.MaxPool2d(2, **o),
        lambda **o: fc.AvgPool2d(2, **o),
    ):
        make(device="cpu", dtype="float32", compute="float32")
        make(dtype=np.float32)
        with pytest.raises(NotImplementedError, match="dtype must be 'float32' on the CPU for now; got 'float16'"):
            make(dtype="float16")
        with pytest.raises(NotImplementedError, match="compute must be 'float32' on the CPU for now; got 'tf32'"):
            make(compute="tf32")
        with pytest.raises(ValueError, match="device must be one of 'cpu', 'cuda'; got 'tpu'"):
            make(device="tpu")
        with pytest.raises(ValueError, match=r"dtype must be one of .* got 'float64'"):
            make(dtype="float64")
        with pytest.raises(ValueError, match=r"compute must be one of .* got 'exact'"):
            make(compute="exact")
        with pytest.raises(TypeError, match="device must be a string"):
            make(device=1)
    with pytest.raises(ValueError, match="stream is for layers made with device='cuda'"):
        fc.MaxPool2d(2)(np.zeros((1, 1, 4, 4), np.float32), stream=0)


# --- introspection ----------------------------------------------------------------------------------------------------


def test_kernels_lists_those_of_the_device(cuda: Any) -> None:
    rows = [row for row in fc.kernels() if row["device"] == "cuda"]
    assert rows
    for row in rows:
        assert {"op", "name", "algorithm", "driver", "dtype", "compute", "isa", "supported", "reason"} <= set(row)
        assert row["supported"] == (row["reason"] == "")
        assert row["dtype"] in DTYPES and row["isa"].startswith("sm_")
    assert len({(row["op"], row["name"]) for row in rows}) == len(rows)


def test_explain_on_a_device(cuda: Any, rng: np.random.Generator) -> None:
    have("conv2d")
    x, w = images(rng, "NHWC"), weights(rng, "NHWC")
    plan = fc.explain("conv2d", x.shape, w.shape, layout="NHWC", device="cuda")
    assert plan == fc.explain("conv2d", fc.cuda.asarray(x), fc.cuda.asarray(w), layout="NHWC")
    assert (plan["device"], plan["dtype"], plan["compute"]) == ("cuda", "float32", "float32")
    assert fc.explain("conv2d", x.shape, w.shape, layout="NHWC")["device"] == "cpu"
    with pytest.raises(TypeError, match="weight must be float16, got float32"):
        fc.explain("conv2d", x.shape, fc.cuda.asarray(w), layout="NHWC", device="cuda", dtype="float16")


def test_explain_without_a_device() -> None:
    """A build with CUDA plans for an H200 where there is no device; one without says that it has none."""
    done = run_python(
        "import fastconv as fc\n"
        "from fastconv.cuda import _backend\n"
        "if fc.cuda.is_available(): print('available')\n"
        "else:\n"
        "    try: print(fc.explain('relu', (4, 4), device='cuda').get('assumed_device'))\n"
        "    except NotImplementedError as error: print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in ("available", "H200: ", "no CUDA backend"))
