"""Meters."""

from __future__ import annotations

import copy
from collections.abc import Sized

import torch
from torch import nn

from dfqbench.api import Batch, SampleSource, is_live
from dfqbench.run.worker.accounting import Clock
from dfqbench.run.worker.instrumented_source import Counts, SharedCounts, instrument
from dfqbench.synth.source import FixedSource

SHAPE = (1, 8, 8)


class Endless:
    """A source without a length."""

    def sample(self, size: int) -> Batch:
        return Batch(torch.zeros(size, 1, 8, 8))

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        pass


class Live(Endless):
    """A source that learns."""

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        return self.sample(size)


def test_a_metered_source_is_what_the_source_is() -> None:
    fixed: SampleSource = FixedSource(torch.zeros(5, 1, 8, 8))
    for source, live, sized in ((fixed, False, True), (Endless(), False, False), (Live(), True, False)):
        handed = instrument(source, Clock(), Counts(), SHAPE)
        assert is_live(handed) is live
        assert isinstance(handed, Sized) is sized
    assert len(instrument(fixed, Clock(), Counts(), SHAPE)) == 5  # type: ignore[arg-type]


def test_images_steps_and_time_are_counted() -> None:
    clock, counts = Clock(), Counts()
    handed = instrument(Live(), clock, counts, SHAPE)
    with clock.phase("quantization", source_name="synthesis"):
        handed.sample(3)
        handed.train_step(4)  # type: ignore[attr-defined]
    assert (counts.images, counts.source_steps) == (7, 1)
    assert clock.seconds["synthesis"] > 0


def test_teacher_passes_and_optimizer_steps_are_counted_and_no_hook_is_left() -> None:
    teacher = nn.Linear(2, 2)
    counts = Counts()
    with SharedCounts(counts).counting(teacher):
        twin = copy.deepcopy(teacher)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        teacher(torch.zeros(7, 2))
        twin(torch.zeros(9, 2)).sum().backward()
        optimizer.step()
    teacher(torch.zeros(7, 2))
    optimizer.step()
    assert (counts.teacher_images, counts.optimizer_steps) == (7, 1)
    assert not teacher._forward_pre_hooks
