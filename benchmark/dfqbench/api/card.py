"""The model card: what a network expects of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NATURAL_MEAN = (0.485, 0.456, 0.406)
"""Channel means of natural RGB images in [0, 1] (ImageNet's published constants)."""
NATURAL_STD = (0.229, 0.224, 0.225)
"""Channel standard deviations of natural RGB images in [0, 1] (ImageNet's published constants)."""


@dataclass(frozen=True, slots=True)
class InputStats:
    """Mean and standard deviation, per channel, that images have in the normalised input space."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Input size, normalisation and classes of one network.

    Attributes:
        input_size: (C, H, W) in pixels.
        mean: per-channel mean subtracted from pixels in [0, 1].
        std: per-channel divisor of pixels in [0, 1].
        classes: number of output classes.
        stats: explicit statistics of the domain's images in normalised space, where natural-image ones do not fit
            (a one-channel domain); None: see :attr:`input_stats`.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    stats: InputStats | None = None

    @property
    def input_stats(self) -> InputStats:
        """Statistics that losses and initial noise aim at.

        Natural-image mean and standard deviation mapped through the card: 0 and 1 for ImageNet's normalisation,
        other values for weights trained with, say, mean = std = 0.5. A card whose channel count is not 3 is taken
        to be normalised by its own domain's statistics: 0 and 1.
        """
        if self.stats is not None:
            return self.stats
        channels = self.input_size[0]
        if channels != len(NATURAL_MEAN):
            return InputStats((0.0,) * channels, (1.0,) * channels)
        mean = tuple((n - m) / s for n, m, s in zip(NATURAL_MEAN, self.mean, self.std, strict=True))
        std = tuple(n / s for n, s in zip(NATURAL_STD, self.std, strict=True))
        return InputStats(mean, std)

    def target_stats(self, target: Literal["card", "released"]) -> InputStats:
        """Return the statistics that images aim at: `input_stats`, or the 0 and 1 of the released codes."""
        zeros, ones = (0.0,) * self.input_size[0], (1.0,) * self.input_size[0]
        return InputStats(zeros, ones) if target == "released" else self.input_stats

    @property
    def lowest(self) -> tuple[float, ...]:
        """A black pixel in normalised space, per channel."""
        return tuple((0.0 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    @property
    def highest(self) -> tuple[float, ...]:
        """A white pixel in normalised space, per channel."""
        return tuple((1.0 - m) / s for m, s in zip(self.mean, self.std, strict=True))
