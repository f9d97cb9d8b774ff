"""The JSON file of a run: written whole or not at all, checked when read.

Version 2 (`"schema": 2`); every key is described in docs/benchmarking.md. Version 1 (fastconv's first benchmark) had no
visits, clocks or roofs, so the two cannot be compared and the reader says so.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = 2
TOOL = "fastconv bench"

_NUMBER = (int, float)
_TOP: dict[str, type | tuple[type, ...]] = {
    "complete": bool,
    "notes": list,
    "settings": dict,
    "environment": dict,
    "rooflines": list,
    "noise": dict,
    "rows": list,
    "skipped": list,
    "sweep": (dict, type(None)),
}
_ROW: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "op": str,
    "layer": str,
    "problem": str,
    "layout": str,
    "via": str,
    "algorithm": str,
    "provider": str,
    "isa": str,
    "device": str,
    "dtype": str,
    "threads": int,
    "batch": int,
    "repeat": int,
    "burst": int,
    "samples_ms": list,
    "visits": list,
    "clock": list,
    "cold_ms": list,
    "macs": int,
    "median_ms": _NUMBER,
    "p10_ms": _NUMBER,
    "p90_ms": _NUMBER,
    "min_ms": _NUMBER,
    "iqr_ms": _NUMBER,
}
#: What makes two rows of two runs the same measurement.
KEY = (
    "kind", "provider", "op", "layer", "problem", "layout", "via", "algorithm", "isa", "threads", "batch", "device",
    "dtype",
)  # fmt: skip


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


def validate(data: Any, source: str = "result") -> dict[str, Any]:
    """`data` if it is a result this version can read; ValueError naming `source` and what is wrong with it."""
    if not isinstance(data, dict) or "schema" not in data:
        raise ValueError(f'{source}: not a result of `{TOOL}` (no "schema" in it)')
    if data["schema"] == 1:
        raise ValueError(f"{source}: schema 1, from an older fastconv that measured otherwise; run the benchmark again")
    if data["schema"] != SCHEMA:
        raise ValueError(f"{source}: schema {data['schema']!r} is not {SCHEMA}, the one that this version reads")
    for key, kind in _TOP.items():
        if not isinstance(data.get(key), kind) or key not in data:
            raise ValueError(f"{source}: damaged: {key!r} is {'missing' if key not in data else 'of the wrong kind'}")
    for number, roof in enumerate(data["rooflines"], start=1):
        _validate_roof(roof, f"{source}: damaged: roofline {number}")
    for number, item in enumerate(data["skipped"], start=1):
        if not isinstance(item, dict) or not all(isinstance(item.get(k), str) for k in ("layer", "what", "reason")):
            raise ValueError(f"{source}: damaged: skipped {number} has not layer, what and reason")
    if not all(isinstance(note, str) for note in data["notes"]):
        raise ValueError(f"{source}: damaged: 'notes' holds something that is no text")
    for number, row in enumerate(data["rows"], start=1):
        _validate_row(row, f"{source}: damaged: row {number}")
    return data


def _validate_roof(roof: Any, where: str) -> None:
    if not isinstance(roof, dict) or not isinstance(roof.get("isa"), str) or not isinstance(roof.get("threads"), int):
        raise ValueError(f"{where} has not isa and threads")
    bandwidth = roof.get("bandwidth")
    if not _is_time(roof.get("fma_gflops")) or not isinstance(bandwidth, dict):
        raise ValueError(f"{where} has not fma_gflops and bandwidth")
    if not all(_is_time(value) for value in bandwidth.values()):
        raise ValueError(f"{where}: a bandwidth is not a number above 0")


def _is_time(value: Any) -> bool:
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _validate_row(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not an object")
    for key, kind in _ROW.items():
        value = row.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{where}: {key!r} is {'missing' if key not in row else 'of the wrong kind'}")
    for key in ("threads", "batch", "repeat", "burst"):
        if row[key] < 1:
            raise ValueError(f"{where}: {key!r} is {row[key]}, not at least 1")
    samples, visits = row["samples_ms"], row["visits"]
    if not samples:
        raise ValueError(f"{where}: no samples")
    for value in (*samples, *row["cold_ms"], *(row[key] for key in ("median_ms", "p10_ms", "p90_ms", "min_ms"))):
        if not _is_time(value):
            raise ValueError(f"{where}: a time of {value!r} ms")
    if not all(isinstance(v, int) and v > 0 for v in visits) or sum(visits) != len(samples):
        raise ValueError(f"{where}: 'visits' does not add up to the {len(samples)} samples")
    if len(row["clock"]) != len(visits) or not all(isinstance(c, _NUMBER) and c >= 0 for c in row["clock"]):
        raise ValueError(f"{where}: 'clock' has not a number for each of the {len(visits)} visits")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads and checks a file. OSError if it cannot be read, ValueError if it is no result, damaged or of another
    version."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"result file not found: {os.fspath(path)!r}") from None
    except OSError as error:
        raise type(error)(f"result file {os.fspath(path)!r}: {error.strerror or error}") from None
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: not readable as JSON ({error})") from None
    return validate(data, os.fspath(path))


def dumps(data: dict[str, Any]) -> str:
    """The file's text. Not-a-number and infinity are refused: JSON has no word for them."""
    return json.dumps(validate(data), indent=None, separators=(",", ":"), allow_nan=False) + "\n"


def save(data: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the file through a temporary neighbour and a rename, so that a reader sees the old file or the new one."""
    write_atomically(path, dumps(data))


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Puts `text` (UTF-8) in the file of that name, wholly or not at all."""
    target = Path(path)
    # mkstemp gives 0600; the file gets the rights that the user's umask gives any other.
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
