"""A weight file that is read by bounded pieces, and what every reader shares.

The file is never memory-mapped: a file that shrinks while it is mapped would kill the interpreter. Each tensor is
read straight into memory of its own, so the peak is the size of the tensors (twice that for the ones that need a
copy), and no array keeps the rest of the file alive. Every read is checked against the size that the file had when it
was opened, before anything is allocated.
"""

import errno
import math
import os
import stat
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

MAX_DIMS = 32
"""Axes of one tensor. NumPy 1 stops at 32, and no weight has more than five."""

MAX_ELEMENTS = 1 << 48
"""Elements of one tensor, empty axes counted as one. Above any file; low enough that bytes and strides fit in 64
bits."""

_SHOWN = 100
_READ_BYTES = 1 << 30  # one read() call; some systems return short or fail above 2 GiB


def shown(value: object) -> str:
    """A value from the file for an error message: short, and safe for any value (a nested one is only named by its
    type, since its `repr` could recurse without end or grow without bound)."""
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN]) + "..."
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    if isinstance(value, list | tuple) and len(value) <= MAX_DIMS and all(type(item) is int for item in value):
        return repr(value)
    return f"a {type(value).__name__}"


class WeightFile:
    """An open regular file of known size. Use it in a `with` statement; it is closed on every way out."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens `path`. TypeError where it is no path, FileNotFoundError/OSError where it cannot be opened or is no
        regular file."""
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"path must be a str or os.PathLike of str, got {type(path).__name__}")
        self.path = name
        if "\0" in name:
            raise self.error("the path holds a NUL character")
        # Checked before opening: opening a named pipe would wait for a writer.
        try:
            mode = os.stat(name).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, "the path of the weights is a directory", name)
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "the path of the weights is not a regular file", name)
            self._file = open(name, "rb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "weight file not found", name) from None
        try:
            self.size = os.fstat(self._file.fileno()).st_size
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def error(self, text: str) -> ValueError:
        """The error for damaged or hostile content: names the file, then what is wrong."""
        return ValueError(f"{self.path}: {text}")

    def read_array(self, offset: int, count: int, what: str) -> Bytes:
        """`count` bytes from `offset` as a new uint8 array; ValueError where the file is too short for them."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self.error(f"{what} needs bytes {offset} to {offset + count}, the file has {self.size} (truncated?)")
        out = np.empty(count, np.uint8)
        view = out.data
        done = 0
        try:
            self._file.seek(offset)
            while done < count:
                got = self._file.readinto(view[done : done + _READ_BYTES])
                if not got:
                    raise self.error(
                        f"the file ended at byte {offset + done} while {what} was read; it was {self.size} long"
                    )
                done += got
        except OSError as reason:
            raise OSError(reason.errno, reason.strerror, self.path) from reason
        return out

    def read(self, offset: int, count: int, what: str) -> bytes:
        """As `read_array`, as bytes. For headers."""
        return self.read_array(offset, count, what).tobytes()

    def check_shape(self, shape: Sequence[object], what: str) -> tuple[tuple[int, ...], int]:
        """The shape as a tuple and its number of elements; ValueError for anything but a sane list of whole
        numbers."""
        if len(shape) > MAX_DIMS:
            raise self.error(f"{what} has {len(shape)} axes, at most {MAX_DIMS} are accepted")
        sizes: list[int] = []
        room = 1
        for size in shape:
            if type(size) is not int or size < 0:
                raise self.error(f"{what} has the shape {shown(list(shape))}: every axis must be a whole number >= 0")
            # Empty axes count as one here, so that (0, 2**60) is refused as well: NumPy could not hold such a shape.
            room *= max(size, 1)
            if room > MAX_ELEMENTS:
                raise self.error(f"{what} has the shape {shown(list(shape))}: more than {MAX_ELEMENTS} elements")
            sizes.append(size)
        return tuple(sizes), math.prod(sizes)


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bit patterns as float32, exactly: a bfloat16 is the upper half of a float32."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)
