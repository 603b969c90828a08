from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqbench.run.evaluate.accuracy import accuracy, packed, percent, predict, standard_error, unpacked

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6])


class Data:
    """Seven images whose pixels are the logits."""

    n = 7
    subset = None

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 7, size):
            yield self.images[start : start + size], LABELS[start : start + size]

    def __init__(self, images: Tensor) -> None:
        self.images = images


def data(images: Tensor) -> Any:
    return Data(images.view(7, 1, 1, 8))


def test_top1_and_top5_by_hand() -> None:
    logits = torch.eye(8)[:7]
    logits[0] = torch.tensor([2.0, 3, 9, 8, 7, 6, 1, 0])  # label 0: sixth
    logits[1] = torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2])  # label 1: second
    predictions = predict(nn.Flatten(), data(logits), torch.device("cpu"))
    assert predictions.top1.tolist() == [2, 0, 2, 3, 4, 5, 6]
    assert percent(predictions.correct) == pytest.approx(100 * 5 / 7)
    assert percent(predictions.correct5) == pytest.approx(100 * 6 / 7)


def test_logits_with_nan_are_never_correct() -> None:
    logits = torch.eye(8)[:7]
    logits[3, 0] = float("nan")
    predictions = predict(nn.Flatten(), data(logits), torch.device("cpu"))
    assert predictions.correct.tolist() == [True, True, True, False, True, True, True]
    assert not predictions.correct5[3]


def test_agreement_counts_equal_predictions_right_or_wrong() -> None:
    teacher = predict(nn.Flatten(), data(torch.eye(8)[:7]), torch.device("cpu"))
    logits = torch.eye(8)[:7]
    logits[6] = torch.eye(8)[0]
    logits[5] = torch.eye(8)[0]
    student = predict(nn.Flatten(), data(logits), torch.device("cpu"))
    result = accuracy(student, teacher, data(logits))
    assert result["agreement"] == pytest.approx(100 * 5 / 7)
    assert result["drop"] == pytest.approx(100 * 2 / 7)
    assert result["fp_top1"] == 100.0
    assert unpacked(result["correct"], 7).tolist() == student.correct.tolist()


def test_packed_flags_are_unpacked() -> None:
    flags = torch.rand(1300, generator=torch.Generator().manual_seed(0)) < 0.3
    text = packed(flags.numpy())
    assert unpacked(text, 1300).tolist() == flags.tolist()
    assert len(text) < 1300 / 8 * 1.4


def test_standard_error() -> None:
    assert standard_error(70.0, 50_000) == pytest.approx(100 * math.sqrt(0.7 * 0.3 / 50_000))
    assert standard_error(100.0, 10) == 0.0
