"""A family of networks."""

from __future__ import annotations

from torch import nn

WIDTHS = {"tiny": 8, "small": 16}


def build(name: str, classes: int, in_channels: int) -> nn.Module:
    """Builds `plain:tiny` or `plain:small`.

    Args:
        name: what follows the colon.
        classes: outputs.
        in_channels: of the images.
    """
    width = WIDTHS[name]
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )
