"""Fixtures that several packages of the tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Small tensors on several threads spend their time waiting for one another; workers set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if shutil.which("nvidia-smi") is None:
    # Without a GPU Triton interprets its kernels; it reads this variable when it is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

DATA = os.environ.get("DFQBENCH_DATA")


def pytest_configure(config: pytest.Config) -> None:
    """Where several processes share the files, they take them in the order below, not by the number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several processes begin with the files that take longest, so that none is left alone with one at the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


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
