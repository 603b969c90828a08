"""The least that the same step can cost: bare forward and backward of the same networks, nothing else.

Channels-last, and under the precision of the measured step: with bfloat16 everything in autocast, the copy of the
network that stands for the student included. No statistics, losses, quantizers, optimizers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dfqbench.api import Precision
from dfqbench.synth import Generator
from dfqbench.testing.bench.networks import Shape
from dfqbench.testing.bench.textbook import CHAINS, Step


def _forward(network: Callable[..., Tensor], precision: Precision, *args: Tensor) -> Tensor:
    with torch.autocast(args[0].device.type, torch.bfloat16, enabled=precision.bfloat16):
        return network(*args).float()


def _twins(shape: Shape) -> tuple[nn.Module, nn.Module]:
    """The frozen network, and a copy whose parameters train."""
    teacher = shape.teacher().to(memory_format=torch.channels_last)
    return teacher, copy.deepcopy(teacher).requires_grad_(requires_grad=True)


def generator_step(shape: Shape, precision: Precision) -> Step:
    """Generator and teacher forward and backward, then the student's network forward and backward."""
    teacher, copied = _twins(shape)
    generator = Generator(
        shape.card.input_size,
        shape.card.classes,
        embedding=shape.card.input_size[1] <= 64,
        sub_pixel=precision.rearranges,
    ).to(shape.device)
    noise = torch.randn(shape.batch, 100, device=shape.device)
    labels = torch.arange(shape.batch, device=shape.device) % shape.card.classes

    def step() -> None:
        generator.zero_grad()
        images = _forward(generator, precision, noise, labels)
        _forward(teacher, precision, images).sum().backward()  # type: ignore[no-untyped-call]
        copied.zero_grad()
        _forward(copied, precision, images.detach()).sum().backward()  # type: ignore[no-untyped-call]

    return step


def image_iteration(shape: Shape, precision: Precision) -> Step:
    """The teacher's forward and backward down to 64 images."""
    teacher, _ = _twins(shape)
    images = torch.randn(CHAINS, *shape.card.input_size, device=shape.device)
    images = images.to(memory_format=torch.channels_last).requires_grad_()

    def step() -> None:
        images.grad = None
        _forward(teacher, precision, images).sum().backward()  # type: ignore[no-untyped-call]

    return step


def forward(shape: Shape, images: Tensor, size: int) -> Step:
    """Bare forward passes of the full-precision network, float32 as every evaluation."""
    teacher, _ = _twins(shape)
    images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.no_grad():
            for begin in range(0, len(images), size):
                teacher(images[begin : begin + size])

    return step
