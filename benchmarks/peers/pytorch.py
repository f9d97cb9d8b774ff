"""PyTorch as most people run it: eager, batch norm folded. Layout nhwc is its channels_last memory format."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import EPSILON, F32, Array, Folded, PeerCall, lacks
from .networks import build_of

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem


class PyTorch:
    """Eager PyTorch in float32 on the CPU. A call allocates its result, as any eager call does."""

    name: str = "pytorch"
    layouts: tuple[str, ...] = ("nchw", "nhwc")
    dtype: str = "float32"
    # Its OpenMP workers spin some milliseconds after each call before they sleep.
    settle: float = 0.02
    device: str = "cpu"

    def __init__(self) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_float32_matmul_precision("highest")
        self.detail = "oneDNN" if self.torch.backends.mkldnn.is_available() else "native"

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        x = self.tensor(operands.x, layout)
        return self.prepared(layer_function(self, problem, operands, x, layout), x, threads)

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        build, builder, xt = build_of(name), TorchBuilder(self, folded, layout), self.tensor(x, layout)
        return self.prepared(lambda: build(builder, xt), xt, threads)

    def tensor(self, array: F32 | None, layout: str) -> Any:
        """A tensor of its own memory, of the peer's type and on its device; None stays None."""
        if array is None:
            return None
        torch = self.torch
        tensor = torch.tensor(array, dtype=getattr(torch, self.dtype), device=self.device)
        # A layer without pixels is asked for as "-", and is the same memory in any format.
        return tensor.contiguous(memory_format=torch.channels_last) if layout == "nhwc" and array.ndim == 4 else tensor

    def prepared(self, function: Callable[[], Any], x: Any, threads: int) -> PeerCall:
        torch = self.torch
        last: list[Any] = [None]

        def run() -> None:
            # The number of threads is the process's: set again in case another candidate has changed it. It costs well
            # under 1 us.
            torch.set_num_threads(threads)
            with torch.inference_mode():
                last[0] = function()

        return PeerCall(run, lambda: to_float32(torch, last[0]), self.detail, (memory(torch, x),))


def to_float32(torch: Any, tensor: Any) -> Array:
    """The tensor as a NumPy array, float32, NCHW."""
    return np.array(tensor.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy())


def memory(torch: Any, x: Any) -> Array:
    """A view of a CPU tensor's memory, in the order in which it lies there. bfloat16, which NumPy lacks, as int16."""
    bits = x if x.dtype == torch.float32 else x.view(torch.int16)
    channels_last = x.dim() == 4 and not x.is_contiguous()
    return np.asarray((bits.permute(0, 2, 3, 1) if channels_last else bits).numpy())


def layer_function(peer: PyTorch, p: Problem, o: Operands, x: Any, layout: str) -> Callable[[], Any]:
    """One op of `torch.nn.functional` on tensors made ready."""
    f = peer.torch.nn.functional
    weight, bias = peer.tensor(o.weight, layout), peer.tensor(o.bias, layout)
    stride, padding, dilation = (p.sh, p.sw), (p.ph, p.pw), (p.dh, p.dw)
    kernel = (p.kh, p.kw)
    if p.op == "conv2d":
        return lambda: f.conv2d(x, weight, bias, stride, padding, dilation, p.g)
    if p.op == "linear":
        return lambda: f.linear(x, weight, bias)
    if p.op == "max_pool2d":
        return lambda: f.max_pool2d(x, kernel, stride, padding, dilation)
    if p.op == "avg_pool2d":
        return lambda: f.avg_pool2d(x, kernel, stride, padding)
    if p.op == "global_avg_pool2d":
        return lambda: f.adaptive_avg_pool2d(x, 1)
    if p.op == "relu":
        return lambda: f.relu(x)
    if p.op == "softmax":
        return lambda: f.softmax(x, 1)
    if p.op == "convert_layout":
        torch = peer.torch
        order = torch.contiguous_format if layout == "nhwc" else torch.channels_last
        return lambda: x.contiguous(memory_format=order)
    if p.op == "batch_norm":
        mean, variance = peer.tensor(o.mean, layout), peer.tensor(o.variance, layout)
        return lambda: f.batch_norm(x, mean, variance, weight, bias, False, 0.0, EPSILON)
    raise lacks("PyTorch", p.op)


class TorchBuilder:
    """Runs each step at once: eager mode, ReLU and addition in place."""

    def __init__(self, peer: PyTorch, folded: Folded, layout: str) -> None:
        self.f = peer.torch.nn.functional
        self.weights = {k: (peer.tensor(w, layout), peer.tensor(b, layout)) for k, (w, b) in folded.items()}

    def conv(self, h: Any, name: str, stride: int, padding: int, relu: bool, add: Any = None, groups: int = 1) -> Any:
        y = self.f.conv2d(h, *self.weights[name], stride, padding, 1, groups)
        if add is not None:
            y = y.add_(add)
        return y.relu_() if relu else y

    def max_pool(self, h: Any) -> Any:
        return self.f.max_pool2d(h, 3, 2, 1)

    def classify(self, h: Any) -> Any:
        return self.f.linear(h.mean((2, 3)), *self.weights["fc"])
