"""A network on a GPU: weights on the device, a compiled program for each input shape met lately, arrays in and out.

One call is one CUDA graph on the caller's stream. Between the layers stand tensors of the net's dtype; the mean before
the classifier is summed in float32, and the classifier computes in float32, so that logits are float32 whatever the
dtype.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from fastconv._arrays import as_input
from fastconv._devices import place
from fastconv._programs import ProgramCache
from fastconv.cuda._backend import backend
from fastconv.cuda._ops import Job

from ._net import F32, INPUT, NO_RESIDUAL, Node

#: Programs kept for each network; each holds an arena of activations for every stream that it runs on.
MAX_PROGRAMS = 8
#: The default stream of the calling thread: what arrays from the host are computed on.
_PER_THREAD = 2


class DeviceProgram:
    """A finalized `Program` and which layers each of its steps computes: a stem may be one step with its pool."""

    def __init__(self, program: Any, labels: Sequence[str]) -> None:
        self.program = program
        self.labels = tuple(labels)

    def steps(self) -> list[dict[str, Any]]:
        """The program's steps, each with `layers`: names joined by "+", or "input" for a conversion of the dtype."""
        return [{**step, "layers": label} for step, label in zip(self.program.steps(), self.labels, strict=True)]


class DeviceNet:
    """What a `Net` made with device="cuda" computes with."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        folded: Mapping[str, tuple[F32, F32]],
        layout: str,
        num_classes: int,
        algorithms: tuple[str, ...],
        dtype: str,
        compute: str,
    ) -> None:
        self._name = name
        self._nodes = tuple(nodes)
        self._groups = {node.name: node.groups for node in self._nodes}
        self._folded = folded
        self._layout = layout
        self._num_classes = num_classes
        self._algorithms = algorithms
        self._dtype = dtype
        self._compute = compute
        self._core = backend()
        self._weights: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._programs = ProgramCache(MAX_PROGRAMS, algorithms)

    def __call__(self, x: Any, stream: Any, check_shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Any:
        """Logits, float32, in the library and the memory (host or device) that x came from."""
        if place(x) != "cuda":
            array, wrap = as_input(x, "input")
            if stream is not None:
                raise ValueError("stream is for arrays on a CUDA device, but input is not on one")
            return wrap(self._from_host(array, check_shape(array.shape)))
        job = Job(x, stream)
        shape = check_shape(job.shape)
        if job.dtype not in (self._dtype, "float32"):
            wanted = self._dtype if self._dtype == "float32" else f"{self._dtype} or float32"
            raise TypeError(f"input must be {wanted} for this network, got {job.dtype}")
        target = job.output((shape[0], self._num_classes), dtype="float32")
        if shape[0]:
            prepared = self.program(shape, job.dtype, job.device)
            prepared.program.run([job.contiguous(job.x)], [target.view], job.handle)
        return job.finish(target)

    def _from_host(self, x: F32, shape: tuple[int, ...]) -> F32:
        logits = np.empty((shape[0], self._num_classes), np.float32)
        if shape[0]:
            core, device = self._core, self._core.current_device()
            program = self.program(shape, "float32", device).program
            source = core.empty(shape, "float32", device, _PER_THREAD)
            target = core.empty(logits.shape, "float32", device, _PER_THREAD)
            core.copy_host(source, x, True, _PER_THREAD)
            program.run([source], [target], _PER_THREAD)
            core.copy_host(target, logits, False, _PER_THREAD)
        return logits

    def program(self, shape: tuple[int, ...], dtype: str | None = None, device: int | None = None) -> DeviceProgram:
        """The program for inputs of this shape and dtype (the net's own) on a device (the current one)."""
        dtype = self._dtype if dtype is None else dtype
        device = self._core.current_device() if device is None else device
        build: Callable[[], Any] = lambda: self._build(shape, dtype, device)  # noqa: E731
        found: DeviceProgram = cast(Any, self._programs.get((shape, dtype, device), build).program)
        return found

    def _build(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        program = self._core.Program(device, self._compute)
        labels: list[str] = []

        def label(text: str) -> None:
            labels.extend([text] * (len(program.steps()) - len(labels)))

        ids = {INPUT: program.cast(program.input(shape, dtype), self._dtype)}
        label("input")
        index = 0
        while index < len(self._nodes):
            node = self._nodes[index]
            fused = self._stem(program, index, ids) if self._has_stem(index) else None
            if fused is not None:
                ids[index + 1] = fused
                label(f"{node.name}+{self._nodes[index + 1].name}")
                index += 2
                continue
            ids[index] = self._add(program, node, ids)
            label(node.name)
            index += 1
        program.output(ids[len(self._nodes) - 1])
        program.finalize()
        return DeviceProgram(program, labels)

    def _has_stem(self, index: int) -> bool:
        """Whether the node is a convolution that a max-pool of 3x3, stride 2 and padding 1 alone reads."""
        readers = [n for n in self._nodes if index in (n.source, n.residual)]
        node = self._nodes[index]
        return (
            node.kind == "conv"
            and node.residual == NO_RESIDUAL
            and len(readers) == 1
            and readers[0] is self._nodes[index + 1]
            and (readers[0].kind, readers[0].kernel, readers[0].stride, readers[0].padding) == ("max_pool", 3, 2, 1)
        )

    def _stem(self, program: Any, index: int, ids: Mapping[int, int]) -> int | None:
        """Convolution and pool as one step, or None where no kernel that may be chosen does both."""
        try:
            return self._conv(program, self._nodes[index], ids, True)
        except NotImplementedError:
            return None

    def _conv(self, program: Any, node: Node, ids: Mapping[int, int], then_max_pool: bool) -> int:
        step: int = program.conv2d(
            ids[node.source],
            self._weight(node.name),
            (node.stride, node.stride),
            (node.padding,) * 4,
            (1, 1),
            self._layout,
            self._algorithms,
            node.activation,
            -1 if node.residual == NO_RESIDUAL else ids[node.residual],
            then_max_pool,
        )
        return step

    def _add(self, program: Any, node: Node, ids: Mapping[int, int]) -> int:
        x = ids[node.source]
        step: int
        if node.kind == "conv":
            return self._conv(program, node, ids, False)
        if node.kind == "max_pool":
            window, stride = (node.kernel, node.kernel), (node.stride, node.stride)
            step = program.max_pool2d(x, window, stride, (node.padding,) * 4, (1, 1), False, self._layout)
        elif node.kind == "global_avg_pool":
            step = program.adaptive_avg_pool2d(x, (1, 1), self._layout)
        else:
            step = program.linear(program.cast(x, "float32"), self._weight(node.name), node.activation)
        return step

    def _weight(self, name: str) -> Any:
        with self._lock:
            if name not in self._weights:
                weight, bias = self._folded[name]
                self._weights[name] = self._core.ConvWeights(weight, bias, "OIHW", self._groups[name])
            return self._weights[name]


def kernel_of(steps: Sequence[Mapping[str, Any]], layer: str) -> str:
    """What the summary says of a layer: algorithm and kernel, or which other layer's step computes it."""
    for step in steps:
        names = str(step["layers"]).split("+")
        if layer not in names or step["op"] == "cast":
            continue
        if names[0] != layer:
            return f"in {names[0]}"
        words = (step["algorithm"], step["kernel"], step["ukernel"])
        return " ".join(dict.fromkeys(str(word) for word in words if word))
    return ""
