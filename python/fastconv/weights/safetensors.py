"""Reader of `.safetensors`: a little-endian u64 with the header's length, a JSON header, then the tensors' bytes.

Format: the README of huggingface/safetensors. The header maps each name to dtype, shape and `data_offsets` (begin and
end within the bytes after the header); `__metadata__` maps text to text and is ignored here. The spans must cover the
data without gap or overlap, as the format's own reader demands.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._file import WeightFile, bfloat16_to_float32, shown

MAX_HEADER_BYTES = 8 << 20
"""The format allows 100 MB. A tensor takes some 150 bytes, so this is room for 50 000 of them; parsed JSON can take
twenty times its text in memory, hence a smaller limit."""

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|u1",
}
_FIELDS = {"dtype", "shape", "data_offsets"}


def matches(head: bytes) -> bool:
    """Whether a file that begins with these bytes is this format: the header's `{` stands at byte 8."""
    return head[8:9] == b"{"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {shown(name)} occurs twice")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    # 19 digits hold every 64-bit size; int() of a very long text takes time with the square of its length.
    if len(digits) > 19:
        raise ValueError(f"a number of {len(digits)} digits, at most 19 are accepted")
    return int(digits)


def _refuse_number(text: str) -> Any:
    raise ValueError(f"the number {shown(text)}; sizes and offsets are whole")


def _header(file: WeightFile) -> tuple[dict[str, Any], int]:
    """The parsed header and the offset of the first data byte."""
    length = int.from_bytes(file.read(0, 8, "the header's length"), "little")
    if length > MAX_HEADER_BYTES:
        raise file.error(f"safetensors header of {length} bytes, at most {MAX_HEADER_BYTES} are accepted")
    text = file.read(8, length, f"the safetensors header of {length} bytes")
    try:
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except RecursionError:
        raise file.error("safetensors header: nested too deeply") from None
    except ValueError as reason:
        raise file.error(f"safetensors header: {reason}") from None
    if not isinstance(header, dict):
        raise file.error("safetensors header: not an object")
    return header, 8 + length


def _pair(file: WeightFile, what: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or any(type(v) is not int or v < 0 for v in value):
        raise file.error(f"{what} has the data_offsets {shown(value)}, expected two whole numbers >= 0")
    return value[0], value[1]


def read(file: WeightFile) -> dict[str, NDArray[Any]]:
    """All tensors by name, C-contiguous, in the stored dtype (BF16 becomes float32, exactly; BOOL becomes bool).

    Raises ValueError, naming the file, for every kind of damage; nothing of the data is allocated before the header
    is right.
    """
    header, start = _header(file)
    available = file.size - start
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise file.error("safetensors header: __metadata__ must map text to text")

    spans: list[tuple[int, int, str]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in header.items():
        what = f"tensor {shown(name)}"
        if not isinstance(entry, dict) or set(entry) != _FIELDS:
            raise file.error(f"{what} must be described by exactly dtype, shape and data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
            raise file.error(f"{what} has the dtype {shown(entry['dtype'])}, accepted are {', '.join(_DTYPES)}")
        if not isinstance(entry["shape"], list):
            raise file.error(f"{what} has the shape {shown(entry['shape'])}, expected a list")
        shapes[name], count = file.check_shape(entry["shape"], what)
        begin, end = _pair(file, what, entry["data_offsets"])
        if begin > end or end > available:
            raise file.error(f"{what} lies at data bytes {begin} to {end}, the file has {available} (truncated?)")
        needed = count * np.dtype(_DTYPES[entry["dtype"]]).itemsize
        if needed != end - begin:
            raise file.error(
                f"{what} of {entry['dtype']} and shape {shapes[name]} needs {needed} bytes, its span has {end - begin}"
            )
        spans.append((begin, end, name))

    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            kind = "overlaps the tensor before it" if begin < reached else "leaves a gap before it"
            raise file.error(f"tensor {shown(name)} begins at data byte {begin} and {kind}, which ends at {reached}")
        reached = end
    if reached != available:
        raise file.error(f"the tensors cover {reached} data bytes, the file has {available}")

    places = {name: (begin, end) for begin, end, name in spans}
    tensors: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        begin, end = places[name]
        raw = file.read_array(start + begin, end - begin, f"tensor {shown(name)}")
        array: NDArray[Any] = raw.view(_DTYPES[entry["dtype"]]).reshape(shapes[name])
        if entry["dtype"] == "BF16":
            array = bfloat16_to_float32(array)
        elif entry["dtype"] == "BOOL":
            array = array != 0
        tensors[name] = array
    return tensors
