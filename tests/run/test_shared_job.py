from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from attempts import PLUGINS, SMALL, Events, StopsAt, attempt, cell_of, content, job_of, measured, result_of
from cpu_graph import CpuRecorder
from dfqbench.accel.cuda_graph import GraphedStep
from dfqbench.api.graphed import MakeGraphed, StepFunction
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.run.execute.events import Event, Failed, Finished, Interrupted, MemberEvent, SharedJob, Sharing, Warned
from dfqbench.run.execute.job import Job, JobMember
from dfqbench.run.store.state_file import write_state
from dfqbench.run.worker.instrumented_source import SharedCounts

pytestmark = pytest.mark.timeout(900)
BITS = ("w4a4", "w3a3", "w2a2")


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins([PLUGINS / "common.py"])


def shared_job(
    method: str, folder: Path, plugins: Plugins, *settings: str, bits: Sequence[str] = BITS, attempt: str = "attempt-1"
) -> Job:
    """A job at the first of `bits` with the others as members."""
    cells = [cell_of(method, plugins, label, *settings) for label in bits]
    assert all(cells[0].shares_source(cell) for cell in cells)
    jobs = []
    for label, cell in zip(bits, cells, strict=True):
        jobs.append(job_of(cell, folder / label, attempt, plugins, source=str(folder / "source")))
    members = [JobMember(job.scheme, job.attempt, job.checkpoints) for job in jobs[1:]]
    return dataclasses.replace(jobs[0], members=members)


def timeline(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "training").glob("*")}


def assert_as_alone(
    cells: dict[str, Event | None], method: str, folder: Path, plugins: Plugins, *settings: str
) -> None:
    """Compare the cells of a job in `folder / "shared"` with those of workers of their own."""
    for label, end in cells.items():
        job = job_of(cell_of(method, plugins, label, *settings), folder / "alone" / label, "attempt-1", plugins)
        assert measured(result_of(end)) == measured(attempt(job).result)
        shared, alone = folder / "shared" / label, folder / "alone" / label
        assert content(shared, "attempt-1") == content(alone, "attempt-1")
        assert timeline(shared) == timeline(alone)


def ends(events: Events, bits: Sequence[str] = BITS) -> dict[str, Event | None]:
    """How each cell ended; None if there was no event."""
    cells: dict[str, Event | None] = dict.fromkeys(bits)
    for event in events.seen:
        end, number = (event.event, event.number + 1) if isinstance(event, MemberEvent) else (event, 0)
        if isinstance(end, Finished | Failed | Interrupted):
            assert cells[bits[number]] is None, "a cell has ended twice"
            cells[bits[number]] = end
    return cells


def names(events: Events) -> list[str | None]:
    return [None if end is None else end.name for end in ends(events).values()]


def stopped(events: Events) -> list[Interrupted]:
    interrupted = [end for end in ends(events).values() if isinstance(end, Interrupted)]
    assert len(interrupted) == len(BITS), ends(events)
    return interrupted


def sharing(events: Events) -> list[Sharing]:
    return [event.sharing for event in events.seen if isinstance(event, SharedJob)]


def warnings_of_members(events: Events) -> list[tuple[int, str]]:
    members = [event for event in events.seen if isinstance(event, MemberEvent)]
    return [(member.number, member.event.message) for member in members if isinstance(member.event, Warned)]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        pytest.param("gdfq", Sharing.ONE_LOOP, marks=pytest.mark.slow),
        pytest.param("acq", Sharing.ONE_LOOP, marks=pytest.mark.slow),
        pytest.param("gdfq+calibrate", Sharing.ONE_LOOP, marks=pytest.mark.slow),
        pytest.param("gdfq+distill", Sharing.ONE_LOOP, marks=pytest.mark.slow),
        pytest.param("gdfq+reconstruct", Sharing.ONE_LOOP, marks=pytest.mark.slow),
        ("feeds", Sharing.ONE_LOOP),
        pytest.param("zeroq", Sharing.ONE_BY_ONE, marks=pytest.mark.slow),
    ],
)
def test_shared_equals_separate(method: str, expected: Sharing, tmp_path: Path, plugins: Plugins) -> None:
    bits = BITS if method == "gdfq" else BITS[:2]
    events = attempt(shared_job(method, tmp_path / "shared", plugins, *SMALL, bits=bits))
    assert sharing(events) == [expected]
    assert_as_alone(ends(events, bits), method, tmp_path, plugins, *SMALL)
    first, *others = (result_of(end) for end in ends(events, bits).values())
    # The first is charged for the source; the others state what it would have cost them alone.
    assert first["reused"] is None
    for result in others:
        for seconds in ("seconds", "cpu_seconds"):
            stated = result["reused"][seconds] + result[seconds]["synthesis"]
            assert stated == pytest.approx(first[seconds]["synthesis"], rel=0.2, abs=0.1)


@pytest.mark.slow
def test_shared_graphed_steps_equal_separate_ones(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders = list[CpuRecorder]()

    def graphed(_device: torch.device, counts: SharedCounts) -> MakeGraphed:
        def make(step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
            del generators
            recorders.append(CpuRecorder())
            return GraphedStep(step, recorders[-1], counts)

        return make

    monkeypatch.setattr("dfqbench.run.worker.attempt.graphed_steps", graphed)
    events = attempt(shared_job("gdfq", tmp_path / "shared", plugins, *SMALL, bits=BITS[:2]))
    assert [recorder.captured for recorder in recorders] == [1, 1, 1, 1, 1]
    assert_as_alone(ends(events, BITS[:2]), "gdfq", tmp_path, plugins, *SMALL)


@pytest.mark.parametrize("method", ["feeds-silently", "makes-its-own", "feeds+halved", "zeroq+distill"])
def test_cells_that_cannot_share_a_worker_run_alone(method: str, tmp_path: Path, plugins: Plugins) -> None:
    events = attempt(shared_job(method, tmp_path, plugins, *SMALL))
    assert sharing(events) == [Sharing.ALONE]
    assert names(events) == ["result", None, None]


def test_cells_whose_source_depends_on_bits_are_no_members(plugins: Plugins) -> None:
    cells = [cell_of("temporal", plugins, bits) for bits in BITS]
    assert not any(cell.shares_source(other) for cell in cells for other in cells)


@pytest.mark.slow
def test_stopped_shared_job_continues_shared_or_alone(tmp_path: Path, plugins: Plugins) -> None:
    whole = ends(attempt(shared_job("gdfq", tmp_path / "whole", plugins, *SMALL)))
    stops = 0
    for number in range(1, 40):
        name = f"attempt-{number}"
        events = attempt(shared_job("gdfq", tmp_path / "parts", plugins, *SMALL, attempt=name), StopsAt(12))
        if isinstance(ends(events)[BITS[0]], Finished):
            break
        assert len({end.step for end in stopped(events)}) == 1, "members must stop at the same step"
        assert all(end.kept for end in stopped(events))
        stops += 1
        if stops == 1:
            shutil.copytree(tmp_path / "parts", tmp_path / "later")
    assert stops >= 2
    for label, end in ends(events).items():
        assert result_of(end)["resumed"] >= 1
        assert content(tmp_path / "parts" / label, name) == content(tmp_path / "whole" / label, "attempt-1")
        assert measured(result_of(end)) == measured(result_of(whole[label]))
    # A member continues from its state alone, too.
    cell = cell_of("gdfq", plugins, "w3a3", *SMALL)
    later = attempt(job_of(cell, tmp_path / "later" / "w3a3", "attempt-9", plugins)).result
    assert later["resumed"] == 1
    assert content(tmp_path / "later" / "w3a3", "attempt-9") == content(tmp_path / "whole" / "w3a3", "attempt-1")
    assert measured(later) == measured(result_of(whole["w3a3"]))
    assert later["reused"]["seconds"] > 0


@pytest.mark.slow
def test_member_without_the_same_state_runs_by_itself(tmp_path: Path, plugins: Plugins) -> None:
    assert stopped(attempt(shared_job("gdfq", tmp_path, plugins, *SMALL), StopsAt(21)))
    shutil.rmtree(tmp_path / "w3a3" / "checkpoints")
    events = attempt(shared_job("gdfq", tmp_path, plugins, *SMALL, attempt="attempt-2"))
    assert names(events) == ["result", None, "result"]
    warnings = [message for number, message in warnings_of_members(events) if number == 0]
    assert "it runs by itself" in warnings[-1]


@pytest.mark.parametrize(
    ("how", "bits", "words"), [("raises", 4, "own mistake"), ("nan", 3, "not finite"), ("memory", 3, "memory")]
)
def test_failing_member_leaves_the_others_as_alone(
    how: str, bits: int, words: str, tmp_path: Path, plugins: Plugins
) -> None:
    settings = (f"fragile.bits={bits}", f"fragile.how={how}")
    cells = ends(attempt(shared_job("feeds", tmp_path / "shared", plugins, *settings)))
    failed = cells.pop(f"w{bits}a{bits}")
    assert isinstance(failed, Failed), failed
    assert words in failed.message
    assert_as_alone(cells, "feeds", tmp_path, plugins, *settings)
    # The first that is left is charged for the source.
    first, second = (result_of(end)["seconds"]["synthesis"] for end in cells.values())
    assert first > 0 == second


@pytest.mark.parametrize("how", ["asks-otherwise", "draws-otherwise"])
@pytest.mark.parametrize("bits", [3, 2])
def test_member_that_diverges_runs_by_itself(how: str, bits: int, tmp_path: Path, plugins: Plugins) -> None:
    settings = (f"fragile.bits={bits}", f"fragile.how={how}")
    events = attempt(shared_job("feeds", tmp_path / "shared", plugins, *settings))
    cells = ends(events)
    assert cells.pop(f"w{bits}a{bits}") is None
    assert any("it runs by itself" in message for _, message in warnings_of_members(events))
    assert_as_alone(cells, "feeds", tmp_path, plugins, *settings)


def test_error_of_the_source_ends_all_members(tmp_path: Path, plugins: Plugins) -> None:
    cells = ends(attempt(shared_job("feeds", tmp_path, plugins, "feeds.fails_at=4")))
    failed = [end for end in cells.values() if isinstance(end, Failed)]
    assert [end.step for end in failed] == [3] * 3
    assert all("the source's own mistake" in end.message for end in failed)


def test_checkpoint_holds_all_students_and_one_source(tmp_path: Path, plugins: Plugins) -> None:
    cell = cell_of("gdfq", plugins, "w4a4", *SMALL)
    assert attempt(job_of(cell, tmp_path / "alone", "attempt-1", plugins), StopsAt(15)).interrupted.kept
    events = attempt(shared_job("gdfq", tmp_path / "shared", plugins, *SMALL), StopsAt(15))
    assert all(end.kept for end in stopped(events))
    (alone,) = (tmp_path / "alone" / "checkpoints").glob("*.safetensors")
    files = [next((tmp_path / "shared" / bits / "checkpoints").glob("*.safetensors")) for bits in BITS]
    assert len({file.stat().st_ino for file in files}) == 1
    assert files[0].stat().st_size < 2 * alone.stat().st_size


def test_checkpoint_of_another_form_is_passed_over(tmp_path: Path, plugins: Plugins) -> None:
    (tmp_path / "checkpoints").mkdir()
    content = {"identity": {"environment": "here"}, "state": {"phase": "x"}}
    write_state(tmp_path / "checkpoints" / "checkpoint-1.safetensors", content)
    events = attempt(job_of(cell_of("zeroq", plugins, "w4a4", *SMALL), tmp_path, "attempt-1", plugins))
    assert events.result["resumed"] == 0
    assert "it holds something else" in events.warnings()[0]
