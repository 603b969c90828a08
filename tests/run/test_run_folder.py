from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic_core import from_json

from dfqbench.api import InputError, UsageError
from dfqbench.report.frame import records
from dfqbench.run.store.files import write_json
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder, collection_paused, find_cell, read_records

BAD_SECONDS = '{"schema": 1, "status": "ok", "cell_id": "bb22", "seconds": {"wall": "a"}}'
BAD_TOP1 = '{"schema": 1, "status": "ok", "cell_id": "bb22", "top1": "high"}'


def make(run: RunFolder, cell: str, **facts: object) -> Path:
    attempt, number = run.new_attempt(cell)
    data = {"schema": 1, "cell_id": cell, "attempt": number, "status": "ok", **facts}
    run.write_record(attempt, Record.from_data(data))
    return attempt


def test_newest_attempt_is_the_latest(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "w4a4")
    assert run.latest("aa11") is None
    # Eleven: numbers are not sorted as text.
    for number in range(1, 12):
        make(run, "aa11", top1=float(number))
    latest = run.latest("aa11")
    assert latest is not None
    assert (latest.attempt, latest.top1) == (11, 11.0)


def test_failed_write_leaves_the_old_file_only(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"schema": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"top1": float("nan")})
    assert json.loads(path.read_text()) == {"schema": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"schema": "one"}', "\x00\x01", "[" * 100_000, '{"schema": 1}', BAD_SECONDS, BAD_TOP1]
)
def test_corrupt_record_is_a_warning(content: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "w4a4")
    make(run, "aa11", top1=1.0)
    bad = make(run, "bb22")
    (bad / "record.json").write_text(content)
    found, warnings = read_records(tmp_path)
    assert [record.cell_id for record in found] == ["aa11"]
    (warning,) = warnings
    assert "bb22" in warning
    assert "not a readable record" in warning


def test_cell_is_found_by_its_first_digits(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "w4a4")
    make(run, "aa11")
    second = make(run, "aa11")
    make(run, "ab22")
    assert find_cell(tmp_path, "aa") == second
    with pytest.raises(UsageError, match=r"several cells begin with 'a': aa11, ab22"):
        find_cell(tmp_path, "a")
    with pytest.raises(UsageError, match="no cell begins with 'ff'"):
        find_cell(tmp_path, "ff")


def test_records_are_read_as_a_frame(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        read_records(tmp_path)
    make(RunFolder(tmp_path / "w4a4"), "aa11", top1=61.5)
    assert records(tmp_path).loc[0, "top1"] == 61.5


def test_typed_record_costs_a_small_multiple_of_its_json() -> None:
    """A table of 10,000 records takes seconds, most of them for files."""
    content = (Path(__file__).parent / "records" / "schema-1.json").read_bytes()

    def seconds(read: Callable[[bytes], object]) -> float:
        best = float("inf")
        for _ in range(3):
            with collection_paused():
                begin = time.process_time()
                kept = [read(content) for _ in range(1000)]
                best = min(best, time.process_time() - begin)
            del kept
        return best

    assert seconds(Record.from_json) < 6 * seconds(from_json)
