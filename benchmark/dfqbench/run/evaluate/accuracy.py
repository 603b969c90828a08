"""Accuracy of a network on an evaluation set, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dfqbench.run.evaluate.per_image import packed, standard_error

if TYPE_CHECKING:
    from dfqbench.targets.evaluation import EvaluationSet

SMALL_IMAGE = 64
"""Side in pixels up to which images go in large batches."""
BATCH, LARGE_BATCH = 50, 200
"""Images of a batch. With more small images the maps leave a CPU's caches."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network answered.

    Attributes:
        top1: int64 (n,), most likely class.
        correct: bool (n,), whether that is the label.
        correct5: bool (n,), whether the label is among the five most likely classes.
    """

    top1: Tensor
    correct: Tensor
    correct5: Tensor


def predict(network: nn.Module, data: EvaluationSet, device: torch.device) -> Predictions:
    """Runs every image through a network, in float32; arguments and result as of :func:`predict_all`."""
    return predict_all([network], data, device)[0]


@torch.no_grad()
def predict_all(networks: Sequence[nn.Module], data: EvaluationSet, device: torch.device) -> list[Predictions]:
    """Runs every image through several networks, in float32, in one pass over the data.

    Args:
        networks: in eval mode, on `device`.
        data: images and labels; each image is read and decoded once.
        device: where to compute.

    Returns:
        Predictions of each network on the CPU, in the order of the labels. A row of logits with a NaN is never correct.
    """
    side = int(next(iter(data.batches(1, device)))[0].shape[-1])
    size = LARGE_BATCH if side <= SMALL_IMAGE else BATCH
    answers: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in networks]
    # Weights are put on their grids once for the whole pass instead of once a batch.
    with parametrize.cached():
        for images, labels in data.batches(size, device):
            for network, found in zip(networks, answers, strict=True):
                found.append(_judged(network(images).float(), labels.to(device)))
    return [Predictions(*(torch.cat(part).cpu() for part in zip(*found, strict=True))) for found in answers]


def _judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Answer, whether it is right, and whether the label is among the first five; each (N,)."""
    bad = ~torch.isfinite(logits).all(dim=1, keepdim=True)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    best = best.masked_fill(bad, -1)
    hits = best == labels[:, None]
    return best[:, 0], hits[:, 0], hits.any(dim=1)


def percent(flags: Tensor) -> float:
    """Share of true entries in percent."""
    return 100.0 * float(flags.double().mean())


def accuracy(found: Predictions, teacher: Predictions, data: EvaluationSet) -> dict[str, Any]:
    """The accuracy group of a record, in percent."""
    top1, fp_top1 = percent(found.correct), percent(teacher.correct)
    same = found.top1 == teacher.top1
    return {
        "fp_top1": fp_top1,
        "top1": top1,
        "top5": percent(found.correct5),
        "drop": fp_top1 - top1,
        "top1_se": standard_error(top1, data.n),
        "agreement": percent(same),
        "correct": packed(found.correct.numpy()),
    }
