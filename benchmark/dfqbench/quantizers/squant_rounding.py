"""SQuant's rounding (methods.md 9.1, released code): the sum of the errors stays small in each kernel and channel."""

from __future__ import annotations

import torch
from torch import Tensor

from dfqbench.quant import Student
from dfqbench.quant.fake_quantize import from_steps, in_steps, integer_range, weight_qparams


def squant_levels(steps: Tensor, lowest: int, highest: int, stages: str = "kc") -> Tensor:
    """Round a weight to integers such that the errors of each kernel, and of each output channel, cancel.

    Rounding to nearest first, q = round(t), e = q - t; a flip rounds an element to its other neighbour.

    * Stage `k`: in each kernel the round(|sum e|) elements with the largest |e| are flipped that make the sum smaller.
    * Stage `c`: the same over each output channel. After stage `k` each kernel offers one element, so that its own sum
      stays below 1: the last flip, to be taken back, if the kernel was corrected too far, else the next one in order.

    Args:
        steps: t (out, in, kernel height * width), the weight in units of the step size; a kernel of one element (a
            linear layer, a 1x1 convolution) has no stage `k`.
        lowest: the lowest integer.
        highest: the highest integer.
        stages: `k`, `c` or `kc`.

    Returns:
        The integers as floats, in the shape of `steps`.
    """
    levels = torch.round(steps)
    errors = levels - steps
    # The direction of an element's flip: +1 up, -1 down, 0 neither.
    directions = (errors < 0).float() * (steps < highest) - (errors > 0).float() * (steps > lowest)
    if "k" in stages and steps.shape[2] > 1:
        levels, errors, directions = _flip_in_kernels(levels, errors, directions)
    if "c" in stages:
        _, flips = _ranked(errors.flatten(1), directions.flatten(1))
        levels = levels + flips.view_as(levels)
    return levels.clamp(lowest, highest)


def _ranked(errors: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return each element's rank by |e| among the flips that make |sum e| smaller, and the first round(|sum e|) flips.

    Ranks count from 0 along the last dimension; -1: no such flip. Flips are +1 or -1, 0 elsewhere.
    """
    total = errors.sum(dim=-1, keepdim=True)
    useful = (directions != 0) & (directions == -total.sign())
    order = torch.where(useful, errors.abs(), -1.0).argsort(dim=-1, descending=True, stable=True)
    rank = torch.where(useful, order.argsort(dim=-1), -1)
    flipped = useful & (rank < total.abs().round())
    return rank, torch.where(flipped, directions, 0.0)


def _flip_in_kernels(levels: Tensor, errors: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run stage `k`; return integers, errors, and the direction of the flip that each kernel offers to stage `c`."""
    total = errors.sum(dim=-1, keepdim=True).abs()
    count = total.round()
    rank, flips = _ranked(errors, directions)
    too_far = (count > 0) & (count >= total)
    offered = rank == torch.where(too_far, count - 1, count)
    back_or_on = torch.where(too_far, -directions, directions)
    return levels + flips, errors + flips, torch.where(offered, back_or_on, 0.0)


@torch.no_grad()
def squant(student: Student, stages: str = "kc") -> None:
    """Set every quantized weight of a student to the levels of `squant_levels`, and fix scale and zero point."""
    for _, weight, quantizer in student.quantized_weights():
        operand, bits = quantizer.operand, quantizer.bits
        qparams = weight_qparams(weight, operand, bits)
        quantizer.freeze(*qparams)
        steps = in_steps(weight, *qparams, operand)
        kernels = steps.flatten(2) if steps.ndim > 2 else steps.unsqueeze(2)
        levels = squant_levels(kernels, *integer_range(operand, bits), stages)
        weight.copy_(from_steps(levels.view_as(steps), *qparams, operand))
