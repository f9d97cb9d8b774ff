"""Reader of PyTorch's `.pth` files, both containers, without PyTorch and without running the pickle.

- Zip (PyTorch 1.6 and later): `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds the bytes of each storage.
- Older stream: five pickles in a row (magic number, protocol 1001, system information, the tensors, the list of
  storage keys), then each storage as a 64-bit number of elements and its bytes, in that list's order.

Layout of both: `torch/serialization.py` of PyTorch. The tar container that came before both is refused.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._file import Bytes, WeightFile, bfloat16_to_float32, shown
from ._pickle import MAX_PICKLE_BYTES, Kind, Parameter, Reader, Storage, Tensor
from ._zip import Archive

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

MAX_COPIES = 4
"""Tensors may take, all together, this many times the bytes of the storages that they view. Tied weights reach 2;
without a limit a thousand views of one storage would take a thousand times the file."""

_WRAPPERS = ("state_dict", "model")
_BITS = {Kind.BFloat16Storage: "<u2", Kind.BoolStorage: "|u1"}  # read as numbers first, then converted


def matches_stream(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a pickle of protocol 2 to 5, as the older stream is."""
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def pickle_members(archive: Archive) -> list[str]:
    """The members that make a ZIP archive a PyTorch file; a sound one has exactly one."""
    return [name for name in archive.members if name.endswith("/data.pkl")]


def _select(file: WeightFile, tree: object) -> dict[str, Tensor]:
    """The state dict within what the pickle gave: itself, or below one of the usual wrappers."""
    if isinstance(tree, dict):
        for wrapper in _WRAPPERS:
            if isinstance(tree.get(wrapper), dict):
                tree = tree[wrapper]
                break
    if not isinstance(tree, dict):
        raise file.error(f"holds {shown(tree)}, expected a dict of tensors (a state_dict)")
    tensors: dict[str, Tensor] = {}
    for name, value in tree.items():
        if not isinstance(name, str):
            raise file.error(f"the key {shown(name)} is not text")
        tensor = value.tensor if isinstance(value, Parameter) else value
        if not isinstance(tensor, Tensor):
            raise file.error(f"key {shown(name)} holds {shown(value)}, expected a tensor")
        tensors[name] = tensor
    return tensors


def _materialise(
    file: WeightFile, tensors: dict[str, Tensor], load: Callable[[Storage], Bytes]
) -> dict[str, NDArray[Any]]:
    """Each tensor as a C-contiguous array that shares memory with no other one. Each storage is read once."""
    uses = Counter(tensor.storage.key for tensor in tensors.values())
    blocks = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    stored = sum(block.numel * block.kind.itemsize for block in blocks.values())
    needed = sum(tensor.count * tensor.storage.kind.itemsize for tensor in tensors.values())
    if needed > MAX_COPIES * stored:
        raise file.error(
            f"the tensors take {needed} bytes, their storages {stored}; at most {MAX_COPIES} times as much is accepted"
        )
    loaded: dict[str, NDArray[Any]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        kind = storage.kind
        key = storage.key
        if key not in loaded:
            loaded[key] = load(storage).view(_BITS.get(kind, kind.value))
        block = loaded[key]
        # The constructor checks the bounds once more, by itself.
        array: NDArray[Any] = np.ndarray(
            tensor.shape,
            block.dtype,
            block,
            offset=(storage.start + tensor.offset) * block.itemsize if tensor.count else 0,
            strides=tuple(step * block.itemsize for step in tensor.strides) if tensor.count else None,
        )
        uses[key] -= 1
        if not uses[key]:
            del loaded[key]
        if kind is Kind.BFloat16Storage:
            array = bfloat16_to_float32(np.array(array, order="C"))
        elif kind is Kind.BoolStorage:
            array = np.array(array != 0, order="C")
        elif uses[key] or tensor.count != block.size or not array.flags.c_contiguous:
            array = np.array(array, order="C")
        else:
            array = block.reshape(tensor.shape)
        arrays[name] = array
    return arrays


def read_zip(file: WeightFile, archive: Archive) -> dict[str, NDArray[Any]]:
    """All tensors of a zip container by name, in the stored dtype (bfloat16 becomes float32, exactly).

    Raises ValueError, naming the file, for every kind of damage and for every pickle that does more than describe
    tensors.
    """
    pickles = pickle_members(archive)
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise file.error(
            f"a PyTorch archive must hold exactly one NAME/data.pkl, found {len(pickles)}: {shown(pickles[0])}"
        )
    member = pickles[0]
    prefix = member[: -len("data.pkl")]
    order = prefix + "byteorder"
    if order in archive.members and (archive.members[order].size != 6 or archive.load(order).tobytes() != b"little"):
        raise file.error("the tensors are not little-endian, which is the only byte order that is accepted")
    size = archive.members[member].size
    if size > MAX_PICKLE_BYTES:
        raise file.error(f"{member} has {size} bytes, at most {MAX_PICKLE_BYTES} are accepted")
    reader = Reader(file, archive.load(member).tobytes(), f"pickle {shown(member)}")
    tree = reader.load()
    if reader.position != size:
        raise file.error(f"{member} ends at byte {reader.position}, the member has {size}")
    for storage in reader.storages.values():
        name = f"{prefix}data/{storage.key}"
        if name not in archive.members:
            raise file.error(f"storage {shown(name)} is missing from the archive")
        needed, found = storage.numel * storage.kind.itemsize, archive.members[name].size
        if needed != found:
            raise file.error(
                f"storage {shown(name)} of {storage.numel} {storage.kind.name} needs {needed} bytes, it has {found}"
            )
    return _materialise(file, _select(file, tree), lambda storage: archive.load(f"{prefix}data/{storage.key}"))


def read_stream(file: WeightFile) -> dict[str, NDArray[Any]]:
    """All tensors of the older stream by name; dtypes and errors as in `read_zip`."""
    what = "PyTorch stream"
    reader = Reader(file, file.read(0, min(file.size, MAX_PICKLE_BYTES), what), what)
    magic = reader.load()
    if magic != MAGIC_NUMBER:
        number = f"{magic:#x}" if type(magic) is int else shown(magic)
        raise file.error(f"a pickle, but no PyTorch file: its magic number is {number}, expected {MAGIC_NUMBER:#x}")
    version = reader.load()
    if version != PROTOCOL_VERSION:
        raise file.error(f"{what}: protocol {shown(version)}, accepted is {PROTOCOL_VERSION}")
    system = reader.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise file.error(f"{what}: the tensors are not little-endian, which is the only byte order that is accepted")
    if reader.storages:
        raise file.error(f"{what}: a storage outside the state dict")
    tree = reader.load()
    described = dict(reader.storages)
    keys = reader.load()
    if not isinstance(keys, list) or len(reader.storages) != len(described):
        raise file.error(f"{what}: no list of storage keys after the tensors")
    places: dict[str, int] = {}
    at = reader.position
    for key in keys:
        if not isinstance(key, str) or key not in described:
            raise file.error(f"{what}: storage {shown(key)} is listed but no tensor uses it")
        if key in places:
            raise file.error(f"{what}: storage {key} is listed twice")
        storage = described[key]
        numel = int.from_bytes(file.read(at, 8, f"storage {key}"), "little", signed=True)
        if numel != storage.numel:
            raise file.error(
                f"{what}: storage {key} has {numel} elements at byte {at}, the pickle says {storage.numel}"
            )
        places[key] = at + 8
        at += 8 + numel * storage.kind.itemsize
        if at > file.size:
            raise file.error(f"{what}: storage {key} ends at byte {at}, the file has {file.size} (truncated?)")
    missing = [key for key in described if key not in places]
    if missing:
        raise file.error(f"{what}: storage {missing[0]} is used but not listed")
    if at != file.size:
        raise file.error(f"{what}: the storages end at byte {at}, the file has {file.size}")

    def load(storage: Storage) -> Bytes:
        return file.read_array(places[storage.key], storage.numel * storage.kind.itemsize, f"storage {storage.key}")

    return _materialise(file, _select(file, tree), load)
