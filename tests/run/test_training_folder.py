from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from attempts import Live, host_context
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.run.schedule.measured import add_curve
from dfqbench.run.store.record import Record
from dfqbench.run.store.record_parts import Snapshot
from dfqbench.run.store.training_folder import IMAGES_SMALL, Snapshots, Timeline, TrainingFolder, part_of
from dfqbench.run.worker.clock import Clock
from dfqbench.run.worker.instrumented_source import Counts, InstrumentedLiveSource
from dfqbench.testing.toys import toy_card, toy_network


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    return TrainingFolder(tmp_path / "attempt-1")


@pytest.fixture
def student() -> Student:
    return prepare(toy_network(), parse_scheme("w4a4"), toy_card())


def test_parts_of_a_training() -> None:
    assert [part_of(step, 12, 4) for step in (1, 3, 4, 6, 7, 12, 13)] == [1, 1, 2, 2, 3, 4, 4]
    assert (part_of(1, 1000, 4), part_of(7, 0, 4)) == (1, 4)


@pytest.mark.parametrize("points", [1, 4, 100])
def test_snapshots_end_with_the_last_state(
    folder: TrainingFolder, student: Student, tmp_path: Path, points: int
) -> None:
    ctx = host_context(tmp_path, snapshots=Snapshots(folder, points, nullcontext))
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
        assert any(float(value.flatten()[0]) == step for value in load_file(file).values() if value.numel())
    if points == 4:
        # Parts end at 10, 20, 30 and 40; none was offered in the first.
        assert list(kept) == [12, 22, 40]


def test_resumed_training_keeps_earlier_snapshots(folder: TrainingFolder, student: Student) -> None:
    first, resumed = (Snapshots(folder, 2, nullcontext) for _ in range(2))
    first.offer(student, 3, 10)
    resumed.offer(student, 4, 10)
    resumed.offer(student, 10, 10)
    assert list(folder.students()) == [3, 10]
    folder.drop_students()
    assert folder.students() == {}


def test_student_of_a_plugins_own_class_is_refused(folder: TrainingFolder) -> None:
    snapshots = Snapshots(folder, 2, nullcontext)
    snapshots.offer(nn.Linear(1, 1), 2, 2)
    assert snapshots.refused
    assert folder.students() == {}


def test_no_snapshot_is_kept_without_request(tmp_path: Path, student: Student) -> None:
    ctx = host_context(tmp_path)
    ctx.progress(1, 1)
    ctx.snapshot(student, 1)
    assert list(tmp_path.iterdir()) == []


def test_timeline_keeps_images_at_points_of_the_training(folder: TrainingFolder, tmp_path: Path) -> None:
    pause = Mock(side_effect=nullcontext)
    timeline = Timeline(folder, pause)
    ctx = host_context(tmp_path, timeline=timeline)
    source = InstrumentedLiveSource(Live(), Clock().source_call, Counts(), (1, 8, 8), timeline.offer)
    for step in range(1, 101):
        assert float(source.train_step(40).images[0, 0, 0, 0]) == step
        ctx.progress(step, 100)
    kept = folder.images()
    assert list(kept) == [1, 20, 40, 60, 80, 100]
    assert pause.call_count == 6
    for step, file in kept.items():
        tensors = load_file(file)
        assert float(tensors["images"].mean()) == step
        assert len(tensors["images"]) == len(tensors["labels"]) == IMAGES_SMALL
    TrainingFolder(tmp_path / "attempt-2").clear()
    assert folder.images() == {}


def test_oracle_is_the_first_best_snapshot_and_top1_stays() -> None:
    record = Record(top1=50.0, oracle=None)
    add_curve(record, [{"step": step, "top1": top1} for step, top1 in enumerate((40.0, 60.0, 60.0, 50.0), start=1)])
    assert record.oracle == Snapshot(top1=60.0, step=2)
    assert record.top1 == 50.0
    empty = Record(top1=50.0)
    add_curve(empty, [])
    assert (empty.oracle, empty.curve) == (None, [])
