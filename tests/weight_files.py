"""Weight files made byte by byte, without PyTorch: valid ones, and parts to make one with one thing wrong.

Nothing here uses the package's readers. Formats: the README of huggingface/safetensors, CPython's `pickletools`,
`torch/serialization.py`, `numpy.lib.format`, PKWARE's APPNOTE.TXT.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

SAFETENSORS_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
STORAGE_NAMES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def small_state() -> dict[str, NDArray[Any]]:
    """A few arrays under torchvision's names: four axes, one, none."""
    rng = np.random.default_rng(7)
    return {
        "conv1.weight": rng.standard_normal((2, 3, 1, 2)).astype(np.float32),
        "bn1.bias": rng.standard_normal(3).astype(np.float32),
        "fc.bias": np.array(1.5, np.float32),
    }


# --- safetensors ----------------------------------------------------------------------------------------------------


def safetensors_parts(arrays: Arrays) -> tuple[dict[str, Any], bytes]:
    """Header and data of a valid file; change one, then `safetensors_file`."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": SAFETENSORS_NAMES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return header, data


def safetensors_file(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors(arrays: Arrays) -> bytes:
    return safetensors_file(*safetensors_parts(arrays))


# --- pickles: each function gives the opcodes that push one value ---------------------------------------------------

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: Iterable[int]) -> bytes:
    return tuple_of(*(number(value) for value in values))


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def list_of(*parts: bytes) -> bytes:
    return b"](" + b"".join(parts) + b"e"


def dict_of(items: Mapping[str, bytes], start: bytes = b"}") -> bytes:
    return start + b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + tuple_of(*args) + b"R"


ORDERED_DICT = call(name_of("collections", "OrderedDict"))


def pickled(value: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + value + b"."


def storage(
    kind: str, key: str, numel: int, *, tag: str = "storage", location: str = "cpu", view: bytes | None = None
) -> bytes:
    parts = [text(tag), name_of("torch", kind), text(key), text(location), number(numel)]
    return tuple_of(*parts, *([] if view is None else [view])) + b"Q"


def contiguous(shape: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    return tuple(int(np.prod(sizes[i + 1 :])) for i in range(len(sizes)))


def tensor(block: bytes, shape: Iterable[int], strides: Iterable[int] | None = None, offset: int = 0) -> bytes:
    shape = tuple(shape)
    steps = contiguous(shape) if strides is None else strides
    return call(
        name_of("torch._utils", "_rebuild_tensor_v2"),
        block,
        number(offset),
        numbers(shape),
        numbers(steps),
        FALSE,
        ORDERED_DICT,
    )


def state_dict(values: Mapping[str, bytes]) -> bytes:
    return dict_of(values, ORDERED_DICT)


# --- .pth: the pickle's value and the storages' bytes by key, apart, so that a test can change either ---------------


def pth_parts(arrays: Arrays, *, legacy: bool = False) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """For a valid file: the opcodes of each tensor by name, and the bytes of each storage by key."""
    tensors: dict[str, bytes] = {}
    blocks: dict[str, bytes] = {}
    for i, (name, array) in enumerate(arrays.items()):
        key = str(94000 + i) if legacy else str(i)
        kind = STORAGE_NAMES[str(array.dtype)]
        block = storage(kind, key, array.size, view=NONE if legacy else None)
        tensors[name] = tensor(block, array.shape)
        blocks[key] = array.tobytes()
    return tensors, blocks


def pth_zip_file(pickle: bytes, blocks: Mapping[str, bytes], extra: Iterable[Entry] = ()) -> bytes:
    entries = [Entry("net/data.pkl", pickle), Entry("net/byteorder", b"little")]
    entries += [Entry(f"net/data/{key}", raw) for key, raw in blocks.items()]
    return zip_file([*entries, *extra])


def pth_zip(arrays: Arrays) -> bytes:
    tensors, blocks = pth_parts(arrays)
    return pth_zip_file(pickled(state_dict(tensors)), blocks)


MAGIC = pickled(number(0x1950A86A20F9469CFC6C))
PROTOCOL = pickled(number(1001))
SYSTEM = pickled(dict_of({"protocol_version": number(1001), "little_endian": TRUE}))


def pth_stream_file(
    pickle: bytes,
    blocks: Mapping[str, bytes],
    itemsize: int = 4,
    *,
    magic: bytes = MAGIC,
    protocol: bytes = PROTOCOL,
    system: bytes = SYSTEM,
    keys: bytes | None = None,
) -> bytes:
    """The older stream, all storages with elements of `itemsize` bytes."""
    listed = pickled(list_of(*(text(key) for key in blocks))) if keys is None else keys
    stored = b"".join(struct.pack("<q", len(raw) // itemsize) + raw for raw in blocks.values())
    return magic + protocol + system + pickle + listed + stored


def pth_stream(arrays: Arrays) -> bytes:
    """All arrays of one item size."""
    tensors, blocks = pth_parts(arrays, legacy=True)
    return pth_stream_file(pickled(state_dict(tensors)), blocks, max((a.itemsize for a in arrays.values()), default=4))


# --- npz ------------------------------------------------------------------------------------------------------------


def npy_file(header: str, data: bytes, version: int = 1) -> bytes:
    """A `.npy` array with this header text."""
    width = 2 if version == 1 else 4
    padded = header.ljust(-(-(len(header) + 9 + width) // 64) * 64 - 9 - width) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(padded).to_bytes(width, "little") + padded.encode() + data


def npy_header(descr: str, shape: str, fortran: str = "False") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}"


def npy(array: NDArray[Any]) -> bytes:
    return npy_file(npy_header(array.dtype.str, str(array.shape)), array.tobytes())


def npz(arrays: Arrays, *, compressed: bool = False) -> bytes:
    return zip_file([Entry(f"{name}.npy", npy(array), method=8 if compressed else 0) for name, array in arrays.items()])


# --- zip ------------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """A member; a field that is not None replaces the true value in the directory (`own_*`: in the member's header)."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    packed_size: int | None = None
    packed: bytes | None = None
    offset: int | None = None
    own_name: str | None = None
    own_size: int | None = None
    own_method: int | None = None
    zip64: bool = False


def deflate(data: bytes, level: int = 6) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def zip_file(
    entries: Iterable[Entry],
    *,
    count: int | None = None,
    directory_offset: int | None = None,
    directory_size: int | None = None,
    comment: bytes = b"",
    zip64: bool = False,
) -> bytes:
    out, directory = b"", b""
    number_of = 0
    for entry in entries:
        number_of += 1
        packed = entry.packed
        if packed is None:
            packed = deflate(entry.data) if entry.method == 8 else entry.data
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        packed_size = len(packed) if entry.packed_size is None else entry.packed_size
        offset = len(out) if entry.offset is None else entry.offset
        name = entry.name.encode()
        own_name = (entry.own_name or entry.name).encode()
        own_size = size if entry.own_size is None else entry.own_size
        own_method = entry.method if entry.own_method is None else entry.own_method
        fields = (crc, packed_size, own_size)
        if entry.zip64:  # as numpy.savez writes them
            fields = (crc, 0xFFFFFFFF, 0xFFFFFFFF)
        own_extra = struct.pack("<2H2Q", 1, 16, own_size, packed_size) if entry.zip64 else b""
        out += struct.pack(
            "<4s5H3I2H", b"PK\3\4", 20, entry.flags, own_method, 0, 33, *fields, len(own_name), len(own_extra)
        )
        out += own_name + own_extra + packed
        extra, listed = b"", (crc, packed_size, size)
        if entry.zip64:
            extra = struct.pack("<2H3Q", 1, 24, size, packed_size, offset)
            listed, offset = (crc, 0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF
        head = (b"PK\1\2", 20, 20, entry.flags, entry.method, 0, 33)
        directory += (
            struct.pack("<4s6H3I5H2I", *head, *listed, len(name), len(extra), 0, 0, 0, 0, offset) + name + extra
        )
    number_of = number_of if count is None else count
    start = len(out) if directory_offset is None else directory_offset
    size = len(directory) if directory_size is None else directory_size
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, number_of, number_of, size, start, len(comment)) + comment
    if zip64:
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, number_of, number_of, size, start)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(out) + len(directory), 1)
        full = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        end = record + locator + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *full)
    return out + directory + end
