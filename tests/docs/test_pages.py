"""Every command of the pages is run: light ones here, runs and installations in `tox -e docs`."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks import Block, blocks, pages
from dfqbench.cli.main import main

ALL = [block for page in pages() for block in blocks(page)]
SLOW = os.environ.get("DFQBENCH_DOCS") == "slow"
TROUBLES = "troubleshooting.md"

Call = Callable[[str], tuple[int, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a `dfqbench` command line in this process: exit status and everything printed."""

    def run(line: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        status = main()
        out, err = capsys.readouterr()
        return status, out + err

    return run


def files(found: list[Block]) -> list[Block]:
    return [block for block in found if "." in block.title]


def write(found: list[Block], folder: Path) -> None:
    for block in files(found):
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        if path.name == "targets.toml":
            import numpy as np

            np.savez(path.with_name("test.npz"), x=np.zeros((4, 32, 32, 3), np.uint8), y=np.array([0, 1, 0, 1]))


def lines(block: Block) -> list[str]:
    return [line for line in block.text.splitlines() if line.strip() and not line.startswith("#")]


def test_every_command_is_run_or_says_why_not() -> None:
    commands = [block for block in ALL if block.language == "bash"]
    assert len(commands) > 20
    for block in commands:
        assert block.mark in {"", "slow", "slow: tutorial"} or block.mark.startswith("not run: "), block
        if not block.mark:
            assert all(line.startswith("dfqbench ") for line in lines(block)), block


PAGES = sorted({block.page for block in ALL if block.language == "bash" and not block.mark} - {TROUBLES})


@pytest.mark.parametrize("page", PAGES)
def test_light_commands(page: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = [block for block in ALL if block.page == page]
    write(own, tmp_path)
    for block in own:
        if block.language == "bash" and not block.mark:
            for line in lines(block):
                status, printed = call(line)
                assert status == 0, f"{line}\n{printed}"


@pytest.mark.skipif(not SLOW, reason="runs grids: `tox -e docs`, or DFQBENCH_DOCS=slow")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("page", sorted({block.page for block in ALL if block.mark == "slow"}))
def test_slow_commands(page: str, tmp_path: Path) -> None:
    own = [block for block in ALL if block.page == page]
    write(own, tmp_path)
    for block in own:
        if block.mark != "slow":
            continue
        interpreter = [sys.executable, "-c"] if block.language == "python" else ["bash", "-ec"]
        done = subprocess.run(
            [*interpreter, block.text], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=2500
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip()


TROUBLED: dict[str, list[Block]] = {block.section: [] for block in ALL if block.page == TROUBLES}
for _block in ALL:
    if _block.page == TROUBLES:
        TROUBLED[_block.section].append(_block)


@pytest.mark.parametrize("section", TROUBLED)
def test_every_message_is_a_real_one(section: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = TROUBLED[section]
    write(found, tmp_path)
    [command] = [block for block in found if block.language == "bash"]
    [message] = [block for block in found if block.language == "text"]
    printed = ""
    for line in lines(command):
        printed = call(line)[1]
    flat = " ".join(printed.split())
    start = 0
    for part in " ".join(message.text.split()).split("..."):
        place = flat.find(part.strip(), start)
        assert place >= 0, f"{part.strip()!r} is not in {flat!r}"
        start = place + len(part.strip())


def test_other_messages_on_the_page_are_in_the_code() -> None:
    """Those that take hours or a crash to provoke have tests of their own; here only that the words still exist."""
    source = Path(__file__).parent.parent.parent / "benchmark" / "dfqbench"
    code = "\n".join(path.read_text(encoding="utf-8") for path in source.rglob("*.py"))
    for words in (
        "this run would take about",
        "lower the learning rate or run with another seed",
        "real_data_opened",
    ):
        assert words in (Path(__file__).parent.parent.parent / "docs" / TROUBLES).read_text(encoding="utf-8")
        assert words in code


def test_links_between_pages_and_cited_sections_exist() -> None:
    import re

    for page in pages():
        for target in re.findall(r"\]\(([^)#:]+\.md)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
    sections = (pages()[0].parent / "methods.md").read_text(encoding="utf-8")
    root = Path(__file__).parent.parent.parent
    code = [
        path.read_text(encoding="utf-8")
        for folder in ("benchmark", "methods")
        for path in (root / folder).rglob("*.py")
    ]
    cited = {number for text in code for number in re.findall(r"methods\.md (\d+(?:\.\d+)?)", text)}
    assert len(cited) > 5
    for number in cited:
        assert re.search(rf"^(## {number} |\*\*{re.escape(number)} )", sections, re.MULTILINE), number


def test_reference_pages_name_modules_that_exist() -> None:
    reference = Path(__file__).parents[2] / "docs" / "reference"
    lines = [line for page in reference.glob("*.md") for line in page.read_text().splitlines()]
    modules = [line.removeprefix("::: ") for line in lines if line.startswith("::: ")]
    assert len(modules) > 20
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
