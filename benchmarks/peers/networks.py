"""ResNet-18, ResNet-50 v1.5 and a network like MobileNetV2, described once for every library, and their weights with
batch norm folded in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .base import EPSILON, F32

_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
#: Table 2 of Sandler et al., arXiv:1801.04381, at width 1.0, between the first convolution and the last: expansion,
#: output channels, blocks, stride of the first block.
_INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Builder(Protocol):
    """The three things that these networks are made of, in one library's API.

    `conv`: a square convolution with bias, its weights under `name`; `add`, of the result's shape, is added before the
    ReLU, if there is one, and may be overwritten: nothing reads it afterwards. `max_pool`: 3 x 3, stride 2, padding 1.
    `classify`: the mean of each channel, and the linear layer "fc"."""

    def conv(
        self, h: Any, name: str, stride: int, padding: int, relu: bool, add: Any = None, groups: int = 1
    ) -> Any: ...
    def max_pool(self, h: Any) -> Any: ...
    def classify(self, h: Any) -> Any: ...


def build_resnet(builder: Builder, depth: int, x: Any) -> Any:
    """The network from picture to logits; layers under torchvision's names. Stride sits on the 3 x 3 (v1.5).

    depth 18 has basic blocks (two 3 x 3), 50 bottlenecks (1 x 1, 3 x 3, 1 x 1); ValueError for any other."""
    if depth not in _BLOCKS:
        raise ValueError(f"depth: {depth} is none of {', '.join(map(str, _BLOCKS))}")
    basic = depth == 18
    h = builder.max_pool(builder.conv(x, "conv1", 2, 3, True))
    for stage, blocks in enumerate(_BLOCKS[depth], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            # The first block of a stage has a convolution beside it where the shape changes: basic blocks keep it in
            # stage 1.
            changes = block == 0 and not (basic and stage == 1)
            skip = builder.conv(h, f"{name}.downsample.0", stride, 0, False) if changes else h
            if basic:
                y = builder.conv(h, f"{name}.conv1", stride, 1, True)
                h = builder.conv(y, f"{name}.conv2", 1, 1, True, skip)
            else:
                y = builder.conv(h, f"{name}.conv1", 1, 0, True)
                y = builder.conv(y, f"{name}.conv2", stride, 1, True)
                h = builder.conv(y, f"{name}.conv3", 1, 0, True, skip)
    return builder.classify(h)


def inverted_residuals() -> Iterator[tuple[str, int, int, int, int]]:
    """Each block's name, input channels, channels of its depthwise convolution, output channels, and stride. Names are
    those of the suite mobilenet_v2."""
    ic = 32
    for number, (expansion, oc, blocks, first_stride) in enumerate(_INVERTED_RESIDUALS, start=1):
        for block in range(blocks):
            name = f"b{number}.{block}" if blocks > 1 else f"b{number}"
            yield name, ic, expansion * ic, oc, first_stride if block == 0 else 1
            ic = oc


def build_mobilenet_v2(builder: Builder, x: Any) -> Any:
    """A network like MobileNetV2 at width 1.0, from picture to logits. ReLU stands for ReLU6 in every library, as it is
    what fastconv's convolutions fuse: the same work in a fair comparison, not the paper's function."""
    h = builder.conv(x, "stem", 2, 1, True)
    for name, ic, width, oc, stride in inverted_residuals():
        y = builder.conv(h, f"{name}.exp", 1, 0, True) if width != ic else h
        y = builder.conv(y, f"{name}.dw", stride, 1, True, groups=width)
        # The bottlenecks are linear: neither the projection nor the sum is rectified.
        h = builder.conv(y, f"{name}.proj", 1, 0, False, h if stride == 1 and ic == oc else None)
    return builder.classify(builder.conv(h, "last", 1, 0, True))


def _resnet(depth: int) -> Callable[[Builder, Any], Any]:
    return lambda builder, x: build_resnet(builder, depth, x)


#: What builds each network, from picture to logits.
NETWORKS: dict[str, Callable[[Builder, Any], Any]] = {
    **{f"resnet{depth}": _resnet(depth) for depth in _BLOCKS},
    "mobilenet_v2": build_mobilenet_v2,
}


def build_of(name: str) -> Callable[[Builder, Any], Any]:
    """What builds the network of that name. ValueError, with the known names, for any other."""
    if name not in NETWORKS:
        raise ValueError(f"network: unknown name {name!r}; known: {', '.join(NETWORKS)}")
    return NETWORKS[name]


def fold_batch_norm(state: Mapping[str, NDArray[np.floating]], eps: float = EPSILON) -> dict[str, tuple[F32, F32]]:
    """Weight (OIHW) and bias of every convolution with its batch norm multiplied in, in float64 and rounded once, and
    of "fc". `state`: arrays under torchvision's names."""
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
