"""A part of a measurement in a process of its own: a kernel that hangs or breaks its context costs nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def call_isolated(module: str, arguments: list[str], seconds: float) -> tuple[Any, str]:
    """(what `python -m fastconv.benchmarks.gpu.MODULE ARGUMENTS --answer FILE` wrote there, "") or (None, why not)."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", f"fastconv.benchmarks.gpu.{module}", *arguments, "--answer", str(answer)]
        try:
            done = subprocess.run(command, timeout=seconds, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            return None, f"stopped after {seconds:g} s"
        if done.returncode or not answer.exists():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            return None, f"status {done.returncode}: {said[-1] if said else 'nothing was said'}"
        return json.loads(answer.read_text(encoding="utf-8")), ""
