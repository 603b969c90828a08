from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.calls import Call, refused, write_record

ERROR = {
    "type": "RuntimeError",
    "message": "boom",
    "phase": "synthesis",
    "step": 7,
    "traceback": "most recent\n  here\n",
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    attempt = write_record(folder, "smoke", "abc1", seconds={"synthesis": 1.5}, top5=None)
    (attempt / "log.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    write_record(folder, "smoke", "abd2", status="failed", error=ERROR)
    return folder


def test_finished_cell(call: Call, out: Path) -> None:
    output = call("show", "abc", "--out", out)
    assert output.status == 0
    lines = output.out.splitlines()
    assert lines[0] == str(out / "smoke" / "cells" / "abc1" / "attempt-1")
    assert {"method: zeroq", "  synthesis: 1.5", "line 99"} <= set(lines)
    assert {"error:", "line 79"}.isdisjoint(lines)
    assert "top5" not in output.out


def test_terms_and_bit_operations_are_shown(call: Call, out: Path) -> None:
    write_record(out, "smoke", "rex1", coverage={"macs_total": 10, "weight_terms": 1.5, "bit_operations": 240})
    assert {"  weight_terms: 1.5", "  bit_operations: 240"} <= set(call("show", "rex1", "--out", out).out.splitlines())


def test_flags_of_shared_hardware_are_explained(call: Call, out: Path) -> None:
    write_record(out, "smoke", "efg3", flags=["cpu_shared", "inline"])
    text = call("show", "efg", "--out", out).out
    assert "flags: cpu_shared (other jobs computed on the same CPU), inline\n" in text
    assert call("show", "efg", "--out", out, "--json").json["flags"] == ["cpu_shared", "inline"]


def test_failed_cell_without_a_log(call: Call, out: Path) -> None:
    text = call("show", "abd", "--out", out).out
    assert "\nerror:\ntype: RuntimeError\nmessage: boom\nphase: synthesis\nstep: 7\n" in text
    assert text.rstrip().endswith("here")
    assert "end of" not in text
    assert call("show", "abd", "--out", out, "--json").json["error"] == ERROR


@pytest.mark.parametrize(("prefix", "message"), [("ab", "several cells"), ("x", "no cell begins with 'x'")])
def test_prefix_must_name_one_cell(call: Call, out: Path, prefix: str, message: str) -> None:
    refused(call("show", prefix, "--out", out), message)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[]", "not a JSON object"), (None, "has no record")]
)
def test_record_that_cannot_be_read(call: Call, out: Path, text: str | None, message: str) -> None:
    record = out / "smoke" / "cells" / "abc1" / "attempt-1" / "record.json"
    record.unlink()
    if text is not None:
        record.write_text(text)
    refused(call("show", "abc", "--out", out), message, "run")
