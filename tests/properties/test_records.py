"""The reader of records: documented errors only, and no measurement that the record itself contradicts."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.properties.examples import DEEP, JUNK, NOT_FINITE, NOT_TEXT, damaged, only

from dfqbench.report import render
from dfqbench.run.evaluate.accuracy import packed, unpacked
from dfqbench.run.store.files import RECORD, json_text
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder, read_record, unreadable
from dfqbench.run.store.status import MEASURED

SHAPE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "run" / "records" / "schema-1.json").read_text())
DOCUMENTED = (OSError, ValueError, RecursionError)
NUMBERS = (
    "top1",
    "fp_top1",
    "top5",
    "drop",
    "top1_se",
    "agreement",
    "correct",
    "seconds",
    "dataset",
    "status",
    "schema",
)
ODD = st.one_of(JUNK, NOT_FINITE, NOT_TEXT, DEEP)
any_json = st.recursive(ODD, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """A record with things wrong: anywhere, or in the numbers that decide its place in a table."""
    if draw(st.booleans()):
        return dict(draw(damaged(SHAPE, ODD)))
    key = draw(st.sampled_from(NUMBERS))
    near = st.floats(-200, 200) | st.integers(-1, 10**22) | st.sampled_from([SHAPE.get("top1"), SHAPE.get("fp_top1")])
    return SHAPE | {key: draw(st.one_of(ODD, near))} | draw(st.sampled_from([{}, {"correct": None}, {"top1_se": None}]))


def write(folder: Path, content: bytes | str) -> Path:
    file = folder / "run" / "cells" / "aa11" / "attempt-1" / RECORD
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return file


def check_numbers(record: Record) -> None:
    """Derive what a measured record says from its own numbers, without the reader's code."""
    assert record.top1 is not None
    percent = [record.top1, record.fp_top1, record.top5, record.agreement]
    assert all(value is None or 0 <= value <= 100 for value in percent)
    if record.correct:
        n = record.dataset.n
        assert n
        answers = np.unpackbits(np.frombuffer(base64.b64decode(record.correct), np.uint8))
        assert 0 <= len(answers) - n < 8
        assert record.top1 == pytest.approx(100 * answers[:n].sum() / n, abs=1e-5)
    if record.fp_top1 is not None and record.drop is not None:
        assert record.drop == pytest.approx(record.fp_top1 - record.top1, abs=0.021)
    spent = record.seconds
    parts = (spent.setup, spent.paid_synthesis, spent.quantization, spent.evaluation, spent.unattributed)
    if spent.wall is not None and None not in parts:
        assert math.fsum(part or 0.0 for part in parts) == pytest.approx(spent.wall, abs=0.051)


def check_read(folder: Path, content: bytes | str) -> Record | None:
    file = write(folder, content)
    record: Record | None = only(DOCUMENTED, lambda: read_record(file))
    if record is None:
        assert str(file) in unreadable(file)
    elif record.status in MEASURED:
        check_numbers(record)
    else:
        assert record.status != "invalid" or record.top1 is None or json.loads(content).get("status") == "invalid"
    return record


@given(st.one_of(any_json.map(json.dumps), st.binary(), st.text()))
def test_anything_that_is_no_record_is_refused_by_a_documented_error(folder: Path, content: str | bytes) -> None:
    record = check_read(folder, content)
    assert record is None or record.cell_id is not None


@given(st.data(), st.binary(max_size=3))
def test_record_with_damaged_bytes_is_read_or_refused(folder: Path, data: st.DataObject, other: bytes) -> None:
    good = json.dumps(SHAPE).encode()
    at = data.draw(st.integers(0, len(good)))
    check_read(folder, good[:at] + other + good[at + data.draw(st.integers(0, 4)) :])
    check_read(folder, good[:at])


@given(records(), st.booleans())
def test_record_with_wrong_values_has_no_contradiction_where_it_counts(
    folder: Path, data: dict[str, Any], ascii_only: bool
) -> None:
    record = check_read(folder, json.dumps(data, ensure_ascii=ascii_only))
    if record is None:
        return
    assert record.cell_id == data["cell_id"]
    # The host can write it again, and reads the same numbers.
    text = only(ValueError, lambda: json_text(record.as_dict()))
    if text is not None:
        again = read_record(write(folder, text))
        assert (again.top1, again.drop) == (record.top1, record.drop)


@settings(max_examples=settings.default.max_examples // 2 if settings.default else 50)
@given(records())
def test_readable_record_is_shown_in_every_format(folder: Path, data: dict[str, Any]) -> None:
    write(folder, json.dumps(data))
    found = [record for record, _ in RunFolder(folder / "run").records() if record is not None]
    for form in ("text", "md", "latex", "html", "csv", "json"):
        text = render(found, form, {})
        text.encode()
        if form == "json":
            json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_answers_are_read_as_they_are_packed(flags: list[bool]) -> None:
    assert unpacked(packed(np.array(flags)), len(flags)).tolist() == flags


def as_floats(data: dict[str, Any]) -> str:
    """Return data as text; a float may be written without its point, and an integer of many digits is read as text."""
    numbers = json.loads(json.dumps(data), parse_int=lambda text: float(text) if len(text) <= 21 else text)
    return json.dumps(numbers, sort_keys=True)


@given(damaged(SHAPE, st.one_of(JUNK, NOT_FINITE)))
def test_typed_record_keeps_the_data_that_it_read(data: dict[str, Any]) -> None:
    record = only(DOCUMENTED, lambda: Record.from_json(json.dumps(data).encode()))
    if record is not None:
        assert as_floats(record.as_dict()) == as_floats(data)
