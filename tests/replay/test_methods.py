"""Every live method, with its steps recorded and repeated, against the same steps launched one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqbench.api import Precision, budget_named
from dfqbench.native import binding
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme
from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_loop import Distillation
from dfqbench.replay import Tally, tallied, taping
from dfqbench.run.meter import Counts, counting
from dfqbench.synth import FixedSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.tape import CpuTape
from dfqbench.testing.toys import toy_card, toy_network


def _never_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are launched, with a learning rate that lies, as for recorded ones, on the device in float32."""
    monkeypatch.setattr("dfqbench.replay.step.WARM_CALLS", 1000)


RANGES, TRAINED = 6, 12
STARTS = 9
"""Step from which later losses are on: after the first recordings."""


def _context(precision: Precision) -> ToyContext:
    return ToyContext(bits=parse_scheme("w4a4"), precision=precision, budget=budget_named("smoke"))


@contextmanager
def _taped(tapes: list[CpuTape]) -> Iterator[None]:
    """Within it each loop has a tape of its own, added to `tapes`; no compiled pass is in use."""

    def make(device: torch.device, random: Sequence[torch.Generator]) -> CpuTape:
        del device, random
        tapes.append(CpuTape())
        return tapes[-1]

    with binding.using(None), taping(make):
        yield


def _student(recipe: str, images: Tensor, logits: Tensor | None = None) -> Distillation:
    """A student of a fixed source, in training."""
    source = FixedSource(images, teacher_logits=logits)
    return Distillation(toy_network(), source, _context(Precision.FLOAT32_FAST), Distill.recipes[recipe])


def _run(
    method: str, overrides: dict[str, Any], precision: Precision, tapes: list[CpuTape]
) -> tuple[dict[str, Tensor], Counts]:
    """What is learned in some steps, and what they count."""
    network, counts = toy_network(), Counts()
    kind = load_plugins().method_class(method)
    with _taped(tapes), counting(network, lambda: counts):
        ctx = _context(precision)
        source: Any = kind(kind.params_type(**overrides)).synthesize(network, ctx)
        for term in source.terms:
            term.start = min(term.start, STARTS)
        training = Distillation(network, source, ctx, Distill.recipes[kind.quantizer.partition(":")[2]])
        training._size = 4
        with tallied(Tally(training._images_seen, training._set_images_seen)):
            for _ in range(RANGES):
                training._step(0)
            for _ in range(TRAINED):
                training._step(training.plan.student_start)
    learned = {f"g.{name}": value for name, value in source.generator.state_dict().items()}
    learned |= {f"s.{name}": value for name, value in training.student.state_dict().items()}
    learned |= {"random": source._random.get_state(), "more": training._random.get_state()}
    counts.student_images = training.student.images_seen
    return learned, counts


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
def test_recorded_steps_learn_the_same_and_count_the_same(
    case: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, overrides = METHODS[case]
    tapes: list[CpuTape] = []
    found, counts = _run(method, overrides, precision, tapes)
    assert len(tapes) == 2
    assert all(tape.recorded > 0 and tape.launched > 2 for tape in tapes)
    _never_record(monkeypatch)
    wanted, plainly = _run(method, overrides, precision, tapes)
    assert [tape.recorded for tape in tapes[2:]] == [0, 0]
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert counts == plainly


def test_a_long_range_phase_leaves_the_generators_steps_recorded() -> None:
    tapes: list[CpuTape] = []

    with _taped(tapes):
        ctx, network = _context(Precision.FLOAT32_FAST), toy_network()
        kind = load_plugins().method_class("gdfq")
        training = Distillation(
            network, kind(kind.params_type()).synthesize(network, ctx), ctx, Distill.recipes["gdfq"]
        )
        training._size = 4
        # Each moves the grids of the student, at which the generator does not look.
        for _ in range(40):
            training._step(0)
        for _ in range(10):
            training._step(training.plan.student_start)
    assert [(tape.warmed, tape.recorded, tape.launched) for tape in tapes] == [(3, 1, 47), (6, 2, 44)]


FIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "zeroq": ("zeroq", {}),
    "dffg": ("dffg", {}),
    "dffg, pixels": ("dffg", {"variability": "pixel"}),
    "dffg, layers": ("dffg", {"variability": "layers"}),
}


@pytest.mark.parametrize("case", FIXED)
def test_recorded_iterations_make_the_same_images(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, overrides = FIXED[case]
    results, tapes = [], list[CpuTape]()
    for recorded in (True, False):
        with _taped(tapes):
            ctx, counts, network = _context(Precision.FLOAT32_FAST), Counts(), toy_network()
            ctx.budget = budget_named("short")
            if not recorded:
                _never_record(monkeypatch)
            kind = load_plugins().method_class(method)
            with counting(network, lambda counts=counts: counts):  # type: ignore[misc]
                source: Any = kind(kind.params_type(**overrides)).synthesize(network, ctx)
        results.append((source.state_dict(), counts, ctx.steps, ctx.scalars))
    assert tapes[0].recorded == 1
    assert tapes[0].launched > 5
    assert tapes[-1].recorded == 0
    (found, *facts), (wanted, *others) = results
    assert facts == others
    assert [name for name, value in wanted.items() if isinstance(value, Tensor) and not value.equal(found[name])] == []


@pytest.mark.parametrize("recipe", ["gdfq", "intraq", "temporal"])
def test_a_student_of_a_fixed_source_with_and_without_logits(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(24, *toy_card().input_size)
    for logits in (None, torch.randn(24, toy_card().classes)):
        results, tapes = [], list[CpuTape]()
        for recorded in (True, False):
            with _taped(tapes), monkeypatch.context() as patch:
                if not recorded:
                    _never_record(patch)
                training = _student(recipe, images, logits)
                for _ in range(RANGES):
                    training._step(0)
                for _ in range(TRAINED):
                    training._step(training.plan.student_start)
            assert (tapes[-1].launched > 2) == recorded
            results.append(training.student.state_dict())
        assert [name for name in results[0] if not torch.equal(results[0][name], results[1][name])] == []


def test_ranges_that_move_after_a_recording_count(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(24, *toy_card().input_size)
    results, tapes = [], list[CpuTape]()
    for recorded in (True, False):
        with _taped(tapes), monkeypatch.context() as patch:
            if not recorded:
                _never_record(patch)
            training = _student("gdfq", images)
            training._step(0)
            start = training.plan.student_start
            for _ in range(6):
                training._step(start)
            with torch.no_grad(), training.student.observing("minmax"):
                training.student(3 * images)
            for _ in range(2):
                training._step(start)
        results.append(training.student.state_dict())
    assert [name for name in results[0] if not torch.equal(results[0][name], results[1][name])] == []
