"""ONNX Runtime's CPU provider, from a model in memory. It takes NCHW and blocks the layout inside as it sees fit."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import EPSILON, F32, Folded, PeerCall, given, lacks, to_layout, to_nchw
from .networks import build_of

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem


class OnnxRuntime:
    """Every op and network as a graph of its own, optimised and bound to its input and output before the first run."""

    name: str = "onnxruntime"
    layouts: tuple[str, ...] = ("nchw",)
    dtype: str = "float32"
    settle: float = 0.002

    def __init__(self) -> None:
        self.ort: Any = importlib.import_module("onnxruntime")
        self.onnx: Any = importlib.import_module("onnx")

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        builder = _OnnxBuilder(self.onnx, {})
        call = self._prepared(builder, builder.layer("x", problem, operands), operands.x, threads)
        answer, order = call.result, problem.result_layout("nchw")
        return dataclasses.replace(call, result=lambda: to_nchw(answer(), order))

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        builder = _OnnxBuilder(self.onnx, folded)
        return self._prepared(builder, build_of(name)(builder, "x"), x, threads)

    def _prepared(self, builder: _OnnxBuilder, output: str, x: F32, threads: int) -> PeerCall:
        ort = self.ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Workers spin inside a run, as by default, but not after it, when others are timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model = builder.model(output, x.shape)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        source = to_layout(x, "nchw")
        target = ort.OrtValue.ortvalue_from_numpy(np.zeros(session.get_outputs()[0].shape, np.float32))
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(source))
        binding.bind_ortvalue_output(output, target)
        return PeerCall(
            lambda: session.run_with_iobinding(binding), lambda: np.array(target.numpy()), "MLAS", (source,)
        )


class _OnnxBuilder:
    """Collects nodes; values go by name."""

    def __init__(self, onnx: Any, folded: Folded) -> None:
        self.onnx, self.folded = onnx, folded
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def layer(self, h: str, p: Problem, o: Operands) -> str:
        stride, pads, kernel = (p.sh, p.sw), (p.ph, p.pw, p.ph, p.pw), (p.kh, p.kw)
        if p.op == "conv2d":
            return self._conv(h, given(o.weight), given(o.bias), stride, pads, (p.dh, p.dw), p.g)
        if p.op == "linear":
            return self._node("Gemm", h, given(o.weight), given(o.bias), transB=1)
        if p.op == "max_pool2d":
            return self._node("MaxPool", h, kernel_shape=kernel, strides=stride, pads=pads, dilations=(p.dh, p.dw))
        if p.op == "avg_pool2d":
            return self._node("AveragePool", h, kernel_shape=kernel, strides=stride, pads=pads, count_include_pad=1)
        if p.op == "global_avg_pool2d":
            return self._node("GlobalAveragePool", h)
        if p.op == "relu":
            return self._node("Relu", h)
        if p.op == "softmax":
            return self._node("Softmax", h, axis=1)
        if p.op == "convert_layout":
            return self._node("Transpose", h, perm=(0, 2, 3, 1))
        if p.op == "batch_norm":
            arrays = [given(a) for a in (o.weight, o.bias, o.mean, o.variance)]
            return self._node("BatchNormalization", h, *arrays, epsilon=EPSILON)
        raise lacks("onnxruntime", p.op)

    def conv(self, h: str, name: str, stride: int, padding: int, relu: bool, add: Any = None, groups: int = 1) -> str:
        y = self._conv(h, *self.folded[name], (stride,) * 2, (padding,) * 4, (1, 1), groups)
        if add is not None:
            y = self._node("Add", y, add)
        return self._node("Relu", y) if relu else y

    def max_pool(self, h: str) -> str:
        return self._node("MaxPool", h, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))

    def classify(self, h: str) -> str:
        pooled = self._node("Flatten", self._node("GlobalAveragePool", h))
        return self._node("Gemm", pooled, *self.folded["fc"], transB=1)

    def _conv(
        self,
        h: str,
        weight: F32,
        bias: F32,
        stride: tuple[int, ...],
        pads: tuple[int, ...],
        dilation: tuple[int, int],
        groups: int,
    ) -> str:
        return self._node("Conv", h, weight, bias, strides=stride, pads=pads, dilations=dilation, group=groups)

    def _node(self, op: str, *inputs: str | F32, **attributes: Any) -> str:
        """Adds a node; an array among its inputs becomes a constant of the model."""
        names = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        output = f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, names, [output], **attributes))
        return output

    def _constant(self, array: F32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def model(self, output: str, input_shape: tuple[int, ...]) -> bytes:
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        source = helper.make_tensor_value_info("x", float32, input_shape)
        # ONNX Runtime infers the output's shape.
        target = helper.make_tensor_value_info(output, float32, None)
        graph = helper.make_graph(self.nodes, "fastconv_bench", [source], [target], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        # Opset 17 came with this version of the format; the installed onnx may write a newer one than the runtime
        # reads.
        model.ir_version = 8
        return bytes(model.SerializeToString())
