"""Every method in the faster precisions against the reference, from the same weights and random streams."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import Budget, Precision, budget_named, is_live
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme
from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_loop import Distillation
from dfqbench.quantizers.distill_params import DistillParams
from dfqbench.run.evaluate.accuracy import percent, predict, standard_error
from dfqbench.run.store.environment import resolve_precision
from dfqbench.synth import GeneratorPass, LossTerm
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.evaluation import load_evaluation
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network

PARAMS = DistillParams(batch=32, batch_few_classes=32, warmup_epochs=0, range_epochs=1, lr=1e-3)
TOLERANCE = {Precision.FLOAT32_FAST: 2e-4, Precision.MIXED_BFLOAT16: 0.03}
"""Relative: rounding of float32, and of bfloat16 (eight significant bits) through a network."""


@cache
def losses(method: str, precision: Precision) -> list[tuple[str, float]]:
    """Losses of the generator's or the images' first steps and of the student's first step, by name."""
    teacher: nn.Module = toy_network()
    method_cls = load_plugins().method_class(method)
    # Ranges of two steps: the student's own follows.
    budget = dataclasses.replace(budget_named("smoke"), range_floor=2)
    ctx = ToyContext(bits=parse_scheme("w4a4"), precision=precision, budget=budget)
    source = method_cls(method_cls.params_type()).synthesize(teacher, ctx)
    values = [("images", scalars["loss"]) for scalars in ctx.scalars[:3]]

    def record(term: LossTerm) -> None:
        plain = term.loss

        def loss(view: GeneratorPass) -> Tensor:
            result = plain(view)
            values.append((term.name, float(result.detach())))
            return result

        term.loss = loss  # type: ignore[method-assign]
        term.start = 0

    if is_live(source):
        for term in source.terms:  # type: ignore[attr-defined]
            record(term)
    training = Distillation(teacher, source, [ctx], PARAMS)
    for step in range(training.schedule.student_start + 1):
        training.step(step)
    return [*values, ("student", ctx.scalars[-1]["loss"])]


@pytest.mark.parametrize("precision", [Precision.FLOAT32_FAST, Precision.MIXED_BFLOAT16])
@pytest.mark.parametrize("method", ["zeroq", "dffg", "gdfq", "clusterq", "acq", "temporal"])
def test_first_losses_agree_with_the_reference(method: str, precision: Precision) -> None:
    reference, values = losses(method, Precision.FLOAT32), losses(method, precision)
    assert [name for name, _ in values] == [name for name, _ in reference]
    # Only the first step starts from equal weights.
    count = len({name for name, _ in reference})
    for (name, value), (_, expected) in zip(values[:count], reference[:count], strict=True):
        assert value == pytest.approx(expected, rel=TOLERANCE[precision], abs=1e-3), name
    assert torch.isfinite(torch.tensor([value for _, value in values])).all()


@pytest.mark.parametrize("method", ["zeroq", "gdfq"])
def test_precisions_differ(method: str) -> None:
    assert losses(method, Precision.MIXED_BFLOAT16) != losses(method, Precision.FLOAT32)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_accuracy_on_digits_agrees_within_noise() -> None:
    """The precision that this machine's processor takes by itself; bfloat16 without instructions takes many minutes."""
    fast = resolve_precision("auto", "cpu")
    spec = Catalogue.discover([]).models("digits")[0]
    assert isinstance(spec, ModelSpec)
    dataset = Catalogue.discover([]).target("digits").dataset
    assert dataset is not None
    teacher, cpu = build_teacher(spec, "cpu", {}), torch.device("cpu")
    data = load_evaluation(dataset, spec.card)
    budget = Budget("toy", Fraction(1, 500), Fraction(1), 50)
    top1 = {}
    for precision in (Precision.FLOAT32, fast):
        gdfq = load_plugins().method_class("gdfq")
        ctx = ToyContext(card=spec.card, bits=parse_scheme("w4a4"), precision=precision, budget=budget)
        source = gdfq(gdfq.params_type()).synthesize(teacher, ctx)
        student = Distill(Distill.recipes["gdfq"]).quantize(teacher, source, ctx)
        top1[precision] = percent(predict(student, data, cpu).correct)
    # Well above chance, and no further apart than two binomial errors of either.
    assert min(top1.values()) > 80
    error = standard_error(top1[Precision.FLOAT32], data.n)
    assert abs(top1[Precision.FLOAT32] - top1[fast]) <= 2 * 2**0.5 * error
