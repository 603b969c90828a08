"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tabulate import tabulate

# Small tensors are slower on several threads; workers set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if shutil.which("nvidia-smi") is None:
    # Without a GPU Triton interprets its kernels; it reads this variable when it is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

DATA = os.environ.get("DFQBENCH_DATA")
LONGEST = {
    *("test_run_command.py", "test_executors.py", "test_catalogue.py", "test_faults.py", "test_package.py"),
    *("test_resume.py", "test_shared_job.py", "test_conformance.py", "test_graphed_methods.py"),
}
"""Files with the most work."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where tests/bench measures")
    parser.addoption("--precision", default="auto", help="how the steps that tests/bench measures compute")


def pytest_configure(config: pytest.Config) -> None:
    """Keep pytest-xdist from sorting the files by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let several processes begin with the files that take longest, so that none is left alone with one at the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (item.path.name not in LONGEST, item.path not in slow))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the speeds that tests/bench has measured as one table."""
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    rows = [row for report in reports for name, row in report.user_properties if name == "speed"]
    if rows:
        terminalreporter.section("speed")
        terminalreporter.write_line(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real evaluation sets and weights, named by DFQBENCH_DATA."""
    if not DATA:
        pytest.skip("needs the real data: set DFQBENCH_DATA to a folder with a targets.toml")
    folder = Path(DATA)
    if not (folder / "targets.toml").is_file():
        pytest.fail(f"DFQBENCH_DATA={DATA} has no targets.toml")
    return folder.resolve()


@pytest.fixture(autouse=True)
def _no_inherited_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the real data from tests that do not use `real_data`."""
    monkeypatch.delenv("DFQBENCH_DATA", raising=False)
