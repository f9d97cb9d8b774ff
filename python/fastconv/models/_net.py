"""What every network here shares: layers, folded weights, compiled programs for the shapes met lately, the summary.

A `Net` is immutable. It holds one `_core.ConvWeights` a layer, so that programs for several input shapes share packed
weights, and one `_core.Program` for each input shape it has seen lately. Pickles and copies hold weights and options
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastconv import _core
from fastconv._arguments import (
    Algorithm,
    algorithm_names,
    boolean,
    compute_name,
    device_name,
    dtype_name,
    integer,
    layout_name,
)
from fastconv._arrays import as_input
from fastconv._programs import Prepared, ProgramCache, warn_of_fallback

if TYPE_CHECKING:
    from ._cuda import DeviceNet

F32 = NDArray[np.float32]

# Programs kept for each network. One holds an arena of activations (resnet50, one picture: some 10 MB), so a few, not
# many.
MAX_PROGRAMS = 8
# Pictures that `predict` runs at once; bounds its memory, changes no result.
PREDICT_BATCH = 16
INPUT = -1
NO_RESIDUAL = -2


@dataclass(frozen=True)
class Node:
    """One layer. `source` and `residual` are positions in the list of nodes (`INPUT`: the network's input)."""

    kind: str  # "conv", "max_pool", "global_avg_pool" or "linear"
    name: str
    source: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    activation: str | None = None
    residual: int = NO_RESIDUAL
    parameters: int = 0  # before folding: batch norm's scale and shift count beside the weights
    groups: int = 1


class Summary:
    """A network's layers for one input shape. Printed it is the table; `rows` and `as_dict()` are for machines.

    A row has `layer`, `kind`, `output_shape` (as the caller sees it, in the net's layout), `parameters` (numbers
    learnt, batch norm's scale and shift included), `macs` (multiply-adds for the whole batch; padding is counted as
    data) and `kernel` (what runs it)."""

    def __init__(self, model: str, layout: str, input_shape: tuple[int, ...], rows: list[dict[str, Any]]) -> None:
        self.model = model
        self.layout = layout
        self.input_shape = input_shape
        self.rows = rows

    @property
    def parameters(self) -> int:
        return int(sum(row["parameters"] for row in self.rows))

    @property
    def macs(self) -> int:
        """Multiply-adds of one call on the whole batch."""
        return int(sum(row["macs"] for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, fit for `json.dumps`."""
        return {
            "model": self.model,
            "layout": self.layout,
            "input_shape": list(self.input_shape),
            "parameters": self.parameters,
            "macs": self.macs,
            "layers": [{**row, "output_shape": list(row["output_shape"])} for row in self.rows],
        }

    def __str__(self) -> str:
        head = ("layer", "output shape", "parameters", "MMAC", "kernel")
        body = [
            (
                r["layer"],
                _shape_text(r["output_shape"]),
                _grouped(r["parameters"]),
                f"{r['macs'] / 1e6:.2f}",
                r["kernel"],
            )
            for r in self.rows
        ]
        foot = ("total", "", _grouped(self.parameters), f"{self.macs / 1e6:.2f}", "")
        widths = [max(len(line[i]) for line in (head, *body, foot)) for i in range(4)]
        rule = "  ".join("-" * w for w in (*widths, 6))

        def text(line: tuple[str, str, str, str, str]) -> str:
            name, shape, parameters, macs, kernel = line
            cells = (
                name.ljust(widths[0]),
                shape.ljust(widths[1]),
                parameters.rjust(widths[2]),
                macs.rjust(widths[3]),
                kernel,
            )
            return "  ".join(cells).rstrip()

        title = f"{self.model}, {self.layout}, input {_shape_text(self.input_shape)}"
        return "\n".join((title, text(head), rule, *map(text, body), rule, text(foot)))

    __repr__ = __str__


class Net:
    """A network ready to run. Made by `fastconv.models.resnet50` and its like.

    `net(x)`: x is float32, (n, h, w, 3) for layout "NHWC" or (n, 3, h, w) for "NCHW", any h and w; the answer is
    float32 (n, num_classes), of the same kind of array as x. n = 0 gives (0, num_classes). `TypeError`: not an array,
    or not float32. `ValueError`: rank, channels, or an extent of zero. Any number of threads may call one net at
    once.

    With device="cuda", x is a CUDA array (torch, CuPy, JAX, `fastconv.cuda.Array`) of the net's dtype or float32, and
    the call is one CUDA graph on its library's current stream, or part of the graph that the caller is capturing there
    (the net must outlive that graph); or it is an array on the host, which is copied to the current device, as the
    answer is back. Logits are float32 whatever the dtype."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        folded: Mapping[str, tuple[F32, F32]],
        *,
        layout: str,
        num_classes: int,
        algorithm: Algorithm,
        winograd: bool = True,
        device: str = "cpu",
        dtype: Any = "float32",
        compute: str = "float32",
    ) -> None:
        self._name = name
        self._nodes = tuple(nodes)
        self._layout = layout_name(layout)
        self._num_classes = num_classes
        self._device, self._dtype, self._compute = device_name(device), dtype_name(dtype), compute_name(compute)
        _check_numbers(self._device, self._dtype, self._compute)
        self._algorithms = algorithm_names(algorithm, self._device)
        self._winograd = boolean(winograd, "winograd")
        self._folded = dict(folded)
        self._on_device: DeviceNet | None = None
        self._weights: dict[str, _core.ConvWeights] = {}
        if self._device == "cuda":
            from ._cuda import DeviceNet  # here, so that networks on the CPU load nothing of CUDA

            self._on_device = DeviceNet(
                name,
                self._nodes,
                self._folded,
                self._layout,
                num_classes,
                self._algorithms,
                self._dtype,
                self._compute,
            )
            return
        groups = {node.name: node.groups for node in self._nodes}
        self._weights = {key: _core.ConvWeights(w, b, "OIHW", groups[key]) for key, (w, b) in folded.items()}
        self._programs = ProgramCache(MAX_PROGRAMS, self._algorithms)
        self._answer: Callable[[Any], F32 | None] | None = None  # of the program that ran last

    # --- options ----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def layout(self) -> str:
        return self._layout

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def algorithm(self) -> str | tuple[str, ...]:
        return self._algorithms[0] if len(self._algorithms) == 1 else self._algorithms

    @property
    def winograd(self) -> bool:
        """Whether "auto" may take Winograd and Strassen."""
        return self._winograd

    @property
    def device(self) -> str:
        """Where it computes, "cpu" or "cuda"."""
        return self._device

    @property
    def dtype(self) -> str:
        """What weights and activations are stored as between the layers."""
        return self._dtype

    @property
    def compute(self) -> str:
        """How products of float32 are formed: "float32", "tf32" or "3xtf32"."""
        return self._compute

    @property
    def parameters(self) -> int:
        """Numbers learnt, as torchvision counts them: convolutions, batch norm's scale and shift, classifier."""
        return sum(node.parameters for node in self._nodes)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names in the order of execution, as the program's steps."""
        return tuple(node.name for node in self._nodes)

    def __repr__(self) -> str:
        return (
            f"<fastconv {self._name}: layout={self._layout!r}, num_classes={self._num_classes}, "
            f"algorithm={self.algorithm!r}, {self._place_text()}{self.parameters} parameters>"
        )

    def _place_text(self) -> str:
        if self._device == "cpu":
            return ""
        compute = f", compute={self._compute!r}" if self._compute != "float32" else ""
        return f"device={self._device!r}, dtype={self._dtype!r}{compute}, "

    # --- running ----------------------------------------------------------------------------------------------------

    def __call__(self, x: Any, *, stream: Any = None) -> Any:
        """Logits of a batch; see the class. stream: for CUDA arrays, another than their library's current one."""
        if self._on_device is not None:
            return self._on_device(x, stream, self._check_shape)
        if stream is not None:
            raise ValueError("stream is for networks on a CUDA device; this one computes on the CPU")
        if self._answer is not None:  # None comes back for any other array than a plain one of the shape met last
            logits = self._answer(x)
            if logits is not None:
                return logits
        array, wrap = as_input(x, "input")
        shape = self._check_shape(array.shape)
        out = np.empty((shape[0], self._num_classes), np.float32)
        if shape[0]:
            program, slow = self._prepare(shape)
            program.run([array], [out])
            if slow:
                warn_of_fallback(self._name)
            else:
                self._answer = program.answer
        return wrap(out)

    def predict(
        self, images: Any, topk: int | None = None, *, resize: int = 256, crop: int = 224
    ) -> list[list[tuple[int, str, float]]]:
        """The most likely classes of each picture, best first.

        images: one or several paths, PIL images, or uint8 arrays (H, W, 3), (H, W, 4) or (H, W), prepared as
        `fastconv.image.preprocess` says (that takes Pillow: the [cli] extra). topk: at most the number of classes; by
        default 5, or all where there are fewer. For each picture: a list of `topk` tuples (class index, label,
        probability). Labels are ImageNet's where the net has 1000 classes, else "class 7" and so on."""
        from fastconv import image  # here, so that networks load without it

        topk = min(5, self._num_classes) if topk is None else integer(topk, "topk", 1)
        if topk > self._num_classes:
            raise ValueError(f"topk is {topk}, but the network has {self._num_classes} classes")
        items = image.as_list(images)
        found: list[list[tuple[int, str, float]]] = []
        for start in range(0, len(items), PREDICT_BATCH):
            batch = image.preprocess(items[start : start + PREDICT_BATCH], self._layout, resize, crop, first=start)
            logits = self(batch)
            probabilities = np.empty_like(logits)
            _core.softmax(logits, probabilities, 1)
            found.extend(self._top(row, topk) for row in probabilities)
        return found

    def _top(self, probabilities: F32, topk: int) -> list[tuple[int, str, float]]:
        from .labels import imagenet

        names = imagenet() if self._num_classes == 1000 else None
        best = np.argsort(-probabilities, kind="stable")[:topk]
        return [(int(i), names[i] if names else f"class {i}", float(probabilities[i])) for i in best]

    def program(self, input_shape: Sequence[int]) -> Any:
        """The compiled program for one input shape, made now or kept from an earlier call. For benchmarks and for
        `summary`; its steps are in the order of `layer_names`. On a GPU a `DeviceProgram` of the current device."""
        shape = self._check_shape(tuple(input_shape))
        return self._prepare(shape).program if self._on_device is None else self._on_device.program(shape)

    def _prepare(self, shape: tuple[int, ...]) -> Prepared:
        return self._programs.get((shape,), lambda: self._build(shape))

    def _build(self, shape: tuple[int, ...]) -> _core.Program:
        program = _core.Program()
        ids = {INPUT: program.input(shape)}
        for index, node in enumerate(self._nodes):
            ids[index] = self._add(program, node, ids)
        program.output(ids[len(self._nodes) - 1])
        program.finalize()
        return program

    def _add(self, program: _core.Program, node: Node, ids: Mapping[int, int]) -> int:
        x = ids[node.source]
        window = (node.kernel, node.kernel)
        stride = (node.stride, node.stride)
        padding = (node.padding,) * 4
        if node.kind == "conv":
            residual = -1 if node.residual == NO_RESIDUAL else ids[node.residual]
            return program.conv2d(
                x,
                self._weights[node.name],
                stride,
                padding,
                (1, 1),
                self._layout,
                self._algorithms,
                node.activation,
                residual,
                self._winograd,
            )
        if node.kind == "max_pool":
            return program.max_pool2d(x, window, stride, padding, (1, 1), False, self._layout)
        if node.kind == "global_avg_pool":
            return program.adaptive_avg_pool2d(x, (1, 1), self._layout)
        return program.linear(x, self._weights[node.name], node.activation)

    def _check_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        layout = self._layout
        wanted = "(n, h, w, 3)" if layout == "NHWC" else "(n, 3, h, w)"
        if len(shape) != 4:
            raise ValueError(f"input must have 4 axes, {wanted} for layout {layout!r}, got {len(shape)}: shape {shape}")
        axis, other = (3, 1) if layout == "NHWC" else (1, 3)
        if shape[axis] != 3:
            swapped = "NCHW" if layout == "NHWC" else "NHWC"
            hint = f"; is it {swapped}? Then make the network with layout={swapped!r}" if shape[other] == 3 else ""
            raise ValueError(
                f"input must have 3 channels on axis {axis}, {wanted} for layout {layout!r}, "
                f"got {shape[axis]}: shape {shape}{hint}"
            )
        if 0 in shape[1:]:
            raise ValueError(f"input must have a height and a width of at least 1, got shape {shape}")
        return shape

    # --- introspection ----------------------------------------------------------------------------------------------

    def summary(self, batch: int = 1, height: int = 224, width: int = 224) -> Summary:
        """The table of layers for one input shape: output shape, parameters, multiply-adds, kernel chosen."""
        batch, height, width = (
            integer(value, name, 1) for value, name in ((batch, "batch"), (height, "height"), (width, "width"))
        )
        shape = (batch, height, width, 3) if self._layout == "NHWC" else (batch, 3, height, width)
        steps = self.program(shape).steps()
        rows: list[dict[str, Any]] = []
        for index, (node, output) in enumerate(zip(self._nodes, self._shapes(shape), strict=True)):
            weight = self._folded[node.name][0] if node.name in self._folded else None
            macs = 0 if weight is None else math.prod(output) // weight.shape[0] * weight.size
            rows.append(
                {
                    "layer": node.name,
                    "kind": node.kind,
                    "output_shape": output,
                    "parameters": node.parameters,
                    "macs": macs,
                    "kernel": self._kernel_text(steps, index),
                }
            )
        place = self._place_text().rstrip(", ").replace("'", "")
        return Summary(f"{self._name}, {place}" if place else self._name, self._layout, shape, rows)

    def _kernel_text(self, steps: Sequence[Mapping[str, Any]], index: int) -> str:
        if self._on_device is None:
            return _kernel_text(steps, index, len(self._nodes))
        from ._cuda import kernel_of

        return kernel_of(steps, self._nodes[index].name)

    def _shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Output shape of each node, by the formula of torch and ONNX: floor((in + 2p - k) / s) + 1."""
        spatial = slice(1, 3) if self._layout == "NHWC" else slice(2, 4)
        channel = 3 if self._layout == "NHWC" else 1
        shapes: dict[int, tuple[int, ...]] = {INPUT: shape}
        for index, node in enumerate(self._nodes):
            out = list(shapes[node.source])
            if node.kind == "linear":
                out = [out[0], self._num_classes]
            elif node.kind == "global_avg_pool":
                out[spatial] = (1, 1)
            else:
                out[spatial] = ((v + 2 * node.padding - node.kernel) // node.stride + 1 for v in out[spatial])
                if node.kind == "conv":
                    out[channel] = self._folded[node.name][0].shape[0]
            shapes[index] = tuple(out)
        return [shapes[index] for index in range(len(self._nodes))]

    # --- pickles and copies -----------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "nodes": self._nodes,
            "folded": self._folded,
            "layout": self._layout,
            "num_classes": self._num_classes,
            "algorithm": self._algorithms,
            "winograd": self._winograd,
            "device": self._device,
            "dtype": self._dtype,
            "compute": self._compute,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Net.__init__(self, **state)

    def __copy__(self) -> Net:
        twin = object.__new__(type(self))
        twin.__setstate__(self.__getstate__())
        # Immutable, and they carry the packed forms.
        twin._folded, twin._weights, twin._on_device = self._folded, self._weights, self._on_device
        return twin


def _check_numbers(device: str, dtype: str, compute: str) -> None:
    """ValueError for what contradicts itself, NotImplementedError for a dtype that networks do not have there."""
    if dtype != "float32" and compute != "float32":
        raise ValueError(f"compute={compute!r} is a way to multiply float32, but dtype is {dtype!r}")
    if device == "cpu" and (dtype, compute) != ("float32", "float32"):
        given = f"dtype={dtype!r}" if dtype != "float32" else f"compute={compute!r}"
        raise NotImplementedError(f"networks on the CPU compute in float32; {given} needs device='cuda'")


def _kernel_text(steps: Sequence[Mapping[str, Any]], index: int, nodes: int) -> str:
    if len(steps) != nodes:  # steps that stand for several layers have no place in a row of one layer
        return ""
    step = steps[index]
    words = [str(step.get("algorithm") or ""), str(step.get("ukernel") or step.get("kernel") or "")]
    return " ".join(dict.fromkeys(word for word in words if word))


def _shape_text(shape: Sequence[int]) -> str:
    return "x".join(str(extent) for extent in shape)


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")
