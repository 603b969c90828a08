"""The compiled passes over the phases of an upsampled convolution (see `synth.upsampling`) as functions of tensors.

Phases are (N, 4 C, H + 1, W + 1) and fit (`passes.fits`); the map that they are woven to is (N, C, 2 H, 2 W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfqbench.native import binding
from dfqbench.native.passes import Affine, for_samples, like, plain


def moments(phases: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (N, C), float32, of the woven map."""
    _check(phases, None)
    channels = phases.shape[1] // 4
    mean, var = for_samples(phases, channels), for_samples(phases, channels)
    _call("moments", phases, phases, mean, var)
    return mean, var


def forward(phases: Tensor, affine: Affine, slope: float) -> Tensor:
    """The woven map of leaky(scale x + shift), in the type of the phases.

    Args:
        phases: x.
        affine: scale and shift (N, C).
        slope: of negative numbers.
    """
    _check(phases, None, affine)
    out = torch.empty(_place(phases), dtype=phases.dtype, device=phases.device, memory_format=torch.channels_last)
    _call("forward", phases, phases, *map(plain, affine), out, number=slope)
    return out


def sums(phases: Tensor, grad: Tensor, affine: Affine, centre: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """With g the gradient before the activation: sums over positions of g (x - centre) and of g, (N, C).

    Args:
        phases: x, as given to `forward`.
        grad: gradient at its output.
        affine: as given to it.
        centre: (C,).
        slope: as given to it.
    """
    _check(phases, grad, affine, (centre,))
    channels = phases.shape[1] // 4
    to_scale, to_shift = for_samples(phases, channels), for_samples(phases, channels)
    tensors = (phases, like(grad, phases), *map(plain, affine), plain(centre), to_scale, to_shift)
    _call("sums", phases, *tensors, number=slope)
    return to_scale, to_shift


def backward(phases: Tensor, grad: Tensor, affine: Affine, to_moments: Affine, slope: float) -> Tensor:
    """The gradient in the phases; 0 where they have no place in the woven map.

    Args:
        phases: x, as given to `forward`.
        grad: gradient at its output.
        affine: as given to it.
        to_moments: incline and offset (C,); incline x + offset is the gradient of the batch's moments.
        slope: as given to it.
    """
    _check(phases, grad, affine, to_moments)
    out = torch.empty_like(phases)
    tensors = (phases, like(grad, phases), *map(plain, affine), *map(plain, to_moments), out)
    _call("backward", phases, *tensors, number=slope)
    return out


def _place(phases: Tensor) -> tuple[int, int, int, int]:
    samples, channels, height, width = phases.shape
    return samples, channels // 4, 2 * (height - 1), 2 * (width - 1)


def _check(
    phases: Tensor, grad: Tensor | None, of_samples: tuple[Tensor, ...] = (), of_channels: tuple[Tensor, ...] = ()
) -> None:
    """Nothing is read beyond its end.

    Raises:
        ValueError: an operand has another size than the woven map.
    """
    samples, channels, height, width = _place(phases)
    fit = phases.shape[1] == 4 * channels and height > 0 and width > 0
    fit &= grad is None or grad.shape == (samples, channels, height, width)
    fit &= all(one.numel() == samples * channels for one in of_samples)
    fit &= all(one.numel() == channels for one in of_channels)
    if not fit:
        raise ValueError(f"an operand does not fit phases of shape {tuple(phases.shape)}")


def _call(name: str, phases: Tensor, *tensors: Tensor, number: float | None = None) -> None:
    samples, channels, height, width = phases.shape
    more = () if number is None else (number,)
    name = f"woven_{name}_{binding.TYPES[phases.dtype]}"
    binding.call(name, tensors, samples, height - 1, width - 1, channels // 4, *more)
