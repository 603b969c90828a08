"""Model cards: the usual input sizes and normalisations of well-known data sets."""

from __future__ import annotations

import dataclasses
import math

from dfqbench.api.card import InputStats, ModelCard
from dfqbench.api.errors import InputError
from dfqbench.targets.spec import DatasetSpec

DEFAULT_CARDS: dict[str, ModelCard] = {
    "imagenet": ModelCard((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1000),
    "cifar10": ModelCard((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 10),
    "cifar100": ModelCard((3, 32, 32), (0.5071, 0.4867, 0.4408), (0.2675, 0.2557, 0.2761), 100),
    # Measured on the 1,257 training images, pixels / 16.
    "digits": ModelCard((1, 8, 8), (0.3054,), (0.3762,), 10),
}
"""By target; CIFAR's and ImageNet's values are those of the GDFQ family's loaders (methods.md 0.4)."""
DOMAINS: dict[str, InputStats] = {
    name: InputStats(card.mean, card.std) for name, card in DEFAULT_CARDS.items() if name != "cifar100"
} | {"cifar100": InputStats((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))}
"""By target: mean and deviation of its images, of pixels in [0, 1]. The loaders' 0.2557 of CIFAR-100 is a misprint."""


def make_card(
    where: str,
    *,
    target: str,
    dataset: DatasetSpec | None,
    input_size: int | list[int] | None = None,
    classes: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> ModelCard:
    """Build a card; a value that is None is that of the target, or of the data set that it is a subset of.

    The statistics of the domain are added by :func:`in_domain`.

    Args:
        where: the card's model, for messages.
        target: name of the target.
        dataset: its evaluation set, where there is one.
        input_size: pixels of a square input, or [C, H, W].
        classes: number of outputs.
        mean: per-channel mean, pixels in [0, 1].
        std: per-channel divisor.

    Raises:
        InputError: a value is missing, has the wrong length, is not finite, or is not positive where it must be.
    """
    names = [target]
    if dataset is not None:
        names += [dataset.subset_of or "", "imagenet" if dataset.kind == "imagenet-folder" else ""]
    default = next((DEFAULT_CARDS[name] for name in names if name in DEFAULT_CARDS), None)
    if default is None:
        if input_size is None or mean is None or std is None:
            raise InputError(f"{where}: input_size, mean and std are unknown for target '{target}'", "give all three")
        default = ModelCard((3, 0, 0), (), (), 0)
    if isinstance(input_size, int):
        input_size = [default.input_size[0], input_size, input_size]
    size = list(default.input_size) if input_size is None else input_size
    if len(size) != 3 or min(size) < 1:
        raise InputError(f"{where}: input_size {input_size} is wrong", "give pixels, or [channels, height, width]")
    means, stds = tuple(default.mean if mean is None else mean), tuple(default.std if std is None else std)
    lengths = [("mean", means), ("std", stds)]
    if dataset is not None and dataset.stats is not None:
        lengths += [(f"stats of dataset '{dataset.name}'", dataset.stats.mean)]
    for key, values in lengths:
        if len(values) != size[0]:
            raise InputError(f"{where}: {key} has {len(values)} values for {size[0]} channels", "give one a channel")
        if key.endswith("std") and not all(value > 0 for value in values):
            raise InputError(f"{where}: {key} must be positive", "correct the value")
        if not all(map(math.isfinite, values)):
            raise InputError(f"{where}: {key} must be finite", "correct the value")
    if classes is None:
        classes = default.classes if dataset is None else dataset.classes
    if classes < 2:
        raise InputError(f"{where}: the number of classes is unknown", "give classes")
    return ModelCard((size[0], size[1], size[2]), means, stds, classes)


def in_domain(card: ModelCard, domain: InputStats) -> ModelCard:
    """Return a card whose `stats` are a domain's, mapped through the card's normalisation.

    Args:
        card: of a network.
        domain: mean and deviation of the domain's images, of pixels in [0, 1].

    Raises:
        ValueError: they have different numbers of channels.
    """
    mean = tuple((d - m) / s for d, m, s in zip(domain.mean, card.mean, card.std, strict=True))
    std = tuple(d / s for d, s in zip(domain.std, card.std, strict=True))
    return dataclasses.replace(card, stats=InputStats(mean, std))
