"""Cells of one source in one worker: the same bits, counts and states as in workers of their own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from attempts import PLUGINS, Events, StopsAt, attempt, cell_of, content, job_of, measured
from dfqbench.accel.cuda_graph import GraphedStep
from dfqbench.api import Batch
from dfqbench.api.graphed import MakeGraphed, StepFunction
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.run.flag import StopFlag
from dfqbench.run.job import Job, Partner
from dfqbench.run.lockstep import CommonFlag, CommonSource, MemberSource, OutOfStepError, Turns, can_be_common, same
from dfqbench.run.meter import Counts
from dfqbench.testing.cpu_graph import CpuRecorder

pytestmark = pytest.mark.timeout(900)
BITS = ("w4a4", "w3a3", "w2a2")


class Numbers:
    """A live source that counts, and draws from the global generator."""

    needs_student = False

    def __init__(self) -> None:
        self.steps = 0

    def train_step(self, size: int, student: object = None) -> Batch:
        self.steps += 1
        if self.steps == 4:
            raise ValueError("the source's own mistake")
        return Batch(torch.rand(size, 1, 1, 1) + self.steps)

    def sample(self, size: int) -> Batch:
        return Batch(torch.rand(size, 1, 1, 1))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def in_turns(acts: list[Callable[[MemberSource], Any]]) -> tuple[list[Any], Numbers]:
    """What each act gave or raised."""
    source, turns = Numbers(), Turns(len(acts))
    guards = [torch.no_grad for _ in acts]
    common = CommonSource(source, turns, [Counts() for _ in acts], guards)
    found: list[Any] = [None] * len(acts)

    def member(number: int) -> None:
        torch.manual_seed(7)
        try:
            found[number] = acts[number](MemberSource(common, number))
        except BaseException as error:
            found[number] = error

    turns.run([partial(member, number) for number in range(len(acts))])
    return found, source


def steps(count: int, *, draws: int = 0) -> Callable[[MemberSource], list[float]]:
    def act(source: MemberSource) -> list[float]:
        seen = []
        for _ in range(count):
            batch = source.train_step(2)
            seen += [float(batch.images[1]), float(torch.rand(()))]
            batch.images.zero_()
            for _ in range(draws):
                torch.rand(())
        return seen

    return act


def test_members_see_what_they_would_see_alone() -> None:
    (alone,), _ = in_turns([steps(3)])
    found, source = in_turns([steps(3), steps(3), steps(3)])
    assert found == [alone] * 3
    assert source.steps == 3


def test_a_member_that_ends_early_leaves_the_others() -> None:
    (alone,), _ = in_turns([steps(3)])
    for lengths in ((1, 3, 3), (3, 1, 3), (3, 3, 1), (0, 3, 2)):
        found, source = in_turns([steps(length) for length in lengths])
        assert found == [alone[: 2 * length] for length in lengths]
        assert source.steps == 3


def test_an_error_of_the_source_reaches_every_member() -> None:
    found, source = in_turns([steps(5), steps(5)])
    assert [str(error) for error in found] == ["the source's own mistake"] * 2
    assert source.steps == 4


def test_who_asks_otherwise_has_to_go_alone() -> None:
    (alone,), _ = in_turns([steps(3)])
    found, _ = in_turns([steps(3), lambda source: source.train_step(3), lambda source: source.sample(2), steps(3)])
    assert found[0] == found[3] == alone
    assert isinstance(found[1], OutOfStepError)
    assert isinstance(found[2], OutOfStepError)


def test_who_draws_otherwise_has_to_go_alone() -> None:
    (alone,), _ = in_turns([steps(3)])
    found, _ = in_turns([steps(3), steps(3, draws=1)])
    assert found[0] == alone
    assert isinstance(found[1], OutOfStepError)


def test_other_states_do_not_go_together() -> None:
    def load(steps: int) -> Callable[[MemberSource], float]:
        def act(source: MemberSource) -> float:
            source.load_state_dict({"steps": steps})
            return float(source.train_step(2).images[0])

        return act

    found, source = in_turns([load(10), load(10), load(9)])
    assert found[0] == found[1] > 11
    assert isinstance(found[2], OutOfStepError)
    assert source.steps == 11


def test_the_wish_to_stop_is_the_same_for_all_during_a_step() -> None:
    real, turns, seen = StopFlag(), Turns(2), {}  # type: ignore[var-annotated]
    first, second = (CommonFlag(real, turns, number, seen) for number in range(2))
    looks = [first.asked]
    real.asked = True
    looks += [second.asked, first.asked, second.asked]
    assert looks == [False, False, True, True]
    moment = first.now()
    assert second.now() == second.now() == moment


def test_equal_trees() -> None:
    tree = {"a": [torch.ones(2), (1, "x")], "b": None}
    assert same(tree, {"a": [torch.ones(2), (1, "x")], "b": None})
    for other in ({"a": [torch.zeros(2), (1, "x")], "b": None}, {"a": [torch.ones(2), (1, "x")]}, {"a": 1, "b": None}):
        assert not same(tree, other)


def test_only_a_source_that_says_so_serves_several() -> None:
    assert can_be_common(Numbers())
    plugins = load_plugins()
    assert not can_be_common(object())
    assert plugins.methods


def group_job(method: str, folder: Path, attempt: str, plugins: Plugins, *settings: str, **changes: Any) -> Job:
    """A job at the first of `BITS` with the others as partners."""
    cells = [cell_of(method, plugins, bits, *settings) for bits in BITS]
    assert all(cells[0].goes_with(cell) for cell in cells)
    jobs = []
    for bits, cell in zip(BITS, cells, strict=True):
        place = {"source": str(folder / "source"), "checkpoints": str(folder / bits / "checkpoints")}
        jobs.append(job_of(cell, folder / bits, attempt, plugins, **place | changes))
    partners = [Partner(job.scheme, job.attempt, job.checkpoints) for job in jobs[1:]]
    return dataclasses.replace(jobs[0], partners=partners)


def ends(events: Events) -> list[dict[str, Any]]:
    """How each cell ended, in the order of `BITS`; empty where nothing was said."""
    found: list[dict[str, Any]] = [{} for _ in BITS]
    for event in events.seen:
        line, place = (event["line"], event["number"] + 1) if event["event"] == "partner" else (event, 0)
        if line["event"] in {"result", "error", "stopped"}:
            assert not found[place], "a cell has ended twice"
            found[place] = line
    return found


SMALL = ("distill.batch_few_classes=16", "calibrate.generator_batch=16", "calibrate.images=32")


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("gdfq", "in lockstep"),
        ("acq", "in lockstep"),
        ("gdfq+calibrate", "in lockstep"),
        ("gdfq+distill", "in lockstep"),
        ("feeds", "in lockstep"),
        ("zeroq", "in turn"),
        ("noise", "in turn"),
    ],
)
def test_together_equals_separate(method: str, how: str, tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    job = group_job(method, tmp_path / "group", "attempt-1", plugins, *SMALL)
    bits_of_job = BITS if method == "gdfq" else BITS[:2]
    together = attempt(dataclasses.replace(job, partners=job.partners[: len(bits_of_job) - 1]))
    assert [event["how"] for event in together.seen if event["event"] == "together"] == [how]
    for number, (bits, end) in enumerate(zip(bits_of_job, ends(together), strict=False)):
        assert end["event"] == "result", end
        cell = cell_of(method, plugins, bits, *SMALL)
        alone = attempt(job_of(cell, tmp_path / "alone" / bits, "attempt-1", plugins)).last
        assert content(tmp_path / "group" / bits, "attempt-1") == content(tmp_path / "alone" / bits, "attempt-1")
        assert measured(end) == measured(alone)
        assert timeline(tmp_path / "group" / bits) == timeline(tmp_path / "alone" / bits)
        # The first pays; what the others would have paid alone is stated.
        assert (end["reused"] is None) is (number == 0)
        if number:
            shown = end["reused"]["seconds"] + end["seconds"]["synthesis"]
            first = ends(together)[0]["seconds"]["synthesis"]
            assert shown == pytest.approx(first, rel=0.2, abs=0.1)


def test_captured_steps_together_equal_captured_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins, recorders = load_plugins(), list[CpuRecorder]()

    def graphed(_device: torch.device, counts: Counts) -> MakeGraphed:
        def make(step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
            del generators
            recorders.append(CpuRecorder())
            return GraphedStep(step, recorders[-1], counts)

        return make

    monkeypatch.setattr("dfqbench.run.attempt.graphed_steps", graphed)
    job = group_job("gdfq", tmp_path / "group", "attempt-1", plugins, *SMALL)
    together = attempt(dataclasses.replace(job, partners=job.partners[:1]))
    assert [recorder.captured for recorder in recorders] == [1, 1, 1, 1, 1]
    for bits, end in zip(BITS[:2], ends(together), strict=False):
        cell = cell_of("gdfq", plugins, bits, *SMALL)
        alone = attempt(job_of(cell, tmp_path / "alone" / bits, "attempt-1", plugins)).last
        assert content(tmp_path / "group" / bits, "attempt-1") == content(tmp_path / "alone" / bits, "attempt-1")
        assert measured(end) == measured(alone)


def timeline(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "training").glob("*")}


@pytest.mark.parametrize("method", ["feeds-silently", "makes-its-own", "zeroq+distill", "temporal"])
def test_what_must_go_alone_does(method: str, tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    if method == "temporal":
        cells = [cell_of(method, plugins, bits) for bits in BITS]
        assert not any(one.goes_with(other) for one in cells for other in cells)
        return
    events = attempt(group_job(method, tmp_path, "attempt-1", plugins, *SMALL))
    assert [event["how"] for event in events.seen if event["event"] == "together"] == ["alone"]
    assert [end.get("event") for end in ends(events)] == ["result", None, None]


def test_a_group_that_is_stopped_goes_on_as_a_group_or_alone(tmp_path: Path) -> None:
    plugins = load_plugins()
    whole = ends(attempt(group_job("gdfq", tmp_path / "whole", "attempt-1", plugins, *SMALL)))
    stops = 0
    for number in range(1, 40):
        job = group_job("gdfq", tmp_path / "parts", f"attempt-{number}", plugins, *SMALL)
        found = ends(attempt(job, StopsAt(12)))
        if found[0]["event"] == "result":
            break
        assert [end["event"] for end in found] == ["stopped"] * 3
        assert len({end["step"] for end in found}) == 1, "members must stop at the same step"
        assert all(end["kept"] for end in found)
        stops += 1
        if stops == 1:
            shutil.copytree(tmp_path / "parts", tmp_path / "later")
    assert stops >= 2
    for bits, end, undisturbed in zip(BITS, found, whole, strict=True):
        assert end["resumed"] >= 1
        assert content(tmp_path / "parts" / bits, f"attempt-{number}") == content(
            tmp_path / "whole" / bits, "attempt-1"
        )
        assert measured(end) == measured(undisturbed)
    # A partner's state serves it alone, too.
    cell = cell_of("gdfq", plugins, "w3a3", *SMALL)
    later = attempt(job_of(cell, tmp_path / "later" / "w3a3", "attempt-9", plugins)).last
    assert (later["event"], later["resumed"]) == ("result", 1)
    assert content(tmp_path / "later" / "w3a3", "attempt-9") == content(tmp_path / "whole" / "w3a3", "attempt-1")
    assert measured(later) == measured(whole[1])
    assert later["reused"]["seconds"] > 0


def test_a_partner_without_the_same_state_runs_by_itself(tmp_path: Path) -> None:
    plugins = load_plugins()
    stopped = ends(attempt(group_job("gdfq", tmp_path, "attempt-1", plugins, *SMALL), StopsAt(21)))
    assert [end["event"] for end in stopped] == ["stopped"] * 3
    shutil.rmtree(tmp_path / "w3a3" / "checkpoints")
    events = attempt(group_job("gdfq", tmp_path, "attempt-2", plugins, *SMALL))
    assert [end.get("event") for end in ends(events)] == ["result", None, "result"]
    warnings = [
        event["line"]["message"] for event in events.seen if event["event"] == "partner" and event["number"] == 0
    ]
    assert "it runs by itself" in warnings[-1]


@pytest.mark.parametrize(
    ("how", "bits", "words"), [("raises", 4, "own mistake"), ("nan", 3, "not finite"), ("memory", 3, "memory")]
)
def test_one_that_goes_wrong_does_not_take_the_others_along(how: str, bits: int, words: str, tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    wrong = (f"fragile.bits={bits}", f"fragile.how={how}")
    found = ends(attempt(group_job("feeds", tmp_path, "attempt-1", plugins, *wrong)))
    for place, end in enumerate(found):
        assert end["event"] == ("error" if BITS[place] == f"w{bits}a{bits}" else "result"), end
        assert end["event"] == "result" or words in end["message"]


def test_a_member_that_asks_otherwise_says_nothing_of_its_end(tmp_path: Path) -> None:
    plugins = load_plugins([PLUGINS / "common.py"])
    wrong = ("fragile.bits=3", "fragile.how=asks-otherwise")
    events = attempt(group_job("feeds", tmp_path, "attempt-1", plugins, *wrong))
    assert [end.get("event") for end in ends(events)] == ["result", None, "result"]
