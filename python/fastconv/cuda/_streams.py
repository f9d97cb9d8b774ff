"""Streams: ours, and the handles of everyone else's."""

from __future__ import annotations

from typing import Any

from .._arguments import integer
from ._backend import backend, device_argument

LEGACY = 0  # the legacy default stream; DLPack and __cuda_array_interface__ call it 1


class Stream:
    """A queue of work of one device, which does not wait for the default stream.

    `ptr` is its handle, under the name that CuPy uses; it also speaks `__cuda_stream__`. It must live as long as work
    on it is under way.
    """

    __slots__ = ("_stream",)

    def __init__(self, device: int | None = None) -> None:
        ordinal = device_argument(device)
        self._stream = backend().Stream(ordinal)

    @property
    def ptr(self) -> int:
        return int(self._stream.handle)

    @property
    def device(self) -> int:
        return int(self._stream.device)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr

    def synchronize(self) -> None:
        """Wait for everything that is in the queue now."""
        self._stream.synchronize()

    def __repr__(self) -> str:
        return f"fastconv.cuda.Stream(device={self.device}, ptr={self.ptr:#x})"


def handle_of(stream: Any) -> int:
    """The handle of a stream in any form: an int, a `Stream`, or another library's stream object."""
    if isinstance(stream, Stream):
        return stream.ptr
    protocol = getattr(stream, "__cuda_stream__", None)
    if callable(protocol):
        return _number(int(protocol()[1]))
    for name in ("cuda_stream", "ptr"):  # torch, CuPy
        handle = getattr(stream, name, None)
        if handle is not None:
            return _number(integer(handle, "stream", 0))
    if hasattr(stream, "__index__"):
        return _number(integer(stream, "stream", 0))
    raise TypeError(
        "stream must be the integer handle of a CUDA stream, or an object with __cuda_stream__, cuda_stream or ptr; "
        f"got {type(stream).__name__}"
    )


def _number(handle: int) -> int:
    return LEGACY if handle == 1 else handle


def protocol_number(handle: int) -> int:
    """A stream as DLPack and `__cuda_array_interface__` number it: 0 is ambiguous there, 1 the legacy default."""
    return 1 if handle == LEGACY else handle
