"""ResNets for small images (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dfqbench.api.errors import InputError

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the new channels; no parameters.

    Args:
        channels: channels of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, channels, ceil(H/2), ceil(W/2))."""
        missing = self.channels - x.shape[1]
        before = missing // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, missing - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Every activation function is a module of its own, so that each place where activations are quantized is visible.

    Args:
        inputs: channels of the input.
        channels: channels of the output.
        stride: stride of the first convolution.
        shortcut: how the shortcut changes shape.
    """

    def __init__(self, inputs: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != channels:
            self.shortcut = (
                PadShortcut(channels)
                if shortcut == "A"
                else nn.Sequential(
                    nn.Conv2d(inputs, channels, 1, stride, bias=False),
                    nn.BatchNorm2d(channels),
                )
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) to (N, channels, H/stride, W/stride)."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu2(out + self.shortcut(x))
        return result


class CifarResNet(nn.Module):
    """A ResNet with three stages of 16, 32 and 64 channels.

    Args:
        depth: layers with weights, 6n + 2.
        classes: outputs.
        shortcut: `A` (strided slice and zero channels) or `B` (1x1 convolution and BatchNorm) where shapes change.
        in_channels: channels of the input.

    Raises:
        InputError: the depth is not 6n + 2, or the shortcut is neither A nor B.
    """

    def __init__(self, depth: int, classes: int = 10, shortcut: Shortcut = "A", in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"a CIFAR ResNet cannot have {depth} layers", "use 20, 32, 44, 56 or 110")
        if shortcut not in ("A", "B"):
            raise InputError(f"unknown shortcut '{shortcut}'", "use 'A' or 'B'")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, 1, blocks, shortcut)
        self.layer2 = _stage(16, 32, 2, blocks, shortcut)
        self.layer3 = _stage(32, 64, 2, blocks, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


def _stage(inputs: int, channels: int, stride: int, blocks: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(inputs, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1)))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    f"resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)
}
"""What `cifar:NAME` builds; keyword arguments `classes`, `shortcut`, `in_channels`."""
