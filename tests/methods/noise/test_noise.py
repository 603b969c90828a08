from __future__ import annotations

from typing import cast

import pytest
import torch

from dfqbench.api import InputStats, ModelCard
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_network
from dfqbench_methods.noise.plugin import Noise, NoiseParams
from dfqbench_methods.noise.source import NoiseSource


def _source(card: ModelCard, count: int) -> NoiseSource:
    method = Noise(NoiseParams(images=count))
    return cast("NoiseSource", method.synthesize(toy_network(), ToyContext(card=card)))


def test_has_the_statistics_of_the_domain() -> None:
    stats = InputStats((0.0, -0.1, 0.2), (0.5, 1.0, 1.1))
    source = _source(ModelCard((3, 32, 32), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5), 10, stats), 200)
    images = source.sample(200).images
    assert len(source) == 200
    assert images.mean((0, 2, 3)).tolist() == pytest.approx(stats.mean, abs=0.02)
    assert images.std((0, 2, 3)).tolist() == pytest.approx(stats.std, rel=0.02)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_state_is_small() -> None:
    state = _source(toy_card(), 64).state_dict()
    assert sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor)) <= 2 * 3
    assert torch.equal(NoiseSource.from_state(state).images, _source(toy_card(), 64).images)
