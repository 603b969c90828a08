from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import NonFiniteError, budget_named
from dfqbench.synth import (
    BatchNormStatistics,
    FunctionTerm,
    GeneratorParams,
    GeneratorPass,
    GeneratorSource,
    LossTerm,
    base_terms,
    bns_loss,
)
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_network

PARAMS = GeneratorParams(latent=8)


def _source(
    params: GeneratorParams = PARAMS, *terms: LossTerm, teacher: nn.Module | None = None, **context: Any
) -> GeneratorSource:
    ctx = ToyContext(**context)
    return GeneratorSource(teacher or toy_network(), ctx, params, what="toy", losses=[*base_terms(ctx, params), *terms])


def _weights(source: GeneratorSource) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in source.generator.parameters()])


def test_step_equals_plain_torch() -> None:
    teacher = toy_network()
    source, twin = _source(teacher=teacher), _source(teacher=teacher)
    random = torch.Generator().manual_seed(ToyContext().seed("toy", "conditions"))
    optimizer = torch.optim.Adam(twin.generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for _ in range(3):
        batch = source.train_step(6)
        noise = torch.randn((6, 8), generator=random)
        labels = torch.randint(0, 4, (6,), generator=random)
        images = twin.generator(noise, labels)
        torch.testing.assert_close(batch.labels, labels)
        torch.testing.assert_close(batch.images, images)  # of before the update
        with BatchNormStatistics(teacher) as recorder:
            logits = teacher(images)
            loss = nn.functional.cross_entropy(logits, labels) + 0.1 * bns_loss(recorder.last)
        torch.testing.assert_close(batch.teacher_logits, logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, actual), expected in zip(source.generator.named_parameters(), twin.generator.parameters(), strict=True):
        # Biases before BatchNorm have no gradient but rounding noise, which Adam blows up to full steps.
        if not (name.startswith("conv") and name.endswith("bias")):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def test_loss_falls() -> None:
    losses: list[float] = []

    class Noted(FunctionTerm):
        def observe(self, view: GeneratorPass, step: int) -> None:
            losses.append(float(nn.functional.cross_entropy(view.logits, view.labels).detach()))

    source = _source(PARAMS, Noted("noted", 1.0, lambda view: view.images.sum() * 0), budget=budget_named("short"))
    for _ in range(100):
        source.train_step(32)
    assert sum(losses[-10:]) < 0.87 * sum(losses[:10])


def test_sample_does_not_change_training() -> None:
    calm, watched = _source(), _source()
    for _ in range(2):
        calm.train_step(4)
        watched.train_step(4)
        before = _weights(watched).clone(), [b.clone() for b in watched.generator.buffers()]
        first, second = watched.sample(5), watched.sample(3)
        assert torch.equal(before[0], _weights(watched))
        assert all(torch.equal(a, b) for a, b in zip(before[1], watched.generator.buffers(), strict=True))
        assert not first.images.requires_grad
        assert not torch.equal(first.images[:3], second.images)
    assert torch.equal(calm.train_step(4).images, watched.train_step(4).images)


@pytest.mark.parametrize("augment", [0.0, 0.5])
def test_state_dict_restores_training(augment: float) -> None:
    params = dataclasses.replace(PARAMS, augment_share=augment)
    source = _source(params)
    for _ in range(3):
        source.train_step(4)
    source.sample(2)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    b = _source(params, root_seed=9)
    b.load_state_dict(torch.load(buffer, weights_only=True))
    for _ in range(4):
        assert torch.equal(source.train_step(4).images, b.train_step(4).images)
    assert torch.equal(source.sample(4).images, b.sample(4).images)
    assert torch.equal(_weights(source), _weights(b))
    assert source.steps == b.steps == 7


def test_terms_start_at_their_step_and_weight_0_is_left_out() -> None:
    calls: list[str] = []

    def noting(name: str) -> FunctionTerm:
        def loss(view: GeneratorPass) -> Tensor:
            calls.append(name)
            return view.images.sum() * 0

        return FunctionTerm(name, 0.0 if name == "off" else 1.0, loss, start=2 if name == "late" else 0)

    source = _source(PARAMS, noting("on"), noting("late"), noting("off"))
    for _ in range(3):
        source.train_step(2)
    assert calls == ["on", "on", "on", "late"]
    assert {term.name for term in source.terms} == {"ce", "bns", "on", "late"}


def test_every_ingredient_can_be_switched_off() -> None:
    params = dataclasses.replace(PARAMS, ce_weight=0.0, bns_weight=0.0)
    source = _source(params)
    assert source.terms == []
    before = _weights(source).clone()
    assert source.train_step(4).images.shape == (4, 3, 8, 8)
    assert torch.equal(before, _weights(source))


def test_margin_needs_a_student_and_leaves_no_gradient_in_it() -> None:
    params = dataclasses.replace(
        PARAMS, margin_weight=1.0, margin_start=0, margin_mean=9.0, ce_weight=0.0, bns_weight=0.0
    )
    teacher = toy_network()
    student = toy_network(seed=1).requires_grad_(True)
    source = _source(params, teacher=teacher)
    assert source.needs_student
    assert not _source().needs_student
    before = _weights(source).clone()
    source.train_step(4)
    assert torch.equal(before, _weights(source))  # no student: the loss is off
    source.train_step(4, student)
    assert not torch.equal(before, _weights(source))
    assert all(p.grad is None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_learning_rate_decays_with_the_epochs() -> None:
    # Under `smoke`: 10 steps of ranges, then 200 * 396 / 4000 = 20 steps; epoch 100 begins at step 10 + 5.
    source = _source()
    rates = []
    for _ in range(31):
        source.train_step(2)
        rates.append(source._optimizer.param_groups[0]["lr"])
    assert rates[14] == pytest.approx(1e-3)
    assert rates[15] == pytest.approx(1e-4)
    assert rates[30] == pytest.approx(1e-6)


def test_augmented_batches_are_what_the_teacher_saw() -> None:
    teacher = toy_network()
    source = _source(dataclasses.replace(PARAMS, augment_share=1.0), teacher=teacher)
    plain = _source(teacher=teacher)
    batch = source.train_step(4)
    assert not torch.allclose(batch.images, plain.train_step(4).images)
    torch.testing.assert_close(batch.teacher_logits, teacher(batch.images))


def test_first_step_with_a_nan_loss_is_named_within_50_steps() -> None:
    steps = iter(range(1, 51))
    bad = FunctionTerm("bad", 1.0, lambda view: view.images.sum() * (float("nan") if next(steps) in (4, 7) else 1e9))
    source = _source(dataclasses.replace(PARAMS, ce_weight=0.0, bns_weight=0.0, lr=0.0), bad)
    for _ in range(49):
        source.train_step(2)
    with pytest.raises(NonFiniteError, match="toy generator loss is not finite at step 4") as caught:
        source.train_step(2)
    assert caught.value.step == 4


def test_one_class_one_image_one_channel() -> None:
    source = _source(teacher=toy_network(classes=1, channels=1), card=toy_card(classes=1, channels=1))
    batch = source.train_step(1)
    assert batch.images.shape == (1, 1, 8, 8)
    assert torch.isfinite(batch.images).all()


def test_large_inputs_take_the_class_conditional_generator() -> None:
    large = _source(teacher=toy_network(size=68), card=toy_card(size=68))
    forced = _source(dataclasses.replace(PARAMS, architecture="imagenet"))
    assert large.generator.embedding is None
    assert forced.generator.embedding is None
    assert _source().generator.embedding is not None
