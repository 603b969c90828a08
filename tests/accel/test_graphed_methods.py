"""Every method, with its steps captured and replayed, against the same steps run eagerly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

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
from dfqbench.testing.cpu_graph import CpuRecorder
from dfqbench.testing.toys import toy_card, toy_network


def _never_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all steps eagerly, with numbers on the device in float32 as for captured ones."""
    monkeypatch.setattr("dfqbench.accel.cuda_graph.WARM_CALLS", 1000)


RANGES, TRAINED = 6, 12
STARTS = 9
"""Step from which later losses are on: after the first recordings."""


class _Recorders(list[CpuRecorder]):
    """Makes steps that are captured on the CPU, and keeps their recorders in order."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def make(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
        del generators
        self.append(CpuRecorder())
        return GraphedStep(step, self[-1], self.counts)


def _context(precision: Precision, recorders: _Recorders) -> ToyContext:
    return ToyContext(
        bits=parse_scheme("w4a4"),
        precision=precision,
        budget=budget_named("smoke"),
        make_graphed=recorders.make,
    )


def _student(recorders: _Recorders, recipe: str, images: Tensor, logits: Tensor | None = None) -> Distillation:
    """A student of a fixed source, in training."""
    source = FixedSource(images, teacher_logits=logits)
    ctx = _context(Precision.FLOAT32_FAST, recorders)
    return Distillation(toy_network(), source, [ctx], Distill.recipes[recipe])


def _state(training: Distillation) -> dict[str, Tensor]:
    (trained,) = training.students
    assert trained is not None
    return trained.student.state_dict()


def _run(method: str, overrides: dict[str, Any], precision: Precision) -> tuple[dict[str, Tensor], Counts, _Recorders]:
    """Return what is learned in some steps, what they count, and the recorders."""
    network, recorders = toy_network(), _Recorders()
    kind = load_plugins().method_class(method)
    with SharedCounts(recorders.counts).counting(network):
        ctx = _context(precision, recorders)
        source: Any = kind(kind.params_type(**overrides)).synthesize(network, ctx)
        for term in source.terms:
            term.start = min(term.start, STARTS)
        training = Distillation(network, source, [ctx], Distill.recipes[kind.quantizer.partition(":")[2]])
        training.size = 4
        for _ in range(RANGES):
            training.step(0)
        for _ in range(TRAINED):
            training.step(training.plan.student_start)
    learned = {f"g.{name}": value for name, value in source.generator.state_dict().items()}
    (trained,) = training.students
    assert trained is not None
    learned |= {f"s.{name}": value for name, value in trained.student.state_dict().items()}
    learned |= {"random": source._random.get_state(), "more": trained._random.get_state()}
    recorders.counts.student_images = trained.student.images_seen
    return learned, recorders.counts, recorders


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "gdfq": ("gdfq", {}),
    "gdfq with a margin": ("gdfq", {"margin_weight": 0.5}),
    "gdfq, augmented": ("gdfq", {"augment_share": 0.5}),
    "clusterq": ("clusterq", {}),
    "clusterq, released": ("clusterq", {"mode": "released"}),
    "acq": ("acq", {}),
    "acq, mode seeking": ("acq", {"pair_form": "mode_seeking"}),
    "temporal": ("temporal", {}),
    "temporal, expected": ("temporal", {"margin_form": "expected"}),
}


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        *((case, Precision.FLOAT32_FAST) for case in METHODS),
        *((case, Precision.MIXED_BFLOAT16) for case in ("gdfq", "temporal")),
    ],
)
def test_captured_steps_learn_the_same_and_count_the_same(
    case: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, overrides = METHODS[case]
    graphed, counts, recorders = _run(method, overrides, precision)
    assert len(recorders) == 3
    assert all(recorder.captured > 0 and recorder.replayed > 2 for recorder in recorders)
    _never_capture(monkeypatch)
    eager, eager_counts, recorders = _run(method, overrides, precision)
    assert [recorder.captured for recorder in recorders] == [0, 0, 0]
    assert graphed.keys() == eager.keys()
    assert [name for name in eager if not torch.equal(graphed[name], eager[name])] == []
    assert counts == eager_counts


def test_a_long_range_phase_leaves_the_generators_steps_captured() -> None:
    recorders = _Recorders()
    ctx, network = _context(Precision.FLOAT32_FAST, recorders), toy_network()
    kind = load_plugins().method_class("gdfq")
    training = Distillation(network, kind(kind.params_type()).synthesize(network, ctx), [ctx], Distill.recipes["gdfq"])
    training.size = 4
    # Each replaces scales of the student, at which the generator does not look.
    for _ in range(40):
        training.step(0)
    for _ in range(10):
        training.step(training.plan.student_start)
    shown = [(recorder.warmed, recorder.captured, recorder.replayed) for recorder in recorders]
    assert shown == [(3, 1, 47), (3, 1, 37), (3, 1, 7)]


FIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "zeroq": ("zeroq", {}),
    "dffg": ("dffg", {}),
    "dffg, pixels": ("dffg", {"variability": "pixel"}),
    "dffg, layers": ("dffg", {"variability": "layers"}),
}


@pytest.mark.parametrize("case", FIXED)
def test_captured_iterations_make_the_same_images(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, overrides = FIXED[case]

    def run() -> tuple[dict[str, Any], tuple[Any, ...], _Recorders]:
        recorders, network = _Recorders(), toy_network()
        ctx = _context(Precision.FLOAT32_FAST, recorders)
        ctx.budget = budget_named("short")
        kind = load_plugins().method_class(method)
        with SharedCounts(recorders.counts).counting(network):
            source: Any = kind(kind.params_type(**overrides)).synthesize(network, ctx)
        return source.state_dict(), (recorders.counts, ctx.steps, ctx.scalars), recorders

    graphed, facts, recorders = run()
    assert recorders[0].captured == 1
    assert recorders[0].replayed > 5
    _never_capture(monkeypatch)
    eager, eager_facts, recorders = run()
    assert recorders[-1].captured == 0
    assert facts == eager_facts
    assert [name for name, value in eager.items() if isinstance(value, Tensor) and not value.equal(graphed[name])] == []


@pytest.mark.parametrize("recipe", ["gdfq", "intraq", "temporal"])
def test_a_student_of_a_fixed_source_with_and_without_logits(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(24, *toy_card().input_size)
    for logits in (None, torch.randn(24, toy_card().classes)):
        states = []
        for captured in (True, False):
            with monkeypatch.context() as patch:
                if not captured:
                    _never_capture(patch)
                recorders = _Recorders()
                training = _student(recorders, recipe, images, logits)
                for _ in range(RANGES):
                    training.step(0)
                for _ in range(TRAINED):
                    training.step(training.plan.student_start)
            assert (recorders[-1].replayed > 2) == captured
            states.append(_state(training))
        assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def test_ranges_that_move_after_a_capture_count(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(24, *toy_card().input_size)
    states = []
    for captured in (True, False):
        with monkeypatch.context() as patch:
            if not captured:
                _never_capture(patch)
            training = _student(_Recorders(), "gdfq", images)
            training.step(0)
            start = training.plan.student_start
            for _ in range(6):
                training.step(start)
            (trained,) = training.students
            assert trained is not None
            with torch.no_grad(), trained.student.observing("minmax"):
                trained.student(3 * images)
            for _ in range(2):
                training.step(start)
        states.append(_state(training))
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
