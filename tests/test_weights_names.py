"""Names of weights: other sources' to torchvision's, and the strict check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weight_files as wf
from fastconv.weights import names
from weight_checks import load, refuse, watched_file


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield from watched_file(tmp_path)


def torchvision_spec(blocks: tuple[int, int, int, int], convs: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNets with two (basic) or three (bottleneck) convolutions a block."""
    spec: dict[str, tuple[int, ...]] = {}

    def add(conv: str, bn: str, oc: int, ic: int, kernel: int) -> None:
        spec[f"{conv}.weight"] = (oc, ic, kernel, kernel)
        spec.update({f"{bn}.{part}": (oc,) for part in ("weight", "bias", "running_mean", "running_var")})

    add("conv1", "bn1", 64, 3, 7)
    features = 64
    for stage, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        out = width * (4 if convs == 3 else 1)
        for block in range(count):
            at = f"layer{stage}.{block}"
            chain = [(width, features, 3), (out, width, 3)]
            if convs == 3:
                chain = [(width, features, 1), (width, width, 3), (out, width, 1)]
            for k, (oc, ic, kernel) in enumerate(chain, 1):
                add(f"{at}.conv{k}", f"{at}.bn{k}", oc, ic, kernel)
            if block == 0 and (features != out or stage > 1):
                add(f"{at}.downsample.0", f"{at}.downsample.1", out, features, 1)
            features = out
    return {**spec, "fc.weight": (1000, features), "fc.bias": (1000,)}


RESNETS = {"resnet18": ((2, 2, 2, 2), 2, 102), "resnet34": ((3, 4, 6, 3), 2, 182), "resnet50": ((3, 4, 6, 3), 3, 267)}


def hugging_face_name(name: str) -> str:
    """The inverse of the map under test, from the table in transformers' conversion script for ResNet."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    head, _, rest = name.partition(".")
    if head == "fc":
        return f"classifier.1.{rest}"
    if head in ("conv1", "bn1"):
        return f"resnet.embedder.embedder.{kinds[head[:-1]]}.{rest}"
    block, part, *more = rest.split(".")
    at = f"resnet.encoder.stages.{int(head[5:]) - 1}.layers.{block}"
    if part == "downsample":
        return f"{at}.shortcut.{('convolution', 'normalization')[int(more[0])]}.{more[1]}"
    return f"{at}.layer.{int(part[-1]) - 1}.{kinds[part[:-1]]}.{more[0]}"


@pytest.mark.parametrize("model", RESNETS)
def test_names(model: str, file: Path) -> None:
    blocks, convs, keys = RESNETS[model]
    spec = torchvision_spec(blocks, convs)
    assert len(spec) == keys
    state = {name: np.zeros((0, *shape)) for name, shape in spec.items()}  # no bytes; the first axis is cut off below
    counters = {
        name.replace("running_var", "num_batches_tracked"): np.zeros(1) for name in spec if "running_var" in name
    }
    given_names = {
        "torchvision": {name: name for name in state},
        "parallel": {f"module.{name}": name for name in state},
        "hugging face": {hugging_face_name(name): name for name in state},
        "hugging face, parallel": {f"module.{hugging_face_name(name)}": name for name in state},
    }
    for kind, table in given_names.items():
        extra = {(hugging_face_name(n) if "hugging" in kind else n): a for n, a in counters.items()}
        extra = {(f"module.{n}" if "parallel" in kind else n): a for n, a in extra.items()}
        found = names.to_canonical({**{theirs: state[ours] for theirs, ours in table.items()}, **extra})
        assert list(found) == list(spec), kind
        assert names.to_canonical(found) == found
        names.check_exact(
            {name: np.broadcast_to(np.float32(0), array.shape[1:]) for name, array in found.items()}, spec, model
        )
    if model == "resnet50":
        assert len(given_names["hugging face"]) == keys
        file.write_bytes(wf.safetensors({theirs: np.zeros(1) for theirs in given_names["hugging face"]}))
        assert set(load(file)) == set(spec)
        assert set(load(file, canonical_names=False)) == set(given_names["hugging face"])


def test_hugging_face_names_by_hand() -> None:
    table = {
        "resnet.embedder.embedder.convolution.weight": "conv1.weight",
        "resnet.embedder.embedder.normalization.running_mean": "bn1.running_mean",
        "resnet.encoder.stages.0.layers.0.shortcut.convolution.weight": "layer1.0.downsample.0.weight",
        "resnet.encoder.stages.3.layers.2.layer.2.normalization.bias": "layer4.2.bn3.bias",
        "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight": "layer2.0.conv1.weight",
        "classifier.1.weight": "fc.weight",
        "something.else": "something.else",
    }
    assert list(names.to_canonical(dict.fromkeys(table, 0))) == list(table.values())
    # Without the stem, `classifier.1` may be anybody's, and half of the names under `module.` are not a wrapped model.
    for untouched in ({"classifier.1.weight": 0}, {"module.a": 0, "b": 0}):
        assert names.to_canonical(untouched) == untouched


def test_names_that_collide(file: Path) -> None:
    both = {"resnet.embedder.embedder.convolution.weight": np.zeros(1), "conv1.weight": np.zeros(1)}
    with pytest.raises(ValueError, match=r"both become 'conv1\.weight'"):
        names.to_canonical(both)
    refuse(file, wf.safetensors(both), "both become")
    with pytest.raises(TypeError, match="must be a str, got 3"):
        names.to_canonical({3: 0})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, r"tiny: .*missing 'fc\.bias' \(1 arrays given, 2 needed\)"),
        ({"extra": np.zeros(1)}, r"tiny: .*unexpected 'extra'"),
        ({"fc.bias": np.zeros(4)}, r"tiny: weight 'fc\.bias' has the shape \(4,\), expected \(3,\)"),
        ({"fc.bias": np.zeros((3, 1))}, r"\(3, 1\), expected \(3,\)"),
        ({f"e{i}": np.zeros(1) for i in range(9)}, "and 4 more"),
    ],
)
def test_check_exact(change: dict[str, Any], message: str) -> None:
    spec = {"fc.weight": (3, 2), "fc.bias": (3,)}
    state = {name: np.zeros(shape) for name, shape in spec.items()}
    names.check_exact(state, spec, "tiny")
    wrong = {name: array for name, array in {**state, **change}.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        names.check_exact(wrong, spec, "tiny")
