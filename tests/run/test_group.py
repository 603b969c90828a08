"""Cells of one source in one worker: the same bits, counts and states as in workers of their own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from attempts import PLUGINS, Events, StopsAt, attempt, cell_of, content, job_of, measured, result_of
from dfqbench.accel.cuda_graph import GraphedStep
from dfqbench.api.graphed import MakeGraphed, StepFunction
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.run.execute.events import Event, Failed, Finished, Interrupted, MemberEvent, SharedJob, Sharing, Warned
from dfqbench.run.execute.job import Job, JobMember
from dfqbench.run.store.state_file import write_state
from dfqbench.run.worker.instrumented_source import SharedCounts
from dfqbench.testing.cpu_graph import CpuRecorder

pytestmark = pytest.mark.timeout(900)
BITS = ("w4a4", "w3a3", "w2a2")


def group_job(method: str, folder: Path, attempt: str, plugins: Plugins, *settings: str, **changes: Any) -> Job:
    """A job at the first of `BITS` with the others as members."""
    cells = [cell_of(method, plugins, bits, *settings) for bits in BITS]
    assert all(cells[0].shares_source(cell) for cell in cells)
    jobs = []
    for bits, cell in zip(BITS, cells, strict=True):
        place = {"source": str(folder / "source"), "checkpoints": str(folder / bits / "checkpoints")}
        jobs.append(job_of(cell, folder / bits, attempt, plugins, **place | changes))
    members = [JobMember(job.scheme, job.attempt, job.checkpoints) for job in jobs[1:]]
    return dataclasses.replace(jobs[0], members=members)


def ends(events: Events) -> list[Event | None]:
    """How each cell ended, in the order of `BITS`; None where nothing was said."""
    found: list[Event | None] = [None for _ in BITS]
    for event in events.seen:
        own, place = (event.event, event.number + 1) if isinstance(event, MemberEvent) else (event, 0)
        if isinstance(own, Finished | Failed | Interrupted):
            assert not found[place], "a cell has ended twice"
            found[place] = own
    return found


def kinds(found: Sequence[Event | None]) -> list[str | None]:
    return [None if end is None else end.name for end in found]


def stopped(events: Events) -> list[Interrupted]:
    found = [end for end in ends(events) if isinstance(end, Interrupted)]
    assert len(found) == len(BITS), ends(events)
    return found


def sharing(events: Events) -> list[Sharing]:
    return [event.sharing for event in events.seen if isinstance(event, SharedJob)]


def warnings_of_members(events: Events) -> list[tuple[int, str]]:
    return [
        (event.number, event.event.message)
        for event in events.seen
        if isinstance(event, MemberEvent) and isinstance(event.event, Warned)
    ]


SMALL = ("distill.batch_few_classes=16", "calibrate.generator_batch=16", "calibrate.images=32")


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("gdfq", Sharing.ONE_LOOP),
        ("acq", Sharing.ONE_LOOP),
        ("gdfq+calibrate", Sharing.ONE_LOOP),
        ("gdfq+distill", Sharing.ONE_LOOP),
        ("feeds", Sharing.ONE_LOOP),
        ("zeroq", Sharing.ONE_BY_ONE),
        ("noise", Sharing.ONE_BY_ONE),
    ],
)
def test_together_equals_separate(method: str, how: Sharing, tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    job = group_job(method, tmp_path / "group", "attempt-1", plugins, *SMALL)
    bits_of_job = BITS if method == "gdfq" else BITS[:2]
    together = attempt(dataclasses.replace(job, members=job.members[: len(bits_of_job) - 1]))
    assert sharing(together) == [how]
    for number, (bits, end) in enumerate(zip(bits_of_job, ends(together), strict=False)):
        result = result_of(end)
        cell = cell_of(method, plugins, bits, *SMALL)
        alone = attempt(job_of(cell, tmp_path / "alone" / bits, "attempt-1", plugins)).result
        assert content(tmp_path / "group" / bits, "attempt-1") == content(tmp_path / "alone" / bits, "attempt-1")
        assert measured(result) == measured(alone)
        assert timeline(tmp_path / "group" / bits) == timeline(tmp_path / "alone" / bits)
        # The first pays; what the others would have paid alone is stated.
        assert (result["reused"] is None) is (number == 0)
        if number:
            shown = result["reused"]["seconds"] + result["seconds"]["synthesis"]
            first = result_of(ends(together)[0])["seconds"]["synthesis"]
            assert shown == pytest.approx(first, rel=0.2, abs=0.1)


def test_captured_steps_together_equal_captured_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins, recorders = load_plugins(), list[CpuRecorder]()

    def graphed(_device: torch.device, counts: SharedCounts) -> MakeGraphed:
        def make(step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
            del generators
            recorders.append(CpuRecorder())
            return GraphedStep(step, recorders[-1], counts)

        return make

    monkeypatch.setattr("dfqbench.run.worker.attempt.graphed_steps", graphed)
    job = group_job("gdfq", tmp_path / "group", "attempt-1", plugins, *SMALL)
    together = attempt(dataclasses.replace(job, members=job.members[:1]))
    assert [recorder.captured for recorder in recorders] == [1, 1, 1, 1, 1]
    for bits, end in zip(BITS[:2], ends(together), strict=False):
        cell = cell_of("gdfq", plugins, bits, *SMALL)
        alone = attempt(job_of(cell, tmp_path / "alone" / bits, "attempt-1", plugins)).result
        assert content(tmp_path / "group" / bits, "attempt-1") == content(tmp_path / "alone" / bits, "attempt-1")
        assert measured(result_of(end)) == measured(alone)


def timeline(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "training").glob("*")}


@pytest.mark.parametrize("method", ["feeds-silently", "makes-its-own", "feeds+halved", "zeroq+distill", "temporal"])
def test_what_must_go_alone_does(method: str, tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    if method == "temporal":
        cells = [cell_of(method, plugins, bits) for bits in BITS]
        assert not any(one.shares_source(other) for one in cells for other in cells)
        return
    events = attempt(group_job(method, tmp_path, "attempt-1", plugins, *SMALL))
    assert sharing(events) == [Sharing.ALONE]
    assert kinds(ends(events)) == ["result", None, None]


def test_a_group_that_is_stopped_goes_on_as_a_group_or_alone(tmp_path: Path) -> None:
    plugins = load_plugins()
    whole = ends(attempt(group_job("gdfq", tmp_path / "whole", "attempt-1", plugins, *SMALL)))
    stops = 0
    for number in range(1, 40):
        job = group_job("gdfq", tmp_path / "parts", f"attempt-{number}", plugins, *SMALL)
        events = attempt(job, StopsAt(12))
        found = ends(events)
        if isinstance(found[0], Finished):
            break
        assert len({end.step for end in stopped(events)}) == 1, "members must stop at the same step"
        assert all(end.kept for end in stopped(events))
        stops += 1
        if stops == 1:
            shutil.copytree(tmp_path / "parts", tmp_path / "later")
    assert stops >= 2
    for bits, end, undisturbed in zip(BITS, found, whole, strict=True):
        assert result_of(end)["resumed"] >= 1
        assert content(tmp_path / "parts" / bits, f"attempt-{number}") == content(
            tmp_path / "whole" / bits, "attempt-1"
        )
        assert measured(result_of(end)) == measured(result_of(undisturbed))
    # A partner's state serves it alone, too.
    cell = cell_of("gdfq", plugins, "w3a3", *SMALL)
    later = attempt(job_of(cell, tmp_path / "later" / "w3a3", "attempt-9", plugins)).result
    assert later["resumed"] == 1
    assert content(tmp_path / "later" / "w3a3", "attempt-9") == content(tmp_path / "whole" / "w3a3", "attempt-1")
    assert measured(later) == measured(result_of(whole[1]))
    assert later["reused"]["seconds"] > 0


def test_a_partner_without_the_same_state_runs_by_itself(tmp_path: Path) -> None:
    plugins = load_plugins()
    assert stopped(attempt(group_job("gdfq", tmp_path, "attempt-1", plugins, *SMALL), StopsAt(21)))
    shutil.rmtree(tmp_path / "w3a3" / "checkpoints")
    events = attempt(group_job("gdfq", tmp_path, "attempt-2", plugins, *SMALL))
    assert kinds(ends(events)) == ["result", None, "result"]
    warnings = [message for number, message in warnings_of_members(events) if number == 0]
    assert "it runs by itself" in warnings[-1]


@pytest.mark.parametrize(
    ("how", "bits", "words"), [("raises", 4, "own mistake"), ("nan", 3, "not finite"), ("memory", 3, "memory")]
)
def test_one_that_goes_wrong_does_not_take_the_others_along(how: str, bits: int, words: str, tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    wrong = (f"fragile.bits={bits}", f"fragile.how={how}")
    found = ends(attempt(group_job("feeds", tmp_path, "attempt-1", plugins, *wrong)))
    for place, end in enumerate(found):
        if BITS[place] == f"w{bits}a{bits}":
            assert isinstance(end, Failed), end
            assert words in end.message
        else:
            assert isinstance(end, Finished), end


@pytest.mark.parametrize("how", ["asks-otherwise", "draws-otherwise"])
@pytest.mark.parametrize("bits", [3, 2])
def test_a_member_that_goes_another_way_runs_by_itself(how: str, bits: int, tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    wrong = (f"fragile.bits={bits}", f"fragile.how={how}")
    events = attempt(group_job("feeds", tmp_path / "group", "attempt-1", plugins, *wrong))
    found = dict(zip(BITS, ends(events), strict=True))
    assert found.pop(f"w{bits}a{bits}") is None
    assert any("it runs by itself" in message for _, message in warnings_of_members(events))
    for label, end in found.items():
        assert isinstance(end, Finished)
        cell = cell_of("feeds", plugins, label, *wrong)
        attempt(job_of(cell, tmp_path / "alone" / label, "attempt-1", plugins))
        assert content(tmp_path / "group" / label, "attempt-1") == content(tmp_path / "alone" / label, "attempt-1")


def test_when_the_first_fails_the_others_are_as_alone(tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    wrong = ("fragile.bits=4", "fragile.how=raises")
    found = ends(attempt(group_job("feeds", tmp_path / "group", "attempt-1", plugins, *wrong)))
    for label, end in zip(BITS[1:], found[1:], strict=True):
        cell = cell_of("feeds", plugins, label, *wrong)
        alone = attempt(job_of(cell, tmp_path / "alone" / label, "attempt-1", plugins)).result
        assert content(tmp_path / "group" / label, "attempt-1") == content(tmp_path / "alone" / label, "attempt-1")
        assert measured(result_of(end)) == measured(alone)
    # Who is left pays for the source.
    assert result_of(found[1])["seconds"]["synthesis"] > 0
    assert result_of(found[2])["seconds"]["synthesis"] == 0


def test_an_error_of_the_source_ends_all(tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    events = attempt(group_job("feeds", tmp_path, "attempt-1", plugins, "feeds.fails_at=4"))
    found = [end for end in ends(events) if isinstance(end, Failed)]
    assert [end.step for end in found] == [3] * 3
    assert all("the source's own mistake" in end.message for end in found)


def test_a_checkpoint_holds_all_students_and_one_source(tmp_path: Path) -> None:
    plugins = load_plugins()
    alone = attempt(
        job_of(cell_of("gdfq", plugins, "w4a4", *SMALL), tmp_path / "alone", "attempt-1", plugins), StopsAt(15)
    )
    assert alone.interrupted.kept
    assert all(
        end.kept
        for end in stopped(attempt(group_job("gdfq", tmp_path / "group", "attempt-1", plugins, *SMALL), StopsAt(15)))
    )
    (one,) = (tmp_path / "alone" / "checkpoints").glob("*.safetensors")
    files = [next((tmp_path / "group" / bits / "checkpoints").glob("*.safetensors")) for bits in BITS]
    assert len({file.stat().st_ino for file in files}) == 1
    assert files[0].stat().st_size < 2 * one.stat().st_size


def test_states_of_another_form_are_passed_over(tmp_path: Path) -> None:
    plugins = load_plugins()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_state(folder / "checkpoint-1.safetensors", {"identity": {"environment": "here"}, "state": {"phase": "x"}})
    events = attempt(job_of(cell_of("gdfq", plugins, "w4a4", *SMALL), tmp_path, "attempt-1", plugins))
    assert events.result["resumed"] == 0
    assert "it holds something else" in events.warnings()[0]
