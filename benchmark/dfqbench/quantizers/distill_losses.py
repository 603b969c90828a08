"""Losses of `distill`, and the mixing of images; pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dfqbench.api.batch import Batch


def kd_loss(
    teacher: Tensor, student: Tensor, temperature: float, reduction: Literal["mean", "batchmean"] = "mean"
) -> Tensor:
    """T^2 KL(softmax(z_P / T) || softmax(z_Q / T)), averaged (GDFQ, released code).

    Args:
        teacher: z_P (N, classes).
        student: z_Q (N, classes).
        temperature: T.
        reduction: `batchmean` divides the sum by N, `mean` by N times classes, as nn.KLDivLoss does by default.

    Returns:
        0-d loss.
    """
    wanted = F.log_softmax(teacher / temperature, 1)
    found = F.log_softmax(student / temperature, 1)
    total = F.kl_div(found, wanted, reduction="sum", log_target=True)
    return total * (temperature**2 / (teacher.numel() if reduction == "mean" else len(teacher)))


def logit_mse_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over images and classes of (z_P - z_Q)^2, without temperature (KMDFQ, released code).

    Args:
        teacher: z_P (N, classes).
        student: z_Q (N, classes).

    Returns:
        0-d loss.
    """
    return F.mse_loss(student, teacher)


def hard_or_soft(labels: Tensor | None, teacher: Tensor) -> Tensor:
    """Targets of cross-entropy: the labels, or the teacher's argmax where there are none.

    Args:
        labels: int64 (N,), soft (N, classes), or None.
        teacher: z_P (N, classes).
    """
    return teacher.argmax(1) if labels is None else labels


def interpolate(batch: Batch, classes: int, random: torch.Generator) -> Batch:
    """Mixtures x' = lambda x_i + (1 - lambda) x_perm(i), lambda ~ U(0, 1) for each image (methods.md 6, inferred).

    Args:
        batch: images and labels; the teacher's outputs do not mix and are dropped.
        classes: number of classes.
        random: source of randomness, on the images' device.

    Returns:
        The mixtures, with labels mixed alike (soft) where there are any.
    """
    count = len(batch.images)
    weight = torch.rand(count, generator=random, device=random.device)
    partner = _shuffled(count, random)
    images = torch.lerp(batch.images[partner], batch.images, weight.view(-1, 1, 1, 1))
    if batch.labels is None:
        return Batch(images)
    soft = batch.labels
    if soft.ndim == 1:
        # torch's one_hot would read the labels' range from the device.
        soft = images.new_zeros(count, classes).scatter_(1, soft[:, None], 1.0)
    return Batch(images, torch.lerp(soft[partner], soft, weight.view(-1, 1)))


def _shuffled(count: int, random: torch.Generator) -> Tensor:
    """A permutation of `count` numbers, int64; on a GPU without the host's help, which `randperm` may ask for."""
    if random.device.type == "cpu":
        return torch.randperm(count, generator=random)
    return torch.rand(count, generator=random, device=random.device).argsort()
