"""Layers as one string, and the suites made of them.

A layer reads `conv1 ic3 ih224 iw224 oc64 kh7 kw7 sh2 sw2 ph3 pw3 x1`: an optional name, an optional op (`conv2d` if it
is left out), then a letter code and a number each, in any order, apart by blanks or commas.

| op | must be there | may be there |
|---|---|---|
| `conv2d` | `ic ih oc kh` | `iw kw sh sw ph pw dh dw g` |
| `linear` | `ic oc` | |
| `max_pool2d` | `ic ih kh` | `iw kw sh sw ph pw dh dw` |
| `avg_pool2d` | `ic ih kh` | `iw kw sh sw ph pw` |
| `global_avg_pool2d`, `relu`, `batch_norm`, `convert_layout` (to the other layout) | `ic ih` | `iw` |
| `softmax` (over the channels) | `ic` | `ih iw` |

`ic oc` are channels in and out, `ih iw` the input's height and width, `kh kw` the kernel, `sh sw` the stride, `ph pw`
the padding on each side, `dh dw` the dilation, `g` the groups. Every op also has `x`, how often a network runs the
layer, and `n`, a batch size that wins over the command line's. What is left out follows from its partner (`iw` = `ih`,
`kw` = `kh`, `sw` = `sh`, `pw` = `ph`, `dw` = `dh`) or is 1 (`dh`, `g`, `x`, and `ih` of a softmax) or 0 (`ph`). `sh`
is 1 in a convolution; in pooling `sh` is `kh` and `sw` is `kw`, as in torch.nn.functional.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from importlib import resources

_WINDOW = ("ic", "ih", "iw", "kh", "kw", "sh", "sw", "ph", "pw")
_PICTURE = ("ic", "ih", "iw")
_RUN = ("n", "x")
#: The letters of each op, in the order in which `format_problem` writes them.
_LETTERS: dict[str, tuple[str, ...]] = {
    "conv2d": ("ic", "ih", "iw", "oc", "kh", "kw", "sh", "sw", "ph", "pw", "dh", "dw", "g", *_RUN),
    "linear": ("ic", "oc", *_RUN),
    "max_pool2d": (*_WINDOW, "dh", "dw", *_RUN),
    "avg_pool2d": (*_WINDOW, *_RUN),
    "global_avg_pool2d": (*_PICTURE, *_RUN),
    "relu": (*_PICTURE, *_RUN),
    "batch_norm": (*_PICTURE, *_RUN),
    "softmax": (*_PICTURE, *_RUN),
    "convert_layout": (*_PICTURE, *_RUN),
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "conv2d": ("ic", "ih", "oc", "kh"),
    "linear": ("ic", "oc"),
    "max_pool2d": ("ic", "ih", "kh"),
    "avg_pool2d": ("ic", "ih", "kh"),
    "global_avg_pool2d": ("ic", "ih"),
    "relu": ("ic", "ih"),
    "batch_norm": ("ic", "ih"),
    "softmax": ("ic",),
    "convert_layout": ("ic", "ih"),
}
#: The ops that a layer can be, the default first.
OPS = tuple(_LETTERS)
_POOLS = ("max_pool2d", "avg_pool2d")
_POSITIVE = ("ic", "ih", "iw", "oc", "kh", "kw", "sh", "sw", "dh", "dw", "g", "x")
_TOKEN = re.compile(f"({'|'.join(_LETTERS['conv2d'])})([0-9]{{1,9}})")


@dataclass(frozen=True)
class Problem:
    """One layer. Sizes in elements; `x` is its repeat count, `n` its batch (0: the run's).

    Every op has every field, so that the same lines of code can read them: an op that keeps its channels has `oc` =
    `ic`, one without a window has a 1 x 1 kernel, a global average has a kernel as large as its input, and `linear`
    has a picture of one pixel. ValueError names the field and the values if they do not make a layer.
    """

    name: str
    _: KW_ONLY
    op: str = "conv2d"
    ic: int
    ih: int
    iw: int
    oc: int
    kh: int
    kw: int
    sh: int = 1
    sw: int = 1
    ph: int = 0
    pw: int = 0
    dh: int = 1
    dw: int = 1
    g: int = 1
    x: int = 1
    n: int = 0

    def __post_init__(self) -> None:
        who = f"problem {self.name!r}"
        if self.op not in _LETTERS:
            raise ValueError(f"{who}: unknown op {self.op!r}; known: {', '.join(OPS)}")
        if not self.name or re.search(r"[\s,#]", self.name) or self.name in OPS or _TOKEN.fullmatch(self.name):
            raise ValueError(f"{who}: a name is one word, without , and #, that is no op and no letter with a number")
        for key in _POSITIVE:
            if getattr(self, key) < 1:
                raise ValueError(f"{who}: {key} must be at least 1, got {getattr(self, key)}")
        for key in ("ph", "pw", "n"):
            if getattr(self, key) < 0:
                raise ValueError(f"{who}: {key} must be at least 0, got {getattr(self, key)}")
        for key, value in _complete(self.op, self._given()).items():
            if getattr(self, key) != value:
                raise ValueError(f"{who}: {self.op} has {key}{value} here, got {key}{getattr(self, key)}")
        for key in ("ic", "oc"):
            if getattr(self, key) % self.g:
                raise ValueError(f"{who}: {key}{getattr(self, key)} is not a multiple of g{self.g}")
        if self.op in _POOLS:
            for p, k, d in (("ph", "kh", "dh"), ("pw", "kw", "dw")):
                size = getattr(self, d) * (getattr(self, k) - 1) + 1
                if 2 * getattr(self, p) > size:
                    raise ValueError(
                        f"{who}: the padding of {self.op} is at most half the kernel: {p}{getattr(self, p)} with "
                        f"{k}{getattr(self, k)}" + (f" and {d}{getattr(self, d)}" if getattr(self, d) > 1 else "")
                    )
        if self.op == "convert_layout" and not self.has_layout:
            raise ValueError(f"{who}: a picture of one pixel has one layout: convert_layout needs ih or iw above 1")
        if self.oh < 1 or self.ow < 1:
            raise ValueError(
                f"{who}: the kernel ({self.kh} x {self.kw}, dilation {self.dh}, {self.dw}) does not "
                f"fit the padded input ({self.ih + 2 * self.ph} x {self.iw + 2 * self.pw})"
            )

    def _given(self) -> dict[str, int]:
        """The sizes that the layer's string holds; the others follow from them."""
        return {key: getattr(self, key) for key in _LETTERS[self.op]}

    @property
    def oh(self) -> int:
        return (self.ih + 2 * self.ph - self.dh * (self.kh - 1) - 1) // self.sh + 1

    @property
    def ow(self) -> int:
        return (self.iw + 2 * self.pw - self.dw * (self.kw - 1) - 1) // self.sw + 1

    @property
    def flat(self) -> bool:
        """Whether the input is (n, ic) and no picture: `linear`, and `softmax` of one pixel."""
        return self.op == "linear" or (self.op == "softmax" and self.ih == self.iw == 1)

    @property
    def has_layout(self) -> bool:
        """Whether NCHW and NHWC differ: not in `linear`, and not where input and output are one pixel each."""
        return self.op != "linear" and max(self.ih, self.iw, self.oh, self.ow) > 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(n, ic, ih, iw), or (n, ic) if `flat`; n is 1 where the layer names no batch."""
        return (self.n or 1, self.ic) if self.flat else (self.n or 1, self.ic, self.ih, self.iw)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(n, oc, oh, ow), or (n, oc) if `flat`; n is 1 where the layer names no batch."""
        return (self.n or 1, self.oc) if self.flat else (self.n or 1, self.oc, self.oh, self.ow)

    @property
    def macs(self) -> int:
        """Multiply-adds for one picture of a convolution or linear layer, 0 for other ops. Products with padding are
        counted, as is usual for this figure."""
        if self.op not in ("conv2d", "linear"):
            return 0
        return self.oc * self.oh * self.ow * (self.ic // self.g) * self.kh * self.kw

    @property
    def flops(self) -> int:
        """Floating-point operations for one picture, padding included.

        Two a multiply-add. Others, each counted as one: for an output of a maximum the kernel's area less 1 compares;
        for one of an average the area less 1 additions and one multiplication; for an element of ReLU one compare, of
        batch norm one multiplication and one addition, of softmax five (compare, subtract, exponential, add, divide).
        """
        outputs = self.oc * self.oh * self.ow
        if self.op == "max_pool2d":
            return outputs * (self.kh * self.kw - 1)
        if self.op in ("avg_pool2d", "global_avg_pool2d"):
            return outputs * self.kh * self.kw
        return 2 * self.macs + outputs * {"relu": 1, "batch_norm": 2, "softmax": 5}.get(self.op, 0)

    @property
    def parameters(self) -> int:
        """Numbers that a call reads beside its input: weights and biases, or the four vectors of a batch norm."""
        if self.op in ("conv2d", "linear"):
            return self.oc * (self.ic // self.g * self.kh * self.kw + 1)
        return 4 * self.ic if self.op == "batch_norm" else 0

    def result_layout(self, layout: str) -> str:
        """The layout of what the layer gives that takes `layout`: another one of a conversion alone."""
        if self.op != "convert_layout":
            return layout
        return "nchw" if layout == "nhwc" else "nhwc"

    def inputs(self, n: int) -> int:
        """Elements of the input that a batch of `n` reads at least: of a picture only what some window reaches, so a
        1 x 1 kernel of stride 2 reads a quarter."""
        rows = _reached(self.ih, self.oh, self.kh, self.sh, self.ph, self.dh)
        columns = _reached(self.iw, self.ow, self.kw, self.sw, self.pw, self.dw)
        return n * self.ic * rows * columns

    def outputs(self, n: int) -> int:
        """Elements of the output of a batch of `n`."""
        return n * self.oc * self.oh * self.ow

    def traffic(self, n: int) -> int:
        """The float32 bytes that a batch of `n` moves at least: input and parameters read once, output written once."""
        return 4 * (self.inputs(n) + self.outputs(n) + self.parameters)

    @property
    def bytes(self) -> int:
        """`traffic` of the layer's own batch, or of one picture where it names none."""
        return self.traffic(self.n or 1)

    def with_batch(self, n: int) -> Problem:
        """The same layer with its batch filled in, unless the string named one."""
        return self if self.n else dataclasses.replace(self, n=n)

    def replace_size(self, letter: str, value: int) -> Problem:
        """The layer with one size changed: `letter` is `n`, `ic`, `oc` or `ih`, `value` at least 1.

        `ih` scales `iw` along, so that a picture keeps its proportions (rounded). `ic` of an op that keeps its channels
        changes both ends, and so do `ic` and `oc` of a depthwise convolution (g = ic = oc), with `g`. ValueError if the
        op has no such letter, or if the sizes no longer make a layer.
        """
        if letter not in ("n", "ic", "oc", "ih") or letter not in _LETTERS[self.op]:
            able = ", ".join(key for key in ("n", "ic", "oc", "ih") if key in _LETTERS[self.op])
            raise ValueError(f"problem {self.name!r}: cannot vary {letter!r} of {self.op}; can: {able}")
        if value < 1:
            raise ValueError(f"problem {self.name!r}: {letter} must be at least 1, got {value}")
        sizes = {**self._given(), letter: value}
        if letter == "ih":
            sizes["iw"] = max(1, round(self.iw * value / self.ih))
        if letter in ("ic", "oc") and 1 < self.g == self.ic == self.oc:
            sizes.update(ic=value, oc=value, g=value)
        return Problem(self.name, op=self.op, **_complete(self.op, sizes))


def _complete(op: str, given: Mapping[str, int]) -> dict[str, int]:
    """All sizes of a layer from those that its string gives."""
    v = dict(given)
    own_stride = op in _POOLS and "sh" not in v
    v.setdefault("ih", 1)
    v.setdefault("iw", v["ih"])
    v.setdefault("oc", v["ic"])
    whole = op == "global_avg_pool2d"
    v.setdefault("kh", v["ih"] if whole else 1)
    v.setdefault("kw", v["iw"] if whole else v["kh"])
    v.setdefault("sh", v["kh"] if own_stride else 1)
    v.setdefault("sw", v["kw"] if own_stride else v["sh"])
    for key, partner, default in (("ph", "pw", 0), ("dh", "dw", 1)):
        v.setdefault(key, default)
        v.setdefault(partner, v[key])
    return {"g": 1, "x": 1, "n": 0, **v}


def _reached(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How many of `size` positions along one axis some window reaches."""
    if dilation == 1 and stride <= kernel:  # without gaps: from the first window's start to the last one's end
        return max(0, min(size, (outputs - 1) * stride + kernel - padding))
    starts = (k * dilation - padding for k in range(kernel))
    return len({i for s in starts for i in range(s, s + (outputs - 1) * stride + 1, stride) if 0 <= i < size})


def parse_problem(text: str, default_name: str = "problem") -> Problem:
    """The layer that `text` describes. ValueError with the offending word if it does not."""
    words = [word for word in re.split(r"[\s,]+", text.strip()) if word]
    if not words:
        raise ValueError("problem: empty; write it like 'ic64 ih56 oc64 kh3 ph1' or 'max_pool2d ic64 ih112 kh3 sh2'")
    name, op = default_name, OPS[0]
    if not _TOKEN.fullmatch(words[0]) and words[0] not in OPS:
        name = words.pop(0)
    if words and words[0] in OPS:
        op = words.pop(0)
    known = _LETTERS[op]
    values: dict[str, int] = {}
    for word in words:
        match = _TOKEN.fullmatch(word)
        if match is None:
            raise ValueError(
                f"problem {name!r}: cannot read {word!r}; letters of {op}: {' '.join(known)}, each with a number of "
                f"up to 9 digits; the op comes after the name and is one of {', '.join(OPS)}"
            )
        if match[1] not in known:
            raise ValueError(f"problem {name!r}: {op} has no {match[1]}, got {word!r}; its letters: {' '.join(known)}")
        if match[1] in values:
            raise ValueError(f"problem {name!r}: {match[1]} is given twice ({values[match[1]]} and {match[2]})")
        values[match[1]] = int(match[2])
    missing = [key for key in _REQUIRED[op] if key not in values]
    if missing:
        raise ValueError(f"problem {name!r}: {', '.join(missing)} missing in {text.strip()!r}, which is a {op}")
    return Problem(name, op=op, **_complete(op, values))


def format_problem(problem: Problem) -> str:
    """The string that `parse_problem` reads back as the same layer; dilation, groups and batch only where they are not
    1, 1, 0."""
    keys = [key for key in _LETTERS[problem.op] if key not in ("dh", "dw", "g", "n", "x")]
    if problem.flat:
        keys = [key for key in keys if key not in ("ih", "iw")]
    keys += ["dh", "dw"] if (problem.dh, problem.dw) != (1, 1) else []
    keys += ["g"] if problem.g != 1 else []
    keys += ["n"] if problem.n else []
    op = [] if problem.op == OPS[0] else [problem.op]
    return " ".join([problem.name, *op, *(f"{key}{getattr(problem, key)}" for key in keys), f"x{problem.x}"])


@dataclass(frozen=True)
class Suite:
    """A named list of layers. `network`: one that is run end to end too; `max_time`: seconds for a whole run; `peers`:
    may call any."""

    name: str
    problems: tuple[Problem, ...]
    about: str = ""
    network: str | None = None
    max_time: float = 120.0
    peers: bool = True


def parse_suite(name: str, text: str) -> Suite:
    """Reads a suite file: a layer of any op a line, `#` comments, and settings as `@about`, `@network`, `@max-time`,
    `@peers no`. ValueError with the line's number for what it cannot read."""
    problems: list[Problem] = []
    settings: dict[str, str] = {}
    max_time = 120.0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        where = f"suite {name!r}, line {number}"
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            if key not in ("about", "network", "max-time", "peers"):
                raise ValueError(f"{where}: unknown setting @{key}")
            if key in settings:
                raise ValueError(f"{where}: @{key} is given twice")
            settings[key] = value.strip()
            if key == "max-time":
                max_time = _seconds(settings[key], where)
            if key == "peers" and settings[key] not in ("yes", "no"):
                raise ValueError(f"{where}: @peers is yes or no, got {settings[key]!r}")
            continue
        try:
            problems.append(parse_problem(line, f"line{number}"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    names = [problem.name for problem in problems]
    for twice in sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"suite {name!r}: two layers are named {twice!r}")
    return Suite(
        name,
        tuple(problems),
        settings.get("about", ""),
        settings.get("network"),
        max_time,
        settings.get("peers", "yes") != "no",
    )


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{where}: @max-time is a number of seconds above 0, got {text!r}")
    return value


def suite_names() -> list[str]:
    """The suites that ship with the package, by name."""
    folder = resources.files(__package__ or "benchmarks") / "shapes"
    return sorted(entry.name[: -len(".txt")] for entry in folder.iterdir() if entry.name.endswith(".txt"))


def load_suite(name: str) -> Suite:
    """The suite of that name. ValueError that lists the known ones if there is none."""
    known = suite_names()
    if name not in known:
        raise ValueError(f"suite: unknown name {name!r}; known: {', '.join(known)}")
    folder = resources.files(__package__ or "benchmarks") / "shapes"
    return parse_suite(name, (folder / f"{name}.txt").read_text(encoding="utf-8"))
