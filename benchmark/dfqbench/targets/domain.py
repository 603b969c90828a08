"""Default input sizes and normalisations of the well-known data sets."""

from __future__ import annotations

from dataclasses import dataclass

from dfqbench.api.card import NATURAL_MEAN, NATURAL_STD, InputStats, ModelCard
from dfqbench.api.errors import InputError
from dfqbench.targets.spec import DatasetSpec


@dataclass(frozen=True, slots=True)
class Domain:
    """What a network for a data set takes unless its card says otherwise.

    Attributes:
        input_size: (C, H, W) in pixels.
        mean: per-channel mean of pixels in [0, 1].
        std: per-channel standard deviation of pixels in [0, 1].
        classes: number of classes.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int


DOMAINS: dict[str, Domain] = {
    "imagenet": Domain((3, 224, 224), NATURAL_MEAN, NATURAL_STD, 1000),
    "cifar10": Domain((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 10),
    "cifar100": Domain((3, 32, 32), (0.5071, 0.4867, 0.4408), (0.2675, 0.2557, 0.2761), 100),
    # Measured on the 1,257 training images, pixels / 16.
    "digits": Domain((1, 8, 8), (0.3054,), (0.3762,), 10),
}
"""By target; CIFAR's and ImageNet's values are those of the GDFQ family's loaders (methods.md 0.4)."""


def domain_of(target: str, dataset: DatasetSpec | None) -> Domain | None:
    """The domain of a target: by its name, by what it is a subset of, or by how it is stored; None if unknown."""
    names = [target]
    if dataset is not None:
        names += [dataset.subset_of or "", "imagenet" if dataset.kind == "imagenet-folder" else ""]
    return next((DOMAINS[name] for name in names if name in DOMAINS), None)


def make_card(
    where: str,
    *,
    target: str,
    dataset: DatasetSpec | None,
    input_size: int | list[int] | None = None,
    classes: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    stats: InputStats | None = None,
) -> ModelCard:
    """Builds a card; what is None comes from the target's domain.

    Args:
        where: what the card belongs to, for messages.
        target: name of the target.
        dataset: its evaluation set, where there is one.
        input_size: pixels of a square input, or [C, H, W].
        classes: number of outputs.
        mean: per-channel mean, pixels in [0, 1].
        std: per-channel divisor.
        stats: explicit statistics in normalised space.

    Raises:
        InputError: a value is missing, has the wrong length, or is not positive where it must be.
    """
    domain = domain_of(target, dataset)
    if domain is None and (input_size is None or mean is None or std is None):
        raise InputError(f"{where}: input_size, mean and std are unknown for target '{target}'", "give all three")
    channels = 3 if domain is None else domain.input_size[0]
    if isinstance(input_size, int):
        size = [channels, input_size, input_size]
    else:
        size = list(input_size if input_size is not None else domain.input_size if domain is not None else ())
    if len(size) != 3 or min(size) < 1:
        raise InputError(f"{where}: input_size {input_size} is wrong", "give pixels, or [channels, height, width]")
    means = tuple(mean if mean is not None else domain.mean if domain is not None else ())
    stds = tuple(std if std is not None else domain.std if domain is not None else ())
    lengths = [("mean", means), ("std", stds)]
    if stats is not None:
        lengths += [("stats.mean", stats.mean), ("stats.std", stats.std)]
    for key, values in lengths:
        if len(values) != size[0]:
            raise InputError(f"{where}: {key} has {len(values)} values for {size[0]} channels", "give one a channel")
        if key.endswith("std") and not all(value > 0 for value in values):
            raise InputError(f"{where}: {key} must be positive", "correct the value")
    count = classes if classes is not None else dataset.classes if dataset is not None else None
    if count is None:
        count = domain.classes if domain is not None else 0
    if count < 2:
        raise InputError(f"{where}: the number of classes is unknown", "give classes")
    return ModelCard((size[0], size[1], size[2]), means, stds, count, stats)
