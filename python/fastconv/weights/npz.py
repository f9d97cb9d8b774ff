"""Reader of `.npz`: a ZIP archive of `.npy` members, as `numpy.savez` and `numpy.savez_compressed` write it.

Format of a member: `numpy.lib.format` (versions 1.0 to 3.0). The header is matched by a pattern and never evaluated,
and object arrays (which hold a pickle) are refused by dtype, so nothing in the file can run.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._file import Bytes, WeightFile, shown
from ._zip import Archive

MAX_HEADER_BYTES = 4096
"""Bytes of one array's header. NumPy writes 118 for anything of up to five axes."""

_DTYPES = frozenset({"<f2", "<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1"})

_ENTRY = re.compile(
    r"""\s*(?P<q>['"])(?P<key>descr|fortran_order|shape)(?P=q)\s*:\s*
        (?:(?P<r>['"])(?P<text>[^'"]{1,32})(?P=r)|(?P<flag>True|False)|\((?P<sizes>[0-9,\ ]*)\))\s*(?P<end>,?)""",
    re.VERBOSE,
)


def _header(file: WeightFile, what: str, raw: Bytes) -> tuple[str, bool, tuple[int, ...], int, int]:
    """dtype, whether it is in Fortran order, shape, number of elements, and offset of the first data byte."""
    lead = raw[:12].tobytes()
    if lead[:6] != b"\x93NUMPY" or len(lead) < 12:
        raise file.error(f"{what} is not a .npy array")
    if lead[6] not in (1, 2, 3):
        raise file.error(f"{what} has .npy version {lead[6]}, accepted are 1 to 3")
    width = 2 if lead[6] == 1 else 4
    begin = 8 + width
    length = int.from_bytes(lead[8:begin], "little")
    if length > MAX_HEADER_BYTES:
        raise file.error(f"{what} has a header of {length} bytes, at most {MAX_HEADER_BYTES} are accepted")
    if begin + length > len(raw):
        raise file.error(f"{what} has a header of {length} bytes but only {len(raw) - begin} follow")
    text = raw[begin : begin + length].tobytes().decode("latin-1").strip()
    damaged = file.error(f"{what} has a damaged .npy header: {shown(text)}")
    if text[:1] != "{" or text[-1:] != "}":
        raise damaged
    inner, at = text[1:-1].rstrip(), 0
    found: dict[str, re.Match[str]] = {}
    while at < len(inner):
        entry = _ENTRY.match(inner, at)
        if entry is None or entry["key"] in found or (not entry["end"] and entry.end() != len(inner)):
            raise damaged
        found[entry["key"]] = entry
        at = entry.end()
    if len(found) != 3:
        raise damaged
    dtype, flag, sizes = found["descr"]["text"], found["fortran_order"]["flag"], found["shape"]["sizes"]
    if dtype is None or flag is None or sizes is None:
        raise damaged
    if dtype not in _DTYPES:
        raise file.error(
            f"{what} has the dtype {shown(dtype)}, accepted are {', '.join(sorted(_DTYPES))} (little-endian)"
        )
    parts = [part.strip() for part in sizes.split(",")]
    if parts[-1] == "":
        parts.pop()
    elif len(parts) == 1:
        raise damaged  # (3) is a number, not a shape
    if not all(re.fullmatch("[0-9]{1,19}", part) for part in parts):
        raise damaged
    shape, count = file.check_shape([int(part) for part in parts], what)
    return dtype, flag == "True", shape, count, begin + length


def read(file: WeightFile, archive: Archive) -> dict[str, NDArray[Any]]:
    """All arrays by name (the member's name without `.npy`), C-contiguous, in the stored dtype.

    Raises ValueError, naming the file and the member, for every kind of damage.
    """
    for name in archive.members:
        if not name.endswith(".npy") or name == ".npy":
            raise file.error(f"zip member {shown(name)} is not a .npy array")
    arrays: dict[str, NDArray[Any]] = {}
    for name in archive.members:
        what = f"array {shown(name[:-4])}"
        raw = archive.load(name)
        dtype, fortran, shape, count, start = _header(file, what, raw)
        needed = count * np.dtype(dtype).itemsize
        if needed != len(raw) - start:
            raise file.error(
                f"{what} of {dtype} and shape {shape} needs {needed} bytes, the member has {len(raw) - start}"
            )
        flat = raw[start:]
        if dtype == "|b1":
            flat = (flat != 0).view(np.uint8)  # a bool byte other than 0 and 1 is undefined behaviour
        array: NDArray[Any] = flat.view(dtype)
        if not array.flags.aligned:
            array = array.copy()
        array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
        arrays[name[:-4]] = array if array.flags.c_contiguous else array.copy(order="C")
    return arrays
