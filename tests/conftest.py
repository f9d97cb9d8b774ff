"""Fixtures and options of the tests.

Run everything that ends in minutes:  pytest
Run the long sweeps too:              pytest --run-slow
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastconv import _tuning
from helpers import LAYOUTS, NO_TUNE_FILE, TESTED_LEVELS, max_isa, missing_level
from tune_files import TuneFile

if TYPE_CHECKING:
    from types import ModuleType


os.environ["FASTCONV_TUNE_FILE"] = NO_TUNE_FILE  # not what the developer has tuned


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--run-slow", action="store_true", default=False, help="also run the tests marked slow (long sweeps)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow") or "slow" in (config.getoption("markexpr") or ""):
        return
    kept = [item for item in items if item.get_closest_marker("slow") is None]
    dropped = [item for item in items if item.get_closest_marker("slow") is not None]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A kernel that breaks its context breaks it for the whole process: under xdist another takes its place."""
    module = sys.modules.get("fastconv._cuda")
    if module is None or "PYTEST_XDIST_WORKER" not in os.environ or item.get_closest_marker("gpu") is None:
        return
    try:
        module.synchronize(0)
    except RuntimeError:
        os._exit(1)


@pytest.fixture(params=TESTED_LEVELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each ISA level in turn, as a cap on the whole package."""
    level = str(request.param)
    reason = missing_level(level)
    if reason is not None:
        pytest.skip(reason)
    with max_isa(level):
        yield level


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """CUDA on the host, then on a GPU: what `fastconv.cuda` and ops on its arrays run on. Its name."""
    from cuda_backend import use

    return use(monkeypatch, str(request.param))


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(20231)


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TuneFile]:
    """A tuning file, not there yet. What it says in the end is not in force any more afterwards."""
    monkeypatch.setenv("FASTCONV_TUNE_FILE", str(tmp_path / "tune.json"))
    _tuning.reload()
    yield TuneFile(tmp_path / "tune.json")
    monkeypatch.undo()
    _tuning.reload()


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """PyTorch, or a skip."""
    module: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
    return module  # type: ignore[no-any-return]
