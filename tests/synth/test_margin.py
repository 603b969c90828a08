from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from dfqbench.synth import (
    Condition,
    GeneratorParams,
    GeneratorPass,
    MarginTerm,
    erf_margin_loss,
    expected_margin_loss,
    logit_discrepancy,
    probability_discrepancy,
    sampled_margin_loss,
)

MEAN, STD = 0.5, 0.15
Form = Literal["sampled", "expected", "erf"]


def test_expected_loss_is_the_integral() -> None:
    # max(0, m - D) integrated numerically against the normal density.
    m = torch.linspace(MEAN - 8 * STD, MEAN + 8 * STD, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((m - MEAN) / STD) ** 2) / (STD * math.sqrt(2 * math.pi))
    for d in (0.0, 0.3, 0.5, 0.9, 2.0):
        expected = float(torch.trapezoid((m - d).clamp_min(0) * density, m))
        actual = float(expected_margin_loss(torch.tensor([d], dtype=torch.float64), MEAN, STD))
        assert actual == pytest.approx(expected, abs=1e-9)


def test_sampled_loss_has_that_expectation() -> None:
    d = torch.full((200_000,), 0.45, dtype=torch.float64, requires_grad=True)
    loss = sampled_margin_loss(d, MEAN, STD, torch.Generator().manual_seed(0))
    assert float(loss.detach()) == pytest.approx(float(expected_margin_loss(d.detach(), MEAN, STD)), rel=0.01)
    (gradient,) = torch.autograd.grad(loss, d)
    assert float(gradient.sum()) == pytest.approx(-0.5 * (1 + math.erf(0.05 / STD / math.sqrt(2))), rel=0.01)


def test_gradients_by_finite_differences() -> None:
    d = torch.tensor([0.0, 0.2, 0.6, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: expected_margin_loss(x, MEAN, STD), (d,))
    teacher = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    student = torch.tensor([[0.7, -2.5, 0.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: logit_discrepancy(teacher.detach(), z), (student,))
    assert torch.autograd.gradcheck(probability_discrepancy, (teacher, student))


def test_discrepancies_are_the_formulas() -> None:
    teacher, student = torch.tensor([[1.0, -3.0], [0.0, 0.0]]), torch.tensor([[2.0, -3.0], [0.0, 0.0]])
    assert logit_discrepancy(teacher, student).tolist() == pytest.approx([0.5 / 2.0, 0.0])
    p = [math.exp(1) / (math.exp(1) + math.exp(-3)), math.exp(2) / (math.exp(2) + math.exp(-3))]
    assert float(probability_discrepancy(teacher, student)[0]) == pytest.approx(2 * abs(p[0] - p[1]), rel=1e-4)


def test_the_denominator_carries_no_gradient() -> None:
    teacher = torch.tensor([[1.0, -3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(logit_discrepancy(teacher, torch.tensor([[2.0, -3.5]])).sum(), teacher)
    assert gradient.tolist() == [pytest.approx([-0.5 / 2, 0.5 / 2])]


def test_where_logits_coincide_the_subgradient_is_zero() -> None:
    # methods.md 0.5: the derivative in D is what must be large at D = 0; |z_P - z_Q| itself has none there.
    logits = torch.tensor([[1.0, 2.0]])
    student = logits.clone().requires_grad_()
    loss = expected_margin_loss(logit_discrepancy(logits, student), MEAN, STD)
    assert torch.equal(torch.autograd.grad(loss, student)[0], torch.zeros(1, 2))


@pytest.mark.parametrize("std", [0.15, 2.0])
def test_derivative_of_erf_is_a_gaussian(std: float) -> None:
    d = torch.tensor([0.0, 0.05, 0.3, 1.0, 9.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(erf_margin_loss(d, std) * len(d), d)
    expected = [-math.exp(-(float(x) ** 2) / (2 * std**2)) for x in d.detach()]
    assert gradient.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(gradient[0]) == pytest.approx(-1.0)
    # The loss itself: minus the integral of the Gaussian from 0 to D.
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    integral = float(torch.trapezoid(torch.exp(-t.square() / (2 * std**2)), t))
    assert float(erf_margin_loss(d.detach()[3:4], std)) == pytest.approx(-integral, abs=1e-9)


RUNNING = GeneratorParams(margin_weight=1.0, margin_scale="running")


def _view(discrepancies: Tensor, random: torch.Generator) -> GeneratorPass:
    """Return a pass with these discrepancies of teacher and student; their gradient is that of -images."""
    images = (1 - discrepancies[:, None]).requires_grad_()
    teacher, condition = nn.Identity(), Condition(images, torch.zeros(len(images), dtype=torch.int64))
    return GeneratorPass(
        images=images,
        condition=condition,
        logits=torch.ones_like(images),
        bn_recorder=None,
        map_recorder=None,
        run_generator=lambda _: images,
        teacher=teacher,
        run_teacher=teacher,
        student=nn.Identity(),
        random=random,
    )


def _derivatives(term: MarginTerm, scale: float) -> Tensor:
    """Return N dL/dD (N,) after 300 steps with discrepancies scale * N(2, 0.3^2)."""
    random = torch.Generator().manual_seed(0)
    for step in range(300):
        view = _view(scale * (2 + 0.3 * torch.randn(1000, generator=random)), random)
        loss = term.loss(view)
        (gradient,) = torch.autograd.grad(loss, view.images)
        assert torch.isfinite(gradient).all()
        term.observe(view, step)
    return -len(gradient) * gradient[:, 0]


def _term(params: GeneratorParams) -> MarginTerm:
    return MarginTerm(params, 0, torch.device("cpu"))


def test_three_quarters_of_the_images_are_below_their_running_margin() -> None:
    # P(D < m) = Phi(s / sqrt(2 s^2)) = 0.760.
    shares = [float((_derivatives(_term(RUNNING), scale) < 0).float().mean()) for scale in (1.0, 10.0, 0.01)]
    assert shares == pytest.approx([0.76] * 3, abs=0.04)
    assert shares == pytest.approx([shares[0]] * 3, abs=0.003)
    fixed = _term(dataclasses.replace(RUNNING, margin_scale="fixed"))
    assert float((_derivatives(fixed, 1.0) < 0).float().mean()) == 0.0


@pytest.mark.parametrize("form", ["expected", "erf"])
def test_running_scale_makes_derivatives_independent_of_the_scale(form: Form) -> None:
    params = dataclasses.replace(RUNNING, margin_form=form)
    once, tenfold = (_derivatives(_term(params), scale) for scale in (1.0, 10.0))
    torch.testing.assert_close(once, tenfold, atol=1e-4, rtol=1e-3)
    expected = {"expected": -0.76, "erf": -math.exp(-0.5)}[form]
    assert float(once.mean()) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("form", ["sampled", "expected", "erf"])
def test_first_step_of_a_running_margin_costs_nothing(form: Form) -> None:
    random = torch.Generator().manual_seed(0)
    loss = _term(dataclasses.replace(RUNNING, margin_form=form)).loss(_view(torch.rand(50, generator=random), random))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
