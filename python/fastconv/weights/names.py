"""Names of weights: other sources' names to torchvision's, and the strict check against what a network needs.

torchvision's names are the canonical ones: `conv1`, `bn1`, `layer{1-4}.{block}.conv{1-3}`, `.bn{1-3}`,
`.downsample.0/1`, `fc`. timm's plain ResNets use the same. Hugging Face's `ResNetForImageClassification`
(transformers, `modeling_resnet.py`) has the same arrays under other names; its basic blocks (resnet-18, resnet-34)
have two convolutions, its bottlenecks three, numbered alike.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from ._file import shown

T = TypeVar("T")

_COUNTER = "num_batches_tracked"
_PARALLEL = "module."  # torch.nn.DataParallel puts it before every name
_LISTED = 5

_HF_STEM = re.compile(r"(?:resnet\.)?embedder\.embedder\.(convolution|normalization)\.(\w+)")
_HF_LAYER = re.compile(
    r"(?:resnet\.)?encoder\.stages\.(\d{1,3})\.layers\.(\d{1,3})\.(?:layer\.(\d{1,3})|(shortcut))\.(convolution|normalization)\.(\w+)"
)
_HF_HEAD = re.compile(r"classifier\.1\.(\w+)")


def _from_hugging_face(name: str) -> str:
    if stem := _HF_STEM.fullmatch(name):
        return f"{'conv1' if stem[1] == 'convolution' else 'bn1'}.{stem[2]}"
    if layer := _HF_LAYER.fullmatch(name):
        stage, block, index, shortcut, kind, rest = layer.groups()
        if shortcut:
            part = "downsample.0" if kind == "convolution" else "downsample.1"
        else:
            part = f"{'conv' if kind == 'convolution' else 'bn'}{int(index) + 1}"
        return f"layer{int(stage) + 1}.{int(block)}.{part}.{rest}"
    if head := _HF_HEAD.fullmatch(name):
        return f"fc.{head[1]}"
    return name


def to_canonical(state: Mapping[str, T]) -> dict[str, T]:
    """The same values under torchvision's names, in the same order.

    - `module.` is stripped where every name has it;
    - `num_batches_tracked` is dropped (training only);
    - Hugging Face's names are mapped, where the stem's convolution shows that they are Hugging Face's;
    - every other name stays, for `check_exact` to judge.

    TypeError for a key that is no str, ValueError where two names become one.
    """
    for name in state:
        if not isinstance(name, str):
            raise TypeError(f"weights: every name must be a str, got {shown(name)} of type {type(name).__name__}")
    cut = len(_PARALLEL) if state and all(name.startswith(_PARALLEL) for name in state) else 0
    names = {name: name[cut:] for name in state}
    hugging_face = any(_HF_STEM.fullmatch(name) for name in names.values())
    renamed: dict[str, T] = {}
    source: dict[str, str] = {}
    for old, name in names.items():
        if name == _COUNTER or name.endswith("." + _COUNTER):
            continue
        new = _from_hugging_face(name) if hugging_face else name
        if new in renamed:
            raise ValueError(f"weights: {shown(source[new])} and {shown(old)} both become {shown(new)}")
        renamed[new] = state[old]
        source[new] = old
    return renamed


def _some(names: list[str]) -> str:
    listed = ", ".join(shown(name) for name in names[:_LISTED])
    return listed if len(names) <= _LISTED else f"{listed} and {len(names) - _LISTED} more"


def check_exact(state: Mapping[str, Any], spec: Mapping[str, tuple[int, ...]], what: str) -> None:
    """ValueError unless `state` has exactly the keys of `spec`, each with its shape. `what` names the network in the
    message.

    state: arrays (anything with a shape) by canonical name; spec: shape by name.
    """
    missing = [name for name in spec if name not in state]
    extra = [name for name in state if name not in spec]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"missing {_some(missing)}")
        if extra:
            parts.append(f"unexpected {_some(extra)}")
        raise ValueError(
            f"{what}: weights do not fit, {'; '.join(parts)} ({len(state)} arrays given, {len(spec)} needed)"
        )
    for name, shape in spec.items():
        found = np.shape(state[name])
        if found != tuple(shape):
            raise ValueError(f"{what}: weight {name!r} has the shape {found}, expected {tuple(shape)}")
