"""PyTorch on an NVIDIA GPU: cuDNN's benchmark mode, channels_last, and each call a CUDA graph.

`run` replays the graph and waits for it, so its time is that of one call with nothing before or after it on the GPU;
`device_ms` is the time between events, replays one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
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
    tf32: bool = False

    def __init__(self) -> None:
        super().__init__()
        torch = self.torch
        if torch.version.cuda is None:
            raise RuntimeError("this PyTorch is built without CUDA")
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no CUDA device")
        torch.backends.cudnn.benchmark = True
        self.multiply()
        self.detail = f"cuDNN {torch.backends.cudnn.version()}, CUDA graph"

    def multiply(self) -> None:
        """Sets how the process multiplies float32; what is captured after that keeps it."""
        self.torch.backends.cudnn.allow_tf32 = self.tf32
        self.torch.backends.cuda.matmul.allow_tf32 = self.tf32

    def prepared(self, function: Callable[[], Any], x: Any, threads: int) -> PeerCall:
        torch = self.torch
        self.multiply()
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

        def device_ms(count: int) -> list[float]:
            graph.replay()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
            events[0].record()
            for event in events[1:]:
                graph.replay()
                event.record()
            torch.cuda.synchronize()
            return [before.elapsed_time(after) for before, after in pairwise(events)]

        return PeerCall(run, lambda: to_float32(torch, answer), self.detail, device_ms=device_ms)


class PyTorchCudaTf32(PyTorchCuda):
    """The same, float32 multiplied as TF32."""

    name: str = "pytorch-tf32"
    dtype: str = "tf32"
    tf32: bool = True

    def tensor(self, array: F32 | None, layout: str) -> Any:
        if array is None:
            return None
        torch = self.torch
        tensor = torch.tensor(array, dtype=torch.float32, device=self.device)
        return tensor.contiguous(memory_format=torch.channels_last) if layout == "nhwc" and array.ndim == 4 else tensor


class PyTorchCudaBf16(PyTorchCuda):
    """The same, everything stored as bfloat16."""

    name: str = "pytorch-bf16"
    dtype: str = "bfloat16"


class PyTorchCudaF16(PyTorchCuda):
    """The same, everything stored as float16."""

    name: str = "pytorch-f16"
    dtype: str = "float16"


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
