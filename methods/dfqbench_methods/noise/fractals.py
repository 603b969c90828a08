"""Images of iterated function systems.

An iterated function system is a set of affine contractions f_i of the plane. It has one attractor, the set A with
A = union of f_i(A), which is a fractal (Hutchinson 1981). Points that move by a random f_i at each step soon lie on it
(the chaos game). f_i is drawn in proportion to |det f_i|, by which areas shrink, so that A is covered evenly.

After OpenVINO's calibration without data (released code): two to seven maps with uniform coefficients, a least filling,
coordinates stretched to the image. Inferred: maps that are no contraction are drawn again (there, points that diverge
are dropped); each image has a system of its own (there, one serves many images); colours (there, those of a network
that was trained on real images); no blur and no rotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dfqbench.synth import FixedSource

if TYPE_CHECKING:
    from dfqbench.api import Context
    from dfqbench_methods.noise.plugin import FractalParams

Array = NDArray[np.float32]
BURN_IN = 20
"""First steps of a point, which may be off the attractor."""
STEPS = 50
"""Further steps of a point, all drawn."""
COARSE = 64
"""Height and width of the image that the filling is measured on, in pixels."""


class System(NamedTuple):
    """An iterated function system.

    Attributes:
        maps: (M, 2, 3), f(x, y) = (a x + b y + e, c x + d y + f) as ((a, b, e), (c, d, f)).
        probabilities: (M,).
        colors: (M, C), pixels in [0, 1].
    """

    maps: Array
    probabilities: NDArray[np.float64]
    colors: Array


def make_source(ctx: Context, params: FractalParams) -> FixedSource:
    """Return a source of fractals, in the teacher's normalised input space, without labels.

    Args:
        ctx: the context of the cell; the images follow from its seed.
        params: their number, and the kind of systems.
    """
    random = np.random.default_rng(ctx.seed("fractal"))
    channels, height, width = ctx.card.input_size
    images = torch.empty(params.images, channels, height, width)
    for image in images:
        system = draw_system(random, params.maps, params.filling, channels)
        image.copy_(torch.from_numpy(draw_image(random, system, height, width, params.points)))
    black, white = (torch.tensor(values).view(-1, 1, 1) for values in (ctx.card.lowest, ctx.card.highest))
    return FixedSource((black + images * (white - black)).to(ctx.device))


def draw_system(random: np.random.Generator, most: int, filling: float, channels: int) -> System:
    """Return a random system whose attractor covers at least the share `filling` of a coarse image.

    Args:
        random: generator.
        most: maps, at most; the least is 2.
        filling: from 0 to 1; systems above 0.3 are rare.
        channels: of the colors.
    """
    while True:
        maps = np.stack([_draw_contraction(random) for _ in range(random.integers(2, most + 1))])
        (a, b, _), (c, d, _) = maps.transpose(1, 2, 0)
        areas = np.abs(a * d - b * c)
        system = System(maps.astype(np.float32), areas / areas.sum(), random.random((len(maps), channels), np.float32))
        points, _ = orbit(random, system, 4 * COARSE**2)
        if len(np.unique(pixels(points, COARSE, COARSE))) >= filling * COARSE**2:
            return system


def _draw_contraction(random: np.random.Generator) -> NDArray[np.float64]:
    """Return an affine map (2, 3) with coefficients from U(-1, 1) whose linear part has a spectral norm below 1."""
    while True:
        coefficients = random.uniform(-1, 1, (2, 3))
        if np.linalg.norm(coefficients[:, :2], 2) < 1:
            return coefficients


def orbit(random: np.random.Generator, system: System, count: int) -> tuple[Array, Array]:
    """Play the chaos game.

    The color of a point is the mean of its last color and that of the map just drawn, so that parts of the attractor
    have colors of their own.

    Args:
        random: generator.
        system: M maps with C channels.
        count: of points, rounded up to a multiple of `STEPS`.

    Returns:
        Points (2, count), x and y, and their colors (C, count).
    """
    walkers = -(-count // STEPS)
    (a, b, e), (c, d, f) = system.maps.transpose(1, 2, 0)
    colors = system.colors.T
    bounds = system.probabilities.cumsum()[:-1].astype(np.float32)
    points = np.empty((2, STEPS, walkers), np.float32)
    drawn = np.empty((len(colors), STEPS, walkers), np.float32)
    x = y = np.zeros(walkers, np.float32)
    color = np.zeros((len(colors), walkers), np.float32)
    for step in range(-BURN_IN, STEPS):
        i = np.searchsorted(bounds, random.random(walkers, np.float32))
        x, y = a[i] * x + b[i] * y + e[i], c[i] * x + d[i] * y + f[i]
        color = np.float32(0.5) * (color + colors[:, i])
        if step >= 0:
            points[:, step], drawn[:, step] = (x, y), color
    return points.reshape(2, -1), drawn.reshape(len(colors), -1)


def pixels(points: Array, height: int, width: int) -> NDArray[np.int64]:
    """Return the pixel of each point (2, N), from 0 to height * width - 1; the points' extent is the image's."""
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    size = np.array([[width], [height]])
    column, row = np.minimum(((points - low) / (high - low) * size).astype(np.int64), size - 1)
    pixel: NDArray[np.int64] = row * width + column
    return pixel


def draw_image(random: np.random.Generator, system: System, height: int, width: int, points: int) -> Array:
    """Return the attractor on a background of one random color.

    A pixel with n points has their mean color with the opacity log(1 + n) / log(1 + largest n).

    Args:
        random: generator.
        system: the system.
        height: of the image, in pixels.
        width: of the image.
        points: for each pixel, on average.

    Returns:
        (C, height, width), pixels in [0, 1].
    """
    size = height * width
    positions, colors = orbit(random, system, points * size)
    at = pixels(positions, height, width)
    count = np.bincount(at, minlength=size)
    color = np.stack([np.bincount(at, channel, size) for channel in colors]) / np.maximum(count, 1)
    opacity = np.log1p(count) / np.log1p(count.max())
    background = random.random((len(colors), 1))
    image: Array = (opacity * color + (1 - opacity) * background).astype(np.float32)
    return image.reshape(-1, height, width)
