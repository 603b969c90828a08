from __future__ import annotations

import math

import pytest
import torch

from dfqbench.synth import expected_margin_loss, logit_discrepancy, probability_discrepancy, sampled_margin_loss

MEAN, STD = 0.5, 0.15


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
