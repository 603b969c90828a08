from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqbench.api import ModelCard
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.noise.fractals import System, draw_image, draw_system, orbit, pixels
from dfqbench_methods.noise.plugin import Fractal, FractalParams

SIERPINSKI = System(
    np.array([[[0.5, 0, x], [0, 0.5, y]] for x, y in ((0, 0), (0.5, 0), (0, 0.5))], np.float32),
    np.full(3, 1 / 3),
    np.eye(3, dtype=np.float32),
)
"""Its attractor is the set of points whose binary digits of x and y are nowhere both 1."""
CARD = ModelCard((3, 32, 32), (0.5, 0.4, 0.3), (0.5, 0.25, 0.2), 10)


def _images(count: int, seed: int = 0, card: ModelCard = CARD) -> Tensor:
    source = Fractal(FractalParams(images=count)).synthesize(toy_network(), ToyContext(card=card, root_seed=seed))
    batch = source.sample(count)
    assert batch.labels is None
    return batch.images


def test_points_lie_on_the_attractor_and_have_the_colors_of_its_parts() -> None:
    points, colors = orbit(np.random.default_rng(0), SIERPINSKI, 2000)
    assert points.shape == (2, 2000)
    column, row = (points * 2**12).astype(int)
    assert not (column & row).any()
    # The corner of each map has the color of that map.
    for corner, part in (((0, 0), 0), ((1, 0), 1), ((0, 1), 2)):
        near = np.abs(points - np.array(corner)[:, None]).sum(0) < 0.1
        assert (colors[:, near].argmax(0) == part).all()


def test_image_shows_the_attractor_on_a_plain_background() -> None:
    image = draw_image(np.random.default_rng(0), SIERPINSKI, 16, 16, points=100)
    assert (image.min() >= 0, image.max() <= 1) == (True, True)
    background = image[:, -1, -1]
    shown = (image != background[:, None, None]).any(0)
    row, column = np.indices((16, 16))
    assert not shown[row + column >= 17].any()  # beyond the triangle
    assert not shown[6, 6]  # in its largest hole
    assert shown[:, 0].all()
    assert shown[0].all()


def test_systems_are_contractions_that_fill_a_share_of_the_image() -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        system = draw_system(random, 4, 0.25, 3)
        assert 2 <= len(system.maps) <= 4
        assert (np.linalg.norm(system.maps[:, :, :2], 2, axis=(1, 2)) < 1).all()
        areas = np.abs(np.linalg.det(system.maps[:, :, :2]))
        assert system.probabilities == pytest.approx(areas / areas.sum(), rel=1e-5)
        covered = np.unique(pixels(orbit(random, system, 4 * 64**2)[0], 64, 64))
        assert len(covered) >= 0.22 * 64**2  # of another orbit


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 32, 48)])
def test_images_lie_between_black_and_white(size: tuple[int, int, int]) -> None:
    card = ModelCard(size, CARD.mean[: size[0]], CARD.std[: size[0]], 10)
    images = _images(6, card=card)
    assert images.shape == (6, *size)
    for channel, (black, white) in enumerate(zip(card.lowest, card.highest, strict=True)):
        assert black <= images[:, channel].min()
        assert images[:, channel].max() <= white
    assert (images.std((2, 3)) > 0).all()


def test_images_differ_and_follow_from_the_seed() -> None:
    images = _images(8)
    assert len({image.numpy().tobytes() for image in images}) == 8
    assert torch.equal(images, _images(8))
    assert not torch.equal(images, _images(8, seed=1))
