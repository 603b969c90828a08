"""Networks and data of the measured steps: those of a CIFAR and of an ImageNet cell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dfqbench.api import ModelCard
from dfqbench.models.cifar import CifarResNet

IMAGES = 64  # of a step that learns images, and of calibration


@dataclass(frozen=True, slots=True)
class Shape:
    """A network and the size of its data: an image's side in pixels, and the images of a generator's step (`batch`)."""

    side: int
    classes: int
    batch: int
    evaluated: int
    device: str = "cpu"

    @property
    def card(self) -> ModelCard:
        return ModelCard((3, self.side, self.side), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), self.classes)

    def noise(self, count: int) -> torch.Tensor:
        images = torch.randn(count, *self.card.input_size, device=self.device)
        return images.to(memory_format=torch.channels_last)

    def teacher(self) -> nn.Module:
        """Return a frozen ResNet-20 or ResNet-18 with random weights, and BatchNorm statistics of noise."""
        from torchvision.models import resnet18

        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = CifarResNet(20, self.classes, "A") if self.side <= 64 else resnet18()
            with torch.no_grad():
                network.train()(torch.randn(8, *self.card.input_size))
        network.eval().requires_grad_(requires_grad=False)
        return network.to(self.device).to(memory_format=torch.channels_last)


SHAPES = {"cifar": Shape(32, 10, 200, 2000), "imagenet": Shape(224, 1000, 16, 100)}
