"""A source of noise whose state is a seed and a counter."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from dfqbench.api import Batch, ModelCard


class NoiseSource:
    """Gaussian images without end.

    The draw that begins after n images comes from a CPU generator seeded by (seed, n): equal bits on any device.
    """

    def __init__(self, card: ModelCard, *, seed: int, scale: float = 1.0, device: torch.device | None = None) -> None:
        """Take mean and standard deviation from the card's `input_stats`.

        Args:
            card: of the teacher.
            seed: of the whole stream.
            scale: factor on the standard deviation.
            device: of the images; None: the CPU.
        """
        self._size = card.input_size
        self._mean = torch.tensor(card.input_stats.mean).view(-1, 1, 1)
        self._std = torch.tensor(card.input_stats.std).view(-1, 1, 1) * scale
        self._device = device or torch.device("cpu")
        self._seed = seed
        self._drawn = 0

    def sample(self, size: int) -> Batch:
        """Draw the next `size` images, without labels."""
        digest = hashlib.sha256(f"{self._seed}/{self._drawn}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        self._drawn += size
        noise = torch.randn((size, *self._size), generator=generator)
        images = noise.mul_(self._std).add_(self._mean)
        return Batch(images.to(self._device, memory_format=torch.channels_last))

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, the number of images drawn, and their size, mean and deviation."""
        images = {"size": list(self._size), "mean": self._mean, "std": self._std}
        return {"seed": self._seed, "drawn": self._drawn, **images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._seed, self._drawn = int(state["seed"]), int(state["drawn"])

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> NoiseSource:
        """Build a source from what `state_dict` returned, on the device of its tensors."""
        source = cls.__new__(cls)
        channels, height, width = state["size"]
        source._size = (channels, height, width)
        source._mean, source._std, source._device = state["mean"].cpu(), state["std"].cpu(), state["mean"].device
        source.load_state_dict(state)
        return source
