"""Losses (0-d) of `distill` on logits, and the images of a step: mixtures and adversarial ones."""

from __future__ import annotations

import math
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


def gap_entropy_loss(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """-T^2 mean_n H(softmax((z_P - z_Q) / T)), H in nats (AdaDFQ, released code).

    For gaps far below T it is -T^2 log C + Var_c(z_P - z_Q) / 2; a number added to all logits changes nothing.

    Args:
        teacher: z_P (N, C).
        student: z_Q (N, C).
        temperature: T.
    """
    log_p = F.log_softmax((teacher - student) / temperature, 1)
    return temperature**2 * (log_p.exp() * log_p).sum(1).mean()


def masked_cross_entropy(
    logits: Tensor, targets: Tensor, teacher: Tensor, threshold: float, form: Literal["masked", "released"] = "masked"
) -> Tensor:
    """1/N sum of CE(z_Q, y) over the images with 1 - p_y < tau, p = softmax(z_P) (SynQ).

    The released code sets the other images' logits to 0 instead, which adds log C for each of them.

    Args:
        logits: z_Q (N, C).
        targets: y, int64 (N,) or soft (N, C), for which p_y is the mean over y.
        teacher: z_P (N, C).
        threshold: tau.
        form: whether the constant is added.
    """
    p = teacher.softmax(1)
    p_y = (p * targets).sum(1) if targets.ndim > 1 else p.gather(1, targets[:, None]).squeeze(1)
    chosen = 1 - p_y < threshold
    left_out = math.log(logits.shape[1]) if form == "released" else 0.0
    return torch.where(chosen, F.cross_entropy(logits, targets, reduction="none"), left_out).mean()


def adversarial(images: Tensor, loss: Tensor, epsilon: float) -> Tensor:
    """Return x + epsilon sign(dL/dx) (fast gradient sign method; HAST, SynQ), without a graph.

    Args:
        images: x (N, C, H, W), a leaf of the loss's graph, which is kept.
        loss: L, through teacher and student.
        epsilon: step, in the normalised input space.
    """
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    return images.detach() + epsilon * gradient.sign()


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
