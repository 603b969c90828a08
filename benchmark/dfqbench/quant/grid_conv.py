"""Convolutions of a student in training, on the integers of its grids.

Quantized operands are integers over a scale: x = n / S. bfloat16 holds integers up to 256 exactly, so a convolution in
bfloat16 multiplies the grid's integers without rounding any operand; sums are accumulated in float32, and only the
result and the gradients are rounded to bfloat16 (not even the result where the kernels for GPUs compute it). In float32
arithmetic the same products would cost several times as much on hardware made for bfloat16. Evaluation never comes
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dfqbench.api.numerics import chunks
from dfqbench.native import convolve, passes

NOTE = "_dfqbench_grid"
"""Attribute of a quantized tensor: its `Grid`."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is known of a quantized tensor x.

    Attributes:
        scale: S: S x are integers. 0-d, or (out, 1, ...) for a weight with a range for each output channel.
        codes: these integers in bfloat16, where they are at hand.
    """

    scale: Tensor
    codes: Tensor | None

    def integers(self, x: Tensor) -> Tensor:
        """S x in bfloat16."""
        # Rounding to bfloat16 also takes off what float32's division left of S x beside the integer.
        return (x.detach() * self.scale).to(torch.bfloat16) if self.codes is None else self.codes


def on_grid(x: Tensor, scale: Tensor, codes: Tensor | None = None) -> Tensor:
    """Notes on a quantized tensor which grid it is on.

    Args:
        x: any shape.
        scale: S, broadcastable to `x`.
        codes: S x in bfloat16, where at hand.

    Returns:
        `x` itself.
    """
    setattr(x, NOTE, Grid(scale, codes))
    return x


class GridConvolutions(TorchFunctionMode):
    """Within it, 2-d convolutions whose input and weight are on known grids are computed on the integers.

    Everything else, a convolution of the network's float input for one, is computed as ever.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7 and not isinstance(args[4], str):
            x, weight, bias, *numbers = args
            x_grid, w_grid = getattr(x, NOTE, None), getattr(weight, NOTE, None)
            if x_grid is not None and w_grid is not None:
                found = _GridConv.apply(x, weight, (x_grid, w_grid), numbers)
                return found if bias is None else found + bias.view(-1, 1, 1)
        return func(*args, **(kwargs or {}))


class _GridConv(torch.autograd.Function):
    """conv(n_x, n_w) / (S_x S_w), with n_x = S_x x and n_w = S_w w in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, grids: tuple[Grid, Grid], numbers: Any) -> Tensor:
        x_grid, w_grid = grids
        x_codes, w_codes = x_grid.integers(x), w_grid.integers(weight)
        unit, inner, ratio = _units(x_grid.scale, w_grid.scale)
        ctx.save_for_backward(x_codes, w_codes, inner, ratio)
        ctx.numbers = numbers
        if convolve.fits(x_codes, w_codes, numbers):
            return convolve.convolved(x_codes, w_codes, factor=unit, dtype=torch.float32)
        stride, padding, dilation, groups = numbers
        found = torch.conv2d(x_codes, w_codes, None, stride, padding, dilation, groups)
        return _scaled(found, unit.view(1, -1, 1, 1), torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_codes, w_codes, factor, ratio = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.numbers
        # The gradient at the convolution's sums, times S_x: then that in x needs no further pass.
        inner = _scaled(grads[0], factor.view(1, -1, 1, 1), torch.bfloat16)
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        if convolve.fits(x_codes, w_codes, ctx.numbers):
            found = convolve.gradients(inner, x_codes, w_codes, wanted[:2], dtype=torch.float32, factor=ratio)
            return *found, None, None
        to_x, to_w, _ = torch.ops.aten.convolution_backward(
            inner, x_codes, w_codes, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        grad_x = to_x.to(torch.float32) if wanted[0] else None
        grad_w = to_w * ratio.view(-1, 1, 1, 1) if wanted[1] else None
        return grad_x, grad_w, None, None


def _units(x_scale: Tensor, w_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 / (S_x S_w), that times S_x, and S_w / S_x; (out,) or (1,) each."""
    if passes.fits_affine(x_scale, w_scale):
        return passes.units(x_scale, w_scale)
    w_scale = w_scale.flatten()
    unit = (x_scale * w_scale).reciprocal()
    return unit, unit * x_scale, w_scale / x_scale


def _scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Product with a factor (1, C, 1, 1), computed in float32, as another type."""
    if passes.fits(x):
        return passes.scaled(x, factor, dtype)
    out = torch.empty_like(x, dtype=dtype)
    for part in chunks(x):
        if dtype == torch.float32:
            out[part].copy_(x[part]).mul_(factor)
        else:
            out[part] = x[part] * factor
    return out
