"""A strict reader of the ZIP container under `.npz` and newer `.pth` files. Nothing is ever unpacked to disk.

Format: PKWARE's APPNOTE.TXT. Accepted is what NumPy and PyTorch write: one disk, nothing before the first member,
members stored or deflated, ZIP64 where sizes ask for it. Everything is checked before a member is read: sizes against
the file, members against each other (two that overlap are how a small file claims to be a big one), inflated sizes
against limits.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from ._file import Bytes, WeightFile, shown

MAX_MEMBERS = 16384
"""Members of an archive. ResNet-152 has 932 tensors."""

MAX_DIRECTORY_BYTES = 8 << 20
"""Bytes of the central directory: some 500 for each member that is allowed."""

FREE_INFLATED_BYTES = 16 << 20
MAX_RATIO = 100
MAX_INFLATED_BYTES = 8 << 30
"""Deflated members may inflate, all together, to 16 MiB + 100 times the file, and to 8 GiB at most. Trained float
weights shrink by a tenth; deflate itself reaches 1032 to 1."""

_CHUNK = 1 << 20
_EOCD = struct.Struct("<4s4H2IH")
_EOCD64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 0x2041  # bits 0 (traditional), 6 (strong), 13 (masked headers)
_SIZES_FOLLOW = 0x0008  # the local header need not hold the sizes
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True)
class Member:
    name: str
    method: int
    crc: int
    packed: int
    size: int
    start: int


def matches(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a ZIP archive (an empty one included)."""
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


class Archive:
    """The members of a ZIP file by name, every bound already checked."""

    def __init__(self, file: WeightFile) -> None:
        self._file = file
        self.members: dict[str, Member] = {}
        count, start, end = self._find_directory()
        self._read_directory(count, start, end)
        inflated = sum(m.size for m in self.members.values() if m.method == _DEFLATED)
        limit = min(FREE_INFLATED_BYTES + MAX_RATIO * file.size, MAX_INFLATED_BYTES)
        if inflated > limit:
            raise file.error(
                f"zip members would inflate to {inflated} bytes, {limit} are accepted for a file of {file.size}"
            )

    def _find_directory(self) -> tuple[int, int, int]:
        """Number of members, first byte of the central directory, first byte after it."""
        file = self._file
        tail_start = max(0, file.size - _EOCD.size - _FULL16)
        tail = file.read(tail_start, file.size - tail_start, "the end of the zip archive")
        at = tail.rfind(b"PK\x05\x06")
        while at >= 0:
            rest = len(tail) - at - _EOCD.size
            if rest >= 0 and int.from_bytes(tail[at + 20 : at + 22], "little") == rest:
                break
            at = tail.rfind(b"PK\x05\x06", 0, at)
        if at < 0:
            raise file.error("zip archive without an end record (truncated?)")
        _, disk, first_disk, here, count, size, start, _ = _EOCD.unpack_from(tail, at)
        end = tail_start + at
        if end >= _LOCATOR64.size:
            locator = file.read(end - _LOCATOR64.size, _LOCATOR64.size, "the zip64 locator")
            if locator[:4] == b"PK\x06\x07":
                count, size, start, end = self._directory64(locator, end - _LOCATOR64.size, (count, size, start))
                here, disk, first_disk = count, 0, 0
        if disk or first_disk or here != count:
            raise file.error("zip archive in several parts")
        if count > MAX_MEMBERS:
            raise file.error(f"zip archive of {count} members, at most {MAX_MEMBERS} are accepted")
        if size > MAX_DIRECTORY_BYTES:
            raise file.error(f"zip directory of {size} bytes, at most {MAX_DIRECTORY_BYTES} are accepted")
        if start + size != end:
            raise file.error(f"zip directory at byte {start} with {size} bytes, expected it to end at byte {end}")
        return count, start, end

    def _directory64(self, locator: bytes, locator_at: int, classic: tuple[int, int, int]) -> tuple[int, int, int, int]:
        file = self._file
        _, disk, at, disks = _LOCATOR64.unpack(locator)
        record = file.read(at, _EOCD64.size, "the zip64 end record")
        sign, length, _, _, disk64, first_disk, here, count, size, start = _EOCD64.unpack(record)
        if sign != b"PK\x06\x06" or at + 12 + length != locator_at:
            raise file.error(f"the zip64 end record at byte {at} is damaged")
        if disk or disks > 1 or disk64 or first_disk or here != count:
            raise file.error("zip archive in several parts")
        for old, new, full in zip(classic, (count, size, start), (_FULL16, _FULL32, _FULL32), strict=True):
            if old not in (full, new):
                raise file.error(f"the two zip end records disagree: {old} and {new}")
        return count, size, start, at

    def _read_directory(self, count: int, start: int, end: int) -> None:
        file = self._file
        table = file.read(start, end - start, "the zip directory")
        spans: list[tuple[int, int, str]] = []
        at = 0
        for _ in range(count):
            if at + _CENTRAL.size > len(table):
                raise file.error(f"zip directory of {len(table)} bytes ends inside one of its {count} entries")
            sign, _, _, flags, method, _, _, crc, packed, size, n, x, c, disk, _, _, offset = _CENTRAL.unpack_from(
                table, at
            )
            at += _CENTRAL.size
            if sign != b"PK\x01\x02" or at + n + x + c > len(table):
                raise file.error(f"zip directory entry at byte {start + at - _CENTRAL.size} is damaged")
            raw_name, extra = table[at : at + n], table[at + n : at + n + x]
            at += n + x + c
            name = self._name(raw_name)
            size, packed, offset = self._sizes64(name, extra, size, packed, offset)
            if name in self.members:
                raise file.error(f"zip member {shown(name)} occurs twice")
            if flags & _ENCRYPTED:
                raise file.error(f"zip member {shown(name)} is encrypted")
            if method not in (_STORED, _DEFLATED):
                raise file.error(f"zip member {shown(name)} uses compression method {method}, accepted are 0 and 8")
            if method == _STORED and packed != size:
                raise file.error(f"zip member {shown(name)} is stored as {packed} bytes but claims {size}")
            if disk:
                raise file.error("zip archive in several parts")
            data = self._local(name, raw_name, offset, (flags, method, crc, packed, size))
            spans.append((offset, data + packed, name))
            self.members[name] = Member(name, method, crc, packed, size, data)
        if at != len(table):
            raise file.error(f"zip directory of {len(table)} bytes, its {count} entries take {at}")
        reached, before = 0, ""
        for begin, stop, name in sorted(spans):
            if begin < reached:
                raise file.error(f"zip members {shown(before)} and {shown(name)} overlap at byte {begin}")
            reached, before = stop, name
        if reached > start:
            raise file.error(f"zip member {shown(before)} ends at byte {reached}, inside the directory at {start}")

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._file.error(f"zip member name {shown(raw)} is not UTF-8") from None
        parts = name.rstrip("/").split("/") if name.endswith("/") else name.split("/")
        if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise self._file.error(f"zip member name {shown(name)} is not a plain relative path")
        return name

    def _sizes64(self, name: str, extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
        """Fills in the fields that did not fit in 32 bits from the ZIP64 extra field."""
        values = [size, packed, offset]
        wanted = [i for i, value in enumerate(values) if value == _FULL32]
        at = 0
        while wanted and at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            at += 4
            if kind == 1:
                if at + length > len(extra) or length < 8 * len(wanted):
                    break
                for i, value in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, at), strict=True):
                    values[i] = value
                return values[0], values[1], values[2]
            at += length
        if wanted:
            raise self._file.error(f"zip member {shown(name)} lacks its 64-bit sizes")
        return size, packed, offset

    def _local(self, name: str, raw_name: bytes, offset: int, central: tuple[int, int, int, int, int]) -> int:
        """Checks the member's own header against the directory; the offset of its first data byte."""
        file = self._file
        what = f"zip member {shown(name)}"
        head = file.read(offset, _LOCAL.size, what)
        sign, _, flags, method, _, _, crc, packed, size, n, x = _LOCAL.unpack(head)
        if sign != b"PK\x03\x04":
            raise file.error(f"{what}: no header at byte {offset}")
        if file.read(offset + _LOCAL.size, n, what) != raw_name:
            raise file.error(f"{what} has another name in its own header at byte {offset}")
        if method != central[1] or flags & _ENCRYPTED:
            raise file.error(f"{what}: method {method} and flags {flags:#x} in its header disagree with the directory")
        if not flags & _SIZES_FOLLOW:
            for own, listed in zip((crc, packed, size), central[2:], strict=True):
                if own != listed and own != _FULL32:
                    raise file.error(f"{what}: {own} in its header, {listed} in the directory")
        data: int = offset + _LOCAL.size + n + x
        if data + central[3] > file.size:
            raise file.error(f"{what} ends at byte {data + central[3]}, the file has {file.size} (truncated?)")
        return data

    def load(self, name: str) -> Bytes:
        """The member's bytes as a new array; ValueError where they are damaged (size or CRC-32 differ)."""
        member = self.members[name]
        if member.method == _STORED:
            out = self._file.read_array(member.start, member.size, f"zip member {shown(name)}")
        else:
            out = self._inflate(member)
        crc = zlib.crc32(out.data)
        if crc != member.crc:
            raise self._file.error(
                f"zip member {shown(name)} has the CRC-32 {crc:#010x}, expected {member.crc:#010x} (damaged)"
            )
        return out

    def _inflate(self, member: Member) -> Bytes:
        file = self._file
        what = f"zip member {shown(member.name)}"
        out = np.empty(member.size, np.uint8)
        view = out.data
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        fed = written = 0
        try:
            while fed < member.packed and not stream.eof:
                chunk = file.read(member.start + fed, min(_CHUNK, member.packed - fed), what)
                fed += len(chunk)
                while True:
                    # One byte more than fits, so that a stream longer than it claims shows; 0 would mean "no limit".
                    limit = min(member.size - written + 1, 4 * _CHUNK)
                    piece = stream.decompress(chunk, limit)
                    if written + len(piece) > member.size:
                        raise file.error(f"{what} inflates to more than the {member.size} bytes that it claims")
                    view[written : written + len(piece)] = piece
                    written += len(piece)
                    chunk = stream.unconsumed_tail
                    if stream.eof or (not chunk and len(piece) < limit):
                        break
        except zlib.error as reason:
            raise file.error(f"{what} is damaged: {reason}") from None
        if not stream.eof or written != member.size:
            raise file.error(f"{what} inflates to {written} bytes, it claims {member.size}")
        if fed != member.packed or stream.unused_data:
            raise file.error(f"{what} has bytes left over after its compressed data")
        return out
