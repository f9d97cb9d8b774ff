"""What the tests of the weight readers share: a watched load, the check of an error, and the formats by name.

Nothing in a file may run: while `load` is at work an audit hook records what Python does.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weight_files as wf
from fastconv import weights

STATE = wf.small_state()
WRITERS: dict[str, Callable[[wf.Arrays], bytes]] = {
    "safetensors": wf.safetensors,
    "pth-zip": wf.pth_zip,
    "pth-stream": wf.pth_stream,
    "npz": wf.npz,
    "npz-deflated": lambda arrays: wf.npz(arrays, compressed=True),
}


_events: list[tuple[str, tuple[Any, ...]]] | None = None
_FORBIDDEN = ("exec", "compile", "import", "pickle.", "subprocess.", "os.", "marshal.", "ctypes.", "shutil.", "socket.")


def _record(event: str, args: tuple[Any, ...]) -> None:
    if _events is not None:
        _events.append((event, args))


sys.addaudithook(_record)  # cannot be taken back; idle while _events is None


def load(path: Path, **options: Any) -> dict[str, NDArray[Any]]:
    """`weights.load`, watched: it may open its own file for reading and do nothing else that Python audits."""
    global _events
    _events = []
    try:
        return weights.load(path, **options)
    finally:
        seen, _events = _events, None
        bad = [event for event in seen if event[0].startswith(_FORBIDDEN)]
        opened = [args for event, args in seen if event == "open"]
        assert not bad, bad
        assert len(opened) <= 1, opened
        for name, _, flags in opened:
            assert name == str(path) and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC), opened


def refuse(path: Path, content: bytes, message: str = "") -> None:
    """Loading this content must be a ValueError that begins with the file's name; the rest matches `message`."""
    path.write_bytes(content)
    start = f"{path}: "
    with pytest.raises(ValueError, match=re.escape(start)) as caught:
        load(path)
    assert type(caught.value) is ValueError
    found = str(caught.value)
    assert found.startswith(start) and len(found) < 1000
    assert re.search(message, found[len(start) :]), found


def refuse_cheaply(path: Path, content: bytes) -> None:
    """Content that claims much and holds little: refused before the claim is allocated."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(str(path))):
            weights.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def open_files() -> set[str]:
    """Paths that this process has open, where the system tells.

    By path and not by number: what an earlier test left to the garbage collector may be closed at any moment.
    """
    table = Path("/proc/self/fd")
    found = set()
    for entry in table.iterdir() if table.is_dir() else ():
        with contextlib.suppress(OSError):  # closed meanwhile, as the listing's own descriptor is
            found.add(os.readlink(entry))
    return found


def watched_file(tmp_path: Path) -> Iterator[Path]:
    """A path to write to; afterwards nothing else may lie there, and no descriptor may be left open."""
    file = tmp_path / "weights.bin"
    yield file
    assert str(file) not in open_files(), "the file is left open"
    assert {entry.name for entry in tmp_path.iterdir()} <= {"weights.bin"}


def same(found: wf.Arrays, expected: wf.Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.c_contiguous and found[name].flags.aligned and found[name].flags.writeable
    blocks = list(found.values())
    assert not any(np.shares_memory(a, b) for i, a in enumerate(blocks) for b in blocks[:i])
