"""Threads pinned to processors, ours and those of any other library.

A library's threads cannot be asked for, so they are found by what they do: those of this process that used processor
time during some calls are the ones that compute. Each gets a processor of its own (one hardware thread of each core
first). The calling thread is moved there for its turns only: threads that it starts inherit its mask, and a pool that
was born on one processor would stay there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: A thread works if it used at least this share of what the busiest one used.
WORKING = 0.2
_TASKS = Path("/proc/self/task")


def available() -> bool:
    """Whether this system lets a process see and pin its threads (Linux does)."""
    return hasattr(os, "sched_setaffinity") and _TASKS.is_dir()


def processors() -> list[int]:
    """The processors that this process may use, the first hardware thread of each core before the second ones."""
    allowed = sorted(os.sched_getaffinity(0))
    firsts: list[int] = []
    others: list[int] = []
    seen: set[str] = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            core = path.read_text(encoding="ascii").strip()
        except OSError:
            core = str(cpu)
        (others if core in seen else firsts).append(cpu)
        seen.add(core)
    return firsts + others


def busy_ns() -> dict[int, int]:
    """Nanoseconds that each thread of this process has run so far, by its number."""
    found: dict[int, int] = {}
    for task in _TASKS.iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except (OSError, ValueError, IndexError):  # ended meanwhile, or a kernel without these figures
            continue
    return found


class Pinner:
    """Puts the threads that compute on processors of their own, for a given number of threads.

    `why_not`: a sentence where it cannot (not Linux, or fewer processors than threads), else None. Then nothing is
    pinned.
    """

    def __init__(self, threads: int, wanted: bool = True) -> None:
        self.threads = threads
        self.why_not: str | None = None
        self._cpus: list[int] = []
        if not wanted:
            self.why_not = "not asked for"
        elif not available():
            self.why_not = "this system does not let a process pin its threads"
        else:
            self._all = os.sched_getaffinity(0)
            self._cpus = processors()
            if len(self._cpus) < threads:
                self.why_not = f"{threads} threads on {len(self._cpus)} processor(s)"

    def learn(self, call: Callable[[], object]) -> Place:
        """Makes the call, sees which threads worked, and pins all of them but the calling one."""
        if self.why_not is not None:
            call()
            return Place(None, None)
        before = busy_ns()
        call()
        used = {tid: ns - before.get(tid, 0) for tid, ns in busy_ns().items()}
        most = max(used.values(), default=0)
        working = [tid for tid, ns in sorted(used.items(), key=lambda item: -item[1]) if ns >= WORKING * most and ns]
        caller = threading.get_native_id()
        if not working or len(working) > self.threads:
            return Place(None, self._all)
        cpus = list(self._cpus[: self.threads])
        own = cpus.pop(0) if caller in working else None
        for tid, cpu in zip(sorted(t for t in working if t != caller), cpus):
            _set(tid, {cpu})
        return Place(own, self._all)


class Place:
    """Where the calling thread goes for the turns of one candidate: one processor, or all where it only waits."""

    def __init__(self, cpu: int | None, everywhere: set[int] | None) -> None:
        self.cpu, self.everywhere = cpu, everywhere

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self.cpu is None or self.everywhere is None:
            yield
            return
        _set(0, {self.cpu})
        try:
            yield
        finally:
            _set(0, self.everywhere)


def _set(tid: int, cpus: set[int]) -> None:
    try:
        os.sched_setaffinity(tid, cpus)
    except OSError:  # the thread has ended, or a container forbids it: it then runs where the system puts it
        return
