from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import NonFiniteError, Quantizer, Unavailable, budget_named
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.quant.coverage import measure_coverage
from dfqbench.quant.fake_quantize import fake_quantize_weight
from dfqbench.quant.scheme import Granularity
from dfqbench.quantizers import reconstruct_unit
from dfqbench.quantizers.calibrate import Calibrate, CalibrateParams
from dfqbench.quantizers.reconstruct import Reconstruct
from dfqbench.quantizers.reconstruct_loop import ReconstructedStudent, Reconstruction
from dfqbench.quantizers.reconstruct_params import RECIPES, ReconstructParams
from dfqbench.quantizers.reconstruct_unit import squared_error
from dfqbench.run.evaluate.accuracy import percent, predict
from dfqbench.synth import FixedSource
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.evaluation import load_evaluation
from dfqbench.testing.conformance.resume import KeepingContext
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import ToySource, toy_images, toy_network

SCHEMES = ("w3a3@gdfq", "w3a3@deploy", "w4a4@brecq", "w4a4@brecq-folded", "w4a4@tensor", "w4a32@gdfq")
BUDGET = dataclasses.replace(budget_named("smoke"), reconstruction=Fraction(1))
PARAMS = dataclasses.replace(RECIPES["genie"], steps=60, batch=16)


def _context(scheme: str = "w3a3@gdfq", **kwargs: Any) -> ToyContext:
    return ToyContext(bits=parse_scheme(scheme), budget=BUDGET, **kwargs)


def _reconstruction(
    params: ReconstructParams = PARAMS, scheme: str = "w3a3@gdfq", teacher: nn.Module | None = None
) -> Reconstruction:
    images = toy_images(64)
    return Reconstruction(teacher or toy_network(), FixedSource(images), [_context(scheme)], params, len(images))


def _only(run: Reconstruction) -> ReconstructedStudent:
    (student,) = run.students
    assert student is not None
    return student


def _run(run: Reconstruction) -> Student:
    (student,) = run.run()
    assert student is not None
    return student


def _recipe(name: str, **changes: Any) -> ReconstructParams:
    later = 20 if RECIPES[name].activation_steps else 0
    return dataclasses.replace(RECIPES[name], **({"steps": 60, "batch": 16, "activation_steps": later} | changes))


def _weight(student: Student, name: str) -> Any:
    return student.network.get_submodule(name)


@pytest.mark.parametrize(
    ("name", "steps"), [("paper", 20_000), ("medium", 2_000), ("short", 500), ("tiny", 100), ("smoke", 20)]
)
def test_budget_scales_steps_of_a_unit(name: str, steps: int) -> None:
    assert budget_named(name).reconstruction_steps(RECIPES["genie"].steps) == steps


@pytest.mark.parametrize(("name", "rate"), [("paper", 1e-3), ("medium", 1e-2), ("smoke", 1.0)])
def test_rate_of_the_rounding_makes_up_for_steps_that_the_budget_takes(name: str, rate: float) -> None:
    ctx = _context()
    ctx.budget = budget_named(name)
    run = Reconstruction(toy_network(), FixedSource(toy_images(64)), [ctx], RECIPES["genie"], 64)
    assert _only(run).stages[0].lr_rounding == pytest.approx(rate)


def test_recipes_are_the_published_ones() -> None:
    rates = {name: (p.lr_rounding, p.lr_weight_scale, p.lr_activation_scale) for name, p in RECIPES.items()}
    assert rates == {"genie": (1e-3, 1e-4, 4e-5), "qdrop": (1e-3, 1e-4, 4e-5), "brecq": (1e-3, 1e-4, 4e-4)}
    assert [p.learns_weight_scale for p in RECIPES.values()] == [True, False, False]
    assert [p.rounding_weight for p in RECIPES.values()] == [1.0, 0.01, 0.01]
    assert [p.drop_input for p in RECIPES.values()] == [0.5, 0.5, 0.0]
    assert [p.activation_steps for p in RECIPES.values()] == [0, 0, 5_000]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_steps_weights_are_rounded_to_nearest_at_the_scales_of_the_grid(scheme: str) -> None:
    teacher = toy_network()
    student = _run(_reconstruction(dataclasses.replace(PARAMS, steps=0), scheme, teacher))
    assert measure_coverage(student, toy_images(4)).violations == []
    original = prepare(teacher, student.scheme, _context().card)  # with BatchNorm folded where the protocol folds it
    for operand in (each for each in student.operands if each.role == "weight"):
        layer = _weight(student, operand.name)
        weight = _weight(original, operand.name).parametrizations.weight.original.detach()
        torch.testing.assert_close(layer.parametrizations.weight.original, weight)
        per_channel = student.scheme.protocol.weights.granularity is Granularity.CHANNEL
        rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        for actual, row in zip(layer.weight.detach().reshape(rows.shape), rows, strict=True):
            # Of all levels that occur, an element takes the nearest.
            nearest = (row[:, None] - actual.unique()).abs().amin(1)
            torch.testing.assert_close((actual - row).abs(), nearest, rtol=0, atol=1e-6)
            plain = fake_quantize_weight(row[None], layer.parametrizations.weight[0].operand, operand.bits)[0][0]
            assert (actual - row).abs().pow(2.4).mean() <= (plain - row).abs().pow(2.4).mean() * (1 + 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_levels_are_valid_and_saved_students_give_the_same_answers(scheme: str, recipe: str) -> None:
    student = _run(_reconstruction(_recipe(recipe, steps=20), scheme))
    images = toy_images(8, seed=3)
    coverage = measure_coverage(student, images)
    assert coverage.violations == []
    for operand in (each for each in student.operands if each.role == "weight"):
        rows = _weight(student, operand.name).weight.detach().flatten(1)
        assert max(len(row.unique()) for row in rows) <= 2**operand.bits
    loaded = prepare(toy_network(), student.scheme, _context().card)
    loaded.load_state_dict(student.finished_state())
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), student(images), rtol=0, atol=0)


def test_every_rounding_is_decided_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    distances: list[float] = []
    finish = reconstruct_unit.UnitTraining.finish

    def check(self: reconstruct_unit.UnitTraining) -> None:
        distances.extend(float(torch.minimum(each.h(), 1 - each.h()).detach().max()) for each in self.rounding)
        finish(self)

    monkeypatch.setattr(reconstruct_unit.UnitTraining, "finish", check)
    ctx = _context()
    ctx.budget = budget_named("tiny")
    Reconstruction(toy_network(), FixedSource(toy_images(64)), [ctx], RECIPES["genie"], 64).run()
    assert len(distances) == 3
    assert max(distances) <= 1e-2


def test_units_reconstruct_better_than_rounding_to_nearest() -> None:
    run = _reconstruction(dataclasses.replace(PARAMS, steps=300))
    run.run()
    errors = _only(run).errors
    assert len(errors) == len(_only(run).units) == 3
    assert sum(after <= before for before, after in errors.values()) >= 0.95 * len(errors)


def test_same_seed_same_bits_and_another_seed_other_bits() -> None:
    def state(seed: int) -> dict[str, Tensor]:
        source = FixedSource(toy_images(64))
        return Reconstruct(PARAMS).quantize(toy_network(), source, _context(root_seed=seed)).state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("recipe", ["genie", "brecq"])
@pytest.mark.parametrize("source", [ToySource, lambda: FixedSource(toy_images(64))], ids=["live", "fixed"])
def test_resumed_at_every_unit_equals_uninterrupted(recipe: str, source: Any) -> None:
    quantizer = Reconstruct(_recipe(recipe, steps=10, images=64))
    ctx = KeepingContext(_context())
    expected = quantizer.quantize(toy_network(), source(), ctx)
    units = [index for index, state in enumerate(ctx.saved) if "round" in state]
    assert len(units) == (6 if recipe == "brecq" else 3)
    for index in ([0] if units[0] else []) + units:  # the first is inside the training of a live source
        resumed = quantizer.quantize(toy_network(), source(), ctx.resumed(index))
        for name, value in expected.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (index, name)
        assert resumed.images_seen == expected.images_seen


def test_live_source_is_trained_once_and_drawn_from_once() -> None:
    source = ToySource()
    Reconstruct(_recipe("genie", steps=1, images=64)).quantize(toy_network(), source, _context())
    assert (source.steps, source.draws) == (source.training_steps, source.training_steps + 1)


MANY = ("w4a4@gdfq", "w3a5@gdfq", "w4a32@gdfq", "w3a3@deploy")
"""Two students with the same units, one whose units are the same up to quantized activations, and another protocol."""


def _equal(student: Student | None, other: Student | None) -> bool:
    assert student is not None
    assert other is not None
    state, expected = student.state_dict(), other.state_dict()
    return student.images_seen == other.images_seen and all(torch.equal(v, state[k]) for k, v in expected.items())


@pytest.mark.parametrize(
    ("params", "source"),
    [
        (_recipe("genie", steps=4), ToySource),
        (_recipe("brecq", steps=4, fisher=True, cache_gib=0.0), lambda: FixedSource(toy_images(64))),
    ],
    ids=["genie", "brecq"],
)
def test_students_made_together_are_those_made_alone(params: ReconstructParams, source: Any) -> None:
    quantizer = Reconstruct(dataclasses.replace(params, images=64))
    together = quantizer.quantize_many(toy_network(), source(), [_context(scheme) for scheme in MANY])
    for scheme, student in zip(MANY, together, strict=True):
        assert _equal(student, quantizer.quantize(toy_network(), source(), _context(scheme)))


def test_students_under_one_protocol_share_the_outputs_of_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []
    outputs = ReconstructedStudent.teacher_outputs

    def count(self: ReconstructedStudent, index: int) -> Tensor:
        rounds.append(index)
        return outputs(self, index)

    monkeypatch.setattr(ReconstructedStudent, "teacher_outputs", count)
    contexts = [_context(scheme) for scheme in ("w2a2@gdfq", "w3a3@gdfq", "w4a4@gdfq")]
    Reconstruct(_recipe("genie", steps=1)).quantize_many(toy_network(), FixedSource(toy_images(64)), contexts)
    assert rounds == [0, 1, 2]
    rounds.clear()
    contexts.append(_context("w4a4@deploy"))
    Reconstruct(_recipe("genie", steps=1)).quantize_many(toy_network(), FixedSource(toy_images(64)), contexts)
    assert rounds == [0, 0, 1, 1, 2, 2]


class _Failing(ToyContext):
    """Fail in the middle of the second unit; as in the host, the student then leaves."""

    failed = False

    def progress(self, step: int, total: int, **scalars: Any) -> None:
        super().progress(step, total, **scalars)
        if step == 15:
            raise NonFiniteError("loss", step)

    def for_student(self, act: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return None if self.failed else act(*args, **kwargs)
        except NonFiniteError:
            self.failed = True
            return None


def test_a_student_that_fails_leaves_the_others_as_they_are_alone() -> None:
    quantizer, source = Reconstruct(_recipe("genie", steps=10)), FixedSource(toy_images(64))
    failing = _Failing(bits=parse_scheme("w3a3@gdfq"), budget=BUDGET)
    first, second = quantizer.quantize_many(toy_network(), source, [failing, _context("w4a4@gdfq")])
    assert first is None
    assert _equal(second, quantizer.quantize(toy_network(), FixedSource(toy_images(64)), _context("w4a4@gdfq")))


def test_students_made_together_resume_at_every_unit() -> None:
    quantizer = Reconstruct(_recipe("brecq", steps=5, images=64))
    contexts = [KeepingContext(_context(scheme)) for scheme in ("w4a32@gdfq", "w3a3@gdfq")]
    expected = quantizer.quantize_many(toy_network(), ToySource(), contexts)
    count = len(contexts[0].saved)
    # The student without quantized activations needs half as many rounds, and waits for the other.
    assert count == len(contexts[1].saved) == ToySource.training_steps + 6
    for index in (ToySource.training_steps - 1, count - 5, count - 2):  # before the first, the third and the last unit
        resumed = quantizer.quantize_many(toy_network(), ToySource(), [ctx.resumed(index) for ctx in contexts])
        assert all(map(_equal, resumed, expected)), index


def _weights(run: Reconstruction, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of a unit, and the outputs of the student and the teacher, with nearest rounding."""
    student = _only(run)
    for index in range(position):
        student.run_round(index, {student.teacher_part(index): student.teacher_outputs(index)})
    unit, target = student.units[position], student.teacher_outputs(position)
    student._start(unit.student, student.stages[0], student._x_q)
    with torch.no_grad():
        return student._fisher_weights(position, target), unit.student(student._x_q), target


def test_fisher_weights_are_squared_gradients_of_kl() -> None:
    run = _reconstruction(dataclasses.replace(PARAMS, steps=0))
    weights, logits, target = _weights(run, 2)
    expected = (logits.softmax(1) - target.softmax(1)).square()
    torch.testing.assert_close(weights, expected / expected.mean(), rtol=1e-3, atol=1e-5)
    # Before the last unit: by differences of the loss.
    run = _reconstruction(dataclasses.replace(PARAMS, steps=0))
    weights, output, target = _weights(run, 1)
    last = _only(run).units[2].teacher.double()

    def kl(x: Tensor) -> Tensor:
        p, q = (last(value.double()).log_softmax(1) for value in (target[:1], x))
        return (p.exp() * (p - q)).sum()

    with torch.no_grad():
        at = [(0, channel, row, 1) for channel in (0, 3, 7) for row in (0, 2)]
        shifts = torch.zeros(len(at), *output.shape[1:], dtype=torch.double)
        for index, place in enumerate(at):
            shifts[(index, *place[1:])] = 1e-4
        slopes = torch.stack([(kl(output[:1] + each) - kl(output[:1] - each)) / 2e-4 for each in shifts])
    squares, actual = slopes.square().float(), torch.stack([weights[place] for place in at])
    torch.testing.assert_close(actual / actual.max(), squares / squares.max(), rtol=1e-3, atol=1e-5)
    assert weights.mean() == pytest.approx(1, rel=1e-5)


def test_fisher_weights_multiply_squared_differences() -> None:
    output, target, weights = torch.randn(3, 2, 5, 4, 4).unbind()
    expected = (weights * (output - target) ** 2).sum() / (2 * 16)
    torch.testing.assert_close(squared_error(output, target, weights), expected)
    torch.testing.assert_close(squared_error(output, target), squared_error(output, target, torch.ones_like(output)))


def test_fisher_weights_are_an_option() -> None:
    assert not any(params.fisher for params in RECIPES.values())
    plain, weighted = (_run(_reconstruction(_recipe("brecq", fisher=fisher))) for fisher in (False, True))
    assert measure_coverage(weighted, toy_images(4)).violations == []
    assert not _equal(weighted, plain)


def test_caches_above_the_limit_are_bfloat16_in_host_memory() -> None:
    run = _reconstruction(dataclasses.replace(PARAMS, steps=5, cache_gib=0.0))
    outputs = _only(run).teacher_outputs(0)
    assert (outputs.dtype, outputs.device.type) == (torch.bfloat16, "cpu")
    assert measure_coverage(_run(run), toy_images(4)).violations == []


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(Unavailable, match="reconstruct has 8 images for batches of 16; make more images or set"):
        Reconstruct(PARAMS).quantize(toy_network(), FixedSource(toy_images(8)), _context())


def test_network_without_blocks_is_reconstructed_layer_by_layer() -> None:
    convs = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()
    network = nn.Sequential(*convs, nn.Flatten(), nn.Linear(64, 4))
    run = _reconstruction(_recipe("genie", steps=2), "w4a4@deploy", network.eval())
    assert [unit.name for unit in _only(run).units] == ["0", "2", "5"]
    assert measure_coverage(_run(run), toy_images(4)).violations == []


def test_network_without_layers_is_refused() -> None:
    with pytest.raises(Unavailable, match="no convolution or linear layer to reconstruct; use another quantizer"):
        _reconstruction(teacher=nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval())


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(self.act(self.conv(x)))).mean((2, 3)))


def test_layer_used_twice_is_refused() -> None:
    with pytest.raises(Unavailable, match="a layer that is used twice: conv; use another quantizer"):
        _reconstruction(teacher=_Twice().eval())


def test_weights_shared_by_two_layers_are_refused() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4)
    )
    network[2].weight = network[0].weight
    with pytest.raises(Unavailable, match="used twice: 0, 2"):
        _reconstruction(teacher=network.eval())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w3a3@gdfq", "w3a3@brecq"])
def test_digits_are_recognised_better_than_with_the_ranges_of_the_same_images(scheme: str) -> None:
    catalogue = Catalogue.discover([])
    spec, dataset = catalogue.models("digits")[0], catalogue.target("digits").dataset
    assert isinstance(spec, ModelSpec)
    assert dataset is not None
    teacher, data = build_teacher(spec, "cpu", {}), load_evaluation(dataset, spec.card)
    images = torch.randn((256, *spec.card.input_size), generator=torch.Generator().manual_seed(0))

    def top1(quantizer: Quantizer) -> float:
        ctx = ToyContext(card=spec.card, bits=parse_scheme(scheme), budget=budget_named("tiny"))
        student = quantizer.quantize(teacher, FixedSource(images), ctx)
        return percent(predict(student, data, torch.device("cpu")).correct)

    assert top1(Reconstruct(RECIPES["genie"])) > top1(Calibrate(CalibrateParams(images=256)))
