"""What a generator is asked for: noise, labels, and further conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Condition:
    """One batch's request to a generator.

    Attributes:
        noise: (N, latent), standard normal.
        labels: int64 (N,).
        extra: (N, extra), a further condition, or None.
    """

    noise: Tensor
    labels: Tensor
    extra: Tensor | None = None


Draw = Callable[[int, torch.Generator], Condition]
"""(batch size, random generator) -> condition, on the generator's device."""


def class_condition(latent: int, classes: int) -> Draw:
    """Noise z ~ N(0, I) and label y ~ U{classes} (GDFQ, released code).

    Args:
        latent: size of z.
        classes: number of classes.
    """

    def draw(size: int, random: torch.Generator) -> Condition:
        noise = torch.randn((size, latent), generator=random, device=random.device)
        return Condition(noise, torch.randint(0, classes, (size,), generator=random, device=random.device))

    return draw


def paired_centre_condition(latent: int, classes: int, reach: float) -> Draw:
    """Pairs with the same label and attention centre c ~ U(-reach, reach)^2, but different noise (ACQ; methods.md 4).

    Rows i and i + N // 2 are a pair; of an odd batch the last row stands alone.

    Args:
        latent: size of z.
        classes: number of classes.
        reach: largest coordinate of a centre, in half image sides.
    """
    plain = class_condition(latent, classes)

    def draw(size: int, random: torch.Generator) -> Condition:
        condition = plain(size, random)
        centre = torch.rand((size, 2), generator=random, device=random.device) * (2 * reach) - reach
        half = size // 2
        first, rest = slice(0, half), slice(2 * half, size)
        labels = torch.cat((condition.labels[first], condition.labels[first], condition.labels[rest]))
        return Condition(condition.noise, labels, torch.cat((centre[first], centre[first], centre[rest])))

    return draw


def pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of a batch drawn by `paired_centre_condition`, row by row partners: (N // 2, ...) each."""
    half = len(values) // 2
    return values[:half], values[half : 2 * half]
