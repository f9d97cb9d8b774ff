"""Weight readers: every format gives its arrays back bit for bit, whoever wrote it; damage is a ValueError."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weight_files as wf
from fastconv import weights
from fastconv.weights import pth
from fastconv.weights._file import WeightFile
from weight_checks import STATE, WRITERS, load, refuse, same, watched_file
from weight_files import Entry

FORMATS = pytest.mark.parametrize("kind", WRITERS)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield from watched_file(tmp_path)


# --- valid files ----------------------------------------------------------------------------------------------------


@FORMATS
def test_round_trip(kind: str, file: Path) -> None:
    file.write_bytes(WRITERS[kind](STATE))
    same(load(file), STATE)
    same(weights.load(str(file)), STATE)


@FORMATS
@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint64", "bool"]
)
def test_dtypes(kind: str, dtype: str, file: Path) -> None:
    if kind.startswith("pth") and dtype in ("uint16", "uint64"):
        pytest.skip("not a storage type of this container")
    values = {"a": np.array([[0, 1, 1], [1, 0, 100]]).astype(dtype), "empty": np.zeros((0, 3), dtype)}
    file.write_bytes(WRITERS[kind](values))
    same(load(file), values)


def test_bfloat16_is_widened_exactly(file: Path) -> None:
    bits = np.array([0x3F80, 0xBF81, 0x0001, 0x7F80, 0xFF80, 0x7FC1], np.uint16)
    expected = np.array([struct.unpack("<f", struct.pack("<I", int(b) << 16))[0] for b in bits], np.float32)
    entry = {"dtype": "BF16", "shape": [6], "data_offsets": [0, 12]}
    file.write_bytes(wf.safetensors_file({"a": entry}, bits.tobytes()))
    same(load(file), {"a": expected})
    value = wf.tensor(wf.storage("BFloat16Storage", "0", 6), (6,))
    file.write_bytes(wf.pth_zip_file(wf.pickled(wf.state_dict({"a": value})), {"0": bits.tobytes()}))
    same(load(file), {"a": expected})


def test_bool_bytes_become_true(file: Path) -> None:
    expected = {"a": np.array([False, True, True])}
    file.write_bytes(wf.safetensors_file({"a": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}, b"\0\1\7"))
    same(load(file), expected)
    file.write_bytes(wf.zip_file([Entry("a.npy", wf.npy_file(wf.npy_header("|b1", "(3,)"), b"\0\1\7"))]))
    same(load(file), expected)


def test_misaligned_and_padded_safetensors(file: Path) -> None:
    header, data = wf.safetensors_parts({"a": np.arange(3, dtype=np.uint8), "b": np.arange(4.0)})
    header["__metadata__"] = {"format": "pt"}
    file.write_bytes(wf.safetensors_file(json.dumps(header).encode() + b"   ", data))
    same(load(file), {"a": np.arange(3, dtype=np.uint8), "b": np.arange(4.0)})


def test_no_tensors_at_all(file: Path) -> None:
    for content in (wf.safetensors({}), wf.pth_zip({}), wf.pth_stream({})):
        file.write_bytes(content)
        assert load(file) == {}


VIEWS = [
    ((3, 2), (1, 3), 0),  # transposed
    ((2, 2), (3, 1), 1),  # a window
    ((2,), (2,), 1),  # every second
    ((6,), (1,), 0),
    ((2, 3), (0, 1), 3),  # repeated rows
    ((1, 6), (999, 1), 0),  # the stride of an axis of one does not matter
    ((), (), 5),
    ((0, 4), (4, 1), 6),
]


@pytest.mark.parametrize(("shape", "strides", "offset"), VIEWS)
def test_views_of_a_storage(shape: tuple[int, ...], strides: tuple[int, ...], offset: int, file: Path) -> None:
    block = np.arange(6, dtype=np.float32)
    expected = np.lib.stride_tricks.as_strided(block[offset:], shape, tuple(4 * step for step in strides)).copy()
    value = wf.tensor(wf.storage("FloatStorage", "0", 6), shape, strides, offset)
    whole = wf.tensor(wf.storage("FloatStorage", "0", 6), (6,))
    pickled = wf.pickled(wf.state_dict({"a": value, "b": whole}))
    file.write_bytes(wf.pth_zip_file(pickled, {"0": block.tobytes()}))
    same(load(file), {"a": expected, "b": block})
    file.write_bytes(wf.pth_stream_file(pickled, {"0": block.tobytes()}))
    same(load(file), {"a": expected, "b": block})


def test_storage_view_of_the_older_stream(file: Path) -> None:
    part = wf.storage("FloatStorage", "7", 6, view=wf.tuple_of(wf.text("8"), wf.number(2), wf.number(3)))
    pickled = wf.pickled(wf.state_dict({"a": wf.tensor(part, (2,), offset=1)}))
    file.write_bytes(wf.pth_stream_file(pickled, {"7": np.arange(6, dtype=np.float32).tobytes()}))
    same(load(file), {"a": np.array([3, 4], np.float32)})


def test_what_older_and_newer_pickles_hold(file: Path) -> None:
    """Python 2's short strings and OrderedDict of pairs; STACK_GLOBAL and MEMOIZE; both kinds of Parameter; the first
    rebuild function."""
    block = wf.storage("FloatStorage", "0", 2)
    plain = wf.tensor(block, (2,))
    first = wf.call(
        wf.name_of("torch._utils", "_rebuild_tensor"), block, wf.number(0), wf.numbers([2]), wf.numbers([1])
    )
    parameter = wf.call(wf.name_of("torch._utils", "_rebuild_parameter"), plain, wf.TRUE, wf.ORDERED_DICT)
    old = wf.call(wf.name_of("torch.nn.parameter", "Parameter"), first) + wf.tuple_of(wf.TRUE, wf.FALSE, wf.NONE) + b"b"
    python2 = b"U\1a"
    stacked = b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93)R\x94"
    expected = np.array([1, 2], np.float32)
    pairs = wf.list_of(wf.list_of(python2, old), wf.list_of(wf.text("b"), parameter))
    for value in (
        wf.call(wf.name_of("collections", "OrderedDict"), pairs),
        wf.dict_of({"a": plain, "b": first}, stacked),
        wf.state_dict({"a": parameter, "b": old}) + wf.dict_of({"_metadata": wf.ORDERED_DICT}) + b"b",
    ):
        file.write_bytes(wf.pth_zip_file(wf.pickled(value, 4), {"0": expected.tobytes()}))
        same(load(file), {"a": expected, "b": expected.copy()})


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_state_dict(wrapper: str, file: Path) -> None:
    tensors, blocks = wf.pth_parts(STATE)
    moments = wf.dict_of({"step": wf.number(3)}) + wf.number(140001234567890) + wf.list_of(wf.NONE) + b"s"
    rate = b"G" + struct.pack(">d", 0.1)
    parts = {"epoch": wf.number(90), wrapper: wf.state_dict(tensors), "optimizer": moments, "rate": rate}
    file.write_bytes(wf.pth_zip_file(wf.pickled(wf.dict_of(parts)), blocks))
    same(load(file), STATE)


@pytest.mark.parametrize("zip64", [False, True])
def test_zip_variants(zip64: bool, file: Path) -> None:
    entries = [Entry(f"{name}.npy", wf.npy(array), zip64=zip64) for name, array in STATE.items()]
    file.write_bytes(wf.zip_file(entries, zip64=zip64, comment=b"" if zip64 else b"PK\5\6 a comment"))
    same(load(file), STATE)


def test_numpy_writes_what_is_read(file: Path) -> None:
    state = {**STATE, "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "scalar": np.array(3)}
    expected = {name: np.array(array, order="C") for name, array in state.items()}
    for save in (np.savez, np.savez_compressed):
        with open(file, "wb") as out:
            save(out, **state)  # type: ignore[arg-type]
        same(load(file), expected)


def test_safetensors_library_writes_what_is_read(file: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    file.write_bytes(library.save(STATE, metadata={"format": "np"}))
    found = load(file)
    same({name: found[name] for name in STATE}, STATE)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_writes_what_is_read(zipped: bool, protocol: int, file: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(2, 2).half())
    base = torch.arange(24.0).reshape(4, 6)
    states = [
        net.state_dict(),
        dict(net.named_parameters()),
        {"state_dict": net.state_dict(), "epoch": 3, "loss": 0.5, "done": False, "big": 1 << 40},
        {
            "t": base.t(),
            "window": base[1:3, ::2],
            "tied": base,
            "bf16": base.bfloat16(),
            "bool": base > 3,
            "i": base.long(),
        },
    ]
    for state in states:
        torch.save(state, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        tensors = state.get("state_dict", state)
        expected = {}
        for name, value in tensors.items():
            value = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
            expected[name] = np.array(value.numpy(), order="C")
        same(load(file, canonical_names=False), expected)


# --- files that cannot be opened or are something else --------------------------------------------------------------


def test_paths(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pth"
    with pytest.raises(FileNotFoundError) as caught:
        weights.load(missing)
    assert caught.value.filename == str(missing)
    with pytest.raises(IsADirectoryError):
        weights.load(tmp_path)
    with pytest.raises(ValueError, match="NUL"):
        weights.load("a\0b")
    for wrong in (3, None, b"weights.pth", [str(missing)]):
        with pytest.raises(TypeError):
            weights.load(wrong)  # type: ignore[arg-type]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="not a regular file"):
            weights.load(tmp_path / "pipe")


def test_file_that_fails_while_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(bytes(100))
    with WeightFile(file) as opened:
        os.truncate(file, 60)
        with pytest.raises(ValueError, match=r"ended at byte 60 .* it was 100 long"):
            opened.read_array(20, 80, "something")
        with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output") as caught:
            patch.setattr(opened, "_file", _BadDisk())
            opened.read_array(0, 10, "something")
    assert caught.value.filename == str(file) and caught.value.errno == errno.EIO


class _BadDisk(io.BytesIO):
    def readinto(self, _: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\0", "not a weight file"),
        (b"Dear Sir or Madam, " * 40, "not a weight file"),
        (b"storages".ljust(257, b"\0") + b"ustar  \0" + bytes(300), "tar archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (wf.zip_file([]), "0 members"),
        (wf.zip_file([Entry("readme.txt", b"hello")]), "without data.pkl"),
    ],
)
def test_other_content(content: bytes, message: str, file: Path) -> None:
    refuse(file, content, message)


@FORMATS
def test_truncation_at_every_byte(kind: str, file: Path) -> None:
    content = WRITERS[kind](STATE)
    for length in range(len(content)):
        refuse(file, content[:length])
    refuse(file, content + b"\0")


# --- damaged at random ----------------------------------------------------------------------------------------------

_BASES = [write(STATE) for write in WRITERS.values()]


@settings(max_examples=600, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_an_error_or_a_dict(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(data.draw(st.sampled_from(_BASES)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "set", "insert", "remove", "copy"])):
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, *b"(tRcbQ.}])us"]))
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del content[at : at + data.draw(st.integers(1, min(16, len(content) - 1)))]
            case "copy":
                content[at:at] = content[at : at + 16]
        if not content:
            break
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    try:
        found = load(path)
    except (ValueError, OSError) as reason:
        assert str(path) in str(reason)
    else:
        assert all(type(name) is str and isinstance(array, np.ndarray) for name, array in found.items())
        assert sum(array.nbytes for array in found.values()) <= pth.MAX_COPIES * len(content)
        assert all(array.flags.c_contiguous and array.dtype.kind in "fiub" for array in found.values())
