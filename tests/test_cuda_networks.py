"""Networks on the CUDA backend: logits against float64, one graph for any arrays, captures, streams, threads."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastconv as fc
import reference as ref
from cuda_backend import rounded, use
from fastconv import cli
from fastconv.cuda import _backend
from fastconv.models._net import INPUT, NO_RESIDUAL, Net, Node
from helpers import LAYOUTS

F32 = NDArray[np.float32]
#: Relative L2 of the logits: against float64 (weights and activations are rounded along the way), and against float64
#: sums with the same roundings, where only what lies between two neighbours of the dtype may fall the other way.
AGAINST_EXACT = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
AGAINST_ROUNDED = {"float32": 2e-6, "float16": 5e-4, "bfloat16": 4e-3}
CLASSES = 10


@pytest.fixture
def cuda(cuda: str) -> Any:
    """The extension module that `fastconv.cuda` runs on."""
    return _backend.backend()


@pytest.fixture
def torch_cuda(torch: Any, cuda: Any) -> Any:
    """PyTorch with a device."""
    if cuda.__name__ != "fastconv._cuda" or not torch.cuda.is_available():
        pytest.skip("needs a GPU: PyTorch's arrays lie on one")
    return torch


# --- a network small enough for the host, with everything that a ResNet has -------------------------------------------

# Name, source, channels in and out, kernel, stride, ReLU, residual.
LAYERS: list[tuple[str, str, int, int, int, int, bool, str | None]] = [
    ("conv1", "", 3, 64, 7, 2, True, None),
    ("a1", "pool", 64, 16, 1, 1, True, None),
    ("a2", "a1", 16, 16, 3, 2, True, None),
    ("down", "pool", 64, 32, 1, 2, False, None),
    ("a3", "a2", 16, 32, 1, 1, True, "down"),
    ("b1", "a3", 32, 32, 3, 1, True, None),
    ("b2", "b1", 32, 32, 3, 1, True, "a3"),
]


def small_net(layout: str = "NHWC", **options: Any) -> Net:
    rng = np.random.default_rng(5)
    nodes: list[Node] = []
    place = {"": INPUT}
    folded: dict[str, tuple[F32, F32]] = {}
    for name, source, ic, oc, kernel, stride, relu, residual in LAYERS:
        weight = rng.standard_normal((oc, ic, kernel, kernel), np.float32) * np.float32((ic * kernel**2) ** -0.5)
        folded[name] = (weight, rng.standard_normal(oc, np.float32) * np.float32(0.1))
        place[name] = len(nodes)
        held = NO_RESIDUAL if residual is None else place[residual]
        activation = "relu" if relu else None
        nodes.append(Node("conv", name, place[source], kernel, stride, kernel // 2, activation, held, weight.size))
        if name == "conv1":
            place["pool"] = len(nodes)
            nodes.append(Node("max_pool", "pool", place["conv1"], 3, 2, 1))
    nodes.append(Node("global_avg_pool", "mean", len(nodes) - 1))
    nodes.append(Node("linear", "fc", len(nodes) - 1))
    weight = rng.standard_normal((CLASSES, 32, 1, 1), np.float32)
    folded["fc"] = (weight, rng.standard_normal(CLASSES, np.float32))
    options = {"algorithm": "auto", "num_classes": CLASSES, "device": "cuda", **options}
    return Net("small", nodes, folded, layout=layout, **options)


def expected(x: F32, dtype: str) -> NDArray[np.float64]:
    """Logits in float64; weights and every tensor between the layers as `dtype` stores them."""
    net = small_net(device="cpu")

    def stored(values: Any) -> NDArray[np.float64]:
        return np.asarray(values if dtype == "exact" else rounded(values, dtype), np.float64)

    made: dict[int, NDArray[np.float64]] = {INPUT: stored(x)}
    for index, node in enumerate(net._nodes):
        h = made[node.source]
        if node.kind == "conv":
            weight, bias = net._folded[node.name]
            residual = None if node.residual == NO_RESIDUAL else made[node.residual]
            h = ref.conv2d(
                h,
                stored(weight),
                bias,
                stride=node.stride,
                padding=node.padding,
                residual=residual,
                activation=node.activation,
            )
        elif node.kind == "max_pool":
            h = ref.max_pool2d(h, 3, 2, 1)[0]
        elif node.kind == "global_avg_pool":
            h = h.mean(axis=(2, 3), keepdims=True)
        else:
            weight, bias = net._folded["fc"]
            made[index] = h[:, :, 0, 0] @ weight[:, :, 0, 0].astype(np.float64).T + bias
            continue
        made[index] = stored(h)
    return made[len(net._nodes) - 1]


def images(batch: int, size: int = 21, seed: int = 1) -> F32:
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size + 2), np.float32)


def laid(x: F32, layout: str) -> F32:
    return np.ascontiguousarray(ref.from_nchw(x, layout))


def error(found: Any, wanted: NDArray[np.float64]) -> float:
    difference = np.asarray(found, np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits(cuda: Any, layout: str, dtype: str, batch: int) -> None:
    net, x = small_net(layout, dtype=dtype), images(batch)
    logits = net(laid(x, layout))
    assert logits.shape == (batch, CLASSES)
    assert logits.dtype == np.float32
    assert error(logits, expected(x, "exact")) <= AGAINST_EXACT[dtype]
    assert error(logits, expected(x, dtype)) <= AGAINST_ROUNDED[dtype]


def test_logits_are_those_of_the_cpu(cuda: Any, layout: str) -> None:
    x = laid(images(2), layout)
    assert error(small_net(layout)(x), small_net(layout, device="cpu")(x).astype(np.float64)) <= 2e-6


@pytest.mark.parametrize(("compute", "limit"), [("3xtf32", 2e-6), ("tf32", 2e-3)])
def test_compute(cuda: Any, layout: str, compute: str, limit: float) -> None:
    x = images(2)
    try:
        logits = small_net(layout, compute=compute)(laid(x, layout))
    except NotImplementedError as missing:
        pytest.skip(str(missing))
    assert error(logits, expected(x, "exact")) <= limit


def test_resnet18(cuda: Any, layout: str) -> None:
    x = laid(images(1, 32), layout)
    net = fc.models.resnet18(layout=layout, device="cuda", num_classes=7)
    assert error(net(x), fc.models.resnet18(layout=layout, num_classes=7)(x).astype(np.float64)) <= 1e-5


def test_ten_runs_have_the_same_bits(cuda: Any, layout: str) -> None:
    for dtype in ("float32", "bfloat16"):
        net, x = small_net(layout, dtype=dtype), laid(images(3), layout)
        first = net(x).tobytes()
        assert all(net(x).tobytes() == first for _ in range(9))


def test_no_pictures(cuda: Any) -> None:
    assert small_net()(np.zeros((0, 9, 9, 3), np.float32)).shape == (0, CLASSES)


def test_predict(cuda: Any) -> None:
    pytest.importorskip("PIL")
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    ((best, *_),) = small_net().predict([picture], 3, resize=32, crop=32)
    ((same, *_),) = small_net(device="cpu").predict([picture], 3, resize=32, crop=32)
    assert best[:2] == same[:2]
    assert best[2] == pytest.approx(same[2], rel=1e-4)


# --- arrays on the device ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_device_arrays(cuda: Any, given: str) -> None:
    net, x = small_net(dtype="bfloat16"), images(2)
    logits = net(fc.cuda.asarray(laid(x, "NHWC"), given))
    assert isinstance(logits, fc.cuda.Array)
    assert str(logits.dtype) == "float32"
    assert error(logits.numpy(), expected(x, "bfloat16")) <= AGAINST_ROUNDED["bfloat16"]


def test_each_call_has_its_own_arrays(cuda: Any) -> None:
    """One graph serves all: its launches are told the pointers of each call."""
    net = small_net()
    held = [(fc.cuda.asarray(laid(images(2, seed=seed), "NHWC")), seed) for seed in range(4)]
    answers = [(net(x), seed) for x, seed in held + held[::-1]]
    for logits, seed in answers:
        assert error(logits.numpy(), expected(images(2, seed=seed), "exact")) <= 2e-6


def test_awkward_memory(cuda: Any) -> None:
    net, x = small_net(), images(2)
    wanted = expected(x, "exact")
    plain = laid(x, "NHWC")
    whole = fc.cuda.asarray(np.concatenate([np.zeros(1, np.float32), plain.ravel()]))
    steps = [int(np.prod(plain.shape[i + 1 :])) for i in range(4)]
    address = whole._view.pointer + 4
    shifted = fc.cuda.Array(cuda.from_pointer(address, plain.shape, steps, "float32", 0, False, whole, "x"))
    turned = fc.cuda.asarray(x)._view
    steps = [turned.strides[i] for i in (0, 2, 3, 1)]
    strided = fc.cuda.Array(cuda.from_pointer(turned.pointer, plain.shape, steps, "float32", 0, False, turned, "x"))
    for array in (shifted, fc.cuda.asarray(plain), strided, shifted):
        assert error(net(array).numpy(), wanted) <= 2e-6


def test_wrong_arrays(cuda: Any) -> None:
    net = small_net()
    with pytest.raises(TypeError, match="input must be float32"):
        net(fc.cuda.asarray(np.zeros((1, 9, 9, 3), np.float32), "bfloat16"))
    with pytest.raises(ValueError, match="3 channels"):
        net(fc.cuda.asarray(np.zeros((1, 9, 9, 4), np.float32)))
    with pytest.raises(TypeError, match="float64"):
        net(np.zeros((1, 9, 9, 3)))
    with pytest.raises(ValueError, match="stream"):
        net(np.zeros((1, 9, 9, 3), np.float32), stream=1)


# --- programs ---------------------------------------------------------------------------------------------------------


def views(module: Any, program: Any, x: F32) -> tuple[Any, Any]:
    source, target = module.empty(x.shape, "float32", 0, 0), module.empty((x.shape[0], CLASSES), "float32", 0, 0)
    module.copy_host(source, x, True, 0)
    return source, target


def host(module: Any, view: Any) -> F32:
    values = np.empty(view.shape, np.float32)
    module.copy_host(view, values, False, 0)
    return values


def test_captured_by_the_caller(cuda: Any) -> None:
    net, x = small_net(), laid(images(2), "NHWC")
    program = net.program(x.shape).program
    source, target = views(cuda, program, x)
    recording = cuda.Recording(0)
    recording.begin()
    program.run([source], [target], recording.stream)
    recording.end()
    for seed in (1, 2, 3):
        cuda.copy_host(source, laid(images(2, seed=seed), "NHWC"), True, 0)
        recording.time(1)
        assert error(host(cuda, target), expected(images(2, seed=seed), "exact")) <= 2e-6


def test_graph_and_single_launches_give_the_same_bits(cuda: Any) -> None:
    net, x = small_net(), laid(images(2), "NHWC")
    program = net.program(x.shape).program
    source, target = views(cuda, program, x)
    program.run([source], [target], 0)
    with_graph = host(cuda, target)
    assert program.graph_refusal == "", "it was a graph"
    program.use_graphs(False)
    program.run([source], [target], 0)
    assert host(cuda, target).tobytes() == with_graph.tobytes()
    seconds = program.run_profiled([source], [target], 0)
    assert len(seconds) == len(program.steps())
    assert host(cuda, target).tobytes() == with_graph.tobytes()


def test_arena_is_shared_by_what_is_not_alive_together(cuda: Any) -> None:
    steps = small_net().program((2, 64, 64, 3)).program
    total = sum(4 * int(np.prod(step["output_shape"])) for step in steps.steps())
    assert 0 < steps.arena_bytes < total


def test_more_streams_than_arenas(cuda: Any) -> None:
    net = small_net()
    streams = [fc.cuda.Stream() for _ in range(6)]
    fc.cuda.synchronize()
    asked = []
    for turn in range(3):
        for number, stream in enumerate(streams):
            seed = 10 * turn + number
            x = fc.cuda.asarray(laid(images(1, seed=seed), "NHWC"))
            asked.append((seed, net(x, stream=stream)))
    for seed, logits in asked:
        assert error(logits.numpy(), expected(images(1, seed=seed), "exact")) <= 2e-6


def test_threads(cuda: Any) -> None:
    net, x = small_net(), laid(images(2), "NHWC")
    wanted = net(x).tobytes()
    found: list[bytes] = []

    def work() -> None:
        for _ in range(4):
            found.append(net(x).tobytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 16


def test_bad_programs(cuda: Any) -> None:
    program = cuda.Program(0)
    x = program.input((1, 4, 4, 3), "float32")
    with pytest.raises(ValueError, match="not finalized"):
        program.run([cuda.empty((1, 4, 4, 3), "float32", 0, 0)], [], 0)
    with pytest.raises(ValueError, match="tensor 7 does not exist"):
        program.cast(7, "float16")
    program.output(program.cast(x, "float16"))
    program.finalize()
    with pytest.raises(ValueError, match="finalized"):
        program.input((1,), "float32")
    with pytest.raises(ValueError, match="1 inputs and 1 outputs, got 0 and 0"):
        program.run([], [], 0)
    source, target = (cuda.empty((1, 4, 4, 3), dtype, 0, 0) for dtype in ("float32", "bfloat16"))
    with pytest.raises(TypeError, match="out must be float16 here, got bfloat16"):
        program.run([source], [target], 0)


@pytest.mark.parametrize("wanted", ["float16", "bfloat16"])
@pytest.mark.parametrize("elements", [1, 4, 1027])
def test_cast(cuda: Any, wanted: str, elements: int) -> None:
    values = np.random.default_rng(0).standard_normal(elements).astype(np.float32)
    values[::3] = [np.nan, np.inf, -np.inf, 1e-40, 70000.0][elements % 5]
    program = cuda.Program(0)
    back = program.cast(program.cast(program.input((elements,), "float32"), wanted), "float32")
    program.output(back)
    program.finalize()
    source, target = cuda.empty((elements,), "float32", 0, 0), cuda.empty((elements,), "float32", 0, 0)
    cuda.copy_host(source, values, True, 0)
    program.run([source], [target], 0)
    np.testing.assert_array_equal(host(cuda, target), rounded(values, wanted))


def test_measuring(cuda: Any) -> None:
    assert cuda.copy_bandwidth(0, 1 << 12, 2) > 0
    if cuda.__name__ == "fastconv._cuda":  # on the host it takes long
        assert cuda.fma_peak(0, 1) > 0


# --- what a network says of itself ------------------------------------------------------------------------------------


def test_summary(cuda: Any) -> None:
    net = small_net(dtype="bfloat16")
    table = net.summary(1, 21, 23)
    kernels = {row["layer"]: row["kernel"] for row in table.rows}
    assert all(kernels.values()), kernels
    assert "device=cuda, dtype=bfloat16" in str(table)
    assert "device='cuda', dtype='bfloat16'" in repr(net)
    steps = net.program((1, 21, 23, 3)).steps()
    if any(step["then_max_pool"] for step in steps):
        assert kernels["pool"] == "in conv1"


def test_copies_compute_the_same(cuda: Any) -> None:
    net, x = small_net(dtype="float16"), laid(images(1), "NHWC")
    logits = net(x).tobytes()
    for twin in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert (twin.device, twin.dtype, twin.compute) == ("cuda", "float16", "float32")
        assert twin(x).tobytes() == logits


def test_options_that_do_not_fit() -> None:
    with pytest.raises(NotImplementedError, match="dtype='bfloat16' needs device='cuda'"):
        small_net(device="cpu", dtype="bfloat16")
    with pytest.raises(ValueError, match="compute='tf32' is a way to multiply float32"):
        small_net(dtype="float16", compute="tf32")
    with pytest.raises(ValueError, match="device must be one of"):
        small_net(device="gpu")
    with pytest.raises(ValueError, match="stream"):
        small_net(device="cpu")(np.zeros((1, 9, 9, 3), np.float32), stream=1)


def test_without_cuda_the_reason_is_told() -> None:
    reason = fc.cuda.why_unavailable()
    if not reason:
        pytest.skip("CUDA is available here")
    with pytest.raises(RuntimeError, match="CUDA is not available"):
        small_net()


def test_command_line(cuda: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", "resnet18", "--device", "cuda", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert "device=cuda, dtype=bfloat16" in said
    assert "in conv1" in said
    assert cli.main(["summary", "resnet18", "--dtype", "bfloat16"]) == 1
    assert "needs device='cuda'" in capsys.readouterr().err


# --- with PyTorch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_in_torch_out(cuda: Any, torch_cuda: Any, dtype: str, layout: str) -> None:
    net, x = small_net(layout, dtype=dtype), images(3)
    logits = net(torch_cuda.from_numpy(laid(x, layout)).cuda().to(getattr(torch_cuda, dtype)))
    assert (logits.dtype, logits.device.type) == (torch_cuda.float32, "cuda")
    assert error(logits.cpu().numpy(), expected(x, dtype)) <= AGAINST_ROUNDED[dtype]


def test_torch_streams_are_ordered(cuda: Any, torch_cuda: Any) -> None:
    """A slow producer on a side stream, the network behind it, a consumer behind that; nothing waits on the host."""
    torch, net = torch_cuda, small_net()
    values = torch.from_numpy(laid(images(2), "NHWC")).cuda()
    net(values)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            x = values * 1.0
            doubled = net(x) * 2.0
            x.fill_(float("nan"))  # behind the network's reads
        torch.cuda.current_stream().wait_stream(side)
        assert error(doubled.cpu().numpy(), 2 * expected(images(2), "exact")) <= 2e-6


def test_torch_captures_a_network(cuda: Any, torch_cuda: Any) -> None:
    torch, net = torch_cuda, small_net(dtype="bfloat16")
    x = torch.from_numpy(laid(images(2), "NHWC")).cuda().to(torch.bfloat16)
    net(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = net(x)
    for seed in (3, 4):
        given = torch.from_numpy(laid(images(2, seed=seed), "NHWC")).cuda()
        x.copy_(given.to(torch.bfloat16))
        net(torch.randn_like(given))  # other work of the same network beside the captured one
        graph.replay()
        assert error(logits.cpu().numpy(), expected(images(2, seed=seed), "bfloat16")) <= AGAINST_ROUNDED["bfloat16"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_resnet50_on_a_gpu(monkeypatch: pytest.MonkeyPatch, layout: str, dtype: str, batch: int) -> None:
    use(monkeypatch, "gpu")
    x = laid(np.random.default_rng(2).standard_normal((batch, 3, 224, 224), np.float32), layout)
    wanted = fc.models.resnet50(layout=layout)(x).astype(np.float64)
    net = fc.models.resnet50(layout=layout, device="cuda", dtype=dtype)
    first = net(x)
    assert error(first, wanted) <= {"float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}[dtype]
    assert all(net(x).tobytes() == first.tobytes() for _ in range(10))
