"""PyTorch with weights prepacked: oneDNN's own order of weights, made once, and its fused ReLU and addition.

These are the operators that `torch.compile` puts into a frozen CPU graph, called without it. With packed weights
PyTorch computes in channels_last whatever it is given: an input in NCHW is converted inside the call, and the answer is
channels_last. `detail` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .base import F32, Folded, PeerCall, lacks
from .networks import build_of
from .pytorch import PyTorch

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem

_NEEDED = (
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_reorder_linear_weight",
    "_linear_pointwise",
)


class PyTorchPrepacked(PyTorch):
    """Convolutions, linear layers and the networks made of them; PyTorch packs no other op's operands."""

    name: str = "pytorch-prepacked"

    def __init__(self) -> None:
        super().__init__()
        self.ops: Any = self.torch.ops.mkldnn
        missing = [name for name in _NEEDED if not hasattr(self.ops, name)]
        if missing or not self.torch.backends.mkldnn.is_available():
            raise RuntimeError(f"this PyTorch has no packed weights (torch.ops.mkldnn lacks {missing or 'oneDNN'})")
        self.detail = "oneDNN, weights packed"

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        if problem.op not in ("conv2d", "linear"):
            raise lacks("pytorch-prepacked", problem.op, "it has no weights that PyTorch packs")
        x = self.tensor(operands.x, layout)
        weight, bias = self.tensor(operands.weight, layout), self.tensor(operands.bias, layout)
        # How oneDNN orders the weights may depend on the number of threads that will compute.
        self.torch.set_num_threads(threads)
        with self.torch.inference_mode():
            if problem.op == "linear":
                packed = self.ops._reorder_linear_weight(weight, len(operands.x))
                return self.prepared(lambda: self.ops._linear_pointwise(x, packed, bias, "none", [], ""), x, threads)
            p = problem
            settings = ([p.ph, p.pw], [p.sh, p.sw], [p.dh, p.dw], p.g)
            packed = self.ops._reorder_convolution_weight(weight, *settings, list(x.shape))
        function: Callable[[], Any] = lambda: self.ops._convolution_pointwise(  # noqa: E731
            x, packed, bias, *settings, "none", [], ""
        )
        return self._told(self.prepared(function, x, threads), layout)

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        build, builder, xt = build_of(name), _PackedBuilder(self, folded, layout), self.tensor(x, layout)
        call = self.prepared(lambda: build(builder, xt), xt, threads)
        call.run()  # packs: the best order of a layer's weights depends on its input's size
        return self._told(call, layout)

    def _told(self, call: PeerCall, layout: str) -> PeerCall:
        if layout != "nchw":
            return call
        return PeerCall(call.run, call.result, f"{call.detail}, computes in channels_last", call.inputs)


class _PackedBuilder:
    """Runs each step at once; packs a layer's weights when it first meets it."""

    def __init__(self, peer: PyTorchPrepacked, folded: Folded, layout: str) -> None:
        self.f, self.ops = peer.torch.nn.functional, peer.ops
        self.plain = {k: (peer.tensor(w, layout), peer.tensor(b, layout)) for k, (w, b) in folded.items()}
        self.packed: dict[str, Any] = {}

    def conv(self, h: Any, name: str, stride: int, padding: int, relu: bool, add: Any = None, groups: int = 1) -> Any:
        weight, bias = self.plain[name]
        settings = ([padding] * 2, [stride] * 2, [1, 1], groups)
        if name not in self.packed:
            self.packed[name] = self.ops._reorder_convolution_weight(weight, *settings, list(h.shape))
        packed = self.packed[name]
        if add is None:
            return self.ops._convolution_pointwise(h, packed, bias, *settings, "relu" if relu else "none", [], "")
        unary = "relu" if relu else None
        return self.ops._convolution_pointwise_(add, h, packed, bias, *settings, "add", 1.0, unary, [], "")

    def max_pool(self, h: Any) -> Any:
        return self.f.max_pool2d(h, 3, 2, 1)

    def classify(self, h: Any) -> Any:
        weight, bias = self.plain["fc"]
        if "fc" not in self.packed:
            self.packed["fc"] = self.ops._reorder_linear_weight(weight, h.shape[0])
        return self.ops._linear_pointwise(h.mean((2, 3)), self.packed["fc"], bias, "none", [], "")
