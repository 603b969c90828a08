"""Model cards: the input that a network expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NATURAL_MEAN = (0.485, 0.456, 0.406)
"""Channel means of natural RGB images in [0, 1] (ImageNet's published constants)."""
NATURAL_STD = (0.229, 0.224, 0.225)
"""Channel standard deviations of natural RGB images in [0, 1] (ImageNet's published constants)."""


@dataclass(frozen=True, slots=True)
class InputStats:
    """Mean and standard deviation of images per channel, in the normalised input space."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Input size, normalisation and number of classes of a network.

    Attributes:
        input_size: (C, H, W) in pixels.
        mean: per-channel mean subtracted from pixels in [0, 1].
        std: per-channel divisor of pixels in [0, 1].
        classes: number of output classes.
        stats: statistics of the domain's images in normalised space; None: those of natural images, see
            :attr:`input_stats`.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    stats: InputStats | None = None

    @property
    def input_stats(self) -> InputStats:
        """Statistics of real images in normalised space, the target of losses and initial noise.

        By default the statistics of natural images, normalised by the card: 0 and 1 with ImageNet's normalisation,
        other values for weights trained with, say, mean = std = 0.5. If the number of channels is not 3, the card is
        assumed to normalise with the statistics of its own domain: 0 and 1.
        """
        if self.stats is not None:
            return self.stats
        if self.input_size[0] != len(NATURAL_MEAN):
            return self._standard
        mean = tuple((n - m) / s for n, m, s in zip(NATURAL_MEAN, self.mean, self.std, strict=True))
        std = tuple(n / s for n, s in zip(NATURAL_STD, self.std, strict=True))
        return InputStats(mean, std)

    def target_stats(self, target: Literal["card", "released"]) -> InputStats:
        """Return the statistics that synthesized images should have.

        Args:
            target: `card`: :attr:`input_stats`; `released`: mean 0 and standard deviation 1, as in released code.
        """
        return self._standard if target == "released" else self.input_stats

    @property
    def _standard(self) -> InputStats:
        channels = self.input_size[0]
        return InputStats((0.0,) * channels, (1.0,) * channels)

    @property
    def lowest(self) -> tuple[float, ...]:
        """Value of a black pixel in normalised space, per channel."""
        return tuple((0.0 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    @property
    def highest(self) -> tuple[float, ...]:
        """Value of a white pixel in normalised space, per channel."""
        return tuple((1.0 - m) / s for m, s in zip(self.mean, self.std, strict=True))
