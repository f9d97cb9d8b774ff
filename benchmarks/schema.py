"""The JSON file of a run: written whole or not at all, checked when read.

Version 1 (`"schema": 1`). Top level: `schema`, `tool` ("fastconv bench"), `complete` (false: interrupted or out of
time), `notes` (sentences), `settings` (what was asked for), `environment`, `peaks` (FLOP/s by number of threads),
`rows`, `skipped` (what was not measured, and why). The keys of a row: docs/benchmarking.md.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = 1
TOOL = "fastconv bench"

_TOP: dict[str, type | tuple[type, ...]] = {
    "complete": bool,
    "notes": list,
    "settings": dict,
    "environment": dict,
    "peaks": dict,
    "rows": list,
    "skipped": list,
}
_NUMBER = (int, float)
_ROW: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "layer": str,
    "layout": str,
    "algorithm": str,
    "provider": str,
    "threads": int,
    "batch": int,
    "repeat": int,
    "burst": int,
    "samples_ms": list,
    "median_ms": _NUMBER,
    "p10_ms": _NUMBER,
    "p90_ms": _NUMBER,
    "min_ms": _NUMBER,
    "iqr_ms": _NUMBER,
}
#: What makes two rows of two runs the same measurement.
KEY = ("kind", "provider", "layer", "problem", "layout", "algorithm", "threads", "batch", "device", "dtype")


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


def validate(data: Any, source: str = "result") -> dict[str, Any]:
    """`data` if it is a result this version can read; ValueError naming `source` and what is wrong with it."""
    if not isinstance(data, dict) or "schema" not in data:
        raise ValueError(f'{source}: not a result of `{TOOL}` (no "schema" in it)')
    if data["schema"] != SCHEMA:
        raise ValueError(f"{source}: schema {data['schema']!r} is not {SCHEMA}, the one that this version reads")
    for key, kind in _TOP.items():
        if not isinstance(data.get(key), kind):
            raise ValueError(f"{source}: damaged: {key!r} is {'missing' if key not in data else 'of the wrong kind'}")
    for number, row in enumerate(data["rows"], start=1):
        _validate_row(row, f"{source}: damaged: row {number}")
    return data


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
    samples = row["samples_ms"]
    if not samples:
        raise ValueError(f"{where}: no samples")
    for value in (*samples, *(row[key] for key in ("median_ms", "p10_ms", "p90_ms", "min_ms"))):
        if not isinstance(value, _NUMBER) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{where}: a time of {value!r} ms")


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
