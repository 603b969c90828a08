"""The networks of the embedded target, for scikit-learn's 8x8 digits: a ResNet and a small MobileNetV2."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dfqbench.models.cifar import CifarResNet

WIDTHS = (6, 12, 18)
"""Channels of the three stages of `mobilenet9`."""
EXPANSION = 4
"""How many times wider an inverted residual is inside."""


class InvertedResidual(nn.Module):
    """A 1x1, a depthwise 3x3 and a 1x1 convolution, and a skip connection where the shape stays.

    Args:
        inputs: channels of the input.
        channels: channels of the output.
        stride: stride of the depthwise convolution.
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        inside = EXPANSION * inputs
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
            *(nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
            *(nn.Conv2d(inside, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )
        self.skip = stride == 1 and inputs == channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) to (N, channels, H/stride, W/stride)."""
        out: Tensor = self.body(x)
        return x + out if self.skip else out


def resnet8(classes: int = 10) -> nn.Module:
    """A CIFAR ResNet with one block a stage and one input channel: 75,002 parameters, 0.75 million MACs.

    Args:
        classes: outputs.
    """
    return CifarResNet(8, classes, "A", in_channels=1)


def mobilenet9(classes: int = 10) -> nn.Module:
    """A MobileNetV2 (Sandler et al. 2018) with nine inverted residuals and ReLU: 15,688 parameters.

    ReLU, not ReLU6, and these widths: see `tools/train_digits.py`.

    Args:
        classes: outputs.
    """
    channels = WIDTHS[0]
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    for stage, width in enumerate(WIDTHS):
        for block in range(3):
            layers.append(InvertedResidual(channels, width, 2 if stage and not block else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"resnet8": resnet8, "mobilenet9": mobilenet9}
"""What `digits:NAME` builds."""
