from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dfqbench.api import Batch
from dfqbench.quantizers.distill_losses import interpolate, kd_loss


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def _softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(v / temperature) for v in row]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_kd_loss_is_the_formula(reduction: str, temperature: float) -> None:
    teacher, student = _random(3, 5), _random(3, 5, seed=1)
    total = 0.0
    for z_p, z_q in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = _softmax(z_p, temperature), _softmax(z_q, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = temperature**2 * total / (15 if reduction == "mean" else 3)
    assert float(kd_loss(teacher, student, temperature, reduction)) == pytest.approx(expected)  # type: ignore[arg-type]


def test_losses_vanish_where_logits_agree_and_have_gradients() -> None:
    teacher, student = _random(3, 5), _random(3, 5, seed=1).requires_grad_()
    assert float(kd_loss(teacher, teacher, 20.0)) == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: kd_loss(teacher, z, 20.0), (student,))


def test_one_class() -> None:
    assert float(kd_loss(torch.ones(2, 1), torch.zeros(2, 1), 20.0)) == 0.0


@pytest.mark.parametrize("soft", [False, True])
def test_interpolation_mixes_images_and_labels_alike(soft: bool) -> None:
    # Each image holds its own one-hot code, so that a mixture tells its ingredients and their shares.
    count = 8
    codes = torch.eye(count)
    images = codes.view(count, count, 1, 1).expand(count, count, 2, 2)
    labels = codes if soft else torch.arange(count)
    mixed = interpolate(Batch(images, labels, torch.ones(count, 3)), count, torch.Generator().manual_seed(0))
    assert mixed.teacher_logits is None
    assert mixed.labels is not None
    torch.testing.assert_close(mixed.images[:, :, 0, 0], mixed.labels)
    torch.testing.assert_close(mixed.labels.sum(1), torch.ones(count))
    assert ((mixed.labels > 0).sum(1) <= 2).all()
    assert ((mixed.labels > 0).sum(1) == 2).any()


def test_interpolation_without_labels() -> None:
    mixed = interpolate(Batch(torch.randn(4, 3, 2, 2)), 10, torch.Generator().manual_seed(0))
    assert mixed.labels is None
    assert mixed.images.shape == (4, 3, 2, 2)
