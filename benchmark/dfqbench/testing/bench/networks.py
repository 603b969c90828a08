"""Networks and shapes of the bench: what a CIFAR and an ImageNet cell of the field runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dfqbench.api import ModelCard
from dfqbench.models.cifar import CifarResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of the bench.

    Attributes:
        name: for the table.
        card: input size and classes.
        batch: images of a generator step, as published.
        rounds: measured rounds.
        device: where it is computed.
    """

    name: str
    card: ModelCard
    batch: int
    rounds: int
    device: str = "cpu"

    def teacher(self) -> nn.Module:
        """ResNet-20 or ResNet-18 with random weights and statistics of noise, frozen, in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            small = self.card.input_size[1] <= 64
            network = CifarResNet(20, 10, "A") if small else _resnet18()
            network.train()
            with torch.no_grad():
                network(torch.randn(8, *self.card.input_size))
        return network.eval().requires_grad_(requires_grad=False).to(self.device)


def _resnet18() -> nn.Module:
    from torchvision.models import resnet18

    network: nn.Module = resnet18()
    return network


CIFAR = Shape("CIFAR-10 ResNet-20", ModelCard((3, 32, 32), MEAN, STD, 10), 200, 5)
IMAGENET = Shape("ImageNet ResNet-18", ModelCard((3, 224, 224), MEAN, STD, 1000), 16, 3)
SHAPES = {"cifar": CIFAR, "imagenet": IMAGENET}
