"""Where a run is, on a terminal only; and how it ends before its time."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Progress:
    """A line that shows where the run is, on a terminal only; tqdm's bar where that is installed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.shown = self.stream.isatty()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if self.shown and importlib.util.find_spec("tqdm") is not None:
            import tqdm

            self.bar = tqdm.tqdm(file=self.stream, leave=False, unit="step")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def step(self, done: int, total: int, name: str) -> None:
        if self.bar is not None:
            self.bar.total = total
            self.bar.set_description_str(name, refresh=False)
            self.bar.update(done - self.bar.n)
            self.bar.refresh()
        elif self.shown:
            self.stream.write(f"\r\x1b[K[{done}/{total}] {name}")
            self.stream.flush()


@contextmanager
def ended_like_interrupted() -> Iterator[None]:
    """SIGTERM (a time limit, a shutdown) is a KeyboardInterrupt inside: the file is written only now and then, and what
    was measured since would be lost."""
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
