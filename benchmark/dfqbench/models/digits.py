"""The network of the embedded target: a ResNet with 8 layers for scikit-learn's 8x8 digits."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dfqbench.models.cifar import CifarResNet


def resnet8(classes: int = 10) -> nn.Module:
    """A CIFAR ResNet with one block a stage and one input channel: 75,002 parameters, 0.75 million MACs.

    Args:
        classes: outputs.
    """
    return CifarResNet(8, classes, "A", in_channels=1)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"resnet8": resnet8}
"""What `digits:NAME` builds."""
