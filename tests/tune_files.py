"""Tuning files for the tests: choices for this machine, and a file that they are written to and taken from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastconv as fc
from fastconv import _tuning


def choice(problem: str, kernel: str, layout: str = "NCHW", **changes: Any) -> dict[str, Any]:
    """A choice as the tuner would store it here."""
    found = {
        "machine": _tuning.this_machine(), "fastconv": fc.__version__, "isa": fc._core.isa(), "dtype": "float32",
        "layout": layout, "problem": problem, "kernel": kernel,
    }  # fmt: skip
    return {**found, **changes}


def choice_of(plan: dict[str, Any], kernel: str, **changes: Any) -> dict[str, Any]:
    """The choice of a kernel for the problem of a plan."""
    return choice(_tuning.problem_of(plan), kernel, plan["layout"], **changes)


def text_of(choices: Any, **changes: Any) -> str:
    return json.dumps({"schema": _tuning.SCHEMA, "tool": _tuning.TOOL, "choices": choices, **changes})


class TuneFile:
    """The file that FASTCONV_TUNE_FILE names in a test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def use(self, *choices: dict[str, Any], **changes: Any) -> _tuning.State:
        """Puts these in force."""
        self.path.write_text(text_of(list(choices), **changes))
        return _tuning.reload()

    def stored(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.path.read_text())["choices"]
        return found
