"""Check targets: images, classes, and the accuracy of each network on a few images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from dfqbench.api.errors import DfqError
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.cards import make_card
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.evaluation import load_evaluation
from dfqbench.targets.pixels import open_split
from dfqbench.targets.spec import DatasetSpec, MissingModel, Target, fingerprint

MAX_DEVIATION = 4.0
"""Standard errors between measured and published accuracy above which weights or preprocessing are called wrong."""
_BATCH = 50


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: for example `cifar10` or `cifar10 cifar:resnet20`.
        status: `ok`; `missing`: not there, which is no fault; `broken`: there, and wrong.
        detail: numbers or reason, one line.
    """

    what: str
    status: Literal["ok", "missing", "broken"]
    detail: str


def check_targets(
    catalogue: Catalogue, images: int, families: Mapping[str, str] | None = None, seed: int = 0
) -> Iterator[Finding]:
    """Check every target and model of a catalogue.

    Args:
        catalogue: the targets.
        images: images on which each network is tried; 0: none.
        families: model families that plugins offer.
        seed: seed of the choice of images.
    """
    for problem in catalogue.problems:
        yield Finding("plugin data", "broken", problem)
    for name in catalogue.names():
        target = catalogue.target(name)
        finding = _check_dataset(target)
        yield finding
        for model in catalogue.models(name):
            what = f"{name} {model.name}"
            if isinstance(model, MissingModel):
                yield Finding(what, "missing", model.reason)
            elif target.dataset is not None and finding.status == "ok" and images:
                try:
                    accurate, detail = _check_model(target.dataset, model, images, seed, families)
                    yield Finding(what, "ok" if accurate else "broken", detail)
                except DfqError as error:
                    yield Finding(what, "broken", str(error))


def _check_dataset(target: Target) -> Finding:
    dataset = target.dataset
    if dataset is None:
        return Finding(target.name, "missing", target.missing)
    try:
        card = target.models[0].card if target.models else make_card(target.name, target=target.name, dataset=dataset)
        labels = open_split(dataset, "evaluate", card).labels
        fingerprint(dataset)  # refuses files that cannot be read
    except DfqError as error:
        return Finding(target.name, "broken", str(error))
    present = len(set(labels.tolist()))
    where = dataset.evaluate or "in scikit-learn"
    return Finding(target.name, "ok", f"{len(labels)} images, {present} of {dataset.classes} classes; {where}")


def _check_model(
    dataset: DatasetSpec, model: ModelSpec, images: int, seed: int, families: Mapping[str, str] | None
) -> tuple[bool, str]:
    teacher = build_teacher(model, families=families)
    evaluation = load_evaluation(dataset, model.card, images, seed)
    with torch.inference_mode():
        correct = sum(int((teacher(x).argmax(1) == y).sum()) for x, y in evaluation.batches(_BATCH))
    top1 = 100 * correct / evaluation.n
    measured = f"top-1 {top1:.2f} on {evaluation.n} images"
    if model.top1 is None:
        return True, f"{measured}; no value is given beside the weights"
    given = model.top1 / 100
    # A difference of one image is no fault.
    error_of_given = 100 * max(math.sqrt(given * (1 - given) / evaluation.n), 1 / evaluation.n)
    if abs(top1 - model.top1) > MAX_DEVIATION * error_of_given:
        hint = "check weights, mean, std and the order of classes"
        return False, f"{measured}, but {model.top1:.2f} is given beside the weights; {hint}"
    return True, f"{measured}; {model.top1:.2f} is given beside the weights"
