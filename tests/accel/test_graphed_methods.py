"""Captured and replayed steps of every method against eager steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cpu_graph import CpuRecorder
from dfqbench.accel.cuda_graph import GraphedStep
from dfqbench.api import Precision, budget_named
from dfqbench.api.graphed import StepFunction
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme
from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_loop import Distillation
from dfqbench.run.worker.instrumented_source import Counts, SharedCounts
from dfqbench.synth import FixedSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_network
from residual import residual_network


def _never_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all steps eagerly, with numbers on the device in float32 as for captured ones."""
    monkeypatch.setattr("dfqbench.accel.cuda_graph.WARM_CALLS", 1000)


FAST, MIXED = Precision.FLOAT32_FAST, Precision.MIXED_BFLOAT16
RANGES, TRAINED = 6, 12
STARTS = 9
"""Step from which later losses are on: after the first captures."""


class _Recorders(list[CpuRecorder]):
    """The recorders, in order, of steps that are captured on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def make(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
        self.append(CpuRecorder())
        return GraphedStep(step, self[-1], self.counts)


def _context(precision: Precision, recorders: _Recorders) -> ToyContext:
    return ToyContext(bits=parse_scheme("w4a4"), precision=precision, make_graphed=recorders.make)


def _run(method: str, overrides: dict[str, Any], precision: Precision) -> tuple[dict[str, Tensor], Counts, _Recorders]:
    """Return the states after some steps, the counts, and the recorders."""
    network, recorders = toy_network(), _Recorders()
    method_cls = load_plugins().method_class(method)
    with SharedCounts(recorders.counts).counting(network):
        ctx = _context(precision, recorders)
        source: Any = method_cls(method_cls.params_type(**overrides)).synthesize(network, ctx)
        for term in source.terms:
            term.start = min(term.start, STARTS)
        training = Distillation(network, source, [ctx], Distill.recipes[method_cls.quantizer.partition(":")[2]])
        training.size = 4
        for _ in range(RANGES):
            training.step(0)
        for _ in range(TRAINED):
            training.step(training.schedule.student_start)
    learned = {f"g.{name}": value for name, value in source.generator.state_dict().items()}
    (trained,) = training.students
    assert trained is not None
    learned |= {f"s.{name}": value for name, value in trained.student.state_dict().items()}
    learned |= {"random": source._random.get_state(), "more": trained._random.get_state()}
    recorders.counts.student_images = trained.student.images_seen
    return learned, recorders.counts, recorders


@pytest.mark.parametrize(
    ("method", "overrides", "precision"),
    [
        ("gdfq", {}, FAST),
        ("gdfq", {}, MIXED),
        ("gdfq", {"margin_weight": 0.5}, FAST),
        ("gdfq", {"augment_share": 0.5}, FAST),
        ("clusterq", {}, FAST),
        ("clusterq", {"grouping": "single_class"}, FAST),
        ("clusterq", {"centroid_every": "epoch", "noise_scale": "relative"}, MIXED),
        ("clusterq", {"mode": "released"}, FAST),
        ("acq", {}, FAST),
        ("acq", {"bns_both": True, "pair_margin": 0.0}, FAST),
        ("temporal", {}, FAST),
        ("temporal", {}, MIXED),
        ("temporal", {"margin_form": "expected"}, FAST),
        ("temporal", {"margin_scale": "running"}, FAST),
        ("temporal", {"margin_scale": "running", "margin_form": "erf"}, FAST),
    ],
)
def test_captured_steps_equal_eager_ones(
    method: str, overrides: dict[str, Any], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphed, counts, recorders = _run(method, overrides, precision)
    assert len(recorders) == 3
    assert all(recorder.captured > 0 and recorder.replayed > 2 for recorder in recorders)
    _never_capture(monkeypatch)
    eager, eager_counts, recorders = _run(method, overrides, precision)
    assert [recorder.captured for recorder in recorders] == [0, 0, 0]
    assert graphed.keys() == eager.keys()
    assert [name for name in eager if not torch.equal(graphed[name], eager[name])] == []
    assert counts == eager_counts


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("zeroq", {}),
        ("dffg", {"images": 60, "batch": 8, "iterations": 30}),
        ("dffg", {"images": 20, "iterations": 30, "clip": True, "norm": "mse"}),
    ],
)
def test_captured_images_equal_eager(method: str, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[dict[str, Any], tuple[Any, ...], _Recorders]:
        recorders, network = _Recorders(), toy_network()
        ctx = _context(FAST, recorders)
        ctx.budget = budget_named("short")
        method_cls = load_plugins().method_class(method)
        with SharedCounts(recorders.counts).counting(network):
            source: Any = method_cls(method_cls.params_type(**overrides)).synthesize(network, ctx)
        return source.state_dict(), (recorders.counts, ctx.steps, ctx.scalars), recorders

    graphed, facts, recorders = run()
    assert recorders[0].captured == 1
    assert recorders[0].replayed > 5
    _never_capture(monkeypatch)
    eager, eager_facts, recorders = run()
    assert recorders[-1].captured == 0
    assert facts == eager_facts
    assert [name for name, value in eager.items() if isinstance(value, Tensor) and not value.equal(graphed[name])] == []


@pytest.mark.parametrize("recipe", ["gdfq", "intraq", "temporal", "adadfq", "synq"])
@pytest.mark.parametrize("logits", [None, torch.randn(24, toy_card().classes)], ids=["", "with logits"])
def test_captured_training_on_fixed_images_equals_eager(
    recipe: str, logits: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, states = torch.randn(24, *toy_card().input_size), []
    for captured in (True, False):
        if not captured:
            _never_capture(monkeypatch)
        recorders = _Recorders()
        ctx = _context(FAST, recorders)
        source = FixedSource(images, teacher_logits=logits)
        training = Distillation(residual_network(), source, [ctx], Distill.recipes[recipe])
        (trained,) = training.students
        assert trained is not None
        for _ in range(RANGES):
            training.step(0)
        for step in range(TRAINED):
            if step == TRAINED // 2:  # a range that moves after the capture
                with torch.no_grad(), trained.student.observing("minmax"):
                    trained.student(3 * images)
            training.step(training.schedule.student_start)
        assert (recorders[-1].replayed > 2) == captured
        states.append(trained.student.state_dict())
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
