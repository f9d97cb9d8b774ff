"""The other libraries of the benchmark: every op of every one against float64, the networks, and what happens where a
library, a device or a compiler is missing."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import networks, ops, oracle, peers, problem
from fastconv.benchmarks.peers.numpy import NumPy
from fastconv.benchmarks.peers.pytorch_cuda import PyTorchCuda

import fastconv
from helpers import run_python

RNG_SEED = 20
LAYERS = """
stem ic3 ih23 oc16 kh7 sh2 ph3
square ic8 ih13 iw11 oc16 kh3 ph1
odd ic8 ih13 iw11 oc16 kh3 kw5 sh2 sw1 ph1 pw2 dh1 dw2
depthwise ic16 ih13 iw11 oc16 kh3 ph1 g16
depthwise_s ic16 ih13 iw11 oc32 kh3 sh2 ph1 g16
groups ic16 ih13 iw11 oc24 kh3 ph1 g4
pointwise ic16 ih7 oc24 kh1
pointwise_s ic16 ih7 oc24 kh1 sh2
pixel ic64 ih1 oc32 kh1
full linear ic64 oc10
max max_pool2d ic8 ih13 iw12 kh3 sh2 ph1
max_pairs max_pool2d ic8 ih12 kh2
max_odd max_pool2d ic8 ih13 iw12 kh4 kw2 sh3 ph2 pw1
max_dilated max_pool2d ic8 ih13 iw12 kh3 sh1 ph1 dh2
mean avg_pool2d ic8 ih13 iw12 kh3 sh2 ph1
mean_pairs avg_pool2d ic8 ih12 kh2
mean_odd avg_pool2d ic8 ih13 iw12 kh4 kw2 sh3 ph2 pw1
global global_avg_pool2d ic8 ih7
rectify relu ic8 ih13 iw12
norm batch_norm ic8 ih13 iw12
classes softmax ic1000
pixels softmax ic10 ih5
"""
POOLS = {"max", "max_pairs", "max_odd", "max_dilated", "mean", "mean_pairs", "mean_odd", "global"}
#: The layers that a peer refuses, which is all that may be refused.
REFUSED: dict[str, set[str]] = {
    "pytorch-prepacked": POOLS | {"rectify", "norm", "classes", "pixels"},
    "ncnn": {"max_dilated"},
    "scipy": {"stem", "odd", "depthwise_s", "pointwise", "pointwise_s", "pixel", "full"}
    | {"max_odd", "mean_odd", "global", "rectify", "norm"},
}
#: Pictures of this extent keep the networks quick and leave more than one pixel in their last stage.
SMALL = 48
FEW = ("pytorch", "pytorch-prepacked", "pytorch-bf16", "onnxruntime", "openvino", "ncnn", "numpy")


def load(name: str) -> peers.Peer:
    found, messages = peers.load_peers([name])
    if not found:
        pytest.skip(messages[0])
    return found[0]


def layouts(peer: peers.Peer, p: problem.Problem) -> tuple[str, ...]:
    return peer.layouts if p.has_layout else ("-",)


# --- every op ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in peers.PEERS if n != "pytorch-compile"])
def test_every_op_agrees_with_float64(name: str) -> None:
    peer = load(name)
    refused = set()
    for text in LAYERS.strip().splitlines():
        for batch in (1, 3):
            p = problem.parse_problem(text).with_batch(batch)
            given = ops.operands(p)
            for layout in layouts(peer, p):
                try:
                    call = peer.layer(p, given, layout, 2)
                except NotImplementedError as error:
                    assert p.op.split("_")[0] in str(error), text
                    refused.add(p.name)
                    continue
                call.run()
                call.run()
                result = call.result()
                assert result.dtype == np.float32 and call.detail and "/" not in call.detail
                error_found = oracle.compare(result, ops.expected(p, given))
                assert error_found.relative_l2 <= peers.MAX_L2[peer.dtype], (text, batch, layout, error_found)
    assert refused == REFUSED.get(name, set())


@pytest.mark.parametrize("name", [n for n in peers.PEERS if n != "pytorch-compile"])
def test_inputs_are_the_memory_that_is_read(name: str) -> None:
    """With the input set to zero through `inputs`, a convolution gives its bias."""
    peer = load(name)
    p = problem.parse_problem("ic4 ih9 iw8 oc6 kh3 ph1 n2")
    given = ops.operands(p)
    assert given.bias is not None
    expected = np.broadcast_to(given.bias[:, None, None].astype(np.float64), p.output_shape)
    for layout in peer.layouts:
        call = peer.layer(p, given, layout, 1)
        assert sum(view.size for view in call.inputs) == given.x.size
        for view in call.inputs:
            view[...] = 0
        call.run()
        assert oracle.compare(call.result(), expected).relative_l2 <= peers.MAX_L2[peer.dtype]
    assert np.abs(given.x).max() > 0


def test_a_result_stays_when_the_next_call_runs() -> None:
    for name in ("pytorch", "onnxruntime", "openvino", "ncnn", "numpy"):
        found, _ = peers.load_peers([name])
        for peer in found:
            p = problem.parse_problem("layer relu ic4 ih5 n1")
            given = ops.operands(p)
            call = peer.layer(p, given, "nchw", 1)
            call.run()
            first = call.result()
            for view in call.inputs:
                view[...] = 0
            call.run()
            assert np.array_equal(first, np.maximum(given.x, 0)) and not call.result().any(), name


@pytest.mark.parametrize("name", ["numpy", "scipy"])
def test_what_would_need_too_much_memory_is_refused(name: str) -> None:
    peer = load(name)
    p = problem.parse_problem("ic512 ih512 oc512 kh5 ph2 n1")
    zeros = np.broadcast_to(np.float32(0), (1, 512, 1, 1))
    given = ops.Operands(zeros, np.zeros((512, 512, 5, 5), np.float32), np.zeros(512, np.float32))
    with pytest.raises(NotImplementedError, match=r"takes? .*MiB"):
        peer.layer(p, given, "nchw", 1)


def test_a_missing_operand_is_named() -> None:
    p = problem.parse_problem("full linear ic4 oc3 n1")
    with pytest.raises(ValueError, match="operands"):
        NumPy().layer(p, ops.Operands(np.zeros((1, 4), np.float32)), "-", 1)


# --- networks ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def network(name: str, size: int) -> tuple[Any, Any, Any]:
    """Folded weights, two pictures, and what they must give."""
    found = networks.load(name)
    x = np.random.default_rng(RNG_SEED).standard_normal((2, 3, size, size), np.float32)
    return found.folded(), x, found.expected(x)


def check_network(peer: peers.Peer, name: str, size: int, threads: int) -> None:
    folded, x, expected = network(name, size)
    allowed = {"float32": 2e-5, "bfloat16": 2e-2}[peer.dtype]
    for layout in peer.layouts:
        call = peer.network(name, folded, x, layout, threads)
        for _ in range(2):  # what is done in place must not change the second answer
            call.run()
            result = call.result()
            assert result.dtype == np.float32
            assert oracle.compare(result, expected).relative_l2 <= allowed, (peer.name, name, layout)
        assert sum(view.size for view in call.inputs) == x.size


@pytest.mark.parametrize("what", list(networks.MACS))
@pytest.mark.parametrize("name", FEW)
def test_networks_agree_with_float64(name: str, what: str) -> None:
    check_network(load(name), what, SMALL, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_network_of_usual_size_agrees(name: str) -> None:
    check_network(load(name), "resnet50", 224, 2)


@pytest.mark.slow
def test_compiled_network_agrees_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = load("pytorch-compile")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    for name in networks.MACS:
        check_network(peer, name, SMALL, 2)
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before
    assert list(tmp_path.glob("fastconv-*")) == []
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    assert not children.exists() or children.read_text().split() == []


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_an_unknown_network_is_named(name: str) -> None:
    peer = load(name)
    error, words = (NotImplementedError, "resnet7") if name == "scipy" else (ValueError, "'resnet7'; known: resnet18")
    with pytest.raises(error, match=words):
        peer.network("resnet7", {}, np.zeros((1, 3, 32, 32), np.float32), "nchw", 1)


class _Shapes:
    """A builder whose values are (channels, extent)."""

    def __init__(self, folded: peers.Folded) -> None:
        self.folded, self.seen = folded, [] if folded else ["nothing"]
        self.convs: list[tuple[int, ...]] = []
        self.linear_sums = 0

    def conv(self, h: Any, name: str, stride: int, padding: int, relu: bool, add: Any = None, groups: int = 1) -> Any:
        weight = self.folded[name][0]
        assert weight.shape[1] * groups == h[0], name
        y = (weight.shape[0], (h[1] + 2 * padding - weight.shape[2]) // stride + 1)
        assert add is None or add == y, name
        self.seen.append(name)
        self.convs.append((*h, *y, weight.shape[2], stride, padding, groups))
        self.linear_sums += add is not None and not relu
        return y

    def max_pool(self, h: Any) -> Any:
        return (h[0], (h[1] - 1) // 2 + 1)

    def classify(self, h: Any) -> Any:
        assert h == (self.folded["fc"][0].shape[1], 7)
        self.seen.append("fc")
        return len(self.folded["fc"][1])


@pytest.mark.parametrize("depth", [18, 50])
def test_a_network_uses_every_weight_once(depth: int) -> None:
    folded = peers.fold_batch_norm(fastconv.models.init_state(depth))
    builder = _Shapes(folded)
    assert peers.build_resnet(builder, depth, (3, 224)) == 1000
    assert sorted(builder.seen) == sorted(folded) and len(folded) == {18: 21, 50: 54}[depth]
    assert builder.linear_sums == 0
    with pytest.raises(ValueError, match="depth: 34 is none of 18, 50"):
        peers.build_resnet(builder, 34, (3, 224))


def test_the_network_like_mobilenet_v2_is_its_suite_with_ten_linear_sums() -> None:
    """The suite's layers were written down from the paper's table by themselves."""
    folded = networks.load("mobilenet_v2").folded()
    builder = _Shapes(folded)
    assert peers.build_mobilenet_v2(builder, (3, 224)) == 1000
    assert sorted(builder.seen) == sorted(folded)
    layers: Counter[tuple[int, ...]] = Counter()
    for p in problem.load_suite("mobilenet_v2").problems:
        layers[p.ic, p.ih, p.oc, p.oh, p.kh, p.sh, p.ph, p.g] += p.x
    assert Counter(builder.convs) == layers
    assert builder.linear_sums == 10
    # Keras and torchvision: 3 504 872 numbers learnt, batch norm's scale and shift instead of a bias.
    assert sum(w.size + (1 if k == "fc" else 2) * b.size for k, (w, b) in folded.items()) == 3_504_872


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("name", list(networks.MACS))
def test_our_networks_agree_with_float64(name: str, layout: str) -> None:
    _, x, expected = network(name, SMALL)
    net = networks.load(name).make(layout, "auto")
    logits = net(x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    assert oracle.compare(logits, expected).relative_l2 <= oracle.MAX_NETWORK_L2
    assert net.summary().macs == networks.MACS[name]


def test_networks_that_a_suite_can_name() -> None:
    assert set(networks.MACS) == set(peers.NETWORKS)
    with pytest.raises(ValueError, match="'resnet7'; known: resnet18"):
        networks.load("resnet7")


# --- what is special about one ----------------------------------------------------------------------------------------


def test_weights_are_packed_once() -> None:
    peer: Any = load("pytorch-prepacked")
    real, calls = peer.ops, {"convolution": 0, "linear": 0}

    def counted(kind: str) -> Any:
        def reorder(weight: Any, *settings: Any) -> Any:
            calls[kind] += 1
            packed = getattr(real, f"_reorder_{kind}_weight")(weight, *settings)
            assert packed.is_mkldnn and not weight.is_mkldnn
            return packed

        return reorder

    peer.ops = SimpleNamespace(
        _reorder_convolution_weight=counted("convolution"),
        _reorder_linear_weight=counted("linear"),
        _convolution_pointwise=real._convolution_pointwise,
        _convolution_pointwise_=real._convolution_pointwise_,
        _linear_pointwise=real._linear_pointwise,
    )
    folded, x, _ = network("resnet18", SMALL)
    call = peer.network("resnet18", folded, x, "nhwc", 1)
    for _ in range(3):
        call.run()
    assert calls == {"convolution": 20, "linear": 1}


def test_compiling_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setenv("CXX", "no-such-compiler")
    found, messages = peers.load_peers(["pytorch-compile"])
    assert found == [] and "needs a C++ compiler, and 'no-such-compiler' is not found" in messages[0]
    monkeypatch.setenv("CXX", sys.executable)
    (peer,), _ = peers.load_peers(["pytorch-compile"])
    p = problem.parse_problem("ic4 ih5 oc4 kh1 n1")
    with pytest.raises(NotImplementedError, match="single layers"):
        peer.layer(p, ops.operands(p), "nchw", 1)


def test_numpy_gives_its_threads_back() -> None:
    class Library:
        num_threads, log = 7, []  # type: ignore[var-annotated]

        def set_num_threads(self, number: int) -> None:
            self.num_threads = number
            self.log.append(number)

    peer = NumPy()
    library = Library()
    peer.libraries = [library]
    p = problem.parse_problem("full linear ic4 oc3 n1")
    peer.layer(p, ops.operands(p), "-", 2).run()
    assert library.log == [2, 7]


def test_numpy_without_threadpoolctl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert "not limited" in NumPy().detail


def test_libraries_do_not_disturb_each_other() -> None:
    """Loaded the other way round in a fresh interpreter, all still compute."""
    done = run_python(
        "from fastconv.benchmarks import ops, oracle, peers, problem\n"
        "p = problem.parse_problem('ic8 ih14 oc8 kh3 ph1 n2')\n"
        "given = ops.operands(p)\n"
        "found, _ = peers.load_peers([n for n in reversed(peers.PEERS) if n != 'pytorch-compile'])\n"
        "calls = [(peer, peer.layer(p, given, 'nchw', 2)) for peer in found]\n"
        "for peer, call in 2 * calls:\n"
        "    call.run()\n"
        "    error = oracle.compare(call.result(), ops.expected(p, given)).relative_l2\n"
        "    assert error <= peers.MAX_L2[peer.dtype], (peer.name, error)\n"
        "print(len(found))\n"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


# --- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module"),
    [("onnxruntime", "onnxruntime"), ("onnxruntime", "onnx"), ("openvino", "openvino"), ("ncnn", "ncnn")]
    + [("scipy", "scipy.signal")]
    + [(name, "torch") for name in peers.PEERS if name.startswith("pytorch")],
)
def test_a_missing_peer_is_a_message(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found, messages = peers.load_peers([name, "numpy"])
    assert [peer.name for peer in found] == ["numpy"]
    assert len(messages) == 1 and messages[0].startswith(f"peer {name} is left out: ")
    if "." not in module:
        assert not peers.installed(name)


def test_a_broken_peer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise OSError("undefined symbol\nand more")

    monkeypatch.setitem(peers.PEERS, "ncnn", broken)
    assert peers.load_peers(["ncnn"]) == ([], ["peer ncnn is left out: OSError: undefined symbol"])


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown name 'caffe'; known: pytorch"):
        peers.load_peers(["caffe"])
    with pytest.raises(ValueError, match="device: 'tpu'"):
        peers.load_peers(["pytorch"], "tpu")


def test_installed_is_what_can_be_found() -> None:
    assert peers.installed("numpy")
    for name in peers.PEERS:
        found, _ = peers.load_peers([name])
        assert peers.installed(name) or not found


# --- a GPU ------------------------------------------------------------------------------------------------------------


def test_no_gpu_is_a_message(torch: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    found, messages = peers.load_peers(["pytorch", "pytorch-compile", "ncnn"], "cuda")
    assert found == [] and len(messages) == 3
    reason = "built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
    assert all(reason in message for message in messages[:2])
    assert messages[2] == "peer ncnn is left out: it has no device 'cuda' here"


class _FakeCuda:
    """torch.cuda as far as a graph needs it; keeps what it was told, in order."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.stream_now = self._stream("main")

    def _stream(self, name: str) -> Any:
        def wait(other: Any) -> None:
            self.log.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, wait_stream=wait)

    def is_available(self) -> bool:
        return True

    def Stream(self) -> Any:
        return self._stream("side")

    def current_stream(self) -> Any:
        return self.stream_now

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        yield
        self.log.append(f"off {stream.name}")

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.log.append("capture")
        yield
        self.log.append("captured")

    def synchronize(self) -> None:
        self.log.append("synchronize")


class _FakeTorch:
    """PyTorch as it is, but for a GPU that it does not have."""

    def __init__(self, torch: Any, log: list[str]) -> None:
        self._torch = torch
        self.cuda = _FakeCuda(log)
        self.version = SimpleNamespace(cuda="13.0")
        self.backends = SimpleNamespace(
            mkldnn=torch.backends.mkldnn,
            cudnn=SimpleNamespace(benchmark=False, allow_tf32=True, version=lambda: 91000),
            cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def test_a_gpu_call_is_captured_once_and_replayed(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    fake = _FakeTorch(torch, log)
    monkeypatch.setitem(sys.modules, "torch", fake)
    peer = PyTorchCuda()
    assert fake.backends.cudnn.benchmark and not fake.backends.cudnn.allow_tf32
    assert not fake.backends.cuda.matmul.allow_tf32
    assert (peer.device, peer.layouts, peer.dtype) == ("cuda", ("nchw", "nhwc"), "float32")
    peer.device = "cpu"
    p = problem.parse_problem("ic4 ih9 iw8 oc6 kh3 ph1 n2")
    given = ops.operands(p)
    call = peer.layer(p, given, "nhwc", 1)
    assert log == ["side waits for main", "on side", "off side", "main waits for side", "capture", "captured"]
    log.clear()
    call.run()
    assert log == ["replay", "synchronize"]
    assert oracle.compare(call.result(), ops.expected(p, given)).relative_l2 <= peers.MAX_L2["float32"]
    assert "cuDNN 91000" in call.detail and call.inputs == ()
    folded, x, expected = network("resnet18", SMALL)
    call = peer.network("resnet18", folded, x, "nhwc", 1)
    call.run()
    assert oracle.compare(call.result(), expected).relative_l2 <= 2e-5


@pytest.mark.gpu
def test_a_gpu_agrees_with_float64() -> None:
    found, messages = peers.load_peers(["pytorch"], "cuda")
    if not found:
        pytest.skip(messages[0])
    for text in LAYERS.strip().splitlines():
        p = problem.parse_problem(text).with_batch(3)
        given = ops.operands(p)
        for layout in layouts(found[0], p):
            call = found[0].layer(p, given, layout, 1)
            call.run()
            assert oracle.compare(call.result(), ops.expected(p, given)).relative_l2 <= peers.MAX_L2["float32"], text
    folded, x, expected = network("resnet18", SMALL)
    for layout in found[0].layouts:
        call = found[0].network("resnet18", folded, x, layout, 1)
        call.run()
        assert oracle.compare(call.result(), expected).relative_l2 <= 2e-5
