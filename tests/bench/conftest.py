"""Options of the speed measurements, and their table at the end."""

from __future__ import annotations

import pytest
from tabulate import tabulate


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where speed is measured")
    parser.addoption("--precision", default="auto", help="how the measured steps of dfqbench compute")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = [row for report in terminalreporter.stats.get("passed", []) for name, row in report.user_properties]
    if rows:
        terminalreporter.section("speed")
        terminalreporter.write_line(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
