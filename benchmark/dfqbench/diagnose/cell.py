"""The diagnosis of one cell: everything that is measured of its images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api.errors import Skip
from dfqbench.diagnose.attention import attention_spread
from dfqbench.diagnose.features import centre_margin, homogeneity, silhouette
from dfqbench.diagnose.kept import Kept
from dfqbench.diagnose.statistics import layer_distances
from dfqbench.run.store.record import Diagnostics
from dfqbench.synth.attention import FeatureMaps, attention_centre, attention_consistency_loss, batch_statistics
from dfqbench.synth.losses import bns_loss
from dfqbench.synth.statistics import BatchNormStatistics, batchnorm_layers

VERSION = 1
"""Of what is measured; a record that was diagnosed by another one is diagnosed again."""
DIGITS = 6
"""Significant digits that are kept."""


@torch.no_grad()
def diagnose(teacher: nn.Module, kept: Kept, training: Mapping[int, Kept] | None = None) -> Diagnostics:
    """Measure images.

    Args:
        teacher: in eval mode.
        kept: the images at the end.
        training: images of points of the training, by step; empty or None for a fixed source.

    Returns:
        What a record keeps; None where something is not defined for these images or this network.
    """
    device = next(teacher.parameters()).device
    images = kept.images.to(device, memory_format=torch.channels_last)
    with ExitStack() as stack:
        watch = stack.enter_context(BatchNormStatistics(teacher)) if batchnorm_layers(teacher) else None
        recorder = stack.enter_context(FeatureMaps(teacher))
        logits: Tensor = teacher(images).float().cpu()
        found: dict[str, Any] = {
            "version": VERSION,
            "images": len(images),
            "classes_of": "labels" if kept.labels is not None else "teacher",
        }
        labels = kept.labels if kept.labels is not None else logits.argmax(1)
        found |= _labels(logits, kept.labels)
        if watch is not None:
            found |= {"bns": float(bns_loss(watch.last)), "layers": layer_distances(watch.last)}
        found |= _features(recorder, labels, teacher, images)
    # Outside, so that the points' passes are not watched for nothing.
    found["over_training"] = [
        {"step": step} | _at_point(teacher, point, device) for step, point in (training or {}).items()
    ]
    return Diagnostics(**_rounded(found))


def _labels(logits: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """What the teacher says of the images, and of their labels where they have any."""
    shares = logits.double().softmax(1)
    best = shares.max(1)
    found: dict[str, Any] = {"confidence": float(best.values.mean()), "answers": best.indices.tolist()}
    # Three digits are enough to stand beneath a picture.
    found["confidences"] = [round(float(share), 3) for share in best.values]
    if labels is not None:
        found["label_accuracy"] = 100 * float((logits.argmax(1) == labels).double().mean())
        found["label_confidence"] = float(shares.gather(1, labels[:, None]).mean())
    return found


def _features(recorder: FeatureMaps, labels: Tensor, teacher: nn.Module, images: Tensor) -> dict[str, Any]:
    try:
        maps = recorder.last
    except Skip:
        return {}
    features = maps.penultimate.flatten(1).float().cpu()
    attention = maps.attention
    with batch_statistics(teacher):
        teacher(images)
        trained = recorder.last.attention
    consistent = len(images) > 1 and bool(batchnorm_layers(teacher))
    return {
        "silhouette": silhouette(features, labels),
        "margin": centre_margin(features, labels),
        "homogeneity": homogeneity(features),
        "attention_spread": attention_spread(attention_centre(attention[-1]).cpu(), labels),
        "attention_consistency": float(attention_consistency_loss(attention, trained)) if consistent else None,
    }


def _at_point(teacher: nn.Module, point: Kept, device: torch.device) -> dict[str, Any]:
    """What is measured at a point of the training."""
    with FeatureMaps(teacher) as recorder:
        logits: Tensor = teacher(point.images.to(device, memory_format=torch.channels_last)).float().cpu()
        found: dict[str, Any] = {"confidence": float(logits.double().softmax(1).max(1).values.mean())}
        try:
            features = recorder.last.penultimate.flatten(1).float().cpu()
        except Skip:
            return found | {"homogeneity": None}
    return found | {"homogeneity": homogeneity(features)}


def _rounded(data: Any) -> Any:
    """Numbers to six significant digits, and None for what is not finite."""
    if isinstance(data, dict):
        return {key: _rounded(entry) for key, entry in data.items()}
    if isinstance(data, list):
        return [_rounded(entry) for entry in data]
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}") if math.isfinite(data) else None
    return data
