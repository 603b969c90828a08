"""Run every command of the pages: quick ones here, runs and installations in `tox -e docs`."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks import DOCS, PAGES, ROOT, blocks, write_files
from dfqbench.cli.main import main

ALL = [block for page in PAGES for block in blocks(page)]
TROUBLESHOOTING = "troubleshooting.md"
MESSAGES = [block for block in ALL if block.page == TROUBLESHOOTING]
QUICK = [block for block in ALL if block.language == "bash" and not block.mark and block.page != TROUBLESHOOTING]
SLOW = [block for block in ALL if block.mark == "slow"]

Call = Callable[[str], tuple[int, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Return a function that runs a `dfqbench` command line in `tmp_path`: exit status and everything printed."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        return main(), "".join(capsys.readouterr())

    return run


def test_every_command_is_run_or_has_a_reason() -> None:
    commands = [block for block in ALL if block.language == "bash"]
    assert len(commands) > 20
    for block in commands:
        assert block.mark in {"", "slow", "slow: tutorial"} or block.mark.startswith("not run: "), block
        assert block.mark or all(line.startswith("dfqbench ") for line in block.lines), block


@pytest.mark.parametrize("page", sorted({block.page for block in QUICK}))
def test_quick_commands(page: str, call: Call, tmp_path: Path) -> None:
    write_files([block for block in ALL if block.page == page], tmp_path)
    for line in [line for block in QUICK if block.page == page for line in block.lines]:
        status, output = call(line)
        assert status == 0, f"{line}\n{output}"


@pytest.mark.skipif(os.environ.get("DFQBENCH_DOCS") != "slow", reason="runs grids: `tox -e docs`")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("page", sorted({block.page for block in SLOW}))
def test_slow_commands(page: str, tmp_path: Path) -> None:
    write_files([block for block in ALL if block.page == page], tmp_path)
    for block in [block for block in SLOW if block.page == page]:
        command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-ec"]
        done = subprocess.run(
            [*command, block.text], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=2500
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip()


@pytest.mark.parametrize("section", dict.fromkeys(block.section for block in MESSAGES))
def test_every_message_is_printed(section: str, call: Call, tmp_path: Path) -> None:
    own = [block for block in MESSAGES if block.section == section]
    write_files(own, tmp_path)
    [command] = [block for block in own if block.language == "bash"]
    [message] = [block for block in own if block.language == "text"]
    for line in command.lines:
        output = " ".join(call(line)[1].split())
    start = 0
    for part in " ".join(message.text.split()).split("..."):
        position = output.find(part.strip(), start)
        assert position >= 0, f"{part.strip()!r} is not in {output!r}"
        start = position + len(part.strip())


def test_messages_without_a_command_are_in_the_code() -> None:
    """Other tests provoke these messages; here the page and the code must have the same words."""
    page = (DOCS / TROUBLESHOOTING).read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmark/dfqbench").rglob("*.py"))
    for words in ("this run would take about", "lower the learning rate or run with another seed", "real_data_opened"):
        assert words in page
        assert words in code


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "results/README.md", *PAGES], ids=lambda page: page.name)
def test_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target


def test_cited_sections_exist() -> None:
    sections = (DOCS / "methods.md").read_text(encoding="utf-8")
    files = [path for folder in ("benchmark", "methods") for path in (ROOT / folder).rglob("*.py")]
    cited = {number for path in files for number in re.findall(r"methods\.md (\d+(?:\.\d+)?)", path.read_text("utf-8"))}
    assert len(cited) > 5
    for number in cited:
        assert re.search(rf"^(## {number} |\*\*{re.escape(number)} )", sections, re.MULTILINE), number


def test_reference_pages_name_modules_that_exist() -> None:
    modules = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)]
    assert len(modules) > 20
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
