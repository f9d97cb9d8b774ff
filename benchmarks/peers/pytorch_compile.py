"""PyTorch's compiler with the weights frozen into the program: the most that PyTorch has for a network on the CPU.

Inductor folds, packs and fuses once; what is timed is the compiled program. It needs a C++ compiler, half a minute or
more for a network, and a folder for what it builds, which is a temporary one here.
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .base import F32, Folded, PeerCall, lacks
from .networks import build_of
from .pytorch import PyTorch, TorchBuilder

if TYPE_CHECKING:
    from ..ops import Operands
    from ..problem import Problem

_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
# Precompiled headers would be kept, 150 MB of them, outside the temporary folder, and save no time here.
_SETTINGS = {"freezing": True, "compile_threads": 1, "cpp_cache_precompile_headers": False}


class PyTorchCompile(PyTorch):
    """Networks only: a lone layer is what "pytorch-prepacked" runs."""

    name: str = "pytorch-compile"

    def __init__(self) -> None:
        super().__init__()
        words = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        compiler = shlex.split(words)[0]
        if shutil.which(compiler) is None:
            raise RuntimeError(f"torch.compile needs a C++ compiler, and {compiler!r} is not found (CXX names another)")
        self.detail = "inductor, weights frozen"

    def layer(self, problem: Problem, operands: Operands, layout: str, threads: int) -> PeerCall:
        raise lacks(self.name, "single layers", "compiling each takes long; pytorch-prepacked runs the same operators")

    def network(self, name: str, folded: Folded, x: F32, layout: str, threads: int) -> PeerCall:
        xt = self.tensor(x, layout)
        # The program is built for this number of threads.
        self.torch.set_num_threads(threads)
        with compiling(self.torch):
            compiled = compiled_network(self, name, folded, layout)
            call = self.prepared(lambda: compiled(xt), xt, threads)
            call.run()
        return call


def compiled_network(peer: PyTorch, name: str, folded: Folded, layout: str) -> Any:
    """The network as a function of x; its first call, within `compiling`, compiles it."""
    torch, build = peer.torch, build_of(name)
    builder = TorchBuilder(peer, folded, layout)
    # A graph of its own, made by running the builder on stand-ins: compiled code is kept by code object, a few for
    # each, and networks that share a `forward` would drive each other out.
    root, graph = torch.nn.Module(), torch.fx.Graph()
    tracer = torch.fx.proxy.GraphAppendingTracer(graph)

    def owned(key: str, tensor: Any) -> Any:
        # Freezing takes what a module owns as constant.
        root.register_buffer(key, tensor)
        return torch.fx.Proxy(graph.get_attr(key), tracer)

    x = torch.fx.Proxy(graph.placeholder("x"), tracer)
    for key, (weight, bias) in builder.weights.items():
        word = key.replace(".", "_")
        builder.weights[key] = (owned(f"{word}_weight", weight), owned(f"{word}_bias", bias))
    graph.output(build(builder, x).node)
    return torch.compile(torch.fx.GraphModule(root, graph).eval(), fullgraph=True, dynamic=False)


@contextmanager
def compiling(torch: Any) -> Iterator[None]:
    """While a first call compiles: weights frozen, one compiler at a time in this process, files in a temporary
    folder."""
    before = {name: os.environ.get(name) for name in _CACHES}
    # What is loaded stays loaded when its file is gone.
    with tempfile.TemporaryDirectory(prefix="fastconv-inductor-", ignore_cleanup_errors=True) as folder:
        os.environ.update(dict.fromkeys(_CACHES, folder))
        try:
            # Imported here: the import alone makes a folder.
            config = importlib.import_module("torch._inductor.config")
            known = {key: value for key, value in _SETTINGS.items() if hasattr(config, key)}
            with config.patch(known), torch.inference_mode():
                yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
