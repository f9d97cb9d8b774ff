"""ncnn in float32: its shorter types are switched off, Winograd and packing of channels are left on, as by default."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import EPSILON, F32, Array, Folded, PeerCall, given, lacks
from .networks import build_of

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem

_MAGIC = 7767517
#: In front of weights that ncnn may find stored as float16 or int8: these are float32.
_STORED_AS_FLOAT32 = b"\0\0\0\0"
_SHORTER_TYPES = ("fp16", "bf16", "int8")


class Ncnn:
    """Every op and network as a model of its own, run for one picture after the other: ncnn's own batches, which only
    new versions have, are no faster."""

    name: str = "ncnn"
    layouts: tuple[str, ...] = ("nchw",)
    dtype: str = "float32"
    # Its OpenMP workers spin some milliseconds: GNU's runtime, which its packages bring, does not know ncnn's own
    # setting for that.
    settle: float = 0.02

    def __init__(self) -> None:
        self.ncnn: Any = importlib.import_module("ncnn")

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        builder = _NcnnBuilder({})
        output = builder.layer("x", problem, operands)
        return self._prepared(builder, output, operands.x, threads)

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        builder = _NcnnBuilder(folded)
        return self._prepared(builder, build_of(name)(builder, "x"), x, threads)

    def _prepared(self, builder: _NcnnBuilder, output: str, x: F32, threads: int) -> PeerCall:
        net = self._net(builder, output, threads)
        # Clones are in ncnn's own memory and alignment.
        mats = [self.ncnn.Mat(picture).clone() for picture in map(np.ascontiguousarray, x)]
        inputs = tuple(np.asarray(mat.numpy()) for mat in mats)
        last: list[Any] = []

        def run() -> None:
            last.clear()
            for mat in mats:
                extractor = net.create_extractor()
                extractor.input("x", mat)
                status, answer = extractor.extract(output)
                if status:
                    raise RuntimeError(f"ncnn: extract gives status {status}")
                last.append(answer)

        return PeerCall(run, lambda: _stacked(last), "float32, Winograd allowed", inputs)

    def _net(self, builder: _NcnnBuilder, output: str, threads: int) -> Any:
        net = self.ncnn.Net()
        for option in dir(net.opt):
            if option.startswith("use_") and any(word in option for word in _SHORTER_TYPES):
                setattr(net.opt, option, False)
        net.opt.use_vulkan_compute = False
        net.opt.num_threads = threads
        net.opt.openmp_blocktime = 0
        # Through a file: from memory ncnn would keep pointing into a buffer that Python's binding frees.
        with tempfile.TemporaryDirectory(prefix="fastconv-ncnn-") as folder:
            weights = Path(folder) / "weights.bin"
            weights.write_bytes(b"".join(builder.weights))
            if net.load_param_mem(builder.param()) or net.load_model(str(weights)):
                raise RuntimeError("ncnn does not read the model made for it")
        return net


def _stacked(mats: list[Any]) -> Array:
    return np.stack([np.array(mat.numpy(), np.float32) for mat in mats])


class _NcnnBuilder:
    """Collects the lines of a .param file and the bytes of its weights. A blob that several layers read goes through a
    Split, as ncnn demands."""

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self.layers: list[tuple[str, list[str], str]] = []  # type, inputs, parameters; layer i makes blob "v{i}"
        self.weights: list[bytes] = []

    def layer(self, h: str, p: Problem, o: Operands) -> str:
        if p.op == "conv2d":
            sizes = (p.kw, p.kh, p.dw, p.dh, p.sw, p.sh, p.pw, p.ph)
            return self._conv(h, given(o.weight), given(o.bias), sizes, p.g)
        if p.op == "linear":
            return self._linear(h, given(o.weight), given(o.bias))
        if p.op in ("max_pool2d", "avg_pool2d"):
            if (p.dh, p.dw) != (1, 1):
                raise lacks("ncnn", f"{p.op} with dilation")
            return self._pool(h, p.op == "avg_pool2d", (p.kw, p.kh, p.sw, p.sh, p.pw, p.ph))
        if p.op == "global_avg_pool2d":
            # Its answer has one axis; Reshape gives the pixel back.
            return self._add("Reshape", [self._global_mean(h)], f"0=1 1=1 2={p.ic}")
        if p.op == "relu":
            return self._add("ReLU", [h])
        if p.op == "softmax":
            return self._add("Softmax", [h], "0=0 1=1")
        if p.op == "batch_norm":
            for array in (o.weight, o.mean, o.variance, o.bias):
                self.weights.append(given(array).tobytes())
            return self._add("BatchNorm", [h], f"0={p.ic} 1={EPSILON:e}")
        raise lacks("ncnn", p.op)

    def conv(self, h: str, name: str, stride: int, padding: int, relu: bool, add: Any = None, groups: int = 1) -> str:
        weight, bias = self.folded[name]
        k = weight.shape[2]
        fused = relu and add is None
        y = self._conv(h, weight, bias, (k, k, 1, 1, stride, stride, padding, padding), groups, fused)
        if add is not None:
            y = self._add("BinaryOp", [y, add], "0=0")
        return self._add("ReLU", [y]) if relu and not fused else y

    def max_pool(self, h: str) -> str:
        return self._pool(h, False, (3, 3, 2, 2, 1, 1))

    def classify(self, h: str) -> str:
        return self._linear(self._global_mean(h), *self.folded["fc"])

    def _conv(self, h: str, weight: F32, bias: F32, sizes: tuple[int, ...], groups: int, relu: bool = False) -> str:
        self.weights += [_STORED_AS_FLOAT32, weight.tobytes(), bias.tobytes()]
        keys = (1, 11, 2, 12, 3, 13, 4, 14)
        options = [f"0={len(weight)}", *(f"{key}={size}" for key, size in zip(keys, sizes, strict=True))]
        options += ["5=1", f"6={weight.size}"] + ([f"7={groups}"] if groups > 1 else []) + (["9=1"] if relu else [])
        return self._add("ConvolutionDepthWise" if groups > 1 else "Convolution", [h], " ".join(options))

    def _linear(self, h: str, weight: F32, bias: F32) -> str:
        self.weights += [_STORED_AS_FLOAT32, weight.tobytes(), bias.tobytes()]
        return self._add("InnerProduct", [h], f"0={len(weight)} 1=1 2={weight.size}")

    def _pool(self, h: str, average: bool, sizes: tuple[int, ...]) -> str:
        kw, kh, sw, sh, pw, ph = sizes
        # 5=1: round the output's size down; 6=1: padding counts in an average.
        paddings = f"3={pw} 13={ph} 14={pw} 15={ph} 5=1 6={int(average)}"
        return self._add("Pooling", [h], f"0={int(average)} 1={kw} 11={kh} 2={sw} 12={sh} {paddings}")

    def _global_mean(self, h: str) -> str:
        return self._add("Pooling", [h], "0=1 4=1")

    def _add(self, kind: str, inputs: list[str], options: str = "") -> str:
        self.layers.append((kind, inputs, options))
        return f"v{len(self.layers) - 1}"

    def param(self) -> str:
        """The .param text: magic, number of layers and of blobs, then `type name inputs outputs names... options`."""
        readers: dict[str, int] = {}
        for _, inputs, _ in self.layers:
            for blob in inputs:
                readers[blob] = readers.get(blob, 0) + 1
        lines: list[str] = []
        blobs = 0

        def line(kind: str, inputs: list[str], output: str, options: str) -> None:
            nonlocal blobs
            lines.append(f"{kind} l{len(lines)} {len(inputs)} 1 {' '.join([*inputs, output])} {options}".rstrip())
            blobs += 1
            if readers.get(output, 0) > 1:
                copies = [f"{output}_{i}" for i in range(readers[output])]
                lines.append(f"Split l{len(lines)} 1 {len(copies)} {output} {' '.join(copies)}")
                blobs += len(copies)

        taken: dict[str, int] = {}

        def source(blob: str) -> str:
            if readers[blob] == 1:
                return blob
            taken[blob] = taken.get(blob, -1) + 1
            return f"{blob}_{taken[blob]}"

        line("Input", [], "x", "")
        for number, (kind, inputs, options) in enumerate(self.layers):
            line(kind, [source(blob) for blob in inputs], f"v{number}", options)
        return "\n".join([str(_MAGIC), f"{len(lines)} {blobs}", *lines, ""])
