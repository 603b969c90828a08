"""Differentiable augmentation: random resized crops and flips on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

RATIO = (3 / 4, 4 / 3)
"""Range of a crop's aspect ratio (torchvision's RandomResizedCrop)."""


def random_boxes(count: int, scale: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw boxes as torchvision's RandomResizedCrop does, in units of the image.

    Area ~ U(scale, 1), log of the aspect ratio ~ U(log 3/4, log 4/3), clipped to the image, position uniform.

    Returns:
        Sizes (count, 2) as (width, height) in (0, 1], and offsets (count, 2) of the upper left corner.
    """
    u = torch.rand((count, 4), generator=random, device=random.device)
    area = scale + (1 - scale) * u[:, 0]
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    root = torch.exp(0.5 * (low + (high - low) * u[:, 1]))
    side = area.sqrt()
    sizes = torch.stack((side * root, side / root), 1).clamp_max(1.0)
    return sizes, (1 - sizes) * u[:, 2:]


def crop_and_flip(images: Tensor, scale: float, random: torch.Generator) -> Tensor:
    """Resize a random crop of each image (N, C, H, W) to the image's size, bilinearly, and mirror half of them.

    The gradient passes; the result is channels-last. `scale` is the smallest share of the area that a crop keeps.
    """
    count = len(images)
    sizes, offsets = random_boxes(count, scale, random)
    mirror = torch.rand(count, generator=random, device=random.device) < 0.5
    # affine_grid's coordinates run from -1 to 1: x_in = size * x_out + centre.
    centre = 2 * offsets + sizes - 1
    zero = torch.zeros_like(mirror, dtype=images.dtype)
    along_x = torch.stack((torch.where(mirror, -sizes[:, 0], sizes[:, 0]), zero, centre[:, 0]), 1)
    along_y = torch.stack((zero, sizes[:, 1], centre[:, 1]), 1)
    matrices = torch.stack((along_x, along_y), 1).to(images.dtype)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cropped.contiguous(memory_format=torch.channels_last)
