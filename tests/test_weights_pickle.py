"""Hostile pickles in both PyTorch containers: nothing runs, and every one is a ValueError that names what is wrong."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import weight_files as wf
from fastconv.weights import _pickle, pth
from weight_checks import load, refuse, refuse_cheaply, watched_file
from weight_files import Entry


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield from watched_file(tmp_path)


# --- pickles: one thing wrong, in both containers -------------------------------------------------------------------

BLOCK = wf.storage("FloatStorage", "0", 6)
GOOD = wf.tensor(BLOCK, (2, 3))


def _in_both(value: bytes, protocol: int = 2) -> dict[str, bytes]:
    """This pickled value as a zip and as a stream, each otherwise valid, with one storage of six floats."""
    block = {"0": np.arange(6, dtype=np.float32).tobytes()}
    pickled = wf.pickled(value, protocol)
    return {"zip": wf.pth_zip_file(pickled, block), "stream": wf.pth_stream_file(pickled, block)}


def _with(value: bytes) -> bytes:
    return wf.state_dict({"good": GOOD, "bad": value})


def _rebuilt(*args: bytes, name: str = "_rebuild_tensor_v2") -> bytes:
    return wf.call(wf.name_of("torch._utils", name), *args)


_ARGS = (BLOCK, wf.number(0), wf.numbers([2, 3]), wf.numbers([3, 1]), wf.FALSE, wf.ORDERED_DICT)
_PARAMETER = wf.call(wf.name_of("torch.nn.parameter", "Parameter"), GOOD)
PICKLES: dict[str, tuple[bytes, str]] = {
    # calls
    "a name beside the list": (
        _with(wf.name_of("torch._utils", "_rebuild_tensor_v3")),
        "_rebuild_tensor_v3' .* not on the list",
    ),
    "a name under an allowed module": (_with(wf.name_of("torch", "load")), "'torch.load'"),
    "a dotted name": (_with(wf.name_of("torch._utils", "_rebuild_tensor_v2.__globals__")), "__globals__"),
    "an attribute by a dotted module": (_with(wf.name_of("collections.OrderedDict", "__class__")), "__class__"),
    "a name split in another place": (_with(b"\x8c\x0bcollections\x8c\x0aOrderedDic\x93"), "'collections.OrderedDic'"),
    "STACK_GLOBAL of numbers": (_with(b"K\1K\2\x93"), "without two texts"),
    "REDUCE of text": (_with(wf.text("os.mkdir") + b")R"), "a call of 'os.mkdir'"),
    "REDUCE of a storage type": (_with(wf.name_of("torch", "FloatStorage") + b")R"), "a call of"),
    "REDUCE of a tensor": (_with(GOOD + b")R"), "a call of a Tensor"),
    "REDUCE without a tuple": (_with(wf.name_of("collections", "OrderedDict") + b"]R"), "expected a tuple"),
    "OrderedDict of text": (_with(wf.call(wf.name_of("collections", "OrderedDict"), wf.text("ab"))), "one list"),
    "OrderedDict of triples": (
        _with(wf.call(wf.name_of("collections", "OrderedDict"), wf.list_of(wf.tuple_of(wf.NONE, wf.NONE, wf.NONE)))),
        "from a tuple, expected pairs",
    ),
    "a tensor of too few arguments": (_with(_rebuilt(*_ARGS[:5])), "with 5 arguments"),
    "a tensor with hooks": (_with(_rebuilt(*_ARGS[:5], wf.list_of(wf.NONE))), "hooks"),
    "a tensor with metadata": (_with(_rebuilt(*_ARGS, wf.dict_of({"neg": wf.TRUE}))), "metadata"),
    "a parameter of text": (
        _with(_rebuilt(wf.text("a"), wf.TRUE, wf.ORDERED_DICT, name="_rebuild_parameter")),
        "a call of",
    ),
    "a parameter with hooks": (_with(_rebuilt(GOOD, wf.TRUE, wf.list_of(wf.NONE), name="_rebuild_parameter")), "hooks"),
    "BUILD of a parameter with hooks": (
        _with(_PARAMETER + wf.tuple_of(wf.TRUE, wf.FALSE, wf.list_of(wf.NONE)) + b"b"),
        "BUILD on a Parameter",
    ),
    # opcodes
    "INST": (_with(b"(" + wf.text("x") + b"ios\nmkdir\n"), "INST"),
    "OBJ": (_with(b"(" + wf.name_of("collections", "OrderedDict") + b"o"), "OBJ"),
    "NEWOBJ": (_with(wf.name_of("collections", "OrderedDict") + b")\x81"), "NEWOBJ"),
    "NEWOBJ_EX": (_with(wf.name_of("collections", "OrderedDict") + b")}\x92"), "NEWOBJ_EX"),
    "EXT1": (_with(b"\x82\x01"), "EXT1"),
    "EXT2": (_with(b"\x83\x01\x00"), "EXT2"),
    "EXT4": (_with(b"\x84\x01\x00\x00\x00"), "EXT4"),
    "PERSID": (_with(b"Pstorage\n"), "PERSID"),
    "LONG": (_with(b"L" + b"9" * 100_000 + b"L\n"), "LONG 0x4c"),
    "LONG4": (_with(b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000), "LONG4"),
    "LONG1 of 255 bytes": (_with(b"\x8a\xff" + b"\x7f" * 255), "255 bytes, at most 10"),
    "an unknown opcode": (_with(b"\xff"), "opcode 0xff at byte"),
    "protocol 0": (b"\x80\x00" + _with(GOOD), "protocol 0"),
    "protocol 6": (b"\x80\x06" + _with(GOOD), "protocol 6"),
    "a frame beyond the end": (b"\x95" + struct.pack("<Q", 1 << 62) + _with(GOOD), "a frame of"),
    "text beyond the end": (_with(b"X\xff\xff\xff\xff"), "4294967295 more bytes"),
    "text of 2**63 bytes": (_with(b"\x8d" + struct.pack("<Q", 1 << 63)), "more bytes are needed"),
    "text not UTF-8": (_with(b"X\x02\x00\x00\x00\xff\xfe"), "not UTF-8"),
    "BUILD on a dict": (_with(b"}}b"), "BUILD on a dict"),
    "BUILD on a tensor": (_with(GOOD + b"}b"), "BUILD on a Tensor"),
    "BUILD on a marker": (_with(wf.name_of("collections", "OrderedDict") + b"}b"), "BUILD on a Marker"),
    "BUILD of another attribute": (
        _with(wf.ORDERED_DICT + wf.dict_of({"__class__": wf.NONE}) + b"b"),
        "more than _metadata",
    ),
    "BUILD of a tuple": (_with(wf.ORDERED_DICT + wf.tuple_of(wf.NONE, wf.NONE) + b"b"), "more than _metadata"),
    "APPEND on a dict": (_with(b"}Na"), "APPEND on a dict"),
    "APPENDS on a tensor": (_with(GOOD + b"(Ne"), "APPEND on a Tensor"),
    "SETITEM on a list": (_with(b"]" + wf.text("a") + b"Ns"), "SETITEM on"),
    "SETITEM on a marker": (
        _with(wf.name_of("collections", "OrderedDict") + wf.text("a") + b"Ns"),
        "SETITEM on a Marker",
    ),
    "SETITEMS of three": (_with(b"}(" + wf.text("a") + b"NNu"), "3 values"),
    "a key twice": (b"}(" + (wf.text("a") + GOOD) * 2 + b"u", "'a' occurs twice"),
    "a tuple as key": (_with(b"}))s"), "as a key"),
    "an integer of 80 bits as key": (_with(b"}\x8a\x0a" + b"\x7f" * 10 + b"Ns"), "as a key"),
    "STOP inside a mark": (b"(" + _with(GOOD), "left over at STOP"),
    "two values at STOP": (b"N" + _with(GOOD), "left over at STOP"),
    "an empty stack": (b"", "empty stack"),
    "TUPLE3 across a mark": (b"NN(N\x87", "empty stack"),
    "no mark": (b"t", "needs a mark"),
    "memo never stored": (_with(b"h\x07"), "memo entry 7"),
    "memo of 32 bits never stored": (_with(b"j\xff\xff\xff\xff"), "memo entry 4294967295"),
    "a million marks": (_with(b"(" * 1_000_000), "nested deeper"),
    "opcodes without end": (_with(b"N" * (_pickle.MAX_OPCODES + 1)), "more than"),
    # nesting that must cost nothing: the value is refused for what it is
    "tuples 300 000 deep": (_with(b")" + b"\x85" * 300_000), "'bad' holds a tuple"),
    "lists 300 000 deep": (_with(b"]" * 300_000 + b"a" * 299_999), "'bad' holds a list"),
    "a list of itself": (_with(b"]q\x01h\x01a"), "'bad' holds a list"),
    "sixty doublings by memo": (
        _with(b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))),
        "'bad' holds a tuple",
    ),
    "a doubled shape": (
        _with(
            _rebuilt(BLOCK, wf.number(0), b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)), b")", *_ARGS[4:])
        ),
        "the shape a list",
    ),
    # storages
    "persistent id of text": (_with(wf.text("0") + b"Q"), "no storage"),
    "a module": (_with(wf.tuple_of(wf.text("module"), wf.text("a")) + b"Q"), "whole module"),
    "a storage id of four parts": (
        _with(
            wf.tuple_of(wf.text("storage"), wf.name_of("torch", "FloatStorage"), wf.text("0"), wf.text("cpu")) + b"Q"
        ),
        "4 parts",
    ),
    "a storage in a place of no name": (
        _with(
            wf.tuple_of(*(wf.text("storage"), wf.name_of("torch", "FloatStorage"), wf.text("0"), wf.NONE, b"K\6"))
            + b"Q"
        ),
        "parts of the wrong type",
    ),
    "a storage of an unknown type": (_with(wf.storage("ComplexFloatStorage", "0", 6)), "ComplexFloatStorage"),
    "a storage key with a path": (_with(wf.storage("FloatStorage", "../0", 6)), "not a number"),
    "a storage key in other digits": (_with(wf.storage("FloatStorage", "\u0660", 6)), "not a number"),
    "a storage in two sizes": (_with(wf.tensor(wf.storage("FloatStorage", "0", 5), (5,))), "first 6 .* then 5"),
    "a storage in two types": (_with(wf.tensor(wf.storage("IntStorage", "0", 6), (6,))), "first 6 of FloatStorage"),
    "a storage of -1 elements": (_with(wf.storage("FloatStorage", "1", -1)), "-1 elements"),
    "a storage of 2**62 elements": (_with(wf.storage("FloatStorage", "1", 1 << 62)), "elements, expected"),
    "a storage that is missing": (_with(wf.tensor(wf.storage("FloatStorage", "1", 6), (6,))), "missing|not listed"),
    "storage view too long": (
        _with(wf.storage("FloatStorage", "0", 6, view=wf.tuple_of(wf.text("9"), wf.number(4), wf.number(3)))),
        "viewed up to element 7, it has 6",
    ),
    "storage view negative": (
        _with(wf.storage("FloatStorage", "0", 6, view=wf.tuple_of(wf.text("9"), wf.number(-1), wf.number(3)))),
        "view metadata",
    ),
    # tensors
    "numel that lies, more": (
        wf.state_dict({"a": wf.tensor(wf.storage("FloatStorage", "0", 7), (7,))}),
        "needs 28 bytes, it has 24|has 6 elements .* says 7",
    ),
    "numel that lies, less": (
        wf.state_dict({"a": wf.tensor(wf.storage("FloatStorage", "0", 5), (5,))}),
        "needs 20 bytes, it has 24|has 6 elements .* says 5",
    ),
    "offset beyond": (_with(wf.tensor(BLOCK, (2, 3), offset=1)), "reaches element 7, the storage has 6"),
    "offset beyond, no elements": (_with(wf.tensor(BLOCK, (0,), offset=7)), "reaches element 7"),
    "offset negative": (_with(wf.tensor(BLOCK, (2, 2), offset=-1)), "offset -1"),
    "offset of 80 bits": (_with(_rebuilt(BLOCK, b"\x8a\x0a" + b"\x7f" * 10, *_ARGS[2:])), "reaches element"),
    "stride beyond": (_with(wf.tensor(BLOCK, (2, 2), (5, 1))), "reaches element 7, the storage has 6"),
    "stride negative": (_with(wf.tensor(BLOCK, (2, 2), (-1, 1), 2)), "strides"),
    "stride of 2**62": (_with(wf.tensor(BLOCK, (4, 1), (1 << 62, 1))), "strides"),
    "stride missing": (_with(wf.tensor(BLOCK, (2, 3), (1,))), "strides"),
    "shape negative": (_with(wf.tensor(BLOCK, (-2, -3), (3, 1))), "whole number >= 0"),
    "shape overflows 64 bits": (_with(wf.tensor(BLOCK, (1 << 33, 1 << 33), (0, 0))), "more than"),
    "shape huge beside an empty axis": (_with(wf.tensor(BLOCK, (0, 1 << 60), (0, 0))), "more than"),
    "shape of 40 axes": (_with(wf.tensor(BLOCK, (1,) * 40, (1,) * 40)), "40 axes"),
    "shape boolean": (
        _with(_rebuilt(BLOCK, wf.number(0), wf.tuple_of(wf.TRUE), wf.numbers([1]), *_ARGS[4:])),
        "whole number",
    ),
    "shape a list": (_with(_rebuilt(BLOCK, wf.number(0), wf.list_of(wf.number(6)), *_ARGS[3:])), "wrong type"),
    "a giant view by stride 0": (_with(wf.tensor(BLOCK, (1 << 40,), (0,))), "1099511627776 elements, more than the 6"),
    "many views of one storage": (
        wf.state_dict({str(i): GOOD for i in range(pth.MAX_COPIES + 1)}),
        f"take 120 bytes, their storages 24; at most {pth.MAX_COPIES} times",
    ),
    "storage is a tensor": (_with(_rebuilt(GOOD, *_ARGS[1:])), "wrong type"),
    # results
    "result is a list": (wf.list_of(GOOD), "holds a list"),
    "result is a tensor": (GOOD, "holds a Tensor"),
    "result is None": (wf.NONE, "holds None|no tensor uses it"),
    "an integer as key": (b"}K\1" + GOOD + b"s", "the key 1 is not text"),
    "a number as value": (_with(wf.number(3)), "key 'bad' holds 3"),
    "a storage as value": (_with(BLOCK), "key 'bad' holds a Storage"),
    "a dict of dicts of dicts": (
        wf.dict_of({"model": wf.dict_of({"model": wf.state_dict({"a": GOOD})})}),
        "holds a Ordered|holds a dict",
    ),
}


@pytest.mark.parametrize("container", ["zip", "stream"])
@pytest.mark.parametrize("case", PICKLES)
def test_hostile_pickle(case: str, container: str, file: Path) -> None:
    value, message = PICKLES[case]
    refuse(file, _in_both(value)[container], message)


def test_the_base_of_the_hostile_pickles_is_valid(file: Path) -> None:
    for content in _in_both(_with(GOOD)).values():
        file.write_bytes(content)
        assert_array_equal(load(file)["bad"], [[0, 1, 2], [3, 4, 5]])


def _payloads(target: Path) -> dict[str, bytes]:
    """Pickled values that make a directory when a real unpickler reads them."""
    where = wf.text(str(target))
    raw = where[5:]
    return {
        "GLOBAL": wf.name_of("os", "mkdir") + wf.tuple_of(where) + b"R",
        "STACK_GLOBAL": wf.text("os") + wf.text("mkdir") + b"\x93" + wf.tuple_of(where) + b"R",
        "INST": b"(" + where + b"ios\nmkdir\n",
        "OBJ": b"(" + wf.name_of("os", "mkdir") + where + b"o",
        "eval": wf.name_of("builtins", "eval")
        + wf.tuple_of(wf.text(f"__import__('os').mkdir({str(target)!r})"))
        + b"R",
        "old strings": b"(S'" + raw + b"'\nios\nmkdir\n",
    }


@pytest.mark.parametrize("name", ["GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "eval", "old strings"])
def test_no_payload_runs(name: str, tmp_path: Path) -> None:
    target = tmp_path / "was-executed"
    payload = _payloads(target)[name]
    pickle.loads(wf.pickled(payload))
    assert target.is_dir(), "the payload must work, or this test shows nothing"
    target.rmdir()

    block = {"0": bytes(24)}
    good, bad = wf.pickled(wf.state_dict({"a": GOOD})), wf.pickled(payload)
    inside = wf.pickled(_with(payload))
    contents = [wf.pth_zip_file(bad, block), *_in_both(_with(payload)).values(), bad, wf.MAGIC + bad]
    contents += [wf.pth_stream_file(inside, block), wf.pth_stream_file(bad, block)]
    contents += [
        wf.pth_stream_file(good, block, **dict[str, Any]({part: bad}))
        for part in ("magic", "protocol", "system", "keys")
    ]
    contents += [wf.zip_file([Entry("a.npy", wf.npy_file(wf.npy_header("|O", "(1,)"), bad))])]
    for content in contents:
        refuse(tmp_path / "weights.bin", content, "not allowed|not on the list|dtype '.O'")
        assert not target.exists()


def _stream(**parts: Any) -> bytes:
    block = {"0": np.arange(6, dtype=np.float32).tobytes()}
    return wf.pth_stream_file(wf.pickled(wf.state_dict({"a": GOOD})), block, **parts)


def _keys(*keys: str) -> bytes:
    return wf.pickled(wf.list_of(*(wf.text(key) for key in keys)))


STREAMS = {
    "another magic number": (
        _stream(magic=wf.pickled(wf.number(0x1950A86A20F9469CFC6D))),
        "0x1950a86a20f9469cfc6d, expected",
    ),
    "any other pickle": (pickle.dumps({"a": [1, 2]}), "its magic number is a dict"),
    "another protocol": (_stream(protocol=wf.pickled(wf.number(1002))), "protocol 1002, accepted is 1001"),
    "big-endian": (_stream(system=wf.pickled(wf.dict_of({"little_endian": wf.FALSE}))), "little-endian"),
    "no system": (_stream(system=wf.pickled(wf.NONE)), "little-endian"),
    "a storage in the system": (
        _stream(system=wf.pickled(wf.dict_of({"little_endian": wf.TRUE, "a": BLOCK}))),
        "outside the state dict",
    ),
    "keys not a list": (_stream(keys=wf.pickled(wf.text("0"))), "no list of storage keys"),
    "a storage in the keys": (_stream(keys=wf.pickled(wf.list_of(wf.storage("FloatStorage", "1", 6)))), "no list of"),
    "a key too many": (_stream(keys=_keys("0", "1")), "'1' is listed but"),
    "a key twice": (_stream(keys=_keys("0", "0")), "listed twice"),
    "a key missing": (_stream(keys=_keys()), "not listed|no list|left over|needs a mark"),
    "a number as key": (_stream(keys=wf.pickled(wf.list_of(wf.number(0)))), "storage 0 is listed but"),
    "numel too big": (_stream().replace(struct.pack("<q", 6), struct.pack("<q", 7)), "has 7 elements .* says 6"),
    "numel negative": (_stream().replace(struct.pack("<q", 6), struct.pack("<q", -6)), "has -6 elements"),
    "numel of 2**62": (_stream().replace(struct.pack("<q", 6), struct.pack("<q", 1 << 62)), "says 6"),
    "a byte missing": (_stream()[:-1], "storage 0 ends at byte .*truncated"),
    "bytes left over": (_stream() + b"\0", "storages end at byte"),
}


@pytest.mark.parametrize("case", STREAMS)
def test_hostile_stream(case: str, file: Path) -> None:
    file.write_bytes(_stream())
    assert list(load(file)) == ["a"]
    refuse(file, *STREAMS[case])


@pytest.mark.parametrize("case", ["a giant view by stride 0", "text of 2**63 bytes", "a storage of 2**62 elements"])
@pytest.mark.parametrize("container", ["zip", "stream"])
def test_hostile_sizes_take_no_memory(case: str, container: str, file: Path) -> None:
    refuse_cheaply(file, _in_both(PICKLES[case][0])[container])


def test_hostile_numbers_in_the_stream_take_no_memory(file: Path) -> None:
    refuse_cheaply(file, STREAMS["numel of 2**62"][0])
