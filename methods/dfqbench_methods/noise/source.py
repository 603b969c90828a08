"""Fixed sources of noise whose state is a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfqbench.synth import FixedSource


class NoiseSource(FixedSource):
    """Gaussian images from a generator on the CPU: equal bits on any device."""

    _draw = staticmethod(torch.randn)

    def __init__(self, size: Sequence[int], count: int, seed: int, mean: Tensor, std: Tensor) -> None:
        """Draw the images.

        Args:
            size: (C, H, W) of an image.
            count: number of images.
            seed: of the generator.
            mean: (C,), mean of each channel, on the device of the images.
            std: (C,), standard deviation of each channel.
        """
        noise = self._draw((count, *size), generator=torch.Generator().manual_seed(seed)).to(mean.device)
        super().__init__(noise.mul_(std.view(-1, 1, 1)).add_(mean.view(-1, 1, 1)))
        self._drawn_from = {"size": list(size), "count": count, "seed": seed, "mean": mean, "std": std}

    def state_dict(self) -> dict[str, Any]:
        """Return what the images are drawn from, and the position of the next draw."""
        return {**self._drawn_from, "cursor": self._cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore images and position of what `state_dict` returned, on the device of the present images."""
        device, moments = self.images.device, (state["mean"], state["std"])
        drawn = type(self)(state["size"], state["count"], state["seed"], *(values.to(device) for values in moments))
        self.images, self._drawn_from, self._cursor = drawn.images, drawn._drawn_from, int(state["cursor"])

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> NoiseSource:
        """Build a source from what `state_dict` returned."""
        source = cls(*(state[name] for name in ("size", "count", "seed", "mean", "std")))
        source._cursor = int(state["cursor"])
        return source


class UniformSource(NoiseSource):
    """Images from a uniform distribution, given by its lower end and its width in place of mean and deviation."""

    _draw = staticmethod(torch.rand)
