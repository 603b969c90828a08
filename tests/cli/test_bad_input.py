"""Bad input gives a short message that names it, and never a traceback."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from tests.cli.bad_files import GRIDS, MANIFESTS, PLUGINS, RECORDS
from tests.cli.bad_input import COMMANDS
from tests.cli.calls import Call, Output, write_record
from tests.cli.test_bad_data import MANIFEST, data_folder

from dfqbench.api.errors import DfqError


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are no grid, plugin, data folder or folder of results."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("fifo", "fifo.toml", "fifo.py"):
        os.mkfifo(folder / name)
    for name in ("dir.toml", "dir.py"):
        (folder / name).mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "file").write_text("x")
    return folder


def check(output: Output, *parts: str, status: int = 2) -> None:
    """Check exit status, a message of at most four lines that names what is wrong, and that nothing was written."""
    assert output.status == status, output
    assert "Traceback" not in output.err + output.out
    lines = [line for line in output.err.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 4, output.err
    assert max(map(len, lines)) < 4_200
    for part in parts:
        assert part in output.err, output.err
    assert "Error: " in lines[-1] or lines[-1].startswith("dfqbench: error: "), output.err
    assert output.err.isascii() or output.err.replace("\n", "").isprintable()
    assert list(Path().iterdir()) == [], "something was written"


def test_there_are_hundreds_of_cases() -> None:
    assert len({case[0] for case in COMMANDS}) == len(COMMANDS)
    assert len(COMMANDS) + len(GRIDS) + len(MANIFESTS) + len(PLUGINS) + len(RECORDS) > 500


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", COMMANDS, ids=[case[0][:60] for case in COMMANDS])
def test_bad_command_line_is_refused(call: Call, bad: Path, case: tuple[str, ...]) -> None:
    command, *parts = (text.replace("BAD", str(bad)) for text in case)
    # A run that is accepted by mistake begins nothing: seeds are read after everything else.
    guard = ["--seeds", "x"] if command.startswith("run ") and command != "run --grid" else []
    output = call(*shlex.split(command), *guard)
    check(output, *parts)
    assert output.out == ""


@pytest.mark.parametrize(("text", "part"), GRIDS)
def test_bad_grid_file_is_refused(call: Call, tmp_path: Path, text: str | bytes, part: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    check(call("plan", "--grid", path), part)


@pytest.mark.parametrize(("old", "new", "part"), MANIFESTS)
def test_bad_manifest_is_refused(call: Call, tmp_path: Path, old: str, new: str, part: str) -> None:
    assert old in MANIFEST
    folder = data_folder(tmp_path / "data", MANIFEST.replace(old, new, 1))
    check(call("plan", "--grid", "smoke", "--on", "toy", "--data", folder), part, str(folder / "targets.toml"))


@pytest.mark.parametrize(("text", "part"), PLUGINS)
def test_bad_plugin_file_is_named(call: Call, tmp_path: Path, text: str | bytes, part: str) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    check(call("methods", "check", "mine", "--plugin", path), part, str(path), status=1)


@pytest.mark.parametrize(("content", "part"), RECORDS)
def test_bad_record_is_named(call: Call, tmp_path: Path, content: str | bytes, part: str) -> None:
    file = write_record(tmp_path / "out", "run", "aa11") / "record.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    check(call("show", "aa11", "--out", tmp_path / "out"), part, str(file))
    table = call("table", "--out", tmp_path / "out")
    assert f"warning: {file} is not a readable record" in table.err
    assert "Traceback" not in table.err


def test_message_is_one_line_of_limited_length(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise DfqError("a\nb\x1b[31m\u202e" + "x" * 10**6, "é")

    monkeypatch.setattr("dfqbench.cli.main.build_app", lambda: fail)
    output = call("plan")
    assert output.err.startswith("dfqbench: error: a\\nb\\x1b[31m\\u202exxx")
    assert output.err.endswith("; é\n")
    assert len(output.err) < 4_200
