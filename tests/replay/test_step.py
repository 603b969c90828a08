from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from dfqbench.api import PluginError, Precision
from dfqbench.replay import LearningRate, ReplayedStep, Tally, tallied, tape_for, taping
from dfqbench.replay.step import MOST_KINDS, WARM_CALLS
from dfqbench.testing.context import ToyContext
from dfqbench.testing.tape import CpuTape


def _doubled(x: Tensor) -> tuple[Tensor, ...]:
    return (x * 2,)


def test_a_repetition_takes_its_inputs_and_gives_memory_of_its_own() -> None:
    tape = CpuTape()
    step = ReplayedStep(tape)
    results = [step("double", _doubled, torch.full((2,), float(number)))[0] for number in range(WARM_CALLS + 3)]
    assert [float(result[0]) for result in results] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert (tape.warmed, tape.recorded, tape.launched) == (WARM_CALLS, 1, 3)


def test_state_changes_once_a_call_and_random_numbers_go_on() -> None:
    def ran(tape: CpuTape | None) -> tuple[Tensor, Tensor]:
        random, total = torch.Generator().manual_seed(3), torch.zeros(4)

        def act() -> tuple[Tensor, ...]:
            return (total.add_(torch.rand(4, generator=random)),)

        step = ReplayedStep(tape)
        for _ in range(WARM_CALLS + 4):
            step("add", act)
        return total, random.get_state()

    for found, wanted in zip(ran(CpuTape()), ran(None), strict=True):
        assert torch.equal(found, wanted)


def test_other_shapes_and_kinds_are_recorded_apart_and_those_used_last_are_kept() -> None:
    tape = CpuTape()
    step = ReplayedStep(tape)
    for kind in range(MOST_KINDS):
        for size in (2, 3):
            for _ in range(WARM_CALLS + 2):
                assert step(kind, _doubled, torch.ones(size))[0].tolist() == [2.0] * size
    assert tape.recorded == 2 * MOST_KINDS
    assert tape.launched == 4 * MOST_KINDS
    for kind, warmed in ((MOST_KINDS - 1, 0), (0, 1)):
        before = tape.warmed
        step(kind, _doubled, torch.ones(2))
        assert tape.warmed - before == warmed


def test_a_step_that_reads_the_device_is_refused_when_it_would_be_recorded() -> None:
    step = ReplayedStep(CpuTape())

    def act(x: Tensor) -> tuple[Tensor, ...]:
        return (torch.full((), float(x)),)

    for _ in range(WARM_CALLS):
        step("read", act, torch.ones(()))
    with pytest.raises(PluginError, match="cannot be recorded for the GPU: .* reads a value"):
        step("read", act, torch.ones(()))


def test_out_of_memory_stays_what_it_is() -> None:
    class Full(CpuTape):
        def record(self, act: object) -> NoReturn:
            raise torch.OutOfMemoryError("CUDA out of memory")

    step = ReplayedStep(Full())
    for _ in range(WARM_CALLS):
        step("any", _doubled, torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        step("any", _doubled, torch.ones(1))


def test_counts_of_members_that_come_and_go_are_their_own() -> None:
    first, second = {"steps": 0}, {"steps": 0}
    current = first

    def act() -> tuple[Tensor, ...]:
        current["steps"] += 1
        return (torch.ones(()),)

    one, other = ReplayedStep(CpuTape()), ReplayedStep(CpuTape())
    with tallied(Tally(lambda: dict(second), second.update)):
        with tallied(Tally(lambda: dict(first), first.update)):
            for _ in range(WARM_CALLS + 2):
                current = first
                one("count", act)
                current = second
                other("count", act)
        for _ in range(2):
            other("count", act)
        one("count", act)  # nobody counts it any more
    assert (first["steps"], second["steps"]) == (WARM_CALLS + 2, WARM_CALLS + 4)


def test_counts_of_the_host_go_on() -> None:
    counts = {"steps": 0}

    def act() -> tuple[Tensor, ...]:
        counts["steps"] += 2
        return (torch.ones(()),)

    step = ReplayedStep(CpuTape())
    with tallied(Tally(lambda: dict(counts), counts.update)):
        for _ in range(WARM_CALLS + 5):
            step("count", act)
    assert counts["steps"] == 2 * (WARM_CALLS + 5)


def test_a_recorded_rate_is_read_from_the_device() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    for recorded in (False, True):
        rate = LearningRate(0.5, torch.device("cpu"), recorded=recorded)
        optimizer = torch.optim.SGD([weight], lr=rate.of_optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
        rate.set(optimizer, 0.25)
        assert float(optimizer.param_groups[0]["lr"]) == 0.25
        assert isinstance(optimizer.param_groups[0]["lr"], Tensor) == recorded


def test_only_fast_paths_on_gpus_have_a_tape() -> None:
    def make(device: torch.device, random: Sequence[torch.Generator]) -> CpuTape:
        del device, random
        return CpuTape()

    fast = ToyContext(precision=Precision.FLOAT32_FAST)
    assert tape_for(fast, []) is None
    with taping(make):
        assert tape_for(fast, []) is not None
        assert tape_for(ToyContext(precision=Precision.FLOAT32), []) is None
    assert tape_for(fast, []) is None
