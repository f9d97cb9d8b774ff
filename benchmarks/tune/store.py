"""The file of choices: merged with what is there, written whole or not at all, by one process at a time.

Reading and judging it is the package's (`fastconv._tuning`), which needs no part of the benchmark. What the tuner did
not write is never written over.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastconv import _tuning

from ..schema import write_atomically
from .choices import Decision

Choice = dict[str, Any]

#: How long to wait for another process that is writing; that takes milliseconds.
LOCK_SECONDS = 30.0


def path() -> Path:
    """Where choices are kept. OSError where there is no such place."""
    found = _tuning.default_path()
    if found is None:
        raise OSError("there is no folder for caches here: name a file in FASTCONV_TUNE_FILE")
    return Path(found)


def require_writable(file: Path) -> None:
    """OSError if the file cannot be written, or must not be: judged before anything is measured."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder of the tuning file {os.fspath(file)!r} is not writable")
    _known(file)


def _known(file: Path) -> list[Choice]:
    """What the file holds; nothing where it is ours and of no use, so that a damaged one heals. OSError where it is
    somebody else's."""
    try:
        return _tuning.read(os.fspath(file))
    except _tuning.UnusableFileError as error:
        if error.ours:
            return []
        raise OSError(f"the tuning file {os.fspath(file)!r} {error}: it is not written over, remove it first") from None


def merge(file: Path, decisions: list[Decision]) -> int:
    """Stores what was decided and returns how many choices the file now holds. A layer that goes back to its default
    loses its choice; one that was not judged in full keeps what it had, and all that was not measured stays."""

    def change(known: list[Choice]) -> list[Choice]:
        kept = {_tuning.key_of(choice): choice for choice in known}
        for decision in decisions:
            if decision.changed:
                choice = decision.choice()
                kept.pop(_tuning.key_of(choice), None)  # to the end: the last ones are the newest
                kept[_tuning.key_of(choice)] = choice
            elif decision.sure:
                kept.pop(_tuning.key_of(decision.key()), None)
        return list(kept.values())[-_tuning.MAX_CHOICES :]

    return _rewrite(file, change)


def clear(file: Path) -> int:
    """Forgets this machine's choices, of every version, and returns how many there were."""
    machine, before = _tuning.this_machine(), len(_known(file))
    if not file.exists():
        return 0
    return before - _rewrite(file, lambda known: [c for c in known if c["machine"] != machine])


def _rewrite(file: Path, change: Callable[[list[Choice]], list[Choice]]) -> int:
    with _alone(file):
        choices = change(_known(file))
        text = _text(choices)
        while len(text) > _tuning.MAX_BYTES:  # only ASCII
            choices = choices[len(choices) // 8 + 1 :]
            text = _text(choices)
        if choices:
            write_atomically(file, text)
        else:
            file.unlink(missing_ok=True)
    return len(choices)


def _text(choices: list[Choice]) -> str:
    """A line a choice."""
    lines = ",\n".join(json.dumps(choice, separators=(",", ":"), allow_nan=False) for choice in choices)
    return f'{{"schema":{_tuning.SCHEMA},"tool":"{_tuning.TOOL}","choices":[\n{lines}\n]}}\n'


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Holds a lock beside the file, where the system has such; two writers then merge one after the other."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    name = file.with_name(file.name + ".lock")
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"another process has held {os.fspath(name)!r} for {LOCK_SECONDS:g} s") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)  # the lock goes with it; the file stays, or two could hold locks of one name
