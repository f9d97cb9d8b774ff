"""The choices that `fastconv tune` stored: which file, read and judged, handed to the core before its first plan.

Nothing here runs at import, and nothing is imported later (why: `fastconv/__init__.py`). The core calls `load` once,
when a convolution is first planned with algorithm="auto". A file that cannot be used is one warning and no choices.
Writing is the tuner's (`benchmarks/tune/store.py`).
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import warnings
from dataclasses import dataclass, field
from typing import Any

from . import _core

SCHEMA = 1
TOOL = "fastconv tune"
#: What a file may hold. A choice takes some 400 bytes, a network some dozens of choices.
MAX_BYTES = 4 << 20
MAX_CHOICES = 4096
#: Tells a machine from another; with the package's version, since each has other kernels.
MACHINE = ("cpu", "l1d_bytes", "l2_bytes", "l3_bytes")

_PROBLEM = re.compile(r"[a-z]{1,2}\d{1,19}(?: [a-z]{1,2}\d{1,19}){0,31}")
_WORDS = {"isa": re.compile(r"\w{1,32}"), "layout": re.compile(r"\w{1,32}"), "dtype": re.compile(r"\w{1,32}")}
_WORDS |= {"problem": _PROBLEM, "kernel": re.compile(r"\w{1,64}"), "fastconv": re.compile(r"[\w.+!-]{1,64}")}
#: What a choice is for; two of the same are one.
KEY = ("machine", "fastconv", "isa", "dtype", "layout", "problem")

Choice = dict[str, Any]


class UnusableFileError(ValueError):
    """Why a file cannot be used, in words that follow its name. `ours`: the tuner wrote it, and may write over it."""

    def __init__(self, text: str, ours: bool = False) -> None:
        super().__init__(text)
        self.ours = ours


@dataclass
class State:
    """What was found. `total`: choices in the file; `here`: those for this machine, version and build; `problem`: why
    the file is ignored, or empty."""

    path: str | None = None
    total: int = 0
    here: list[Choice] = field(default_factory=list)
    problem: str = ""

    def describe(self) -> str:
        """In one line, for `show_config` and `fastconv info`."""
        if not allowed():
            return "ignored (FASTCONV_TUNE=0)"
        if self.path is None:
            return "no file: there is no folder for caches"
        if self.problem:
            return f"{self.path!r} is ignored: {self.problem}"
        return f"{len(self.here)} choices for this machine, of {self.total} in {self.path!r}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "file": self.path,
            "used": allowed(),
            "choices_here": len(self.here),
            "choices": self.total,
            "problem": self.problem,
        }


_state: State | None = None
_lock = threading.RLock()  # reentrant: who shows a warning may call an op


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it; nobody here would release it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def allowed() -> bool:
    """Whether FASTCONV_TUNE leaves the choices in force; the core has judged its value."""
    return os.environ.get("FASTCONV_TUNE") != "0"


def default_path() -> str | None:
    """FASTCONV_TUNE_FILE, or tune.json in the user's cache folder; None where there is no such folder."""
    named = os.environ.get("FASTCONV_TUNE_FILE")
    if named:
        return named
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):  # so the specification says: a relative one is ignored
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        caches = os.path.join(home, ".cache")
    return os.path.join(caches, "fastconv", "tune.json")


def load() -> State:
    """The choices of the file, read once and given to the core."""
    with _lock:
        return reload() if _state is None else _state


def reload() -> State:
    """Reads the file anew; later plans go by what it says now. Where it cannot be used: a warning, and no choices."""
    global _state
    found = State(default_path())
    with _lock:
        if allowed() and found.path is not None:
            try:
                choices = read(found.path)
                found.total, found.here = len(choices), [c for c in choices if _is_for_us(c)]
            except UnusableFileError as error:
                found.problem = str(error)
        _core.set_tuned([(c["isa"], c["layout"], c["problem"], c["kernel"]) for c in found.here])
        _state = found
    if found.problem:
        # One line, in the name of no line of code: the file is to blame.
        text = f"tuned choices are ignored: {found.path!r} {found.problem}"
        warnings.warn_explicit(text, RuntimeWarning, "<fastconv>", 0, "fastconv", {})
    return found


def this_machine() -> dict[str, Any]:
    machine = _core.machine()
    return {name: machine[name] for name in MACHINE}


def _is_for_us(choice: Choice) -> bool:
    """Whether it was measured on a machine like this with this version, and names a kernel that is there."""
    if (choice["machine"], choice["fastconv"], choice["dtype"]) != (this_machine(), _core.__version__, "float32"):
        return False
    return choice["kernel"] in kernels()


def kernels() -> list[str]:
    """Drivers that a choice may name: those that "auto" takes without a warning, best first."""
    rows = _core.kernels("conv2d")
    return list(dict.fromkeys(str(row["driver"]) for row in rows if row["algorithm"] != "reference"))


def key_of(choice: Choice) -> tuple[Any, ...]:
    return tuple(tuple(sorted(choice[k].items())) if k == "machine" else choice[k] for k in KEY)


def problem_of(plan: dict[str, Any]) -> str:
    """What a choice calls the problem of a plan: all but its n."""
    return str(plan["problem"]).partition(" ")[2]


def read(path: str) -> list[Choice]:
    """The choices of a file, none where there is no such file. UnusableFileError where there is one that is of no use,
    whatever it is and whoever wrote it."""
    try:
        raw = _content(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnusableFileError(f"cannot be read: {error.strerror or error}") from None
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnusableFileError(f"is no JSON ({_one_line(str(error))})") from None
    return _judged(data)


def _content(path: str) -> bytes:
    # Not blocking: what is there may be a pipe.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UnusableFileError("is no regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            raw = file.read(MAX_BYTES + 1)
    finally:
        os.close(handle)
    if len(raw) > MAX_BYTES:
        raise UnusableFileError(f"is larger than {MAX_BYTES} bytes")
    return raw


def _judged(data: Any) -> list[Choice]:
    if not isinstance(data, dict) or data.get("tool") != TOOL:
        raise UnusableFileError(f"was not written by `{TOOL}`")
    schema, choices = data.get("schema"), data.get("choices")
    reason = ""
    if schema != SCHEMA or isinstance(schema, bool):
        reason = f"has schema {_one_line(repr(schema))}, this version reads {SCHEMA}: run `{TOOL}` again"
    elif not isinstance(choices, list):
        reason = "is damaged: it has no list of choices"
    elif len(choices) > MAX_CHOICES:
        reason = f"holds {len(choices)} choices, at most {MAX_CHOICES} are read"
    else:
        wrong = ((number, _wrong(choice)) for number, choice in enumerate(choices, start=1))
        reason = next((f"is damaged: choice {number} {what}" for number, what in wrong if what), "")
    if reason:
        raise UnusableFileError(reason, ours=True)
    return list(choices or ())


def _wrong(choice: Any) -> str:
    if not isinstance(choice, dict):
        return "is no object"
    for name, pattern in _WORDS.items():
        value = choice.get(name)
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            return f"has no {name!r}" if name not in choice else f"has a {name!r} that means nothing"
    machine = choice.get("machine")
    if not isinstance(machine, dict) or set(machine) != set(MACHINE):
        return "does not say which machine it is for"
    sizes = [machine[name] for name in MACHINE[1:]]
    if not isinstance(machine["cpu"], str) or not all(isinstance(v, int) and not isinstance(v, bool) for v in sizes):
        return "does not say which machine it is for"
    return ""


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:197] + "..."
