from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import Batch, Budget, NonFiniteError, PluginError, UsageError, budget_named
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_loop import Distillation
from dfqbench.quantizers.distill_params import DistillParams
from dfqbench.synth import FixedSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_network
from residual import residual_network

PARAMS = DistillParams(lr=1e-2, batch=16, batch_few_classes=16)
LOSSES = ("adadfq", "hast", "synq", "dafl", "akd")
"""Recipes of methods with a student loss of their own."""
HARD, SOFT = torch.zeros(16, dtype=torch.int64), torch.full((16, 4), 0.25)


def _images(count: int = 32) -> Tensor:
    return torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(5))


def _context(**kwargs: Any) -> ToyContext:
    return ToyContext(bits=parse_scheme("w3a3"), **kwargs)


def _run(params: DistillParams = PARAMS, source: Any = None, **kwargs: Any) -> tuple[Student, ToyContext]:
    ctx = _context(**kwargs)
    return Distill(params).quantize(toy_network(), source or FixedSource(_images()), ctx), ctx


class Recording:
    """A live source that says who asked for what; its batches are numbered."""

    batch_size = 16
    training_steps = 30

    def __init__(self) -> None:
        self.steps = 0
        self.sizes: list[int] = []
        self.students: list[nn.Module | None] = []

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        self.steps += 1
        self.sizes.append(size)
        self.students.append(student)
        images = torch.randn((size, 3, 8, 8), generator=torch.Generator().manual_seed(self.steps))
        return Batch(images, torch.zeros(size, dtype=torch.int64))

    def sample(self, size: int) -> Batch:
        raise AssertionError("a live source is trained, not drawn from")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])


def test_loss_falls() -> None:
    _, ctx = _run(budget=dataclasses.replace(budget_named("smoke"), training=budget_named("short").training / 8))
    losses = [scalars["loss"] for scalars in ctx.scalars if "loss" in scalars]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_step_equals_plain_torch() -> None:
    teacher, images = toy_network(), _images()
    params = dataclasses.replace(PARAMS, range_epochs=1, warmup_epochs=1, epochs=21, mse_weight=0.5, lr_steps=())
    ctx = _context()
    student = Distill(params).quantize(teacher, FixedSource(images), ctx)
    twin = prepare(teacher, ctx.scheme, ctx.card)
    plan = Distillation(teacher, FixedSource(images), [ctx], params).schedule
    batches = itertools.cycle(images.split(16))
    with torch.no_grad(), twin.observing("ema"):
        for _ in range(plan.range_steps):
            twin(next(batches))
    optimizer = torch.optim.SGD(twin.parameters(), 1e-2, momentum=0.9, nesterov=True, weight_decay=1e-4)
    assert plan.total - plan.student_start == 1
    x = next(batches)
    z_p, z_q = teacher(x), twin(x)
    kl = nn.KLDivLoss()  # the released code's default reduction
    with pytest.warns(UserWarning, match="reduction: 'mean'"):
        divergence = kl(nn.functional.log_softmax(z_q / 20, 1), nn.functional.softmax(z_p / 20, 1))
    loss = nn.functional.cross_entropy(z_q, z_p.argmax(1)) + divergence * 20 * 20 + 0.5 * (z_p - z_q).square().mean()
    loss.backward()
    optimizer.step()
    assert ctx.scalars[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, actual), expected in zip(student.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(actual, expected, msg=name)


def test_phases_ranges_then_warmup_then_weights() -> None:
    params = dataclasses.replace(PARAMS, warmup_epochs=84)
    ctx, source, teacher = _context(), Recording(), toy_network()
    run = Distillation(teacher, source, [ctx], params)
    (trained,) = run.students
    assert trained is not None
    student = trained.student
    assert (run.schedule.range_steps, run.schedule.student_start, run.schedule.total) == (10, 14, 30)
    weight = student.network.get_parameter("0.parametrizations.weight.original")
    before = weight.detach().clone()
    history: list[tuple[int, bool]] = []

    def note(step: int, total: int, **scalars: Any) -> None:
        history.append((student.range_steps, not torch.equal(weight, before)))

    ctx.progress = note  # type: ignore[method-assign]
    run.run()
    assert history == [(min(step, 10), step > 14) for step in range(1, 31)]
    assert source.steps == 30
    assert source.sizes == [16] * 30
    assert source.students == [student] * 30


def test_batchnorm_statistics_stay_and_affine_trains() -> None:
    before = toy_network().state_dict()
    state = _run()[0].network.state_dict()
    assert torch.equal(state["1.running_mean"], before["1.running_mean"])
    assert not torch.equal(state["1.weight"], before["1.weight"])
    assert not torch.equal(state["8.bias"], before["8.bias"])


def test_seed_determines_student() -> None:
    params = dataclasses.replace(PARAMS, augment_share=0.5, interpolation=0.5)
    before = torch.random.get_rng_state()
    first, same, second = (_run(params, root_seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("live", [False, True])
def test_resumed_run_equals_uninterrupted_run(live: bool) -> None:
    params = dataclasses.replace(PARAMS, augment_share=0.5, interpolation=0.5, warmup_epochs=84)

    def source() -> Any:
        return Recording() if live else FixedSource(_images())

    whole, ctx = _run(params, source(), keep_states=True)
    assert [state["step"] for state in ctx.saved] == list(range(1, 31))
    for state in (ctx.saved[5], ctx.saved[12], ctx.saved[20]):
        continued, _ = _run(params, source(), restored=state)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, continued.state_dict()[name]), name


def _teacher_batches(source: FixedSource, params: DistillParams = PARAMS) -> list[int]:
    """Sizes of the batches that pass through the teacher."""
    teacher, sizes = toy_network(), []
    teacher.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    Distill(params).quantize(teacher, source, _context())
    return sizes


def test_given_teacher_logits_are_used() -> None:
    given = FixedSource(_images(), teacher_logits=toy_network()(_images()))
    assert _teacher_batches(given) == []
    assert _teacher_batches(FixedSource(_images())) == [16] * 20
    # Mixtures need a pass of their own.
    assert _teacher_batches(given, dataclasses.replace(PARAMS, interpolation=1.0)) == [16] * 20


def test_a_small_fixed_source_is_used_whole() -> None:
    assert set(_teacher_batches(FixedSource(_images(5)))) == {5}


@pytest.mark.parametrize(
    ("card", "size"), [(toy_card(classes=10), 512), (toy_card(classes=11), 200), (toy_card(size=65), 16)]
)
def test_batch_sizes(card: Any, size: int) -> None:
    ctx = _context(card=card)
    teacher = toy_network(classes=card.classes, size=card.input_size[1])
    images = torch.zeros((512, *card.input_size))
    run = Distillation(teacher, FixedSource(images), [ctx], Distill.recipes["clusterq"])
    assert run.size == size
    live = Distillation(teacher, Recording(), [ctx], Distill.recipes["clusterq"])
    assert live.size == Recording.batch_size


def test_generator_keeps_its_batch_and_its_number_of_steps() -> None:
    class Long(Recording):
        batch_size, training_steps = 24, 50

    class Short(Recording):
        training_steps, drawn = 12, 0

        def sample(self, size: int) -> Batch:
            self.drawn += 1
            return Batch(torch.zeros((size, 3, 8, 8)), torch.zeros(size, dtype=torch.int64))

    long, short = Long(), Short()
    sizes: list[int] = []
    teacher = toy_network()
    teacher.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    ctx = _context()
    student = Distill(PARAMS).quantize(teacher, long, ctx)
    assert (long.steps, long.sizes) == (50, [24] * 50)
    assert long.students[:20] == [None] * 20
    assert long.students[20:] == [student] * 30
    assert sizes == [16] * 20  # the recipe's part of a batch, in the steps that train the student
    assert ctx.steps == [(step, 50) for step in range(1, 51)]
    Distill(PARAMS).quantize(toy_network(), short, _context())
    assert (short.steps, short.drawn) == (12, 18)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda _: torch.full((16,), 4), "do not fit 16 images and 4 classes"),
        (lambda _: torch.zeros(16), "do not fit"),
        (lambda _: torch.zeros(16, 3), "do not fit"),
        (lambda step: HARD if step > 3 else SOFT, "soft and hard"),
        (lambda step: SOFT if step > 3 else HARD, "soft and hard"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Callable[[int], Tensor | None], message: str) -> None:
    class Wrong(Recording):
        def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
            return Batch(super().train_step(size, student).images, labels(self.steps))

    with pytest.raises(PluginError, match=message):
        _run(source=Wrong())


def test_recipes_differ_where_they_should() -> None:
    recipes: dict[str, DistillParams] = dict(Distill.recipes)
    assert set(recipes) == {"gdfq", "clusterq", "kmdfq", "temporal", "intraq", "dffg", *LOSSES}
    assert recipes["gdfq"] == DistillParams()
    assert (recipes["gdfq"].reduction, recipes["gdfq"].alpha) == ("mean", 1.0)
    assert (recipes["clusterq"].reduction, recipes["clusterq"].warmup_epochs) == ("batchmean", 50)
    assert (recipes["kmdfq"].alpha, recipes["kmdfq"].mse_weight, recipes["kmdfq"].interpolation) == (0.0, 1.0, 0.0)
    assert recipes["temporal"] == dataclasses.replace(recipes["kmdfq"], interpolation=0.5)
    assert (recipes["intraq"].alpha, recipes["intraq"].epochs, recipes["intraq"].lr_steps) == (20.0, 151, (20, 40, 60))
    # Each image of each step is cropped to at least half of its area and flipped (IntraQ's data set).
    assert (recipes["intraq"].augment_share, recipes["intraq"].augment_scale) == (1.0, 0.5)
    assert {name for name, recipe in recipes.items() if recipe.augment_share} == {"intraq"}
    dffg, intraq = recipes["dffg"], recipes["intraq"]
    assert (dffg.alpha, dffg.temperature, dffg.reduction) == (intraq.alpha, intraq.temperature, intraq.reduction)
    assert (dffg.lr, dffg.lr_large, dffg.lr_steps, dffg.epochs) == (1e-5, 1e-6, (100,), 150)
    assert (dffg.batch, dffg.batch_few_classes, dffg.batch_large) == (64, 64, 4)
    assert Distill.default_recipe == "dffg"


def test_recipes_with_losses_of_their_own() -> None:
    recipes: dict[str, DistillParams] = dict(Distill.recipes)
    losses = ("alpha", "ce_weight", "mse_weight", "gap_entropy_weight", "feature_weight", "cam_weight", "fgsm_weight")
    assert {name: [getattr(recipes[name], loss) for loss in losses] for name in LOSSES} == {
        "adadfq": [0, 0, 0, 1, 0, 0, 0],
        "hast": [20, 0, 0, 0, 2000, 0, 1],
        "synq": [20, 0.5, 0, 0, 4000, 50, 1],
        "dafl": [1, 0, 0, 0, 0, 0, 0],
        "akd": [1, 0, 0, 0, 0, 0, 0],
    }
    schedules = ("epochs", "iterations", "lr", "lr_large", "lr_steps", "lr_steps_large", "batch", "batch_large")
    assert {name: [getattr(recipes[name], value) for value in schedules] for name in LOSSES} == {
        "adadfq": [400, 200, 1e-4, 1e-5, (100, 200, 300), (350, 400), 16, 16],
        "hast": [151, 200, 1e-5, 1e-6, (20, 40, 60), (100, 200, 350), 64, 16],
        "synq": [101, 200, 1e-5, 1e-6, (20, 40, 60), (100, 200, 350), 256, 16],
        "dafl": [2000, 120, 1e-4, 1e-6, (800, 1600), (800, 1600), 1024, 16],
        "akd": [250, 400, 1e-4, 1e-6, (800, 1600), (800, 1600), 256, 16],
    }
    assert [(recipes[n].temperature, recipes[n].reduction) for n in ("dafl", "akd")] == [(1.0, "batchmean")] * 2
    assert (recipes["akd"].lr_schedule, recipes["akd"].student_steps, recipes["akd"].warmup_epochs) == (
        "cosine",
        10,
        50,
    )
    assert (recipes["synq"].ce_threshold, recipes["synq"].ce_threshold_few_classes) == (0.5, 0.7)
    assert (recipes["synq"].low_pass, recipes["synq"].fgsm_epsilon) == (0.36, 0.01)


@pytest.mark.parametrize("recipe", Distill.recipes)
def test_every_recipe_runs(recipe: str) -> None:
    ctx = _context()
    Distill(Distill.recipes[recipe]).quantize(residual_network(), FixedSource(_images(8)), ctx)
    assert ctx.steps[-1][0] == ctx.steps[-1][1] == len(ctx.steps)
    assert ctx.snapshots[-1] == ctx.steps[-1][1]


def test_cosine_falls_to_zero_over_the_students_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    params = dataclasses.replace(PARAMS, lr_schedule="cosine", warmup_epochs=84)
    rates: list[float] = []

    def update(_self: Any, _images: Any, _labels: Any, _logits: Any, lr: float, **_: Any) -> tuple[Tensor]:
        rates.append(lr)
        return (torch.zeros(()),)

    monkeypatch.setattr(
        "dfqbench.quantizers.distill_loop.TrainedStudent._update",
        update,
    )
    _run(params)
    assert rates == pytest.approx([1e-2 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)])


@pytest.mark.parametrize("live", [False, True])
def test_further_updates_of_a_step_draw_images_anew(live: bool) -> None:
    class Drawing(Recording):
        drawn = 0

        def sample(self, size: int) -> Batch:
            self.drawn += 1
            return Batch(100.0 + torch.zeros((size, 3, 8, 8)))

    params = dataclasses.replace(PARAMS, student_steps=3, lr=1e-9)
    source: Any = Drawing() if live else FixedSource(torch.arange(512.0).view(512, 1, 1, 1).expand(512, 3, 8, 8))
    ctx, seen = _context(), list[float]()
    teacher = toy_network()
    teacher.register_forward_pre_hook(lambda _module, args: seen.append(float(args[0][0, 0, 0, 0])))
    Distill(params).quantize(teacher, source, ctx)
    assert ctx.steps[-1] == (30, 30)
    assert len(seen) == 20 * 3
    if live:
        assert (source.steps, source.drawn) == (30, 40)
        assert [value == 100 for value in seen] == [False, True, True] * 20
    else:
        assert seen == [float(16 * number % 512) for number in range(10, 70)]


@pytest.mark.parametrize("live", [False, True])
def test_students_on_shared_batches_are_what_each_is_alone(live: bool) -> None:
    params = dataclasses.replace(Distill.recipes["synq"], batch_few_classes=8, student_steps=2, lr=1e-3)

    class Drawing(Recording):
        def sample(self, size: int) -> Batch:
            return Batch(_images(size), torch.zeros(size, dtype=torch.int64))

    def source() -> Any:
        return Drawing() if live else FixedSource(_images())

    def contexts() -> list[ToyContext]:
        return [ToyContext(bits=parse_scheme(scheme)) for scheme in ("w4a4", "w3a3@deploy")]

    together = Distill(params).quantize_many(residual_network(), source(), contexts())
    for student, ctx in zip(together, contexts(), strict=True):
        alone = Distill(params).quantize(residual_network(), source(), ctx)
        assert student is not None
        assert all(torch.equal(value, alone.state_dict()[name]) for name, value in student.state_dict().items())


def test_resumed_training_with_all_losses_equals_the_uninterrupted_one() -> None:
    params = dataclasses.replace(Distill.recipes["synq"], batch_few_classes=8, student_steps=2, lr_schedule="cosine")
    ctx = _context(keep_states=True)
    whole = Distill(params).quantize(residual_network(), FixedSource(_images()), ctx)
    continued = Distill(params).quantize(residual_network(), FixedSource(_images()), _context(restored=ctx.saved[12]))
    assert all(torch.equal(value, continued.state_dict()[name]) for name, value in whole.state_dict().items())


def test_official_ema_needs_200_steps() -> None:
    params = dataclasses.replace(PARAMS, range="ema-official")
    with pytest.raises(UsageError, match="at least 200 steps"):
        _run(params)
    tiny = Budget("tiny", budget_named("smoke").training, budget_named("smoke").images, 200)
    student, _ = _run(params, budget=tiny)
    assert student.range_steps == 200


def test_nan_loss_raises() -> None:
    with pytest.raises(NonFiniteError):
        _run(dataclasses.replace(PARAMS, lr=1e30, ce_weight=1e30))


def test_params_without_loss_are_refused() -> None:
    with pytest.raises(UsageError, match="no loss left"):
        DistillParams(alpha=0, ce_weight=0)
    with pytest.raises(UsageError, match="no loss for adversarial images"):
        DistillParams(alpha=0, ce_weight=0, cam_weight=1, fgsm_weight=1)


def test_soft_labels_and_one_class() -> None:
    soft = torch.softmax(torch.randn((32, 4), generator=torch.Generator().manual_seed(0)), 1)
    _run(PARAMS, FixedSource(_images(), labels=soft))
    _run(dataclasses.replace(PARAMS, interpolation=1.0), FixedSource(_images(), labels=soft))
    ctx = _context(card=toy_card(classes=1))
    student = Distill(PARAMS).quantize(toy_network(classes=1), FixedSource(_images()), ctx)
    assert student(_images(2)).shape == (2, 1)


def test_batch_of_one() -> None:
    student, _ = _run(dataclasses.replace(PARAMS, interpolation=0.5, augment_share=0.5), FixedSource(_images(1)))
    assert torch.isfinite(student(_images(2))).all()
