"""The ResNets against PyTorch: seeded weights, statistics calibrated on data, through every weight format."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastconv import models
from helpers import LAYOUTS, max_isa, usable_levels

if TYPE_CHECKING:
    from types import ModuleType

Array = NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """ResNet-50 with calibrated statistics, two pictures, and PyTorch's logits of them in float32 and float64."""

    model: Any
    state: dict[str, Array]
    pictures: Array  # (2, 3, 224, 224)
    logits32: Array
    logits64: Array

    def check(self, logits: Array) -> None:
        """The issue's bound: 4 times the error of PyTorch's own float32, for the logits and for their difference."""
        for of in (lambda v: v, lambda v: v[0] - v[1]):
            exact = of(self.logits64)
            allowed = 4 * np.linalg.norm(of(self.logits32.astype(np.float64)) - exact)
            error = np.linalg.norm(of(logits.astype(np.float64)) - exact)
            assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}, of {np.linalg.norm(exact):.3g}"


def synthetic_pictures(count: int, seed: int) -> Array:
    """Normalised pictures with edges, slopes and texture, (n, 3, 224, 224)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:224, 0:224] / 224
    made = []
    for _ in range(count):
        a, b, c, d = rng.uniform(-6, 6, 4)
        waves = np.sin(2 * np.pi * (a * x + b * y + rng.uniform())) + np.sign(np.sin(2 * np.pi * (c * x + d * y)))
        colour = rng.uniform(-1, 1, (3, 1, 1))
        made.append(colour * waves + rng.uniform(-1, 1, (3, 1, 1)) + rng.normal(0, 0.2, (3, 224, 224)))
    return np.stack(made).astype(np.float32)


@pytest.fixture(scope="module")
def truth() -> Truth:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import torch_resnet

    rng = np.random.default_rng(11)
    start = {}
    for key, value in models.init_state(50, seed=5).items():
        if value.ndim == 1 and key.endswith((".weight", ".bias")):
            spread = (
                rng.uniform(0.7, 1.3, value.shape) * value
                if key.endswith("weight")
                else rng.normal(0, 0.1, value.shape)
            )
            value = spread.astype(np.float32)
        start[key] = torch.from_numpy(value)
    model = torch_resnet.ResNet(50)
    missing, extra = model.load_state_dict(start, strict=False)
    assert not extra
    assert all(name.endswith("num_batches_tracked") for name in missing)
    torch_resnet.calibrate(model, torch.from_numpy(synthetic_pictures(6, 1)))
    pictures = synthetic_pictures(2, 2)
    x = torch.from_numpy(pictures)
    with torch.no_grad():
        logits32 = model(x).numpy()
        logits64 = copy.deepcopy(model).double()(x.double()).numpy()
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    # Otherwise the comparison of differences would show nothing.
    assert np.linalg.norm(logits64[0] - logits64[1]) > 0.2 * np.linalg.norm(logits64[0])
    return Truth(model, state, pictures, logits32, logits64)


def in_layout(pictures: Array, layout: str) -> Array:
    return pictures if layout == "NCHW" else np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))


def write_safetensors(arrays: dict[str, Array], path: Path) -> None:
    header: dict[str, Any] = {}
    end = 0
    for key, value in arrays.items():
        header[key] = {"dtype": "F32", "shape": value.shape, "data_offsets": (end, end + value.nbytes)}
        end += value.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in arrays.values():
            assert value.dtype == np.float32
            file.write(np.ascontiguousarray(value))


def write(kind: str, truth: Truth, path: Path) -> None:
    import torch

    floats = {key: value for key, value in truth.state.items() if not key.endswith("num_batches_tracked")}
    if kind == "safetensors":
        write_safetensors(floats, path)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **floats)
    else:
        torch.save(truth.model.state_dict(), path, _use_new_zipfile_serialization=kind == "pth zip")


@pytest.fixture(scope="module")
def from_dict(truth: Truth) -> dict[str, Array]:
    """Our logits of the two pictures, in both layouts, with weights from a dict of arrays."""
    return {
        layout: models.resnet50(truth.state, layout=layout)(in_layout(truth.pictures, layout)) for layout in LAYOUTS
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resnet50_equals_torch(truth: Truth, from_dict: dict[str, Array], layout: str) -> None:
    truth.check(from_dict[layout])


def test_the_bound_has_teeth(truth: Truth) -> None:
    """A stride on the 1x1 instead of the 3x3, a wrong eps, one weight off by a thousandth: each breaks the bound."""
    wrong = dict(truth.state)
    wrong["layer2.1.conv2.weight"] = wrong["layer2.1.conv2.weight"] * np.float32(1.001)
    with pytest.raises(AssertionError, match="allowed"):
        truth.check(models.resnet50(wrong)(in_layout(truth.pictures, "NHWC")))
    eps = {
        key: value + np.float32(1e-4) if key.endswith("running_var") else value for key, value in truth.state.items()
    }
    with pytest.raises(AssertionError, match="allowed"):
        truth.check(models.resnet50(eps)(in_layout(truth.pictures, "NHWC")))


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth zip", "pth stream"])
def test_resnet50_from_files(truth: Truth, from_dict: dict[str, Array], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write(kind, truth, path)
    for layout in LAYOUTS:
        logits = models.resnet50(path, layout=layout)(in_layout(truth.pictures, layout))
        truth.check(logits)
        assert np.array_equal(logits, from_dict[layout])  # the same numbers in, whatever the container
    path.unlink()


@pytest.mark.parametrize("algorithm", ["direct", "im2col"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_algorithm_equals_torch(truth: Truth, layout: str, algorithm: str) -> None:
    truth.check(models.resnet50(truth.state, layout=layout, algorithm=algorithm)(in_layout(truth.pictures, layout)))


@pytest.mark.parametrize("level", usable_levels())
def test_each_isa_level_equals_torch(truth: Truth, level: str) -> None:
    with max_isa(level):
        truth.check(models.resnet50(truth.state)(in_layout(truth.pictures, "NHWC")))


def test_torch_tensors_in_and_out(truth: Truth, from_dict: dict[str, Array], torch: ModuleType) -> None:
    net = models.resnet50(truth.model.state_dict(), layout="NCHW")
    logits = net(torch.from_numpy(truth.pictures))
    assert type(logits) is torch.Tensor
    assert np.array_equal(logits.numpy(), from_dict["NCHW"])
    with pytest.raises(TypeError, match="float64"):
        net(torch.zeros((1, 3, 32, 32), dtype=torch.float64))
    learning = dict(truth.model.named_parameters()) | dict(truth.model.named_buffers())
    assert learning["conv1.weight"].requires_grad
    assert np.array_equal(models.resnet50(learning, layout="NCHW")(truth.pictures), from_dict["NCHW"])
    short = {
        key: value.bfloat16() if value.is_floating_point() else value for key, value in truth.model.state_dict().items()
    }
    widened = {key: value.float().numpy() for key, value in short.items()}
    assert np.array_equal(*(models.resnet50(weights, layout="NCHW")(truth.pictures) for weights in (short, widened)))


@pytest.mark.parametrize("depth", [18, 34, 101, 152])
def test_other_depths_equal_torch(depth: int, torch: ModuleType) -> None:
    import torch_resnet

    state = models.init_state(depth, 20, seed=depth)
    model = torch_resnet.ResNet(depth, 20)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=False)
    pictures = synthetic_pictures(2, depth)[:, :, :96, :80].copy()
    torch_resnet.calibrate(model, torch.from_numpy(pictures))
    x = torch.from_numpy(pictures)
    with torch.no_grad():
        logits32 = model(x).numpy()
        logits64 = copy.deepcopy(model).double()(x.double()).numpy()
    truth = Truth(model, {}, pictures, logits32, logits64)
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    for layout in LAYOUTS:
        truth.check(
            getattr(models, f"resnet{depth}")(weights, num_classes=20, layout=layout)(in_layout(pictures, layout))
        )
