from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch

from dfqbench.api import InputStats, ModelCard
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_network
from dfqbench_methods.noise.plugin import Noise, NoiseParams, Uniform, UniformParams
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


def _uniform(card: ModelCard, count: int) -> NoiseSource:
    method = Uniform(UniformParams(images=count))
    return cast("NoiseSource", method.synthesize(toy_network(), ToyContext(card=card)))


def test_uniform_pixels_reach_from_black_to_white() -> None:
    card = ModelCard((3, 32, 32), (0.5, 0.4, 0.3), (0.5, 0.25, 0.2), 10)
    source = _uniform(card, 200)
    batch = source.sample(200)
    assert (len(source), batch.labels) == (200, None)
    for channel, (black, white) in enumerate(zip(card.lowest, card.highest, strict=True)):
        share = (batch.images[:, channel] - black) / (white - black)
        assert torch.histc(share, 10, 0, 1).div(share.numel()).tolist() == pytest.approx([0.1] * 10, rel=0.02)
        assert share.min() >= 0
        assert share.max() <= 1


@pytest.mark.parametrize("make", [_source, _uniform])
def test_state_is_small(make: Callable[[ModelCard, int], NoiseSource]) -> None:
    source = make(toy_card(), 64)
    source.sample(10)
    state = source.state_dict()
    assert sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor)) <= 2 * 3
    expected = source.sample(64).images
    assert torch.equal(type(source).from_state(state).sample(64).images, expected)
    source.load_state_dict(state)
    assert torch.equal(source.sample(64).images, expected)
