"""Losses (0-d) of `distill`, and the interpolation of images."""

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
    """
    log_p, log_q = F.log_softmax(teacher / temperature, 1), F.log_softmax(student / temperature, 1)
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return total * (temperature**2 / (teacher.numel() if reduction == "mean" else len(teacher)))


def interpolate(batch: Batch, classes: int, random: torch.Generator) -> Batch:
    """Return mixtures x' = lambda x_i + (1 - lambda) x_perm(i), lambda ~ U(0, 1) (methods.md 6, inferred).

    Labels are mixed, too; the teacher's logits are dropped.
    """
    count = len(batch.images)
    weight = torch.rand(count, generator=random, device=random.device)
    # On a GPU `randperm` may wait for the host.
    partner = (
        torch.randperm(count, generator=random)
        if random.device.type == "cpu"
        else torch.rand(count, generator=random, device=random.device).argsort()
    )
    images = torch.lerp(batch.images[partner], batch.images, weight.view(-1, 1, 1, 1))
    if batch.labels is None:
        return Batch(images)
    soft = batch.labels
    if soft.ndim == 1:
        # torch's one_hot reads the labels' range from the device.
        soft = images.new_zeros(count, classes).scatter_(1, soft[:, None], 1.0)
    return Batch(images, torch.lerp(soft[partner], soft, weight.view(-1, 1)))
