"""Hostile safetensors and zip files: a full, valid file with one thing wrong is a ValueError that names it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weight_files as wf
from fastconv.weights import _pickle, _zip, npz, safetensors
from fastconv.weights._file import WeightFile
from weight_checks import STATE, load, refuse, refuse_cheaply, watched_file
from weight_files import Entry


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield from watched_file(tmp_path)


# --- safetensors: one thing wrong -----------------------------------------------------------------------------------


def _safetensors_with(**fields: Any) -> bytes:
    header, data = wf.safetensors_parts(STATE)
    header["bn1.bias"].update(fields)
    return wf.safetensors_file(header, data)


def _safetensors_text(old: bytes, new: bytes) -> bytes:
    content = wf.safetensors(STATE)
    text = content[8 : 8 + int.from_bytes(content[:8], "little")]
    assert text.count(old) >= 1
    return wf.safetensors_file(text.replace(old, new, 1), content[8 + len(text) :])


def _safetensors_length(length: int) -> bytes:
    return struct.pack("<Q", length) + wf.safetensors(STATE)[8:]


_EMPTY = '"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
SAFETENSORS = {
    "header of gigabytes": (_safetensors_length(3 << 30), f"3221225472 bytes, at most {safetensors.MAX_HEADER_BYTES}"),
    "header of 2**64-1": (_safetensors_length((1 << 64) - 1), "18446744073709551615 bytes"),
    "header beyond the file": (_safetensors_length(1 << 20), "needs bytes 8 to 1048584"),
    "header too short": (_safetensors_length(40), "header"),
    "header not UTF-8": (_safetensors_text(b"bn1", b"b\xff1"), "utf-8"),
    "deep nesting": (wf.safetensors_file(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}", b""), "nested too deeply"),
    "duplicate tensor": (wf.safetensors_file(f"{{{_EMPTY},{_EMPTY}}}".encode(), b""), "'a' occurs twice"),
    "duplicate field": (_safetensors_text(b'"shape": [3]', b'"shape": [3], "shape": [3]'), "'shape' occurs twice"),
    "unknown field": (_safetensors_with(strides=[1]), "exactly dtype, shape and data_offsets"),
    "missing field": (_safetensors_text(b'"dtype": "F32", ', b""), "exactly dtype, shape and data_offsets"),
    "entry is a list": (_safetensors_text(b'{"dtype"', b'["dtype"').replace(b"24]}", b"24]]"), "header|exactly"),
    "unknown dtype": (_safetensors_with(dtype="F8_E4M3"), "'F8_E4M3'"),
    "dtype is a list": (_safetensors_with(dtype=["F32"]), "the dtype a list"),
    "dtype of another size": (_safetensors_with(dtype="F64"), "needs 24 bytes, its span has 12"),
    "shape too big": (_safetensors_with(shape=[4]), "needs 16 bytes, its span has 12"),
    "shape negative": (_safetensors_with(shape=[-3]), "whole number >= 0"),
    "shape twice negative": (_safetensors_with(shape=[-1, -3]), "whole number >= 0"),
    "shape fractional": (_safetensors_with(shape=[3.0]), "whole"),
    "shape boolean": (_safetensors_with(shape=[True, 3]), "whole number"),
    "shape a number": (_safetensors_with(shape=3), "expected a list"),
    "shape overflows 64 bits": (_safetensors_with(shape=[1 << 32, (1 << 32) + 1, 3]), "more than"),
    "shape huge beside an empty axis": (_safetensors_with(shape=[0, 1 << 60]), "more than"),
    "shape of 33 axes": (_safetensors_with(shape=[1] * 32 + [3]), "33 axes, at most 32"),
    "number of a million digits": (
        _safetensors_text(b"[3]", b"[" + b"1" * 1_000_000 + b"]"),
        "digits, at most 19",
    ),
    "NaN": (_safetensors_text(b"[3]", b"[NaN]"), "'NaN'"),
    "offsets out of range": (
        _safetensors_with(data_offsets=[1 << 40, (1 << 40) + 12]),
        "1099511627788, the file has 64",
    ),
    "offsets reversed": (_safetensors_with(data_offsets=[60, 48]), "60 to 48"),
    "offsets negative": (_safetensors_with(data_offsets=[-12, 0]), "data_offsets"),
    "three offsets": (_safetensors_with(data_offsets=[48, 60, 60]), "data_offsets"),
    "overlap": (_safetensors_with(data_offsets=[44, 56]), "overlaps the tensor before it, which ends at 48"),
    "gap": (_safetensors_with(data_offsets=[52, 64]), "leaves a gap"),
    "bytes not covered": (wf.safetensors(STATE) + b"\0\0\0\0", "cover 64 data bytes, the file has 68"),
    "data too short": (wf.safetensors(STATE)[:-4], "64, the file has 60"),
    "metadata not text": (wf.safetensors_file(b'{"__metadata__":{"a":1}}', b""), "__metadata__"),
    "metadata a list": (wf.safetensors_file(b'{"__metadata__":[]}', b""), "__metadata__"),
}


def test_safetensors_reader_by_itself(file: Path) -> None:
    """`load` takes a file for safetensors by its brace; the reader alone does not rely on that."""
    file.write_bytes(wf.safetensors_file(b"[]", b""))
    with WeightFile(file) as opened, pytest.raises(ValueError, match="not an object"):
        safetensors.read(opened)


@pytest.mark.parametrize("case", SAFETENSORS)
def test_hostile_safetensors(case: str, file: Path) -> None:
    refuse(file, *SAFETENSORS[case])


# --- zip and npz: one thing wrong -----------------------------------------------------------------------------------

NPY = wf.npy(np.arange(6, dtype=np.float32))
_BOMB = bytes(64 << 20)


def _npz(*entries: Entry, **options: Any) -> bytes:
    return wf.zip_file([Entry("good.npy", NPY), *entries], **options)


def _patched(record: bytes, at: int, new: bytes, **options: Any) -> bytes:
    """A valid archive of one member with `new` at byte `at` of the last such record."""
    content = _npz(**options)
    begin = content.rindex(record) + at
    return content[:begin] + new + content[begin + len(new) :]


def _npy(descr: str = "<f4", shape: str = "(6,)", fortran: str = "False", data: bytes = bytes(24)) -> bytes:
    return _npz(Entry("bad.npy", wf.npy_file(wf.npy_header(descr, shape, fortran), data)))


def _npy_text(header: str) -> bytes:
    return _npz(Entry("bad.npy", wf.npy_file(header, bytes(24))))


BLOCK = wf.storage("FloatStorage", "0", 6)
GOOD = wf.tensor(BLOCK, (2, 3))
_PKL = wf.pickled(wf.state_dict({"a": GOOD}))
_DATA = {"0": bytes(24)}
ZIPS = {
    "bomb by ratio": (_npz(Entry("bad.npy", _BOMB, method=8)), f"inflate to {64 << 20} bytes"),
    "bomb that hides its size": (
        _npz(Entry("bad.npy", bytes(1 << 20), method=8, size=1000)),
        "more than the 1000 bytes",
    ),
    "bomb by overlap": (
        _npz(Entry("b.npy", NPY, offset=0, own_name="b.npy"), Entry("c.npy", NPY)),
        "another name|overlap",
    ),
    "a member inside another": (
        wf.zip_file([Entry("a.npy", wf.zip_file([Entry("b.npy", NPY)])), Entry("b.npy", NPY, offset=35)]),
        "'a.npy' and 'b.npy' overlap at byte 35",
    ),
    "several parts": (_patched(b"PK\5\6", 4, b"\1"), "several parts"),
    "several parts by count": (_patched(b"PK\5\6", 8, b"\2"), "several parts"),
    "a member in another part": (_patched(b"PK\1\2", 34, b"\1"), "several parts"),
    "a damaged directory entry": (_patched(b"PK\1\2", 3, b"\3"), "zip directory entry at byte .* is damaged"),
    "a name beyond the directory": (_patched(b"PK\1\2", 28, b"\xff\xff"), "zip directory entry at byte .* is damaged"),
    "zip64, a damaged record": (_patched(b"PK\6\6", 4, b"\x2d", zip64=True), "zip64 end record .* is damaged"),
    "zip64, record elsewhere": (_patched(b"PK\6\7", 8, b"\1", zip64=True), "zip64 end record at byte .* is damaged"),
    "zip64, several parts": (_patched(b"PK\6\6", 16, b"\1", zip64=True), "several parts"),
    "zip64, two parts": (_patched(b"PK\6\7", 16, b"\2", zip64=True), "several parts"),
    "zip64, two counts": (_patched(b"PK\5\6", 10, b"\7\0", zip64=True), "disagree: 7 and 1"),
    "a name that is not UTF-8": (wf.zip_file([Entry("bad.npy", NPY)]).replace(b"bad", b"b\xffd"), "not UTF-8"),
    "two names for the same bytes": (
        wf.zip_file([Entry("good.npy", NPY), Entry("bad.npy", NPY, packed=NPY[:-4], packed_size=len(NPY))]),
        "inside the directory|overlap",
    ),
    "claims petabytes": (_npz(Entry("bad.npy", NPY, method=8, size=1 << 50, own_size=0, zip64=True)), "inflate to"),
    "too many members": (_npz(count=_zip.MAX_MEMBERS + 1), f"16385 members, at most {_zip.MAX_MEMBERS}"),
    "more members than listed": (_npz(count=2), "ends inside"),
    "fewer members than listed": (_npz(Entry("b.npy", NPY), count=1), "its 1 entries take"),
    "directory of gigabytes": (_npz(directory_size=3 << 30), "zip directory of 3221225472 bytes"),
    "directory elsewhere": (_npz(directory_offset=3), "expected it to end"),
    "member twice": (_npz(Entry("good.npy", NPY)), "'good.npy' occurs twice"),
    "encrypted": (_npz(Entry("bad.npy", NPY, flags=1)), "encrypted"),
    "strongly encrypted": (_npz(Entry("bad.npy", NPY, flags=0x40)), "encrypted"),
    "bzip2": (_npz(Entry("bad.npy", NPY, method=12)), "method 12"),
    "another method in its own header": (_npz(Entry("bad.npy", NPY, own_method=8)), "disagree"),
    "stored with two sizes": (
        _npz(Entry("bad.npy", NPY, size=len(NPY) + 1)),
        f"{len(NPY)} bytes but claims {len(NPY) + 1}",
    ),
    "another size in its own header": (_npz(Entry("bad.npy", NPY, own_size=7)), "7 in its header"),
    "another name in its own header": (_npz(Entry("bad.npy", NPY, own_name="bat.npy")), "another name"),
    "offset beyond the file": (_npz(Entry("bad.npy", NPY, offset=1 << 30)), "needs bytes 1073741824"),
    "offset at no header": (_npz(Entry("bad.npy", NPY, offset=3)), "no header at byte 3"),
    "size beyond the file": (
        _npz(Entry("bad.npy", NPY, size=1 << 30, packed_size=1 << 30)),
        "ends at byte .*truncated",
    ),
    "wrong CRC": (_npz(Entry("bad.npy", NPY, crc=1)), "expected 0x00000001"),
    "deflate data damaged": (_npz(Entry("bad.npy", NPY, method=8, packed=b"\xff" * 50)), "is damaged"),
    "deflate data cut": (_npz(Entry("bad.npy", NPY, method=8, packed=wf.deflate(NPY)[:-5])), "inflates to|CRC"),
    "deflate data too short": (_npz(Entry("bad.npy", NPY, method=8, size=len(NPY) + 1)), "it claims"),
    "bytes after deflate data": (_npz(Entry("bad.npy", NPY, method=8, packed=wf.deflate(NPY) + b"x")), "left over"),
    "64-bit sizes missing": (_npz(Entry("bad.npy", NPY, offset=0xFFFFFFFF)), "64-bit sizes"),
    "absolute path": (_npz(Entry("/etc/bad.npy", NPY)), "plain relative path"),
    "path upwards": (_npz(Entry("../bad.npy", NPY)), "plain relative path"),
    "path with backslashes": (_npz(Entry("..\\bad.npy", NPY)), "plain relative path"),
    "path with NUL": (_npz(Entry("bad\0.npy", NPY)), "plain relative path"),
    # npz
    "another member": (_npz(Entry("readme.txt", b"hello")), "'readme.txt' is not a .npy"),
    "no array": (_npz(Entry("bad.npy", b"hello")), "not a .npy array"),
    "npy version 9": (_npz(Entry("bad.npy", NPY[:6] + b"\x09" + NPY[7:])), "version 9"),
    "npy header of gigabytes": (
        _npz(Entry("bad.npy", NPY[:6] + b"\2\0\xff\xff\xff\x7f" + NPY[12:])),
        "2147483647 bytes, at most 4096",
    ),
    "npy header beyond the member": (_npz(Entry("bad.npy", NPY[:8] + b"\xff\x0f" + NPY[10:])), "4095 bytes but only"),
    "object array": (_npy("|O"), r"dtype '\|O'"),
    "structured array": (_npy_text("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,), }"), "damaged"),
    "big-endian": (_npy(">f4"), "dtype '>f4'.*little-endian"),
    "complex": (_npy("<c8"), "dtype '<c8'"),
    "text array": (_npy("<U1"), "dtype '<U1'"),
    "npy shape too big": (_npy(shape="(7,)"), "needs 28 bytes, the member has 24"),
    "npy shape too small": (_npy(shape="(5,)"), "needs 20 bytes, the member has 24"),
    "npy shape negative": (_npy(shape="(-6,)"), "damaged"),
    "npy shape overflows": (_npy(shape="(4294967296, 4294967297, 6)"), "more than"),
    "npy shape huge beside an empty axis": (_npy(shape="(0, 1152921504606846976)", data=b""), "more than"),
    "npy shape of many digits": (_npy(shape=f"({'9' * 3000},)"), "damaged"),
    "npy shape a number": (_npy(shape="(6)"), "damaged"),
    "npy shape of 33 axes": (_npy(shape="(" + "1," * 32 + "6)"), "33 axes"),
    "npy shape with a call": (_npy(shape="(int('6'),)"), "damaged"),
    "npy order a text": (_npy(fortran="'x'"), "damaged"),
    "npy dtype a flag": (_npy_text("{'descr': True, 'fortran_order': False, 'shape': (6,), }"), "damaged"),
    "npy order a number": (_npy(fortran="1"), "damaged"),
    "npy header a call": (_npy_text("dict(descr='<f4', fortran_order=False, shape=(6,))"), "damaged"),
    "npy header a list": (_npy_text("['descr': '<f4', 'fortran_order': False, 'shape': (6,), ]"), "damaged"),
    "npy header without shape": (_npy_text("{'descr': '<f4', 'fortran_order': False, }"), "damaged"),
    "npy header with a key twice": (_npy_text("{'descr': '<f4', 'descr': '<f4', 'shape': (6,), }"), "damaged"),
    "npy header with another key": (_npy_text("{'descr': '<f4', 'fortran_order': False, 'x': (6,), }"), "damaged"),
    "npy header deeply nested": (_npy_text("{" + "(" * 3000 + "}"), "damaged"),
    # torch
    "a name without end": (wf.pth_zip_file(b"\x80\x02cos", _DATA), "ends inside a name"),
    "two pickles": (wf.pth_zip_file(_PKL, _DATA, [Entry("other/data.pkl", _PKL)]), "exactly one"),
    "a pickle two folders down": (wf.zip_file([Entry("a/b/data.pkl", _PKL)]), "exactly one"),
    "big-endian torch": (
        wf.zip_file([Entry("net/data.pkl", _PKL), Entry("net/byteorder", b"bigend")]),
        "little-endian",
    ),
    "storage in another folder": (
        wf.zip_file([Entry("net/data.pkl", _PKL), Entry("other/data/0", bytes(24))]),
        "'net/data/0' is missing",
    ),
    "storage too short": (wf.pth_zip_file(_PKL, {"0": bytes(20)}), "needs 24 bytes, it has 20"),
    "storage too long": (wf.pth_zip_file(_PKL, {"0": bytes(28)}), "needs 24 bytes, it has 28"),
    "a second pickle in the member": (wf.pth_zip_file(_PKL + _PKL, _DATA), "the member has"),
    "a pickle of megabytes": (wf.pth_zip_file(_PKL + bytes(_pickle.MAX_PICKLE_BYTES), _DATA), "at most 4194304"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_hostile_zip(case: str, file: Path) -> None:
    refuse(file, *ZIPS[case])


def test_the_base_of_the_hostile_zips_is_valid(file: Path) -> None:
    for content in (
        _npz(Entry("bad.npy", NPY)),
        _npz(Entry("bad.npy", NPY, method=8)),
        _npy(),
        wf.pth_zip_file(_PKL, _DATA),
    ):
        file.write_bytes(content)
        assert all(array.size == 6 for array in load(file).values())


@pytest.mark.parametrize(
    "content",
    [
        *(SAFETENSORS[case][0] for case in ("header of gigabytes", "offsets out of range", "shape overflows 64 bits")),
        *(ZIPS[case][0] for case in ("bomb by ratio", "claims petabytes", "directory of gigabytes")),
        ZIPS["bomb that hides its size"][0],
    ],
    ids=range(7),
)
def test_hostile_sizes_take_no_memory(content: bytes, file: Path) -> None:
    refuse_cheaply(file, content)


def test_limits_leave_room_for_real_files() -> None:
    """ResNet-152 has 932 tensors with the counters; its header and pickle stay far below the limits."""
    state = {f"layer3.{i}.downsample.1.num_batches_tracked": np.zeros(1, np.float32) for i in range(932)}
    header, _ = wf.safetensors_parts(state)
    tensors, _ = wf.pth_parts(state)
    assert len(wf.safetensors_file(header, b"")) * 10 < safetensors.MAX_HEADER_BYTES
    assert len(wf.state_dict(tensors)) * 10 < _pickle.MAX_PICKLE_BYTES
    assert len(wf.npy_header("<f4", "(2048, 2048, 3, 3)")) * 10 < npz.MAX_HEADER_BYTES
