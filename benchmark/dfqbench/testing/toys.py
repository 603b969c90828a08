"""Toy networks: small enough that a test of a whole method takes a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dfqbench.api import Batch, ModelCard


def toy_network(classes: int = 4, size: int = 8, channels: int = 3, *, seed: int = 0) -> nn.Sequential:
    """Return a small convolution-BatchNorm-ReLU classifier with running statistics of smooth images.

    Args:
        classes: outputs.
        size: image height and width that its statistics were made with.
        channels: image channels.
        seed: of weights and statistics; the caller's random state is left alone.

    Returns:
        The network in eval mode, channels-last, parameters frozen: what a host hands to `synthesize`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, classes),
        )
        network.train()
        with torch.no_grad():
            for _ in range(20):
                network(_patterns(32, channels, size))
    return _frozen(network)


def toy_network_without_batchnorm(
    classes: int = 4, size: int = 8, channels: int = 3, *, seed: int = 0
) -> nn.Sequential:
    """Return a small network that has no BatchNorm; arguments and result as of `toy_network`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(size // 4),
            nn.Flatten(),
            nn.Linear(8 * 16, classes),
        )
    return _frozen(network)


def _frozen(network: nn.Sequential) -> nn.Sequential:
    return network.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)


def toy_images(count: int, size: int = 8, channels: int = 3, *, seed: int = 1) -> torch.Tensor:
    """Return images of the kind that `toy_network`'s statistics were made with, (count, channels, size, size)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _patterns(count, channels, size).contiguous(memory_format=torch.channels_last)


def _patterns(count: int, channels: int, size: int) -> torch.Tensor:
    """Return smooth patterns rather than white noise, so that statistics matching has an effect."""
    coarse = torch.randn(count, channels, max(1, size // 4), max(1, size // 4))
    return nn.functional.interpolate(coarse, size=(size, size), mode="nearest") + 0.2


class ToySource:
    """A live source: `toy_images` that grow with each step of what stands for its generator.

    Attributes:
        steps: steps of the generator.
        draws: batches handed out.
    """

    needs_student = False
    batch_size = 64
    training_steps = 20

    def __init__(self) -> None:
        self.steps = 0
        self.draws = 0

    def sample(self, size: int) -> Batch:
        """Return `size` images that no earlier batch has."""
        self.draws += 1
        return Batch((1 + 0.1 * self.steps) * toy_images(size, seed=self.draws))

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:  # noqa: ARG002 - the contract's signature
        """Return a batch, then count a step."""
        batch = self.sample(size)
        self.steps += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return both counters."""
        return {"steps": self.steps, "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both counters."""
        self.steps, self.draws = state["steps"], state["draws"]


def toy_card(classes: int = 4, size: int = 8, channels: int = 3) -> ModelCard:
    """Return the card of `toy_network`: ImageNet's normalisation for three channels, 0.5 and 0.5 for other numbers."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if channels != len(mean):
        mean, std = (0.5,) * channels, (0.5,) * channels  # type: ignore[assignment]
    return ModelCard((channels, size, size), mean, std, classes)
