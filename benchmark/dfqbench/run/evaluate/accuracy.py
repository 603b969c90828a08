"""Accuracy of a network on an evaluation set, image by image; reading it from a record needs no torch."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from dfqbench.quant.student import Student
    from dfqbench.targets.evaluation import EvaluationSet

SMALL_IMAGE = 64
"""Side in pixels up to which images go in large batches."""
BATCH, LARGE_BATCH = 50, 200
"""Images of a batch. With more small images the feature maps leave a CPU's caches."""
SHARE_TOLERANCE = 0.01
"""How much smaller the share of quantized multiply-accumulates of a student of any class may be than a `Student`'s."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """A network's predictions.

    Attributes:
        top1: int64 (n,), most likely class.
        correct: bool (n,), whether that is the label.
        correct5: bool (n,), whether the label is among the five most likely classes.
    """

    top1: Tensor
    correct: Tensor
    correct5: Tensor


def predict(network: nn.Module, data: EvaluationSet, device: torch.device) -> Predictions:
    """Run every image through a network, in float32; see :func:`predict_all`."""
    return predict_all([network], data, device)[0]


def predict_all(networks: Sequence[nn.Module], data: EvaluationSet, device: torch.device) -> list[Predictions]:
    """Run every image through several networks, in float32, in one pass over the data.

    Args:
        networks: in eval mode, on `device`.
        data: images and labels; each image is read and decoded once.
        device: where to compute.

    Returns:
        Predictions of each network on the CPU, in the order of the labels. A row of logits with a NaN is never correct.
    """
    import torch
    from torch.nn.utils import parametrize

    side = int(next(iter(data.batches(1, device)))[0].shape[-1])
    size = LARGE_BATCH if side <= SMALL_IMAGE else BATCH
    results: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in networks]
    # Weights are quantized once for the whole pass instead of once a batch.
    with torch.no_grad(), parametrize.cached():
        for images, labels in data.batches(size, device):
            for network, batches in zip(networks, results, strict=True):
                batches.append(_compare(network(images).float(), labels.to(device)))
    return [Predictions(*(torch.cat(part).cpu() for part in zip(*batches, strict=True))) for batches in results]


def _compare(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted class, whether it is the label, and whether the label is among the first five; each (N,)."""
    bad = ~logits.isfinite().all(dim=1, keepdim=True)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices.masked_fill(bad, -1)
    hits = best == labels[:, None]
    return best[:, 0], hits[:, 0], hits.any(dim=1)


def percent(flags: Tensor) -> float:
    """Return the share of true entries in percent."""
    return 100.0 * float(flags.double().mean())


def accuracy(student: Predictions, teacher: Predictions, data: EvaluationSet) -> dict[str, Any]:
    """Return the accuracy group of a record, in percent."""
    top1, fp_top1 = percent(student.correct), percent(teacher.correct)
    return {
        "fp_top1": fp_top1,
        "top1": top1,
        "top5": percent(student.correct5),
        "drop": fp_top1 - top1,
        "top1_se": standard_error(top1, data.n),
        "agreement": percent(student.top1 == teacher.top1),
        "correct": packed(student.correct.numpy()),
    }


def evaluate_module(
    student: nn.Module, teacher: nn.Module, usual: Student, data: EvaluationSet, device: torch.device
) -> dict[str, Any]:
    """Evaluate a student of any class, and compare the operands of all its passes with those of a `Student`.

    Args:
        student: the student.
        teacher: the full-precision network.
        usual: a `Student` under the cell's scheme, whose activation ranges are set here.
        data: the evaluation set.
        device: of the networks.

    Returns:
        Accuracy, coverage and violations, as plain data for the record.
    """
    import torch

    from dfqbench.quant.coverage import measuring

    scheme, full = usual.scheme, predict(teacher, data, device)
    with torch.no_grad(), usual.observing("minmax"), measuring(usual, scheme) as expected:
        usual(next(iter(data.batches(BATCH, device)))[0])
    with measuring(student.eval(), scheme) as coverage:
        predictions = predict(student, data, device)
    if coverage.share < expected.share - SHARE_TOLERANCE:
        shares = f"{100 * coverage.share:.1f} % of the multiply-accumulates, not {100 * expected.share:.1f} %"
        coverage.violations.append(f"{shares} as under {scheme.label}")
    checks = {"coverage": coverage.as_dict(data.n), "violations": coverage.violations, "levels_ok": coverage.levels_ok}
    return accuracy(predictions, full, data) | checks


def standard_error(top1: float, images: int) -> float:
    """Return the binomial standard error of an accuracy in percent, on at least one image, in percentage points."""
    share = top1 / 100.0
    return 100.0 * math.sqrt(max(0.0, share * (1.0 - share)) / images)


def packed(flags: NDArray[np.bool_]) -> str:
    """Return booleans (n,) as base64 of bits, the first in the highest bit."""
    import numpy as np

    return base64.b64encode(np.packbits(flags).tobytes()).decode("ascii")


def unpacked(text: str, images: int) -> NDArray[np.bool_]:
    """Return what `packed` made text of: bool (n,).

    Raises:
        ValueError: it is no base64, or holds another number of images.
    """
    import numpy as np

    data = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(data) != -(-images // 8):
        raise ValueError(f"{len(data)} bytes do not hold {images} images")
    return np.unpackbits(data, count=images).astype(bool)
