from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.cli.calls import Call

import dfqbench
from dfqbench.cli.main import VERBS, described_version

NAMES = [verb for verbs in VERBS.values() for verb in verbs]
COMMANDS = [(), *((name,) for name in NAMES)]
COMMANDS += [("methods", name) for name in ("list", "show", "new", "check")]
COMMANDS += [(group, name) for group in ("models", "grids") for name in ("list", "show")]


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_plain_and_fits_80_columns(call: Call, command: tuple[str, ...]) -> None:
    output = call(*command, "--help")
    assert (output.status, output.err) == (0, "")
    lines = output.out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert not re.search(r"[<{]\w+( \w+)?[}>]|<list|\x1b", output.out)
    if command in {(), ("methods",), ("models",), ("grids",)}:
        assert not [line for line in lines[1:] if line.endswith("...")]


def sections(text: str) -> dict[str, list[str]]:
    """First words of the entries, by heading."""
    headings = re.split(r"\n\n(?=\S[^\n]*:\n)", text)[1:]
    return {
        heading: re.findall(r"^  (\S+)", entries, re.MULTILINE)
        for heading, _, entries in (part.partition(":\n") for part in headings)
    }


def test_commands_are_grouped(call: Call) -> None:
    shown = sections(call("--help").out)
    assert {group: set(names) for group, names in shown.items() if group in VERBS} == {
        group: set(verbs) for group, verbs in VERBS.items()
    }


@pytest.mark.parametrize("verb", ["run", "plan", "table", "sensitivity"])
def test_options_are_grouped(call: Call, verb: str) -> None:
    shown = sections(call(verb, "--help").out)
    assert {"What to print" if verb == "table" else "Selection", "Data and places"} <= shown.keys()
    assert shown["Options"] == ["-h,"]


def test_short_lists_of_options_are_not_grouped(call: Call) -> None:
    assert list(sections(call("grids", "list", "--help").out)) == ["Options"]


def test_alone_says_where_to_begin(call: Call) -> None:
    for output in (call(), call("--help")):
        text = output.out + output.err
        assert "First steps:" in text
        assert "dfqbench run --grid first" in text


def test_run_alone_lists_grids_and_runs_nothing(call: Call) -> None:
    output = call("run")
    assert (output.status, output.out) == (2, "")
    assert re.search(r"--grid w4a4 +Every method at 4-bit", output.err)
    for part in ("dfqbench run --grid first", "Nothing is run yet"):
        assert part in output.err
    assert list(Path().iterdir()) == []


def test_version(call: Call) -> None:
    output = call("--version")
    assert (output.status, output.err) == (0, "")
    assert output.out.startswith(f"dfqbench {dfqbench.__version__}")


def test_version_of_a_checkout_has_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "benchmark" / "dfqbench" / "cli"
    package.mkdir(parents=True)
    monkeypatch.setattr("dfqbench.cli.main.__file__", str(package / "main.py"))
    assert described_version() == dfqbench.__version__
    (package / "main.py").touch()
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    assert re.fullmatch(rf"{re.escape(dfqbench.__version__)} \(git [0-9a-f]{{7,}}\)", described_version())
