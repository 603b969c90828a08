from __future__ import annotations

import copy
from collections.abc import Sized
from typing import Any

import pytest
import torch
from torch import nn

from attempts import Endless, Live
from dfqbench.api import Batch, NonFiniteError, PluginError, is_live
from dfqbench.run.worker.accounting import GENERATOR_ALONE, Accounting
from dfqbench.run.worker.clock import Clock
from dfqbench.run.worker.instrumented_source import Counts, SharedCounts, instrumented_cls
from dfqbench.run.worker.plugin_checks import DataGuard
from dfqbench.synth.source import FixedSource

SHAPE = (1, 8, 8)


def instrumented(source: Any, clock: Clock | None = None, counts: Counts | None = None) -> Any:
    clock, counts = clock or Clock(), counts or Counts()
    return instrumented_cls(source)(source, clock.source_call, counts, SHAPE)


@pytest.mark.parametrize(
    ("source", "live", "sized"),
    [(FixedSource(torch.zeros(5, *SHAPE)), False, True), (Endless(), False, False), (Live(), True, False)],
)
def test_instrumented_source_is_live_and_sized_as_the_source(source: Any, live: bool, sized: bool) -> None:
    wrapped = instrumented(source)
    assert is_live(wrapped) is live
    assert isinstance(wrapped, Sized) is sized
    assert not sized or len(wrapped) == 5


def test_images_steps_and_time_are_counted() -> None:
    clock, counts = Clock(), Counts()
    source = instrumented(Live(), clock, counts)
    with clock.phase("quantization", source_name="synthesis"):
        source.sample(3)
        source.train_step(4)
    assert (counts.images, counts.sampled_images, counts.source_steps) == (7, 3, 1)
    assert clock.seconds["synthesis"] > 0


@pytest.mark.parametrize(
    ("kind", "held", "flags", "used"),
    [
        ("fixed", 64, [], 64),
        ("fixed", 1024, [], 300),
        ("fixed", None, [], 300),
        ("live", None, [], 6000),
        ("live", None, [GENERATOR_ALONE], 300),
    ],
)
def test_used_images_are_different_ones_that_serve_a_student(
    kind: str, held: int | None, flags: list[str], used: int
) -> None:
    cost = Accounting(torch.device("cpu"), DataGuard(()), started=0.0, shared_flag="")
    cost.source_kind, cost.source_images, cost.flags = kind, held, flags
    cost.counts.set({"images": 6000, "sampled_images": 300})
    assert cost.so_far()["used_images"] == used


@pytest.mark.parametrize("shape", [(8, 8), (0, 1, 8, 8), (1, 1, 8, 8), (2, 1, 8, 4)])
def test_images_of_another_shape_are_a_plugin_error(shape: tuple[int, ...]) -> None:
    class Misshaped(Endless):
        def sample(self, size: int) -> Batch:
            return Batch(torch.zeros(shape))

    with pytest.raises(PluginError, match=r"not \(2, 1, 8, 8\)"):
        instrumented(Misshaped()).sample(2)


def test_images_that_are_not_finite_fail_the_check() -> None:
    source = instrumented(FixedSource(torch.full((2, *SHAPE), torch.nan)))
    source.check()
    source.sample(2)
    with pytest.raises(NonFiniteError, match="an image of the source"):
        source.check()


def test_teacher_passes_and_optimizer_steps_are_counted_and_hooks_removed() -> None:
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
