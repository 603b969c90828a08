"""A small residual network for tests of student losses."""

from __future__ import annotations

import torch
from torch import nn

from dfqbench.models.cifar import BasicBlock


def residual_network(classes: int = 4, channels: int = 3) -> nn.Sequential:
    """Two residual blocks, the second with a convolution in its shortcut; frozen, in eval mode, channels-last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            BasicBlock(8, 8, 1, "A"),
            BasicBlock(8, 12, 2, "B"),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, classes),
        )
        network.train()
        with torch.no_grad():
            for _ in range(20):
                network(torch.randn(32, channels, 8, 8))
    return network.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)
