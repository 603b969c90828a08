"""The diagnosis of one cell: everything that is measured of its images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api.errors import Skip
from dfqbench.diagnose.measures import attention_spread, centre_margin, homogeneity, layer_distance, silhouette
from dfqbench.run.store.record_parts import Diagnostics
from dfqbench.synth.attention import FeatureMaps, attention_centre, attention_consistency_loss, batch_statistics
from dfqbench.synth.losses import bns_loss
from dfqbench.synth.statistics import BatchNormStatistics, batchnorm_layers

VERSION = 1  # of what is measured; cells with another version are diagnosed again
DIGITS = 6  # significant digits that are kept


@torch.no_grad()
def diagnose(
    teacher: nn.Module, images: Tensor, labels: Tensor | None, training: Mapping[int, Tensor] | None = None
) -> Diagnostics:
    """Measure images.

    Args:
        teacher: in eval mode.
        images: (N, C, H, W), at the end, in the teacher's normalised input space.
        labels: int64 (N,), the source's own; None where it gave none.
        training: images of points of the training, by step; empty or None for a fixed source.

    Returns:
        What a record keeps; None where something is not defined for these images or this network.
    """
    measured: dict[str, Any] = {
        "version": VERSION,
        "images": len(images),
        "classes_of": "teacher" if labels is None else "labels",
    }
    with ExitStack() as stack:
        statistics = stack.enter_context(BatchNormStatistics(teacher)) if batchnorm_layers(teacher) else None
        maps = stack.enter_context(FeatureMaps(teacher))
        logits = _logits(teacher, images)
        measured |= _confidence(logits, labels)
        if statistics is not None:
            measured["bns"] = float(bns_loss(statistics.last))
            measured["layers"] = [layer_distance(layer) for layer in statistics.last.layers]
        measured |= _features(teacher, maps, images, logits.argmax(1) if labels is None else labels)
    # Outside, where no statistics are recorded.
    measured["over_training"] = [
        {"step": step} | _at_point(teacher, images) for step, images in (training or {}).items()
    ]
    return Diagnostics(**_rounded(measured))


def _logits(teacher: nn.Module, images: Tensor) -> Tensor:
    device = next(teacher.parameters()).device
    logits: Tensor = teacher(images.to(device, memory_format=torch.channels_last))
    return logits.float().cpu()


def _confidence(logits: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Return the teacher's answers with their probabilities, and how far labels agree with them."""
    shares = logits.double().softmax(1)
    best = shares.max(1)
    measured: dict[str, Any] = {"confidence": float(best.values.mean()), "answers": best.indices.tolist()}
    # Three digits are enough to stand beneath a picture.
    measured["confidences"] = [round(float(share), 3) for share in best.values]
    if labels is not None:
        measured["label_accuracy"] = 100 * float((logits.argmax(1) == labels).double().mean())
        measured["label_confidence"] = float(shares.gather(1, labels[:, None]).mean())
    return measured


def _features(teacher: nn.Module, maps: FeatureMaps, images: Tensor, classes: Tensor) -> dict[str, Any]:
    try:
        features, attention = maps.last.penultimate.flatten(1).float().cpu(), maps.last.attention
    except Skip:
        return {}
    with batch_statistics(teacher):
        _logits(teacher, images)
    consistent = len(images) > 1 and bool(batchnorm_layers(teacher))
    return {
        "silhouette": silhouette(features, classes),
        "margin": centre_margin(features, classes),
        "homogeneity": homogeneity(features),
        "attention_spread": attention_spread(attention_centre(attention[-1]).cpu(), classes),
        "attention_consistency": float(attention_consistency_loss(attention, maps.last.attention))
        if consistent
        else None,
    }


def _at_point(teacher: nn.Module, images: Tensor) -> dict[str, Any]:
    """Measure images at a point of the training."""
    with FeatureMaps(teacher) as maps:
        confidence = float(_logits(teacher, images).double().softmax(1).max(1).values.mean())
        try:
            features = maps.last.penultimate.flatten(1).float().cpu()
        except Skip:
            return {"confidence": confidence, "homogeneity": None}
    return {"confidence": confidence, "homogeneity": homogeneity(features)}


def _rounded(data: Any) -> Any:
    """Return data with numbers to six significant digits, and None for what is not finite."""
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_rounded(value) for value in data]
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}") if math.isfinite(data) else None
    return data
