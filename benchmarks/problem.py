"""Layers as one string, and the suites made of them.

A layer reads `conv1 ic3 ih224 iw224 oc64 kh7 kw7 sh2 sw2 ph3 pw3 x1`: an optional name, then a letter code and a number
each, in any order, apart by blanks or commas. `ic`, `ih`, `oc` and `kh` must be there; what is left out follows from
its partner (`iw` = `ih`, `kw` = `kh`, `sw` = `sh`, `pw` = `ph`, `dw` = `dh`) or is 1 (`sh`, `dh`, `g`, `x`) or 0
(`ph`). `g` is the number of groups, `x` how often a network runs the layer, `n` a batch size that wins over the command
line's.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from importlib import resources

_TOKEN = re.compile(r"(ic|ih|iw|oc|kh|kw|sh|sw|ph|pw|dh|dw|n|g|x)(\d+)")
_REQUIRED = ("ic", "ih", "oc", "kh")
_PARTNERS = {"iw": "ih", "kw": "kh", "sw": "sh", "pw": "ph", "dw": "dh"}
_DEFAULTS = {"sh": 1, "dh": 1, "ph": 0, "g": 1, "x": 1, "n": 0}
_POSITIVE = ("ic", "ih", "iw", "oc", "kh", "kw", "sh", "sw", "dh", "dw", "g", "x")


@dataclass(frozen=True)
class Problem:
    """One convolution layer. Sizes in elements; `x` is its repeat count, `n` its batch (0: the run's)."""

    name: str
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
        for key in _POSITIVE:
            if getattr(self, key) < 1:
                raise ValueError(f"problem {self.name!r}: {key} must be at least 1, got {getattr(self, key)}")
        for key in ("ic", "oc"):
            if getattr(self, key) % self.g:
                raise ValueError(f"problem {self.name!r}: {key}{getattr(self, key)} is not a multiple of g{self.g}")
        if self.oh < 1 or self.ow < 1:
            raise ValueError(
                f"problem {self.name!r}: the kernel ({self.kh} x {self.kw}, dilation {self.dh}, {self.dw}) does not "
                f"fit the padded input ({self.ih + 2 * self.ph} x {self.iw + 2 * self.pw})"
            )

    @property
    def oh(self) -> int:
        return (self.ih + 2 * self.ph - self.dh * (self.kh - 1) - 1) // self.sh + 1

    @property
    def ow(self) -> int:
        return (self.iw + 2 * self.pw - self.dw * (self.kw - 1) - 1) // self.sw + 1

    @property
    def macs(self) -> int:
        """Multiply-adds for one picture. Products with padding are counted, as is usual for this figure."""
        return self.oc * self.oh * self.ow * (self.ic // self.g) * self.kh * self.kw

    @property
    def bytes(self) -> int:
        """The float32 bytes that one picture moves at least: input read, weights read, output written."""
        weights = self.oc * (self.ic // self.g) * self.kh * self.kw
        return 4 * (self.ic * self.ih * self.iw + weights + self.oc * self.oh * self.ow)

    def with_batch(self, n: int) -> Problem:
        """The same layer with its batch filled in, unless the string named one."""
        return self if self.n else dataclasses.replace(self, n=n)


def parse_problem(text: str, default_name: str = "problem") -> Problem:
    """The layer that `text` describes. ValueError with the offending word if it does not."""
    words = [word for word in re.split(r"[\s,]+", text.strip()) if word]
    if not words:
        raise ValueError("problem: empty; write it like 'ic64 ih56 oc64 kh3 ph1'")
    name = default_name
    if not _TOKEN.fullmatch(words[0]):
        name = words.pop(0)
    values: dict[str, int] = {}
    for word in words:
        match = _TOKEN.fullmatch(word)
        if match is None:
            raise ValueError(
                f"problem {name!r}: cannot read {word!r}; known letters: ic ih iw oc kh kw sh sw ph pw dh dw g n x"
            )
        if match[1] in values:
            raise ValueError(f"problem {name!r}: {match[1]} is given twice ({values[match[1]]} and {match[2]})")
        values[match[1]] = int(match[2])
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ValueError(f"problem {name!r}: {', '.join(missing)} missing in {text.strip()!r}")
    for key, value in _DEFAULTS.items():
        values.setdefault(key, value)
    for key, partner in _PARTNERS.items():
        values.setdefault(key, values[partner])
    return Problem(name, **values)


def format_problem(problem: Problem) -> str:
    """The string that `parse_problem` reads back as the same layer; dilation, groups and batch only where they are not
    1, 1, 0."""
    keys = ["ic", "ih", "iw", "oc", "kh", "kw", "sh", "sw", "ph", "pw"]
    keys += ["dh", "dw"] if (problem.dh, problem.dw) != (1, 1) else []
    keys += ["g"] if problem.g != 1 else []
    keys += ["n"] if problem.n else []
    return " ".join([problem.name, *(f"{key}{getattr(problem, key)}" for key in keys), f"x{problem.x}"])


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
    """Reads a suite file: a layer a line, `#` comments, and settings as `@about`, `@network`, `@max-time`, `@peers
    no`."""
    problems: list[Problem] = []
    settings: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            if key not in ("about", "network", "max-time", "peers"):
                raise ValueError(f"suite {name!r}, line {number}: unknown setting @{key}")
            settings[key] = value.strip()
            continue
        try:
            problems.append(parse_problem(line, f"line{number}"))
        except ValueError as error:
            raise ValueError(f"suite {name!r}, line {number}: {error}") from None
    names = [problem.name for problem in problems]
    for twice in sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"suite {name!r}: two layers are named {twice!r}")
    return Suite(
        name,
        tuple(problems),
        settings.get("about", ""),
        settings.get("network"),
        float(settings.get("max-time", 120.0)),
        settings.get("peers", "yes") != "no",
    )


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
