from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqbench.api import InputStats
from dfqbench.synth import ClassBatchNorm, Generator


def _make(size: tuple[int, int, int], embedding: bool = True, **options: Any) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(size, 5, latent=10, embedding=embedding, **options)


def _draw(count: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn((count, 10), generator=random), torch.randint(0, 5, (count,), generator=random)


@pytest.mark.parametrize("embedding", [True, False])
@pytest.mark.parametrize("size", [(3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 30, 33), (1, 2, 3), (3, 75, 75)])
def test_any_size_with_normalised_output(size: tuple[int, int, int], embedding: bool) -> None:
    images = _make(size, embedding)(*_draw(6))
    assert images.shape == (6, *size)
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(size[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.var((0, 2, 3), correction=0), torch.ones(size[0]), atol=0.05, rtol=0)


@pytest.mark.parametrize("embedding", [True, False])
def test_equals_the_textbook_network(embedding: bool) -> None:
    # The published layers as a plain sequence in the default memory format, weights copied over.
    ours = _make((3, 16, 16), embedding)
    noise, labels = _draw(4)
    base, width = 4, 128
    linear = nn.Linear(10, width * base * base)
    with torch.no_grad():
        # Channels-last order of the linear layer's outputs is a renaming of the channels-first one.
        order = torch.arange(width * base * base).view(base, base, width).permute(2, 0, 1).reshape(-1)
        linear.weight.copy_(ours.linear.weight[order])
        linear.bias.copy_(ours.linear.bias[order])

    def norm(layer: nn.Module, x: Tensor, eps: float) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / torch.sqrt(var + eps)
        if isinstance(layer, ClassBatchNorm):
            return x * layer.scale.weight[labels][..., None, None] + layer.shift.weight[labels][..., None, None]
        inner = layer.get_submodule("norm")
        return x * inner.get_parameter("weight").view(1, -1, 1, 1) + inner.get_parameter("bias").view(1, -1, 1, 1)

    vector = noise if ours.embedding is None else ours.embedding.weight[labels] * noise
    x = linear(vector).view(-1, width, base, base)
    x = norm(ours.norm1, x, 1e-5)
    for conv, layer in ((ours.conv1, ours.norm2), (ours.conv2, ours.norm3)):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = norm(layer, nn.functional.conv2d(x, conv.weight.contiguous(), conv.bias, padding=1), 0.8)
        x = torch.where(x > 0, x, 0.2 * x)
    x = torch.tanh(nn.functional.conv2d(x, ours.conv3.weight.contiguous(), ours.conv3.bias, padding=1))
    x = (x - x.mean((0, 2, 3), keepdim=True)) / torch.sqrt(x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5)
    torch.testing.assert_close(ours(noise, labels), x, atol=2e-5, rtol=1e-4)


def test_class_batchnorm_starts_as_plain_and_separates_classes() -> None:
    layer = ClassBatchNorm(4, 3)
    x = torch.randn((6, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    plain = nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(layer(x, labels), plain)
    with torch.no_grad():
        layer.shift.weight[2] = 7.0
    moved = layer(x, labels) - plain
    assert torch.equal(moved.abs().amax((1, 2, 3)) > 1, labels == 2)


@pytest.mark.parametrize("embedding", [True, False])
def test_no_pass_changes_a_buffer_and_modes_agree(embedding: bool) -> None:
    generator = _make((3, 8, 8), embedding)
    before = {name: value.clone() for name, value in generator.named_buffers()}
    trained = generator.train()(*_draw(4))
    assert torch.equal(trained, generator.eval()(*_draw(4)))
    assert all(torch.equal(value, before[name]) for name, value in generator.named_buffers())


def test_output_takes_the_cards_statistics() -> None:
    stats = InputStats((0.5, -1.0, 0.0), (2.0, 0.5, 1.0))
    images = _make((3, 8, 8), stats=stats)(*_draw(32))
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor(stats.mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.tensor(stats.std), atol=0.02, rtol=0.02)


def test_labels_and_extra_condition_matter() -> None:
    generator = _make((3, 8, 8), True, extra=2)
    noise, labels = _draw(4)
    centre = torch.zeros(4, 2)
    images = generator(noise, labels, centre)
    assert not torch.equal(images, generator(noise, (labels + 1) % 5, centre))
    assert not torch.equal(images, generator(noise, labels, centre + 0.5))
