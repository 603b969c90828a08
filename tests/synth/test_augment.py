from __future__ import annotations

import pytest
import torch

from dfqbench.synth import crop_and_flip
from dfqbench.synth.augment import random_boxes


def test_boxes_lie_inside_and_keep_the_area() -> None:
    sizes, offsets = random_boxes(5000, 0.8, torch.Generator().manual_seed(0))
    assert float((sizes + offsets).max()) <= 1.0 + 1e-6
    assert float(offsets.min()) >= 0.0
    area = sizes.prod(1)
    whole = (sizes < 1).all(1)  # those that were not clipped to the image
    assert float(area[whole].min()) >= 0.8 - 1e-6
    assert float(area.min()) < 0.85
    assert float(sizes.std(0).min()) > 0.01


def test_a_crop_of_everything_is_the_image_or_its_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqbench.synth.augment.RATIO", (1.0, 1.0))
    images = torch.randn((40, 3, 6, 8), generator=torch.Generator().manual_seed(0))
    actual = crop_and_flip(images, 1.0, torch.Generator().manual_seed(1))
    kept = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(actual, images, strict=True)])
    mirrored = torch.tensor([torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(actual, images, strict=True)])
    assert (kept | mirrored).all()
    assert 5 < int(mirrored.sum()) < 35


def test_values_come_from_the_image_and_the_gradient_passes() -> None:
    images = torch.rand((6, 3, 9, 9), generator=torch.Generator().manual_seed(0)).requires_grad_()
    actual = crop_and_flip(images, 0.5, torch.Generator().manual_seed(1))
    assert actual.shape == images.shape
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert float(actual.detach().min()) >= float(images.detach().min())
    assert float(actual.detach().max()) <= float(images.detach().max())
    assert float(torch.autograd.grad(actual.sum(), images)[0].abs().sum()) > 0
    again = crop_and_flip(images, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(actual, again)
