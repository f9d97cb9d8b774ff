"""PyTorch on an NVIDIA GPU: cuDNN's benchmark mode, channels_last, no TF32, and each call a CUDA graph.

`run` replays the graph and waits for it, so its time is that of one call with nothing before or after it on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .base import F32, Folded, PeerCall, lacks
from .pytorch import PyTorch, to_float32
from .pytorch_compile import compiled_network, compiling

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem

#: Calls before the capture: cuDNN tries its algorithms, and libraries allocate what they keep.
_WARM_UP = 3


class PyTorchCuda(PyTorch):
    """Eager operators, captured once. Input, weights and answer stay on the GPU. `threads` has no meaning here."""

    name: str = "pytorch"
    settle: float = 0.0
    device: str = "cuda"

    def __init__(self) -> None:
        super().__init__()
        torch = self.torch
        if torch.version.cuda is None:
            raise RuntimeError("this PyTorch is built without CUDA")
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no CUDA device")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.detail = f"cuDNN {torch.backends.cudnn.version()}, CUDA graph"

    def prepared(self, function: Callable[[], Any], x: Any, threads: int) -> PeerCall:
        torch = self.torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            # Captured work must not be the first of its kind, and warms up beside the default stream.
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                answer = function()

        # The graph reads input and weights where they lie and keeps none of them: the call does.
        def run(_kept: object = (x, function)) -> None:
            graph.replay()
            torch.cuda.synchronize()

        return PeerCall(run, lambda: to_float32(torch, answer), self.detail)


class PyTorchCudaCompile(PyTorchCuda):
    """Networks through `torch.compile`, then captured like the others."""

    name: str = "pytorch-compile"

    def __init__(self) -> None:
        super().__init__()
        self.detail = f"inductor, weights frozen, {self.detail}"

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        raise lacks(self.name, "single layers", "compiling each takes long")

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        xt = self.tensor(x, layout)
        with compiling(self.torch):
            compiled = compiled_network(self, name, folded, layout)
            return self.prepared(lambda: compiled(xt), xt, threads)
