"""The Gaussian-margin adversarial loss of the temporal-diversity method (methods.md 6; inferred, no released code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORMALISER_EPS = 1e-8
"""Added to normalisers (methods.md 0.5)."""


def logit_discrepancy(teacher: Tensor, student: Tensor) -> Tensor:
    """D_i = mean_c |z_P - z_Q| / mean_c |z_P|, the denominator without gradient.

    Args:
        teacher: z_P (N, classes).
        student: z_Q (N, classes).

    Returns:
        (N,). Where z_P = z_Q the subgradient is 0 (methods.md 0.5).
    """
    size = teacher.detach().abs().mean(1) + NORMALISER_EPS
    return (teacher - student).abs().mean(1) / size


def probability_discrepancy(teacher: Tensor, student: Tensor) -> Tensor:
    """D_i = sum_c |softmax(z_P) - softmax(z_Q)|, between 0 and 2.

    Args:
        teacher: z_P (N, classes).
        student: z_Q (N, classes).

    Returns:
        (N,).
    """
    return (teacher.softmax(1) - student.softmax(1)).abs().sum(1)


def sampled_margin_loss(discrepancy: Tensor, mean: float, std: float, random: torch.Generator) -> Tensor:
    """L_GM = mean_i max(0, m_i - D_i), m_i ~ N(mean, std^2).

    Its expected gradient in D is -Phi((mean - D) / std): strongest where teacher and student agree, and vanishing
    where they already differ by more than the margin.

    Args:
        discrepancy: D (N,).
        mean: of the margin.
        std: of the margin.
        random: source of randomness, on the discrepancy's device.

    Returns:
        0-d loss.
    """
    noise = torch.randn(discrepancy.shape, generator=random, device=discrepancy.device, dtype=discrepancy.dtype)
    return (mean + std * noise - discrepancy).clamp_min(0).mean()


def expected_margin_loss(discrepancy: Tensor, mean: float, std: float) -> Tensor:
    """E[max(0, m - D)] = (mean - D) Phi(u) + std phi(u), u = (mean - D) / std, averaged over images.

    Args:
        discrepancy: D (N,).
        mean: of the margin.
        std: of the margin.

    Returns:
        0-d loss.
    """
    gap = mean - discrepancy
    u = gap / std
    density = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
    below: Tensor = torch.special.ndtr(u)
    return (gap * below + std * density).mean()
