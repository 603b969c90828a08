"""Losses (0-d) on images: BatchNorm statistics as in the training data, and the Gaussian margin of two networks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from dfqbench.synth.moments import Moments
from dfqbench.synth.statistics import PassStatistics

ZEROQ_EPS = 1e-6
"""Added to variances before the square root (ZeroQ, released code)."""


def bns_loss(statistics: PassStatistics) -> Tensor:
    """L_BNS = 1/L sum_l [ mean_c (mu_l - mu_BN,l)^2 + mean_c (var_l - var_BN,l)^2 ] of a pass of the teacher.

    Statistics of BatchNorm inputs over samples and positions, variance biased (GDFQ, released code; methods.md 0.3).
    """
    batch, running = statistics.batch, statistics.running
    gaps = (batch.mean - running.mean).square() + (batch.var - running.var).square()
    return (gaps * statistics.constants.share).sum()


def bns_distance_loss(statistics: PassStatistics, norm: Literal["l2", "mse"] = "l2", eps: float = ZEROQ_EPS) -> Tensor:
    """L_BNS = 1/L sum_l ( ||mu_l - mu_BN,l|| + ||s_l - s_BN,l|| ), s = sqrt(var + eps), of a pass of the teacher.

    Statistics of BatchNorm inputs over samples and positions, variance biased; norms are not squared (DFFG, paper's
    Eq. 3; methods.md 5). With `mse` they are means of squares over channels.
    """
    batch, running = statistics.batch, statistics.running
    gaps = (batch.mean - running.mean, torch.sqrt(batch.var + eps) - torch.sqrt(running.var + eps))
    if norm == "mse":
        return ((gaps[0].square() + gaps[1].square()) * statistics.constants.share).sum()
    sizes = [layer.running.mean.shape[0] for layer in statistics.layers]
    # The norm's subgradient at 0 is 0; that of a written-out root would be NaN.
    norms = [torch.linalg.vector_norm(layer) for gap in gaps for layer in torch.split(gap, sizes)]
    return torch.stack(norms).sum() / len(sizes)


def zeroq_loss(statistics: PassStatistics, image: Moments, target: Moments, eps: float = ZEROQ_EPS) -> Tensor:
    """ZeroQ's distillation loss, with statistics of each sample over its positions.

    L = 1/N sum_n { sum_l [ ||mu_l(n) - mu_BN,l||^2 + ||s_l(n) - s_BN,l||^2 ] + ||mu_0(n) - mu_0||^2 + ||s_0(n) -
    s_0||^2 }, s = sqrt(var + eps), variance unbiased, sums over channels (released code; methods.md 1b). The image
    itself is layer 0.

    Args:
        statistics: of a pass of the teacher over the images.
        image: moments (N, C) of the images over positions, variance unbiased.
        target: mean and variance (C,) of normalised natural images.
        eps: added to variances before the root.
    """
    layers = zeroq_gap(statistics.per_sample_unbiased, statistics.running, eps)
    # The released code compares the image's s_0 with 1 exactly: no eps on this target.
    own = (image.mean - target.mean).square() + (torch.sqrt(image.var + eps) - torch.sqrt(target.var)).square()
    return (layers + own.sum(1)).mean()


def zeroq_gap(moments: Moments, target: Moments, eps: float = ZEROQ_EPS) -> Tensor:
    """||mu - mu*||^2 + ||sqrt(var + eps) - sqrt(var* + eps)||^2 of each sample, (N,) (ZeroQ, released code).

    Moments are (N, S), the target (S,).
    """
    mean = (moments.mean - target.mean).square()
    std = (torch.sqrt(moments.var + eps) - torch.sqrt(target.var + eps)).square()
    return (mean + std).sum(1)


NORMALISER_EPS = 1e-8
"""Added to normalisers (methods.md 0.5)."""


def logit_discrepancy(teacher: Tensor, student: Tensor) -> Tensor:
    """D_i = mean_c |z_P - z_Q| / mean_c |z_P|, (N,), of logits (N, classes); no gradient in the denominator.

    Where z_P = z_Q the subgradient is 0 (methods.md 0.5).
    """
    size = teacher.detach().abs().mean(1) + NORMALISER_EPS
    return (teacher - student).abs().mean(1) / size


def probability_discrepancy(teacher: Tensor, student: Tensor) -> Tensor:
    """D_i = sum_c |softmax(z_P) - softmax(z_Q)|, (N,), between 0 and 2, of logits (N, classes)."""
    return (teacher.softmax(1) - student.softmax(1)).abs().sum(1)


def sampled_margin_loss(discrepancy: Tensor, mean: float, std: float, random: torch.Generator) -> Tensor:
    """L_GM = mean_i max(0, m_i - D_i), m_i ~ N(mean, std^2), of discrepancies D (N,).

    Its expected gradient in D is -Phi((mean - D) / std): largest where teacher and student agree, and vanishing where
    they already differ by more than the margin. `random` is on the discrepancy's device.
    """
    noise = torch.randn(discrepancy.shape, generator=random, device=discrepancy.device, dtype=discrepancy.dtype)
    return (mean + std * noise - discrepancy).clamp_min(0).mean()


def expected_margin_loss(discrepancy: Tensor, mean: float, std: float) -> Tensor:
    """E[max(0, m - D)] = (mean - D) Phi(u) + std phi(u), u = (mean - D) / std, averaged over images, D (N,)."""
    gap = mean - discrepancy
    u = gap / std
    density = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)
    below: Tensor = torch.special.ndtr(u)
    return (gap * below + std * density).mean()
