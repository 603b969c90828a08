"""What is kept of a training: students for the oracle, and images of a live source, without touching any number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dfqbench.api import Batch, budget_named
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.run.schedule.cell_run import add_curve
from dfqbench.run.store.record import Record, Snapshot
from dfqbench.run.store.training_folder import IMAGES_SMALL, Snapshots, Timeline, TrainingFolder, load_state, part_of
from dfqbench.run.worker.clock import Clock
from dfqbench.run.worker.context import HostContext
from dfqbench.run.worker.instrumented_source import Counts, MeteredLiveSource
from dfqbench.testing.toys import toy_card, toy_network


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    (tmp_path / "attempt-1").mkdir()
    return TrainingFolder(tmp_path / "attempt-1")


@pytest.fixture
def student() -> Student:
    return prepare(toy_network(), parse_scheme("w4a4"), toy_card())


def context(tmp_path: Path, **changes: Any) -> HostContext:
    facts: dict[str, Any] = {
        "phase": "quantization",
        "device": torch.device("cpu"),
        "card": toy_card(),
        "budget": budget_named("short"),
        "scheme": None,
        "seed_key": "key",
        "workdir": tmp_path,
        "report": lambda *_: None,
    }
    return HostContext(**(facts | changes))


def test_parts_of_a_training() -> None:
    assert [part_of(step, 12, 4) for step in (1, 3, 4, 6, 7, 12)] == [1, 1, 2, 2, 3, 4]
    assert part_of(1, 1000, 4) == 1
    assert part_of(7, 0, 4) == 4
    assert part_of(13, 12, 4) == 4


@pytest.mark.parametrize("points", [1, 4, 100])
def test_the_last_state_is_always_among_them(
    folder: TrainingFolder, student: Student, tmp_path: Path, points: int
) -> None:
    ctx = context(tmp_path, snapshots=Snapshots(folder, points, nullcontext))
    parameter = next(student.parameters())
    for step in range(1, 41):
        with torch.no_grad():
            parameter.fill_(step)
        ctx.progress(step, 40)
        if step > 10 and step % 2 == 0:
            ctx.snapshot(student, step)
    kept = folder.students()
    assert 0 < len(kept) <= points
    assert list(kept) == sorted(kept)
    assert list(kept)[-1] == 40
    for step, file in kept.items():
        state = load_state(file, "cpu")
        assert any(float(value.flatten()[0]) == step for value in state.values() if value.numel())
    if points == 4:
        # Parts end at 10, 20, 30 and 40; nothing was offered in the first.
        assert list(kept) == [12, 22, 40]


def test_a_resumed_training_keeps_what_the_earlier_one_kept(folder: TrainingFolder, student: Student) -> None:
    first, again = (Snapshots(folder, 2, nullcontext) for _ in range(2))
    first.offer(student, 3, 10)
    again.offer(student, 4, 10)
    again.offer(student, 10, 10)
    assert list(folder.students()) == [3, 10]
    folder.drop_students()
    assert folder.students() == {}


def test_a_student_of_a_plugin_s_own_is_refused(folder: TrainingFolder) -> None:
    snapshots = Snapshots(folder, 2, nullcontext)
    snapshots.offer(nn.Linear(1, 1), 2, 2)
    assert snapshots.refused
    assert folder.students() == {}


def test_nothing_is_kept_unless_asked_for(tmp_path: Path, student: Student) -> None:
    ctx = context(tmp_path)
    ctx.progress(1, 1)
    ctx.snapshot(student, 1)
    assert list(tmp_path.iterdir()) == []


class Live:
    """A source whose batches tell their number."""

    def __init__(self) -> None:
        self.steps = 0

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        self.steps += 1
        return Batch(torch.full((size, 1, 8, 8), float(self.steps)), torch.arange(size))

    def sample(self, size: int) -> Batch:
        raise AssertionError("nothing is drawn for the timeline")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_images_of_a_live_source_at_points_of_its_training(folder: TrainingFolder, tmp_path: Path) -> None:
    aside: list[str] = []

    @contextmanager
    def host() -> Iterator[None]:
        aside.append("in")
        yield

    timeline = Timeline(folder, host)
    ctx = context(tmp_path, timeline=timeline)
    source = MeteredLiveSource(Live(), Clock(), Counts(), (1, 8, 8), lambda: [timeline])
    for step in range(1, 101):
        batch = source.train_step(40)
        assert float(batch.images[0, 0, 0, 0]) == step
        ctx.progress(step, 100)
    kept = folder.images()
    assert list(kept) == [1, 20, 40, 60, 80, 100]
    assert len(aside) == 6
    for step, file in kept.items():
        tensors = load_state(file, "cpu")
        assert float(tensors["images"].mean()) == step
        assert len(tensors["images"]) == len(tensors["labels"]) == IMAGES_SMALL
    TrainingFolder(tmp_path / "attempt-2").clear()
    assert folder.images() == {}


def test_the_oracle_is_the_best_and_the_headline_stays() -> None:
    record = Record(top1=50.0, oracle=None)
    points = [
        {"step": 1, "top1": 40.0},
        {"step": 2, "top1": 60.0},
        {"step": 3, "top1": 60.0},
        {"step": 4, "top1": 50.0},
    ]
    add_curve(record, points)
    assert record.oracle == Snapshot(top1=60.0, step=2)
    assert record.top1 == 50.0
    empty = Record(top1=50.0)
    add_curve(empty, [])
    assert (empty.oracle, empty.curve) == (None, [])
