"""Model cards: the input that a network expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class InputStats:
    """Mean and standard deviation of images per channel, of pixels in [0, 1] or in a normalised input space."""

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
        stats: statistics of the domain's images in normalised space; None: unknown.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    stats: InputStats | None = None

    @property
    def input_stats(self) -> InputStats:
        """Statistics of real images in normalised space, the target of losses and initial noise.

        They are the domain's (:attr:`stats`): 0 and 1 where the card normalises with them, other values for weights
        trained with, say, mean = std = 0.5. If the domain is unknown, the card is assumed to normalise with its
        statistics: 0 and 1.
        """
        return self._standard if self.stats is None else self.stats

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
