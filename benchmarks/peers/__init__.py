"""Other libraries, to compare with: optional, asked for by name, never needed, nothing downloaded.

Each runs the same layers with the same weights on the same number of threads, and the same networks, built here in its
own API with batch norm folded. All compute in float32 but for those whose name says bf16: precision is forced where a
library would choose a shorter one by itself. One file a library; a library is imported when its peer is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

from .base import MAX_L2, MAX_NETWORK_L2, Folded, Peer, PeerCall
from .ncnn import Ncnn
from .networks import NETWORKS, Builder, build_mobilenet_v2, build_resnet, fold_batch_norm, inverted_residuals
from .numpy import NumPy
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino
from .pytorch import PyTorch
from .pytorch_bf16 import PyTorchBf16
from .pytorch_compile import PyTorchCompile
from .pytorch_cuda import PyTorchCuda, PyTorchCudaBf16, PyTorchCudaCompile, PyTorchCudaF16, PyTorchCudaTf32
from .pytorch_prepacked import PyTorchPrepacked
from .scipy import SciPy

__all__ = [
    "MAX_L2", "MAX_NETWORK_L2", "NETWORKS", "PEERS", "PEERS_CUDA", "Builder", "Folded", "Peer", "PeerCall",
    "build_mobilenet_v2", "build_resnet", "fold_batch_norm", "installed", "inverted_residuals", "load_peers",
]  # fmt: skip

#: What runs on the CPU, by the name that the command line knows.
PEERS: dict[str, Callable[[], Peer]] = {
    "pytorch": PyTorch,
    "pytorch-prepacked": PyTorchPrepacked,
    "pytorch-compile": PyTorchCompile,
    "pytorch-bf16": PyTorchBf16,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ncnn": Ncnn,
    "numpy": NumPy,
    "scipy": SciPy,
}
#: What runs on a GPU.
PEERS_CUDA: dict[str, Callable[[], Peer]] = {
    "pytorch": PyTorchCuda,
    "pytorch-tf32": PyTorchCudaTf32,
    "pytorch-bf16": PyTorchCudaBf16,
    "pytorch-f16": PyTorchCudaF16,
    "pytorch-compile": PyTorchCudaCompile,
}

_MODULES = {"onnxruntime": ("onnxruntime", "onnx")}


def installed(name: str) -> bool:
    """Whether the modules that the peer of that name imports can be found; nothing is imported."""
    modules = _MODULES.get(name, (name.partition("-")[0].replace("pytorch", "torch"),))
    return all(importlib.util.find_spec(module) is not None for module in modules)


def load_peers(names: Iterable[str], device: str = "cpu") -> tuple[list[Peer], list[str]]:
    """The peers of those names that work on `device` ("cpu" or "cuda"), and a sentence for each that does not.

    ValueError for an unknown name or device. On "cuda" a peer that is only known on the CPU gets a sentence."""
    known = {"cpu": PEERS, "cuda": PEERS_CUDA}.get(device)
    if known is None:
        raise ValueError(f"device: {device!r} is neither 'cpu' nor 'cuda'")
    names = list(names)
    for name in names:
        if name not in PEERS and name not in known:
            raise ValueError(f"peers: unknown name {name!r}; known: {', '.join(known)}")
    found: list[Peer] = []
    messages: list[str] = []
    for name in names:
        if name not in known:
            messages.append(f"peer {name} is left out: it has no device {device!r} here")
            continue
        try:
            found.append(known[name]())
        except Exception as error:  # an installed but broken library may raise anything
            words = (str(error).splitlines() or [""])[0]
            messages.append(f"peer {name} is left out: {type(error).__name__}: {words}")
    return found, messages
