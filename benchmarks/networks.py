"""The networks that a suite can name: their weights, what they must give in float64, and how they run here.

`peers.networks` describes each of them once for all libraries. The one like MobileNetV2 exists only for measurements,
so it is built here, from that same description; ResNets are the package's own.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

import fastconv
from fastconv.models._net import INPUT, NO_RESIDUAL, Net, Node

from . import oracle, peers
from .peers.base import F32, Folded

#: Multiply-adds for one 224 x 224 picture, convolutions and classifier.
MACS = {"resnet18": 1_814_073_344, "resnet50": 4_089_184_256, "mobilenet_v2": 300_774_272}
_CLASSES = 1000
#: Convolutions that end a residual branch have weights this much smaller, so that activations stay in range over the
#: blocks without statistics of any data, as in `fastconv.models.init_state`.
_BRANCH_SCALE = 0.2


class Network(Protocol):
    """`expected`: logits in float64 for x (n, 3, h, w). `make`: the network in this package. `folded`: weights (OIHW)
    and bias of every layer, for the peers."""

    def expected(self, x: F32) -> oracle.F64: ...
    def make(self, layout: str, algorithm: str) -> Net: ...
    def folded(self) -> Folded: ...


class ResNet:
    """A ResNet with the weights of `fastconv.models.init_state`."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.state = fastconv.models.init_state(depth)

    def expected(self, x: F32) -> oracle.F64:
        return oracle.resnet_float64(self.depth, self.state, x)

    def make(self, layout: str, algorithm: str) -> Net:
        net: Net = getattr(fastconv.models, f"resnet{self.depth}")(self.state, layout=layout, algorithm=algorithm)
        return net

    def folded(self) -> Folded:
        return peers.fold_batch_norm(self.state)


class MobileNetV2:
    """MobileNetV2 at width 1.0 with ReLU for ReLU6, and random weights as they are after folding, biases included."""

    def __init__(self) -> None:
        self.weights = _mobilenet_weights()

    def expected(self, x: F32) -> oracle.F64:
        logits: oracle.F64 = peers.build_mobilenet_v2(_Float64(self.weights), x)
        return logits

    def make(self, layout: str, algorithm: str) -> Net:
        collected = _Nodes(self.weights)
        peers.build_mobilenet_v2(collected, INPUT)
        # Here a classifier is a convolution of one pixel.
        fc, bias = self.weights["fc"]
        weights = {**self.weights, "fc": (fc[:, :, None, None], bias)}
        return Net("mobilenet_v2", collected.nodes, weights, layout=layout, num_classes=len(bias), algorithm=algorithm)

    def folded(self) -> Folded:
        return self.weights


def load(name: str) -> Network:
    """The network of that name with weights made anew, always the same ones. ValueError, with the known names, for any
    other."""
    if name not in MACS:
        raise ValueError(f"network: unknown name {name!r}; known: {', '.join(MACS)}")
    return MobileNetV2() if name == "mobilenet_v2" else ResNet(int(name.removeprefix("resnet")))


def _mobilenet_weights() -> dict[str, tuple[F32, F32]]:
    """Convolutions: normal, variance 2 / inputs of an output (He et al., arXiv:1502.01852), or 1 / inputs where no ReLU
    comes before, as at the stem and after a linear bottleneck. Biases: normal, deviation 0.1."""
    rng = np.random.Generator(np.random.PCG64(0))
    weights: dict[str, tuple[F32, F32]] = {}

    def add(name: str, oc: int, icg: int, kernel: int, gain: float) -> None:
        weight = rng.standard_normal((oc, icg, kernel, kernel), np.float32)
        weight *= np.float32(np.sqrt(gain / (icg * kernel * kernel)))
        weights[name] = (weight, rng.standard_normal(oc, np.float32) * np.float32(0.1))

    add("stem", 32, 3, 3, 1.0)
    for name, ic, width, oc, stride in peers.inverted_residuals():
        if width != ic:
            add(f"{name}.exp", width, ic, 1, 1.0)
        add(f"{name}.dw", width, 1, 3, 2.0)
        add(f"{name}.proj", oc, width, 1, 2.0 * (_BRANCH_SCALE**2 if stride == 1 and ic == oc else 1.0))
    add("last", 1280, 320, 1, 1.0)
    fc = rng.standard_normal((_CLASSES, 1280), np.float32) * np.float32(np.sqrt(1.0 / 1280))
    weights["fc"] = (fc, np.zeros(_CLASSES, np.float32))
    return weights


class _Float64:
    """Runs each step at once, in NumPy's float64."""

    def __init__(self, folded: Folded) -> None:
        self.folded = folded

    def conv(
        self, h: Any, name: str, stride: int, padding: int, relu: bool, add: Any = None, groups: int = 1
    ) -> oracle.F64:
        y = oracle.conv2d_float64(h, *self.folded[name], (stride, stride), (padding, padding), groups=groups)
        y = y if add is None else y + add
        return oracle.relu_float64(y) if relu else y

    def max_pool(self, h: Any) -> oracle.F64:
        return oracle.max_pool2d_float64(h, (3, 3), (2, 2), (1, 1))

    def classify(self, h: Any) -> oracle.F64:
        return oracle.linear_float64(oracle.global_avg_pool2d_float64(h)[:, :, 0, 0], *self.folded["fc"])


class _Nodes:
    """Collects the layers of a `Net`; values are positions in its list of nodes."""

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self.nodes: list[Node] = []

    def conv(
        self, h: int, name: str, stride: int, padding: int, relu: bool, add: int | None = None, groups: int = 1
    ) -> int:
        weight, bias = self.folded[name]
        activation, residual = "relu" if relu else None, NO_RESIDUAL if add is None else add
        size = weight.size + bias.size
        return self._add(Node("conv", name, h, weight.shape[2], stride, padding, activation, residual, size, groups))

    def max_pool(self, h: int) -> int:
        return self._add(Node("max_pool", "maxpool", h, 3, 2, 1))

    def classify(self, h: int) -> int:
        pooled = self._add(Node("global_avg_pool", "avgpool", h))
        weight, bias = self.folded["fc"]
        return self._add(Node("linear", "fc", pooled, parameters=weight.size + bias.size))

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1
