from __future__ import annotations

import pytest
import torch

from dfqbench.api import InputStats, ModelCard
from dfqbench.testing.toys import toy_card
from dfqbench_methods.noise.source import NoiseSource


def test_has_the_statistics_of_the_domain() -> None:
    stats = InputStats((0.0, -0.1, 0.2), (0.5, 1.0, 1.1))
    card = ModelCard((3, 32, 32), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5), 10, stats)
    images = NoiseSource(card, seed=1).sample(200).images
    assert images.mean((0, 2, 3)).tolist() == pytest.approx(stats.mean, abs=0.02)
    assert images.std((0, 2, 3)).tolist() == pytest.approx(stats.std, rel=0.02)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_state_is_small() -> None:
    state = NoiseSource(toy_card(), seed=0).state_dict()
    assert sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor)) <= 2 * 3
