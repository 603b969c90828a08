from __future__ import annotations

from typing import NoReturn

import pytest
import torch
from torch import Tensor

from cpu_graph import CpuRecorder
from dfqbench.accel.cuda_graph import MOST_GRAPHS, WARM_CALLS, GraphedStep, graphed_steps
from dfqbench.api import PluginError, Precision
from dfqbench.api.graphed import EagerStep
from dfqbench.testing.context import ToyContext


def _doubled(x: Tensor) -> tuple[Tensor, ...]:
    return (x * 2,)


def test_a_replay_reads_its_inputs_and_returns_memory_of_its_own() -> None:
    recorder = CpuRecorder()
    step = GraphedStep(_doubled, recorder)
    results = [step(torch.full((2,), float(number)))[0] for number in range(WARM_CALLS + 3)]
    assert [float(result[0]) for result in results] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert (recorder.warmed, recorder.captured, recorder.replayed) == (WARM_CALLS, 1, 3)


def test_shapes_and_choices_have_graphs_of_their_own_and_those_used_last_are_kept() -> None:
    def scaled(x: Tensor, *, factor: int) -> tuple[Tensor, ...]:
        return (x * factor,)

    recorder = CpuRecorder()
    step = GraphedStep(scaled, recorder)
    for factor in range(MOST_GRAPHS):
        for size in (2, 3):
            for _ in range(WARM_CALLS + 2):
                assert step(torch.ones(size), factor=factor)[0].tolist() == [float(factor)] * size
    assert recorder.captured == 2 * MOST_GRAPHS
    assert recorder.replayed == 4 * MOST_GRAPHS
    for factor, warmed in ((MOST_GRAPHS - 1, 0), (0, 1)):
        before = recorder.warmed
        step(torch.ones(2), factor=factor)
        assert recorder.warmed - before == warmed


def test_other_keys_and_forgotten_graphs_are_captured_anew() -> None:
    recorder = CpuRecorder()
    step = GraphedStep(_doubled, recorder)
    for key in (1, 2):
        for _ in range(WARM_CALLS + 1):
            step(torch.ones(1), key=key)
    assert recorder.captured == 2
    step.reset()
    step(torch.ones(1), key=1)
    assert recorder.warmed == 2 * WARM_CALLS + 1


def test_numbers_are_read_from_the_device_and_parts_may_be_missing() -> None:
    def scaled(x: Tensor, rate: float | Tensor, missing: Tensor | None) -> tuple[Tensor, ...]:
        assert missing is None
        return (x * rate,)

    recorder = CpuRecorder()
    graphed, eager = GraphedStep(scaled, recorder), EagerStep(scaled)
    for number in range(WARM_CALLS + 3):
        assert graphed(torch.ones(1), 0.25 * number, None)[0].item() == 0.25 * number
        assert eager(torch.ones(1), 0.25 * number, None)[0].item() == 0.25 * number
    assert recorder.captured == 1


def test_a_step_that_reads_the_device_is_refused_when_it_would_be_captured() -> None:
    def read(x: Tensor) -> tuple[Tensor, ...]:
        return (torch.full((), float(x)),)

    step = GraphedStep(read, CpuRecorder())
    for _ in range(WARM_CALLS):
        step(torch.ones(()))
    with pytest.raises(PluginError, match=r"cannot be captured as a CUDA graph: .* reads a value"):
        step(torch.ones(()))


def test_out_of_memory_error_is_not_wrapped() -> None:
    class Full(CpuRecorder):
        def capture(self, run: object) -> NoReturn:
            raise torch.OutOfMemoryError("CUDA out of memory")

    step = GraphedStep(_doubled, Full())
    for _ in range(WARM_CALLS):
        step(torch.ones(1))
    with pytest.raises(torch.OutOfMemoryError):
        step(torch.ones(1))


def test_optimizers_read_the_rate_that_a_step_sets() -> None:
    def ran(*, graphed: bool) -> Tensor:
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)

        def update(rate: float | Tensor) -> tuple[Tensor, ...]:
            optimizer.param_groups[0]["lr"] = rate
            weight.grad = torch.ones(1)
            optimizer.step()
            return (weight.clone(),)

        step = GraphedStep(update, CpuRecorder()) if graphed else EagerStep(update)
        return torch.cat([step(0.5**number)[0] for number in range(WARM_CALLS + 4)])

    assert torch.equal(ran(graphed=True), ran(graphed=False))


def test_only_fast_paths_are_graphed() -> None:
    def make(step: object, generators: object = ()) -> GraphedStep:
        return GraphedStep(_doubled, CpuRecorder())

    for precision in Precision:
        assert not ToyContext(precision=precision).graphed(_doubled).capturable
        ctx = ToyContext(precision=precision, make_graphed=make)
        assert ctx.graphed(_doubled).capturable is precision.rearranges
    assert graphed_steps(torch.device("cpu")) is EagerStep


def test_graphs_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graphed_steps(torch.device("cuda")) is not EagerStep
    monkeypatch.setenv("DFQBENCH_GRAPHS", "0")
    assert graphed_steps(torch.device("cuda")) is EagerStep
