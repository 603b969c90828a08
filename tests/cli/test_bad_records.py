"""Records that cannot be read, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.calls import BROKEN, Call, refused


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\x00", b'{"status": "ok"}'])
def test_a_corrupt_record(call: Call, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    arguments = ("run", "--grid", "smoke", "--methods", "raises_on_import", "--plugin", BROKEN, "--out", out)
    call(*arguments)
    (path,) = out.glob("smoke/cells/*/attempt-1/record.json")
    path.write_bytes(content)

    table = call("table", "--out", out)
    assert table.status == 0
    (line,) = table.err.splitlines()
    assert line.startswith(f"dfqbench: warning: {path} is not a readable record")
    assert "delete its folder to run it again" in line
    assert call("plan", "--grid", "smoke", "--out", out).status == 0

    again = call(*arguments)
    assert again.status == 1
    assert "Traceback" not in again.err
    assert path.read_bytes() == content
    assert json.loads((path.parents[1] / "attempt-2" / "record.json").read_text())["status"] == "failed"


def test_show_of_a_corrupt_record(call: Call, tmp_path: Path) -> None:
    attempt = tmp_path / "out" / "mine" / "cells" / "abcd" / "attempt-1"
    attempt.mkdir(parents=True)
    (attempt / "record.json").write_text("{")
    refused(call("show", "abcd", "--out", tmp_path / "out"), f"record {attempt / 'record.json'} cannot be read", "run")
    refused(call("show", "ef", "--out", tmp_path / "out"), "no cell begins with 'ef'", "dfqbench table")
