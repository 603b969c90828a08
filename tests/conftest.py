"""Fixtures that several rooms of the tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Small tensors on several threads spend their time waiting for one another; workers set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = os.environ.get("DFQBENCH_DATA")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real evaluation sets and weights, named by DFQBENCH_DATA."""
    if not DATA:
        pytest.skip("needs the real data: set DFQBENCH_DATA to a folder with a targets.toml")
    folder = Path(DATA)
    if not (folder / "targets.toml").is_file():
        pytest.fail(f"DFQBENCH_DATA={DATA} has no targets.toml")
    return folder.resolve()


@pytest.fixture(autouse=True)
def _no_inherited_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the real data only through `real_data`, so that they behave alike with and without it."""
    monkeypatch.delenv("DFQBENCH_DATA", raising=False)
