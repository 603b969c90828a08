"""Records that do not hold what they say, and messages of any length and any bytes."""

# ruff: noqa: F811 - pytest hands fixtures over by name
from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from rich.console import Console
from tests.cli.calls import Call
from tests.cli.conftest import call  # noqa: F401 - a fixture
from tests.report.records import answered

from dfqbench.plugins import load_plugins
from dfqbench.report.comparison.compare import compare
from dfqbench.report.comparison.paired import sign_flip_test
from dfqbench.report.renderers.comparison import render_comparison
from dfqbench.run.execute import executors
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Failed, Phase, Warned
from dfqbench.run.execute.executors import LOG, LocalExecutor
from dfqbench.run.execute.job import EventReader, Job, Outcome, Slot
from dfqbench.run.execute.processes import LOG_BYTES
from dfqbench.run.schedule.progress import Display
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.files import MESSAGE, RECORD, TRACEBACK, shorten_file
from dfqbench.run.store.record import SCHEMA, Record
from dfqbench.run.store.run_folder import RunFolder, read_record, read_records
from pretend import Executor, done, plan_of, schedule

SHAPE = Path(__file__).parents[1] / "run" / "records" / "schema-1.json"
LONG = "1" + 400 * "0"


def data(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(SHAPE.read_text())
    return made | changes


def foreign(folder: Path, cell: str = "aa11", **changes: Any) -> Path:
    """Write a record as another tool would, without a digest; return its file."""
    attempt, _ = RunFolder(folder / "run").new_attempt(cell)
    (attempt / RECORD).write_text(json.dumps(data(**{"cell_id": cell} | changes)))
    return attempt / RECORD


SECONDS = json.loads(SHAPE.read_text())["seconds"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"top1": 100.0, "drop": -0.74}, "top-1 100.00 is not that of its answers, 99.26"),
        ({"top1": None}, "top-1 (none) is not that of its answers"),
        ({"top1": None, "correct": None}, "it is ok without a top-1"),
        ({"correct": "AAAA"}, "its answers are not those of 540 images"),
        ({"dataset": {"name": "digits"}}, "its answers are not those of 0 images"),
        ({"fp_top1": 50.0, "drop": -49.25925925925925}, "agreement 100.00 is impossible for top-1 50.00 and 99.26"),
        ({"agreement": 50.0}, "agreement 50.00 is impossible"),
        ({"agreement": 99.9}, "is no whole number of them"),
        ({"correct": None, "top1": 100.0}, "drop 0.00 is not full-precision top-1 99.26 minus top-1 100.00"),
        ({"correct": None, "top1": 1e9}, "top-1 1000000000.00 is no percentage"),
        ({"top5": 99.25925925925925 - 100 / 540}, "top-5 99.07 is lower than top-1 99.26"),
        ({"top1_se": 0.01}, "standard error 0.01 is not 0.37"),
        ({"seconds": SECONDS | {"quantization": 0.5}}, "its seconds sum to 5.25, not to the wall time 4.79"),
        ({"cpu_seconds": {"synthesis": -0.5}}, "its CPU seconds of synthesis, -0.50, are negative"),
        ({"seconds": SECONDS | {"wall": 0.5}}, "its seconds sum to 4.79, not to the wall time 0.50"),
    ],
)
def test_record_that_contradicts_itself_is_invalid(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    record = read_record(foreign(tmp_path, **changes))
    assert record.status == "invalid"
    assert record.error is not None
    assert reason in record.error.message
    assert (record.top1, record.fp_top1, record.correct, record.seconds.wall) == (None, None, None, None)


def test_earlier_records_stay_ok(tmp_path: Path) -> None:
    file = foreign(tmp_path)
    for record in (data(cell_id="aa11"), {"schema": 0, "cell_id": "aa11", "status": "ok", "top1": 61.5}):
        file.write_text(json.dumps(record))
        assert read_record(file).status == "ok"


def test_record_of_another_cell_is_invalid(tmp_path: Path) -> None:
    file = foreign(tmp_path, "aa11")
    copy = foreign(tmp_path, "bb22")
    copy.write_bytes(file.read_bytes())
    record = read_record(copy)
    assert record.status == "invalid"
    assert "it is of cell aa11 and lies in the folder of cell bb22" in str(record.error)


def test_rounded_numbers_without_answers_stay_ok(tmp_path: Path) -> None:
    rounded: dict[str, Any] = {
        "correct": None,
        "fp_top1": 98.53,
        "top1": 61.48,
        "drop": 37.05,
        "top1_se": 2.09,
        "agreement": 62.0,
    }
    assert read_record(foreign(tmp_path, **rounded)).status == "ok"


def test_record_that_was_overwritten_is_invalid(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    attempt, _ = run.new_attempt("aa11")
    run.write_record(attempt, Record.from_data(data(cell_id="aa11")))
    record = run.latest("aa11")
    assert record is not None
    assert record.status == "ok"
    # Consistent in itself: another student's answers, or another record altogether.
    (attempt / RECORD).write_text(json.dumps({"schema": SCHEMA, "cell_id": "aa11", "status": "ok", "top1": 1.0}))
    record = run.latest("aa11")
    assert record is not None
    assert record.status == "invalid"
    assert "is not what dfqbench wrote" in str(record.error)
    # Written again by the host, as `diagnose` does.
    run.write_record(attempt, Record.from_data(data(cell_id="aa11", flags=["again"])))
    record = run.latest("aa11")
    assert record is not None
    assert record.status == "ok"


def test_no_command_prints_the_number_of_an_edited_record(call: Call, tmp_path: Path) -> None:
    foreign(tmp_path, top1=100.0, drop=-0.7407407407407476)
    table = call("table", "--out", tmp_path)
    assert table.status == 0
    assert "invalid" in table.out
    assert "top-1 100.00 is not that of its answers, 99.26" in " ".join(table.out.split())
    assert "-0.74" not in table.out
    assert "resnet8 99" not in table.out
    assert call("table", "--out", tmp_path, "--format", "json").json[0]["status"] == "invalid"
    shown = call("show", "aa11", "--out", tmp_path)
    assert "status: invalid" in shown.out
    assert call("report", "--out", tmp_path).status == 0


def test_edited_record_is_not_a_finished_cell(tmp_path: Path) -> None:
    plan = plan_of("noise", "w4a4")
    summary = schedule(tmp_path, plan, Executor(lambda *_: done()))
    assert [record.status for record in summary.records] == ["ok"]
    (file,) = tmp_path.glob(f"cells/*/attempt-1/{RECORD}")
    file.write_text(file.read_text().replace('"top1": 90.0', '"top1": 91.0'))
    again = schedule(tmp_path, plan, Executor(lambda *_: done()))
    assert [record.status for record in again.failed] == ["invalid"]


def test_newer_schema_is_refused_in_words(tmp_path: Path) -> None:
    foreign(tmp_path, schema=SCHEMA + 1)
    foreign(tmp_path, "bb22", schema=99, top1="of another type")
    records, warnings = read_records(tmp_path)
    assert records == []
    assert f"schema {SCHEMA + 1}, and this version of dfqbench reads up to {SCHEMA}" in warnings[0]
    assert "upgrade dfqbench" in warnings[1]


@pytest.mark.parametrize("place", ['"top1": 9', '"wall": 4', '"n": 54', '"schema": ', '"images": 6', '"seed": '])
def test_number_of_400_digits_costs_one_record(call: Call, place: str, tmp_path: Path) -> None:
    foreign(tmp_path)
    bad = foreign(tmp_path, "bb22", label="other", method="other")
    bad.write_text(
        bad.read_text().replace(place, f"{place.split(maxsplit=1)[0]} {LONG}", 1).replace(f"{LONG}9.", LONG + ".")
    )
    for command in (("table",), ("table", "--format", "json"), ("report",), ("show", "bb22")):
        output = call(*command, "--out", tmp_path)
        assert output.status == 0, output
    assert "99.26" in call("table", "--out", tmp_path).out


@pytest.mark.parametrize("depth", [150, 300, 900, 100_000])
def test_deep_nesting_costs_one_record(call: Call, depth: int, tmp_path: Path) -> None:
    foreign(tmp_path)
    bad = foreign(tmp_path, "bb22", label="other", method="other")
    bad.write_text(bad.read_text()[:-1] + f', "x": {"[" * depth}{"]" * depth}}}')
    for command in (("table", "--format", "json"), ("report",), ("show", "bb22"), ("show", "bb22", "--json")):
        assert call(*command, "--out", tmp_path).status in {0, 2}


@pytest.mark.timeout(20)
def test_pipe_as_record_does_not_block(call: Call, tmp_path: Path) -> None:
    foreign(tmp_path)
    bad = foreign(tmp_path, "bb22", label="other", method="other")
    bad.unlink()
    os.mkfifo(bad)
    assert "not a readable record" in call("table", "--out", tmp_path).err
    assert "not a regular file" in call("show", "bb22", "--out", tmp_path).err


def failing(message: str, traceback: str) -> Callable[..., Outcome]:
    def work(job: Job, on_event: Any, _cancellation: Any) -> Outcome:
        reader = EventReader(on_event)
        reader.send(Warned(message))
        reader.send(Failed("failed", "ValueError", message, Phase.SYNTHESIS, 1, "plugin", traceback, {"x": [message]}))
        assert reader.outcome is not None
        return reader.outcome

    return work


def test_odd_bytes_in_a_message_are_one_row(tmp_path: Path) -> None:
    for _ in range(2):
        summary = schedule(tmp_path, plan_of("noise", "w4a4"), Executor(failing("caf\udce9.JPEG", "in caf\udce9")))
        (record,) = summary.failed
        assert record.error is not None
        assert record.error.message == "caf\\udce9.JPEG"
        assert record.warnings == ["caf\\udce9.JPEG"]
    assert (next(tmp_path.glob("cells/*/attempt-1/traceback.txt"))).read_text() == "in caf\\udce9"


def test_odd_bytes_from_the_evaluator_are_one_row(tmp_path: Path) -> None:
    executor = Executor(lambda *_: done())
    executor.asked.ask = lambda *_, **__: {"error": {"type": "E", "message": "x\udce9", "traceback": "x\udce9"}}  # type: ignore[method-assign]
    (record,) = schedule(tmp_path, plan_of("noise", "w4a4"), executor).failed
    assert record.error is not None
    assert record.error.message == "x\\udce9"


def test_long_messages_keep_head_and_tail(tmp_path: Path) -> None:
    console = Console(record=True, width=100_000, file=StringIO())
    long = "begin" + 10**7 * "x" + "end"
    env = schedule(tmp_path / "run", plan_of("noise", "w4a4"), Executor(failing(long, long)))
    (record,) = env.failed
    assert record.error is not None
    assert record.error.traceback is not None
    for text, most in (
        (record.error.message, MESSAGE),
        (record.warnings[0], MESSAGE),
        (record.error.traceback, TRACEBACK),
    ):
        assert len(text) < most + 100
        assert text.startswith("begin")
        assert text.endswith("end")
        assert "9,999,008 characters are left out" in text or most == TRACEBACK
    Display(console, 1).end("noise", record, None)
    assert len(console.export_text()) < 2 * MESSAGE


def test_log_is_shortened_when_the_worker_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(_module: str, _arguments: list[str], log: IO[str], **_: Any) -> subprocess.Popen[str]:
        code = f"import sys; sys.stderr.write('begin' + 'x' * {3 * LOG_BYTES} + 'end')"
        command, pipe = [sys.executable, "-c", code], subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True)

    monkeypatch.setattr(executors, "spawn", talk)
    (cell,) = plan_of("noise", "w4a4").cells
    env = RunEnvironment(RunFolder(tmp_path), load_plugins(), "cpu")
    job = env.job([(cell, tmp_path)], time.monotonic())
    LocalExecutor([Slot(0)], tmp_path, 1, "cpu").run(job, Slot(0), lambda _: None, Cancellation())
    text = (tmp_path / LOG).read_text()
    assert len(text) < LOG_BYTES + 100
    assert text.startswith("begin")
    assert text.endswith("end")


def test_shortened_file_keeps_head_and_tail(tmp_path: Path) -> None:
    path = tmp_path / LOG
    path.write_bytes(b"first\n" + bytes(LOG_BYTES * 2) + b"last\n")
    shorten_file(path, LOG_BYTES)
    content = path.read_bytes()
    assert content.startswith(b"first\n")
    assert content.endswith(b"last\n")
    assert b"1,048,587 bytes are left out" in content
    assert len(content) < LOG_BYTES + 100
    shorten_file(path, 2 * LOG_BYTES)
    assert path.read_bytes() == content
    path.unlink()
    os.mkfifo(path)
    shorten_file(path, 0)


def test_one_criterion_decides_a_comparison() -> None:
    # Four images of 540, all in favour of A, in each of two seeds: the interval has no 0, McNemar's p is 0.125.
    better = np.arange(540) < 500
    worse = better & (np.arange(540) >= 4)
    a = [answered(f"a{seed}", better, seed=seed) for seed in (0, 1)]
    b = [answered(f"b{seed}", worse, seed=seed, method="poor") for seed in (0, 1)]
    found = compare([*a, *b], "zeroq", "poor")
    assert [round(entry.paired.p, 4) for entry in found] == [0.125, 0.125, 0.125]
    assert all(entry.paired.low > 0 for entry in found)
    text = render_comparison(found, "zeroq", "poor")
    assert "better" not in text
    assert text.count("not significant") == 3
    assert "verdict: q < 0.05, and nothing else" in text
    assert "an estimate" in text


def test_sign_flips_count_every_seed_of_an_image_together() -> None:
    gaps = np.array([2, 2, -1, 1, 1, 0])
    signs = np.array(np.meshgrid(*[[1, -1]] * 5)).reshape(5, -1)
    sums = np.abs(gaps[:5] @ signs)
    p, exact = sign_flip_test(gaps)
    assert exact
    assert p == pytest.approx((sums >= 5).mean())


def test_answers_are_counted_without_their_padding(tmp_path: Path) -> None:
    flags = np.arange(13) % 2 == 0
    correct = base64.b64encode(np.packbits(flags).tobytes()).decode()
    numbers: dict[str, Any] = {
        "top1": 700 / 13,
        "fp_top1": 700 / 13,
        "drop": 0.0,
        "top5": 100.0,
        "agreement": 100.0,
        "top1_se": None,
    }
    assert read_record(foreign(tmp_path, correct=correct, dataset={"n": 13}, **numbers)).status == "ok"
