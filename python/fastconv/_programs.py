"""Compiled programs kept for the shapes that were met lately, and the warning where one is slow.

Layers and networks share this: one cache for each object, bounded, for any number of threads, sound after fork().
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import _core

_REFERENCE = ("reference", "conv_reference")


class PerformanceWarning(UserWarning):
    """The call is right but far from fast: only the reference kernel could do it."""


def fell_back(algorithm: Any, names: Sequence[str]) -> bool:
    """Whether "auto" came to the reference kernel; not so where the caller or FASTCONV_KERNEL named that first."""
    if algorithm != "reference" or "auto" not in names or os.environ.get("FASTCONV_KERNEL") in _REFERENCE:
        return False
    return not any(name in _REFERENCE for name in names[: names.index("auto")])


def warn_of_fallback(op: str) -> None:
    """A PerformanceWarning at the line outside of this package that made the call."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{op} runs on the slow reference kernel: no other can do this problem; fastconv.explain says why",
        PerformanceWarning,
        stacklevel=level,
    )


class Prepared(NamedTuple):
    """A finalized program. `slow`: "auto" had to take the reference kernel for one of its convolutions."""

    program: _core.Program
    slow: bool


class ProgramCache:
    """The programs of one layer or network, at most `limit`, the least lately used dropped first.

    `names` are the algorithms that its convolutions may take, in order of preference.
    """

    def __init__(self, limit: int, names: Sequence[str] = ("auto",)) -> None:
        self._limit = limit
        self._names = tuple(names)
        self._kept: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()
        self._renew_locks()
        _caches.add(self)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: tuple[Any, ...], build: Callable[[], _core.Program]) -> Prepared:
        """The program of this key, made by `build` if there is none yet.

        One is built at a time, so that threads that meet a new shape together share the work; calls whose program
        exists do not wait for it. If `build` raises, nothing is kept.
        """
        key = (*key, _core.plan_epoch())  # plans for another ISA level or other tuned choices must not run
        found = self._find(key)
        if found is not None:
            return found
        with self._building:
            found = self._find(key)
            if found is None:
                program = build()
                slow = any(s["op"] == "conv2d" and fell_back(s["algorithm"], self._names) for s in program.steps())
                found = Prepared(program, slow)
                with self._lock:
                    self._kept[key] = found
                    while len(self._kept) > self._limit:
                        self._kept.popitem(last=False)
        return found

    def _find(self, key: tuple[Any, ...]) -> Prepared | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def _renew_locks(self) -> None:
        # Reentrant: a signal handler may call the same layer while the code that it interrupted holds the lock.
        self._lock = threading.RLock()
        self._building = threading.RLock()


_caches: weakref.WeakSet[ProgramCache] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # Another thread may have held a lock at the moment of the fork; in the child nobody would ever release it.
    for cache in list(_caches):
        cache._renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
