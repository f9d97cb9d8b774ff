"""ResNet-18, 34, 50, 101 and 152 for ImageNet, inference only, batch norm folded into the convolutions.

The architecture is that of He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), in the
variant called v1.5, which torchvision has: a bottleneck block that halves the picture does so in its 3x3 convolution.
Names and shapes of the weights are torchvision's (`conv1.weight`, `bn1.running_mean`, `layer1.0.conv1.weight`, ...,
`layer1.0.downsample.0.weight`, `fc.bias`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv._arguments import Algorithm, integer

from ._net import F32, INPUT, NO_RESIDUAL, Net, Node

__all__ = ["DEPTHS", "init_state", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "state_spec"]

# Blocks in each of the four stages, and whether a block is a bottleneck (1x1, 3x3, 1x1) or basic (3x3, 3x3).
_STAGES: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
DEPTHS = tuple(_STAGES)
BN_EPS = 1e-5  # torch.nn.BatchNorm2d's default, which torchvision keeps
SEED = 0  # of the weights that `weights=None` gives
# Scale of the last batch norm in each residual branch of seeded weights, see `init_state`.
BRANCH_GAMMA = 0.2


@dataclass(frozen=True)
class _ConvBn:
    """A convolution and the batch norm after it. `source` and `residual` are names of other convolutions or "pool"."""

    conv: str
    bn: str
    ic: int
    oc: int
    kernel: int
    stride: int
    source: str
    relu: bool
    residual: str | None = None
    ends_branch: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.oc, self.ic, self.kernel, self.kernel)


def _conv_bns(depth: int) -> Iterator[_ConvBn]:
    """All convolutions in the order of execution. A block's shortcut comes just before the convolution that adds it,
    so that its output is still in the caches."""
    stages, bottleneck = _stages(depth)
    yield _ConvBn("conv1", "bn1", 3, 64, 7, 2, "", True)
    x, ic = "pool", 64
    for stage, blocks in enumerate(stages):
        width = 64 << stage
        oc = width * 4 if bottleneck else width
        for block in range(blocks):
            at = f"layer{stage + 1}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            shortcut = None
            if stride != 1 or ic != oc:
                shortcut = _ConvBn(f"{at}.downsample.0", f"{at}.downsample.1", ic, oc, 1, stride, x, False)
            residual = shortcut.conv if shortcut else x
            names = [f"{at}.conv{k}" for k in (1, 2, 3)]
            norms = [f"{at}.bn{k}" for k in (1, 2, 3)]
            if bottleneck:
                yield _ConvBn(names[0], norms[0], ic, width, 1, 1, x, True)
                yield _ConvBn(names[1], norms[1], width, width, 3, stride, names[0], True)
                last = _ConvBn(names[2], norms[2], width, oc, 1, 1, names[1], True, residual, True)
            else:
                yield _ConvBn(names[0], norms[0], ic, oc, 3, stride, x, True)
                last = _ConvBn(names[1], norms[1], oc, oc, 3, 1, names[0], True, residual, True)
            if shortcut:
                yield shortcut
            yield last
            x, ic = last.conv, oc


def _stages(depth: int) -> tuple[tuple[int, int, int, int], bool]:
    if depth not in _STAGES:
        raise ValueError(f"depth must be one of {', '.join(map(str, _STAGES))}, got {depth!r}")
    return _STAGES[depth]


def _features(depth: int) -> int:
    return 2048 if _stages(depth)[1] else 512


def state_spec(depth: int, num_classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array that a ResNet of this depth needs, torchvision's names (without
    `num_batches_tracked`)."""
    num_classes = integer(num_classes, "num_classes", 1)
    spec: dict[str, tuple[int, ...]] = {}
    for layer in _conv_bns(depth):
        spec[f"{layer.conv}.weight"] = layer.shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            spec[f"{layer.bn}.{part}"] = (layer.oc,)
    spec["fc.weight"] = (num_classes, _features(depth))
    spec["fc.bias"] = (num_classes,)
    return spec


def init_state(depth: int, num_classes: int = 1000, seed: int = SEED) -> dict[str, F32]:
    """Untrained weights, the same ones for the same seed (NumPy's PCG64), float32, under torchvision's names.

    Convolutions: normal, variance 2 / (kernel^2 * output channels) (He et al., arXiv:1502.01852, "fan out"). Batch
    norm: mean 0, variance 1, shift 0, scale 1, but 0.2 for the last one of each residual branch: a block then adds a
    few per cent of variance and not 100, so that activations stay in range down to 152 layers without statistics of
    any data. Classifier: normal, variance 1 / inputs, bias 0."""
    rng = np.random.Generator(np.random.PCG64(seed))
    branch_ends = {f"{layer.bn}.weight" for layer in _conv_bns(depth) if layer.ends_branch}
    state: dict[str, F32] = {}
    for key, shape in state_spec(depth, num_classes).items():
        if len(shape) == 4:
            values = rng.standard_normal(shape, np.float32)
            values *= np.float32(np.sqrt(2.0 / (shape[0] * shape[2] * shape[3])))
        elif len(shape) == 2:
            values = rng.standard_normal(shape, np.float32)
            values *= np.float32(np.sqrt(1.0 / shape[1]))
        elif key.endswith("running_var") or (key.endswith(".weight") and key not in branch_ends):
            values = np.ones(shape, np.float32)
        else:
            values = np.full(shape, BRANCH_GAMMA if key in branch_ends else 0.0, np.float32)
        state[key] = values
    return state


def resnet18(
    weights: Any = None,
    *,
    layout: str = "NHWC",
    num_classes: int = 1000,
    algorithm: Algorithm = "auto",
    winograd: bool = True,
    device: str = "cpu",
    dtype: Any = "float32",
    compute: str = "float32",
) -> Net:
    """ResNet-18, 11 689 512 parameters at 1000 classes. Arguments as `resnet50`."""
    return _resnet(18, weights, layout, num_classes, algorithm, winograd, device, dtype, compute)


def resnet34(
    weights: Any = None,
    *,
    layout: str = "NHWC",
    num_classes: int = 1000,
    algorithm: Algorithm = "auto",
    winograd: bool = True,
    device: str = "cpu",
    dtype: Any = "float32",
    compute: str = "float32",
) -> Net:
    """ResNet-34, 21 797 672 parameters at 1000 classes. Arguments as `resnet50`."""
    return _resnet(34, weights, layout, num_classes, algorithm, winograd, device, dtype, compute)


def resnet50(
    weights: Any = None,
    *,
    layout: str = "NHWC",
    num_classes: int = 1000,
    algorithm: Algorithm = "auto",
    winograd: bool = True,
    device: str = "cpu",
    dtype: Any = "float32",
    compute: str = "float32",
) -> Net:
    """ResNet-50 v1.5, 25 557 032 parameters at 1000 classes, 4089 million multiply-adds for one picture of 224 x 224.

    weights: None (untrained, see `init_state`, seed 0), the path of a file that `fastconv.weights.load` reads, or a
    mapping of torchvision's names to arrays (anything NumPy can read; torch tensors on the CPU too). Floating dtypes
    are taken as they are and rounded to float32 once, after batch norm is folded in float64. A missing, extra or
    misshapen key is a `ValueError` that names it; `num_batches_tracked` is ignored. layout: "NHWC" or "NCHW", of the
    input; nothing is converted inside. algorithm, winograd: as for `fastconv.Conv2d`, for every convolution.

    device: "cpu", or "cuda" for an NVIDIA GPU (RuntimeError, with the reason, where there is none that can be used);
    dtype: what weights and activations are stored as, on a GPU "float32", "float16" or "bfloat16", with sums in
    float32; compute: how float32 is multiplied on a GPU, "float32", "3xtf32" (tensor cores, as accurate) or "tf32"
    (10 bits of mantissa). Logits are float32 in any case; see `Net` for the arrays that it takes."""
    return _resnet(50, weights, layout, num_classes, algorithm, winograd, device, dtype, compute)


def resnet101(
    weights: Any = None,
    *,
    layout: str = "NHWC",
    num_classes: int = 1000,
    algorithm: Algorithm = "auto",
    winograd: bool = True,
    device: str = "cpu",
    dtype: Any = "float32",
    compute: str = "float32",
) -> Net:
    """ResNet-101 v1.5, 44 549 160 parameters at 1000 classes. Arguments as `resnet50`."""
    return _resnet(101, weights, layout, num_classes, algorithm, winograd, device, dtype, compute)


def resnet152(
    weights: Any = None,
    *,
    layout: str = "NHWC",
    num_classes: int = 1000,
    algorithm: Algorithm = "auto",
    winograd: bool = True,
    device: str = "cpu",
    dtype: Any = "float32",
    compute: str = "float32",
) -> Net:
    """ResNet-152 v1.5, 60 192 808 parameters at 1000 classes. Arguments as `resnet50`."""
    return _resnet(152, weights, layout, num_classes, algorithm, winograd, device, dtype, compute)


def _resnet(
    depth: int,
    weights: Any,
    layout: str,
    num_classes: int,
    algorithm: Algorithm,
    winograd: bool,
    device: str,
    dtype: Any,
    compute: str,
) -> Net:
    num_classes = integer(num_classes, "num_classes", 1)
    state = _read_state(weights, depth, num_classes)
    folded = {layer.conv: _fold(state, layer) for layer in _conv_bns(depth)}
    fc = state["fc.weight"].astype(np.float32).reshape(num_classes, -1, 1, 1)
    folded["fc"] = (fc, state["fc.bias"].astype(np.float32))
    return Net(
        f"resnet{depth}",
        _nodes(depth, num_classes),
        folded,
        layout=layout,
        num_classes=num_classes,
        algorithm=algorithm,
        winograd=winograd,
        device=device,
        dtype=dtype,
        compute=compute,
    )


def _nodes(depth: int, num_classes: int) -> list[Node]:
    nodes: list[Node] = []
    place = {"": INPUT}

    def add(name: str, node: Node) -> None:
        place[name] = len(nodes)
        nodes.append(node)

    for layer in _conv_bns(depth):
        size = layer.oc * layer.ic * layer.kernel**2 + 2 * layer.oc
        add(
            layer.conv,
            Node(
                "conv",
                layer.conv,
                place[layer.source],
                layer.kernel,
                layer.stride,
                layer.kernel // 2,
                "relu" if layer.relu else None,
                NO_RESIDUAL if layer.residual is None else place[layer.residual],
                size,
            ),
        )
        if layer.conv == "conv1":
            add("pool", Node("max_pool", "maxpool", place["conv1"], 3, 2, 1))
    add("avgpool", Node("global_avg_pool", "avgpool", len(nodes) - 1))
    add("fc", Node("linear", "fc", len(nodes) - 1, parameters=num_classes * (_features(depth) + 1)))
    return nodes


def _read_state(weights: Any, depth: int, num_classes: int) -> Mapping[str, NDArray[Any]]:
    if weights is None:
        return init_state(depth, num_classes)
    from fastconv import weights as readers  # here, so that seeded networks do not load the readers
    from fastconv.weights import names

    state: dict[str, NDArray[Any]]
    if isinstance(weights, str | os.PathLike):
        what = f"{os.fspath(weights)} as resnet{depth}"
        state = readers.load(weights)
    elif isinstance(weights, Mapping):
        what = f"resnet{depth}"
        state = {}
        for key, value in weights.items():
            if not isinstance(key, str):
                raise TypeError(f"weights must have strings as keys, got {key!r}")
            if not key.endswith("num_batches_tracked"):
                state[key] = _as_array(key, value)
    else:
        raise TypeError(f"weights must be None, a path or a mapping of names to arrays, got {type(weights).__name__}")
    state = names.to_canonical(state)
    names.check_exact(state, state_spec(depth, num_classes), what)
    for key, array in state.items():
        if array.dtype.kind != "f":
            raise TypeError(f"{what}: {key!r} must hold floating-point numbers, got dtype {array.dtype}")
    return state


def _as_array(key: str, value: Any) -> NDArray[Any]:
    """NumPy's view of an array of any library. A torch tensor is detached; its bfloat16, which NumPy has not, becomes
    float32."""
    try:
        if hasattr(value, "detach"):
            value = value.detach()
            if str(value.dtype) == "torch.bfloat16":
                value = value.float()
        if not isinstance(value, np.ndarray) and not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
            value = np.from_dlpack(value)
        array = np.asarray(value)
    except Exception as error:  # whatever the other library raises, the caller should learn which array it was
        raise TypeError(f"weights[{key!r}] cannot be read as an array: {error}") from error
    if array.dtype.kind == "O":
        raise TypeError(f"weights[{key!r}] must be an array of numbers, got {type(value).__name__}")
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _fold(state: Mapping[str, NDArray[Any]], layer: _ConvBn) -> tuple[F32, F32]:
    """Batch norm after a convolution is a convolution: w' = w g / sqrt(v + eps), b' = beta - m g / sqrt(v + eps)
    (Ioffe and Szegedy, arXiv:1502.03167, with the statistics frozen). In float64, rounded to float32 once."""
    weight = state[f"{layer.conv}.weight"].astype(np.float64)
    gamma, beta, mean, variance = (
        state[f"{layer.bn}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    if np.any(variance < 0):
        raise ValueError(f"weights: {layer.bn}.running_var holds a negative variance, {variance.min()}")
    with np.errstate(all="ignore"):  # an overflow is an infinity in the weights: a value, as everywhere else
        scale = gamma / np.sqrt(variance + BN_EPS)
        return (weight * scale[:, None, None, None]).astype(np.float32), (beta - mean * scale).astype(np.float32)
