from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console
from tests.report.records import record

from attempts import cell_of, job_of
from dfqbench.plugins import load_plugins
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import (
    Event,
    EventError,
    Failed,
    Finished,
    Interrupted,
    MemberEvent,
    Phase,
    PhaseStarted,
    Probed,
    Progress,
    SharedJob,
    Sharing,
    SourceReady,
    Warned,
    WorkerStarted,
    from_line,
    to_line,
)
from dfqbench.run.execute.executors import LocalExecutor
from dfqbench.run.execute.job import EventReader, Outcome, Slot
from dfqbench.run.schedule.progress import Display

FAILED = Failed("oom", "MemoryError", "path \udcff", Phase.SETUP, None, "noise", "Traceback", {"wall": 1.5})
EVENTS: list[Event] = [
    WorkerStarted(),
    PhaseStarted(Phase.SYNTHESIS),
    Progress(Phase.QUANTIZATION, 3, 10, {"loss": 0.25, "kl": math.inf}),
    Warned("ä\nb"),
    SourceReady(shared=True),
    SharedJob(Sharing.ONE_LOOP, 2),
    Probed(Phase.SYNTHESIS, 12.5),
    Finished({"seconds": {}, "reused": None}),
    FAILED,
    Interrupted(True, Phase.QUANTIZATION, 7, {"wall": 2}),
    MemberEvent(1, FAILED),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_events_are_restored_from_lines(event: Event) -> None:
    line = to_line(event)
    assert "\n" not in line
    assert from_line(line) == event


def test_all_events_are_tested_and_differ_by_name() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))
    assert len({event.name for event in EVENTS}) == len(EVENTS)


def test_values_unknown_to_json_become_text() -> None:
    assert from_line(to_line(Finished({"folder": Path("a/b")}))) == Finished({"folder": "a/b"})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (5, "is a int, not an object"),
        ([], "is a list, not an object"),
        ({}, "unknown event None"),
        ({"name": "listening"}, "unknown event 'listening'"),
        ({"name": ["progress"]}, "unknown event"),
        ({"name": "warning"}, r"has \[\], not \['message'\]"),
        ({"name": "warning", "message": "x", "more": 1}, r"not \['message'\]"),
        ({"name": "warning", "message": 3}, "warning.message of a worker's event is a int"),
        ({"name": "phase", "phase": "lunch"}, "'lunch', not one of setup, synthesis"),
        ({"name": "phase", "phase": {}}, "not one of setup, synthesis"),
        ({"name": "probe", "phase": "setup", "seconds": "3"}, "probe.seconds of a worker's event is a str"),
        ({"name": "stopped", "kept": True, "phase": "setup", "step": "3", "so_far": {}}, r"int \| None"),
        ({"name": "member", "number": 0, "event": {"name": "phase", "phase": "setup"}}, "unknown event 'phase'"),
        ({"name": "member", "number": 0, "event": None}, "not an object"),
    ],
)
def test_other_data_is_refused(data: Any, words: str) -> None:
    with pytest.raises(EventError, match=words):
        from_line(json.dumps(data))


def test_reader_makes_outcomes_and_forwards_other_events() -> None:
    seen: list[Event] = []
    reader = EventReader(seen.append, members=3)
    warned = Warned("of a member")
    for event in (*EVENTS[:7], MemberEvent(0, warned), MemberEvent(1, FAILED), MemberEvent(2, Finished({"wall": 1.0}))):
        reader.send(event)
    assert seen == [*EVENTS[:7], warned]
    assert [reader.outcome] == [None]
    reader.send(Interrupted(True, Phase.QUANTIZATION, 7, {"wall": 2}))
    outcome = reader.outcome
    assert outcome is not None
    assert (outcome.status, outcome.result) == ("preempted", {"wall": 2})
    assert outcome.error == {"kept": True, "phase": "quantization", "step": 7}
    error = {
        **{"type": "MemoryError", "message": "path \\udcff", "phase": "setup"},
        **{"step": None, "plugin": "noise", "traceback": "Traceback"},
    }
    members = [None, Outcome("oom", {"wall": 1.5}, error, members=[]), Outcome("ok", {"wall": 1.0}, members=[])]
    assert outcome.members == members


@pytest.mark.parametrize("number", [-1, 1])
def test_events_of_unknown_members_are_refused(number: int) -> None:
    with pytest.raises(EventError, match=f"member {number} of 1"):
        EventReader(lambda _: None, members=1).send(MemberEvent(number, Warned("x")))


@pytest.fixture
def run_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], tuple[Outcome, list[Event]]]:
    """The local executor with a worker that prints lines and waits for its end."""

    def run(lines: list[str]) -> tuple[Outcome, list[Event]]:
        script = f"import sys\nprint({chr(10).join(lines)!r}, flush=True)\nsys.stdin.read()"

        def spawn(*_: Any, **__: Any) -> subprocess.Popen[str]:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            return subprocess.Popen([sys.executable, "-c", script], start_new_session=True, **pipes)

        monkeypatch.setattr("dfqbench.run.execute.executors.spawn", spawn)
        plugins = load_plugins()
        job = job_of(cell_of("noise", plugins), tmp_path, "attempt-1", plugins, time_limit=1.0)
        seen: list[Event] = []
        executor = LocalExecutor([Slot(0)], tmp_path, 1, "cpu", grace=0.5)
        return executor.run(job, Slot(0), seen.append, Cancellation()), seen

    return run


def test_wrong_event_of_a_worker_ends_its_job_only(run_lines: Any) -> None:
    outcome, seen = run_lines([to_line(WorkerStarted()), '{"name": "surprise", "step": 1}', to_line(Finished({}))])
    assert seen == [WorkerStarted()]
    assert (outcome.status, outcome.died, outcome.error["type"]) == ("failed", True, "EventError")
    assert outcome.error["message"] == "a worker sent an unknown event 'surprise'"


def test_text_in_the_stream_of_a_worker_is_skipped(run_lines: Any) -> None:
    lines = ["a greeting", "", "9" * 5000, "[" * 100_000, to_line(Warned("one")), '{"name": "progr']
    outcome, seen = run_lines(lines)
    assert seen == [Warned("one")]
    assert outcome.status == "timeout"


def shown(*events: Event, terminal: bool = True) -> str:
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=terminal, width=120, color_system=None), 1)
    view = display.begin("cell")
    for event in events:
        view.event(event)
    display.close()
    return stream.getvalue()


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (PhaseStarted(Phase.EVALUATION), "evaluating"),
        (Progress(Phase.SYNTHESIS, 1, 4, {"loss": 0.123456}), "synthesizing, loss 0.1235"),
        (Progress(Phase.QUANTIZATION, 1, 4, {}), "quantizing"),
        (SharedJob(Sharing.ONE_LOOP, 2), "cell and 2 more"),
    ],
)
def test_bar_shows_phase_loss_and_members(event: Event, text: str) -> None:
    assert text in shown(event)
    assert shown(event, terminal=False) == ""
    assert text not in shown(Probed(Phase.SETUP, 2.0), SharedJob(Sharing.ALONE, 2))


def test_cell_begins_with_loading() -> None:
    assert "loading" in shown()


def screen(width: int, *, slots: int = 1, total: int = 3) -> list[str]:
    """Lines on a terminal while jobs are under way, each with half of its steps done."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    display = Display(console, total)
    for number in range(slots):
        view = display.begin(f"zeroq cifar10/cifar:resnet20 w4a4@gdfq seed {number}")
        view.event(Progress(Phase.EVALUATION, 5, 10, {}))
    assert display._progress is not None
    copy = Console(file=io.StringIO(), width=width, record=True)
    copy.print(display._progress.get_renderable())
    display.close()
    return copy.export_text().splitlines()


def test_each_slot_has_a_bar_below_that_of_all_cells() -> None:
    everything, *jobs = screen(120, slots=2)
    assert everything.startswith("all cells ")
    assert "0 of 3" in everything
    assert [job.split()[4] for job in jobs] == ["0", "1"]
    assert all("evaluating" in job for job in jobs)
    assert len(screen(120, total=1)) == 1


def test_narrow_terminal_cuts_the_label() -> None:
    for line in screen(64)[1:]:
        assert len(line) <= 64
        assert line.startswith("zeroq cifar10")
        assert "━━━━━━━━" in line
        assert "evaluating" in line


def test_bar_of_all_cells_counts_those_that_ended() -> None:
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=True, width=120, color_system=None), 2)
    display.end("cell", record("a"), None)
    display.close()
    assert "1 of 2" in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_are_lines(terminal: bool) -> None:
    assert "cell: warning: no checkpoint" in shown(Warned("no checkpoint"), terminal=terminal)
