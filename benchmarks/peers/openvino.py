"""OpenVINO's CPU plugin, float32 forced: on machines with AMX it would compute in bfloat16 by itself."""

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


class OpenVino:
    """Every op and network as a model of its own, compiled before the first run."""

    name: str = "openvino"
    layouts: tuple[str, ...] = ("nchw",)
    dtype: str = "float32"
    settle: float = 0.005

    def __init__(self) -> None:
        self.ov: Any = importlib.import_module("openvino")
        self.ops: Any = importlib.import_module("openvino.opset13")
        self.core = self.ov.Core()

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        parameter = self._parameter(operands.x)
        output = _OpenVinoBuilder(self.ops, {}).layer(parameter, problem, operands)
        call = self._prepared(output, parameter, operands.x, threads)
        answer, order = call.result, problem.result_layout("nchw")
        return dataclasses.replace(call, result=lambda: to_nchw(answer(), order))

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        parameter = self._parameter(x)
        output = build_of(name)(_OpenVinoBuilder(self.ops, folded), parameter)
        return self._prepared(output, parameter, x, threads)

    def _parameter(self, x: F32) -> Any:
        return self.ops.parameter(list(x.shape), np.float32, name="x")

    def _prepared(self, output: Any, parameter: Any, x: F32, threads: int) -> PeerCall:
        model = self.ov.Model([self.ops.result(output)], [parameter], "fastconv_bench")
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # Where threads run is the benchmark's to say, for all libraries alike.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = self.core.compile_model(model, "CPU", options)
        request = compiled.create_infer_request()
        source = to_layout(x, "nchw")
        request.set_input_tensor(self.ov.Tensor(source, shared_memory=True))
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

        # The input is kept with the call, as the tensor only points to it. By default the answer would be copied, in
        # the time.
        def run(_kept: object = source) -> None:
            request.infer(share_outputs=True)

        return PeerCall(run, lambda: np.array(request.get_output_tensor(0).data), f"precision {precision}", (source,))


class _OpenVinoBuilder:
    """Makes nodes of a graph."""

    def __init__(self, ops: Any, folded: Folded) -> None:
        self.ops, self.folded = ops, folded

    def layer(self, h: Any, p: Problem, o: Operands) -> Any:
        ops = self.ops
        stride, pads, kernel = [p.sh, p.sw], [p.ph, p.pw], [p.kh, p.kw]
        if p.op == "conv2d":
            return self._conv(h, given(o.weight), given(o.bias), stride, pads, [p.dh, p.dw], p.g)
        if p.op == "linear":
            return self._linear(h, given(o.weight), given(o.bias))
        if p.op == "max_pool2d":
            return ops.max_pool(h, stride, [p.dh, p.dw], pads, pads, kernel).output(0)
        if p.op == "avg_pool2d":
            return ops.avg_pool(h, stride, pads, pads, kernel, False)
        if p.op == "global_avg_pool2d":
            return self._mean(h, True)
        if p.op == "relu":
            return ops.relu(h)
        if p.op == "softmax":
            return ops.softmax(h, 1)
        if p.op == "convert_layout":
            return ops.transpose(h, ops.constant(np.array([0, 2, 3, 1], np.int64)))
        if p.op == "batch_norm":
            arrays = [ops.constant(given(a)) for a in (o.weight, o.bias, o.mean, o.variance)]
            return ops.batch_norm_inference(h, *arrays, EPSILON)
        raise lacks("openvino", p.op)

    def conv(self, h: Any, name: str, stride: int, padding: int, relu: bool, add: Any = None, groups: int = 1) -> Any:
        y = self._conv(h, *self.folded[name], [stride] * 2, [padding] * 2, [1, 1], groups)
        if add is not None:
            y = self.ops.add(y, add)
        return self.ops.relu(y) if relu else y

    def max_pool(self, h: Any) -> Any:
        return self.ops.max_pool(h, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)

    def classify(self, h: Any) -> Any:
        return self._linear(self._mean(h, False), *self.folded["fc"])

    def _conv(
        self, h: Any, weight: F32, bias: F32, stride: list[int], pads: list[int], dilation: list[int], groups: int
    ) -> Any:
        ops = self.ops
        settings = (stride, pads, pads, dilation)
        if groups == 1:
            y = ops.convolution(h, ops.constant(weight), *settings)
        else:
            by_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            y = ops.group_convolution(h, ops.constant(by_group), *settings)
        return ops.add(y, ops.constant(bias.reshape(1, -1, 1, 1)))

    def _linear(self, h: Any, weight: F32, bias: F32) -> Any:
        ops = self.ops
        return ops.add(ops.matmul(h, ops.constant(weight), False, True), ops.constant(bias.reshape(1, -1)))

    def _mean(self, h: Any, keep_dims: bool) -> Any:
        return self.ops.reduce_mean(h, self.ops.constant(np.array([2, 3], np.int64)), keep_dims)
