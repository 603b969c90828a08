"""REx: a weight as a sum of quantized terms, each of which rounds what the terms before leave (methods.md 9.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from dfqbench.quant import Student
from dfqbench.quant.fake_quantize import add_residual_terms, weight_qparams
from dfqbench.quant.fake_quantize_modules import FakeQuantizeWeight
from dfqbench.quant.scheme import Granularity

RESOLUTION = 2.0**-18
"""Smallest step size of a term, relative to the largest weight of its range: float32 does not hold much finer ones."""


@torch.no_grad()
def expand(student: Student, terms: int, gamma: float) -> None:
    """Fix the scales of every quantized weight of a student such that it is a sum of terms.

    The first term is the weight rounded to nearest, as the student's protocol does it.

    Args:
        student: its weights stay in float, and are expanded in every forward pass.
        terms: K, the largest number of terms.
        gamma: share of the output channels that each further term covers, mean over layers, 0 to 1.
    """
    order = list(student.layers)
    layers = sorted(student.quantized_weights(), key=lambda layer: order.index(layer[0]))
    for (_, weight, quantizer), share in zip(layers, layer_shares(gamma, len(layers)), strict=True):
        quantizer.freeze(*weight_qparams(weight, quantizer.operand, quantizer.bits))
        scales = residual_scales(weight, quantizer, terms - 1, share)
        if scales.any():
            quantizer.residual_scales = scales


def layer_shares(gamma: float, layers: int) -> list[float]:
    """Return the share of output channels with a further term in each layer: it rises linearly, and its mean is gamma.

    It rises as much as 0 <= share <= 1 allows: from gamma - d to gamma + d, with d = min(gamma, 1 - gamma).
    """
    most = min(gamma, 1.0 - gamma)
    return [gamma + most * (2 * index / (layers - 1) - 1 if layers > 1 else 0.0) for index in range(layers)]


def residual_scales(weight: Tensor, quantizer: FakeQuantizeWeight, terms: int, share: float) -> Tensor:
    """Return the scale of every further term of a weight, max |remainder| / (2^(bits-1) - 1).

    Args:
        weight: in float, (out, ...).
        quantizer: rounds the weight to its first term, whose scale is fixed.
        terms: number of further terms.
        share: share of the output channels, those with the largest remainder, that each term covers, 0 to 1.

    Returns:
        (terms, out); 0 where a channel has no such term.
    """
    per_tensor = quantizer.operand.granularity is Granularity.TENSOR
    largest_weight = _largest(weight, per_tensor=per_tensor)
    rounded, channels = quantizer(weight), len(weight)
    scales = weight.new_zeros(terms, channels)
    for scale in scales:
        remainder = (weight - rounded).flatten(1)
        covered = remainder.norm(dim=1).argsort(descending=True, stable=True)[: round(share * channels)]
        largest = _largest(remainder[covered], per_tensor=per_tensor) / (2 ** (quantizer.bits - 1) - 1)
        scale[covered] = torch.where(largest > RESOLUTION * largest_weight[covered], largest, 0.0)
        rounded = add_residual_terms(weight, rounded, scale.unsqueeze(0), quantizer.bits)
    return scales


def _largest(weight: Tensor, *, per_tensor: bool) -> Tensor:
    """Return the largest magnitude in each channel of a weight (out, ...), or that of the tensor for each, (out,)."""
    largest = weight.abs().flatten(1).amax(1)
    return torch.full_like(largest, float(largest.max())) if per_tensor and len(largest) else largest
