"""Accuracy of a network on an evaluation set, image by image."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from dfqbench.targets.evaluation import EvaluationSet

SMALL_IMAGE = 64
"""Side in pixels up to which images go in large batches."""


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


@torch.no_grad()
def predict(network: nn.Module, data: EvaluationSet, device: torch.device) -> Predictions:
    """Runs every image through a network, in float32.

    Args:
        network: in eval mode, on `device`.
        data: images and labels.
        device: where to compute.

    Returns:
        Predictions on the CPU, in the order of the labels. A row of logits with a NaN is never correct.
    """
    side = int(next(iter(data.batches(1, device)))[0].shape[-1])
    size = 500 if side <= SMALL_IMAGE else 50
    answers, tops, first5 = [], [], []
    # Weights are put on their grids once for the whole pass instead of once a batch.
    with parametrize.cached():
        for images, labels in data.batches(size, device):
            logits = network(images).float()
            bad = ~torch.isfinite(logits).all(dim=1, keepdim=True)
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            best = best.masked_fill(bad, -1)
            hits = best == labels.to(device)[:, None]
            answers.append(best[:, 0])
            tops.append(hits[:, 0])
            first5.append(hits.any(dim=1))
    return Predictions(torch.cat(answers).cpu(), torch.cat(tops).cpu(), torch.cat(first5).cpu())


def percent(flags: Tensor) -> float:
    """Share of true entries in percent."""
    return 100.0 * float(flags.double().mean())


def standard_error(top1: float, n: int) -> float:
    """Binomial standard error of an accuracy in percent, in percentage points.

    Args:
        top1: accuracy in percent.
        n: images.
    """
    share = top1 / 100.0
    return 100.0 * math.sqrt(share * (1.0 - share) / n)


def packed(flags: Tensor) -> str:
    """Booleans (n,) as base64 of bits, most significant first; what a record keeps of each image."""
    import numpy as np

    return base64.b64encode(np.packbits(flags.numpy()).tobytes()).decode("ascii")


def unpacked(text: str, n: int) -> Tensor:
    """Reads what `packed` wrote: bool (n,)."""
    import numpy as np

    bits: Any = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n)
    return torch.from_numpy(bits.astype(bool))


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
        "correct": packed(found.correct),
    }
