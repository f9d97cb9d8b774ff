"""Other libraries, to compare with: optional, asked for by name, never needed, nothing downloaded.

Each runs the same layers with the same weights on the same number of threads, and the same network, built here in its
own API with batch norm folded. All compute in float32: precision is forced where a library would choose a shorter one
by itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .problem import Problem

F32 = NDArray[np.float32]
Folded = Mapping[str, tuple[F32, F32]]

#: A relative L2 error above this is not float32 arithmetic.
MAX_PEER_L2 = 2e-5


@dataclass(frozen=True)
class PeerCall:
    """One prepared computation: `run` is what gets timed, `result` gives the last answer as NCHW (or as logits)."""

    run: Callable[[], object]
    result: Callable[[], NDArray[Any]]
    detail: str


class Peer(Protocol):
    """What the runner asks of a library. `settle`: seconds its threads may go on spinning after a call."""

    name: str
    layouts: tuple[str, ...]
    settle: float

    def conv(self, problem: Problem, x: F32, weight: F32, bias: F32, layout: str, threads: int) -> PeerCall: ...
    def network(self, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall: ...


class Builder(Protocol):
    """The five things that ResNet-50 is made of, in one library's API."""

    def conv(self, h: Any, name: str, stride: int, padding: int, relu: bool) -> Any: ...
    def max_pool(self, h: Any) -> Any: ...
    def add_relu(self, a: Any, b: Any) -> Any: ...
    def classify(self, h: Any) -> Any: ...


def build_resnet50(builder: Builder, x: Any) -> Any:
    """ResNet-50 v1.5 from picture to logits; layers under torchvision's names."""
    h = builder.max_pool(builder.conv(x, "conv1", 2, 3, True))
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = builder.conv(h, f"{name}.conv1", 1, 0, True)
            y = builder.conv(y, f"{name}.conv2", stride, 1, True)
            y = builder.conv(y, f"{name}.conv3", 1, 0, False)
            skip = builder.conv(h, f"{name}.downsample.0", stride, 0, False) if block == 0 else h
            h = builder.add_relu(y, skip)
    return builder.classify(h)


def fold_batch_norm(state: Mapping[str, NDArray[np.floating]], eps: float = 1e-5) -> dict[str, tuple[F32, F32]]:
    """Weight and bias of every convolution with its batch norm multiplied in (in float64, rounded once), and of
    "fc"."""
    folded: dict[str, tuple[F32, F32]] = {}
    for key in state:
        conv, _, part = key.rpartition(".")
        if part != "weight" or state[key].ndim != 4:
            continue
        bn = conv[:-1] + "1" if conv.endswith("downsample.0") else conv.replace("conv", "bn")
        scale = state[f"{bn}.weight"].astype(np.float64) / np.sqrt(state[f"{bn}.running_var"].astype(np.float64) + eps)
        shift = state[f"{bn}.bias"] - state[f"{bn}.running_mean"] * scale
        weight = state[key].astype(np.float64) * scale[:, None, None, None]
        folded[conv] = (weight.astype(np.float32), shift.astype(np.float32))
    folded["fc"] = (state["fc.weight"].astype(np.float32), state["fc.bias"].astype(np.float32))
    return folded


class PyTorch:
    """Eager PyTorch. Layout nhwc is its channels_last memory format."""

    name: str = "pytorch"
    layouts: tuple[str, ...] = ("nchw", "nhwc")
    # Its OpenMP workers spin some milliseconds after each call before they sleep.
    settle: float = 0.02

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_float32_matmul_precision("highest")
        self.detail = "oneDNN" if self.torch.backends.mkldnn.is_available() else "native"

    def _format(self, layout: str) -> Any:
        return self.torch.channels_last if layout == "nhwc" else self.torch.contiguous_format

    def _tensor(self, array: F32, layout: str) -> Any:
        tensor = self.torch.from_numpy(array.copy())
        return tensor.contiguous(memory_format=self._format(layout)) if tensor.dim() == 4 else tensor

    def _prepared(self, function: Callable[[], Any], threads: int) -> PeerCall:
        torch = self.torch
        last: list[Any] = [None]

        def run() -> None:
            # The number of threads is the process's: set again in case another candidate has changed it. It costs well
            # under 1 us.
            torch.set_num_threads(threads)
            with torch.inference_mode():
                last[0] = function()

        return PeerCall(run, lambda: np.asarray(last[0].contiguous().numpy()), self.detail)

    def conv(self, problem: Problem, x: F32, weight: F32, bias: F32, layout: str, threads: int) -> PeerCall:
        conv2d = self.torch.nn.functional.conv2d
        xt, wt, bt = self._tensor(x, layout), self._tensor(weight, layout), self._tensor(bias, layout)
        p = problem
        options = ((p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw), p.g)
        return self._prepared(lambda: conv2d(xt, wt, bt, *options), threads)

    def network(self, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        builder = _TorchBuilder(self, folded, layout)
        xt = self._tensor(x, layout)
        return self._prepared(lambda: build_resnet50(builder, xt), threads)


class _TorchBuilder:
    """Runs each step at once: eager mode."""

    def __init__(self, peer: PyTorch, folded: Folded, layout: str) -> None:
        self.f = peer.torch.nn.functional
        self.weights = {k: (peer._tensor(w, layout), peer._tensor(b, layout)) for k, (w, b) in folded.items()}

    def conv(self, h: Any, name: str, stride: int, padding: int, relu: bool) -> Any:
        y = self.f.conv2d(h, *self.weights[name], stride, padding)
        return y.relu_() if relu else y

    def max_pool(self, h: Any) -> Any:
        return self.f.max_pool2d(h, 3, 2, 1)

    def add_relu(self, a: Any, b: Any) -> Any:
        return a.add_(b).relu_()

    def classify(self, h: Any) -> Any:
        return self.f.linear(h.mean((2, 3)), *self.weights["fc"])


class OnnxRuntime:
    """ONNX Runtime's CPU provider, from a model in memory. It takes NCHW and blocks the layout inside as it sees
    fit."""

    name: str = "onnxruntime"
    layouts: tuple[str, ...] = ("nchw",)
    settle: float = 0.002

    def __init__(self) -> None:
        self.ort = importlib.import_module("onnxruntime")
        self.onnx = importlib.import_module("onnx")

    def _prepared(self, builder: _OnnxBuilder, output: Any, x: F32, shape: tuple[int, ...], threads: int) -> PeerCall:
        ort = self.ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Workers spin inside a run, as by default, but not after it, when others are timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model = builder.model(output, x.shape, shape)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        source = ort.OrtValue.ortvalue_from_numpy(x)
        target = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        binding.bind_ortvalue_input("x", source)
        binding.bind_ortvalue_output(str(output), target)
        return PeerCall(lambda: session.run_with_iobinding(binding), lambda: np.asarray(target.numpy()), "MLAS")

    def conv(self, problem: Problem, x: F32, weight: F32, bias: F32, layout: str, threads: int) -> PeerCall:
        p = problem
        builder = _OnnxBuilder(self.onnx, {"layer": (weight, bias)})
        output = builder.conv_general("x", "layer", (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw), p.g)
        return self._prepared(builder, output, x, (x.shape[0], p.oc, p.oh, p.ow), threads)

    def network(self, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        builder = _OnnxBuilder(self.onnx, folded)
        output = build_resnet50(builder, "x")
        return self._prepared(builder, output, x, (x.shape[0], len(folded["fc"][1])), threads)


class _OnnxBuilder:
    """Collects nodes; values go by name."""

    def __init__(self, onnx: Any, folded: Folded) -> None:
        self.onnx, self.folded = onnx, folded
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], **attributes))
        return output

    def _constants(self, name: str) -> list[str]:
        names = [f"{name}.weight", f"{name}.bias"]
        self.initializers += [
            self.onnx.numpy_helper.from_array(a, n) for a, n in zip(self.folded[name], names, strict=True)
        ]
        return names

    def conv_general(
        self,
        h: str,
        name: str,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> str:
        pads = [*padding, *padding]
        return self._node(
            "Conv", [h, *self._constants(name)], strides=stride, pads=pads, dilations=dilation, group=groups
        )

    def conv(self, h: str, name: str, stride: int, padding: int, relu: bool) -> str:
        y = self.conv_general(h, name, (stride, stride), (padding, padding), (1, 1), 1)
        return self._node("Relu", [y]) if relu else y

    def max_pool(self, h: str) -> str:
        return self._node("MaxPool", [h], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def add_relu(self, a: str, b: str) -> str:
        return self._node("Relu", [self._node("Add", [a, b])])

    def classify(self, h: str) -> str:
        pooled = self._node("Flatten", [self._node("GlobalAveragePool", [h])])
        return self._node("Gemm", [pooled, *self._constants("fc")], transB=1)

    def model(self, output: str, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> bytes:
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        values = [helper.make_tensor_value_info(n, float32, s) for n, s in (("x", input_shape), (output, output_shape))]
        graph = helper.make_graph(self.nodes, "fastconv_bench", values[:1], values[1:], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return bytes(model.SerializeToString())


class OpenVino:
    """OpenVINO's CPU plugin, float32 forced: on machines with AMX it would compute in bfloat16 by itself."""

    name: str = "openvino"
    layouts: tuple[str, ...] = ("nchw",)
    settle: float = 0.005

    def __init__(self) -> None:
        self.ov = importlib.import_module("openvino")
        self.ops = importlib.import_module("openvino.opset13")
        self.core = self.ov.Core()

    def _prepared(self, output: Any, parameter: Any, x: F32, threads: int) -> PeerCall:
        model = self.ov.Model([self.ops.result(output)], [parameter], "fastconv_bench")
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        compiled = self.core.compile_model(model, "CPU", options)
        request = compiled.create_infer_request()
        tensor = self.ov.Tensor(x, shared_memory=True)
        request.set_input_tensor(tensor)
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return PeerCall(request.infer, lambda: np.array(request.get_output_tensor(0).data), str(precision))

    def conv(self, problem: Problem, x: F32, weight: F32, bias: F32, layout: str, threads: int) -> PeerCall:
        p = problem
        parameter = self.ops.parameter(list(x.shape), np.float32, name="x")
        builder = _OpenVinoBuilder(self.ops, {"layer": (weight, bias)})
        output = builder.conv_general(parameter, "layer", (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw), p.g)
        return self._prepared(output, parameter, x, threads)

    def network(self, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        parameter = self.ops.parameter(list(x.shape), np.float32, name="x")
        return self._prepared(build_resnet50(_OpenVinoBuilder(self.ops, folded), parameter), parameter, x, threads)


class _OpenVinoBuilder:
    def __init__(self, ops: Any, folded: Folded) -> None:
        self.ops, self.folded = ops, folded

    def conv_general(
        self,
        h: Any,
        name: str,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Any:
        ops = self.ops
        weight, bias = self.folded[name]
        settings = (list(stride), list(padding), list(padding), list(dilation))
        if groups == 1:
            y = ops.convolution(h, ops.constant(weight), *settings)
        else:
            by_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            y = ops.group_convolution(h, ops.constant(by_group), *settings)
        return ops.add(y, ops.constant(bias.reshape(1, -1, 1, 1)))

    def conv(self, h: Any, name: str, stride: int, padding: int, relu: bool) -> Any:
        y = self.conv_general(h, name, (stride, stride), (padding, padding), (1, 1), 1)
        return self.ops.relu(y) if relu else y

    def max_pool(self, h: Any) -> Any:
        return self.ops.max_pool(h, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)

    def add_relu(self, a: Any, b: Any) -> Any:
        return self.ops.relu(self.ops.add(a, b))

    def classify(self, h: Any) -> Any:
        ops = self.ops
        weight, bias = self.folded["fc"]
        pooled = ops.reduce_mean(h, ops.constant(np.array([2, 3], np.int64)), False)
        return ops.add(ops.matmul(pooled, ops.constant(weight), False, True), ops.constant(bias.reshape(1, -1)))


PEERS: dict[str, Callable[[], Peer]] = {"pytorch": PyTorch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def load_peers(names: list[str]) -> tuple[list[Peer], list[str]]:
    """The peers of those names that can be imported, and a sentence for each that cannot. ValueError for an unknown
    name."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peers: unknown name {name!r}; known: {', '.join(PEERS)}")
    found: list[Peer] = []
    messages: list[str] = []
    for name in names:
        try:
            found.append(PEERS[name]())
        except Exception as error:  # an installed but broken library may raise anything
            messages.append(
                f"peer {name} is left out: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    return found, messages
