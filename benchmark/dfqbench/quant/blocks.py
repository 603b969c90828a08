"""A student's BatchNorm with the residual, the ReLU and the rounding that follow it: one pass over the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqbench.native import passes
from dfqbench.quant.fake import grid_ends
from dfqbench.quant.frozen import FrozenBatchNorm2d
from dfqbench.quant.grid_conv import on_grid
from dfqbench.quant.quantizers import ActivationQuantizer
from dfqbench.quant.tail import replace_tail, tail_of
from dfqbench.quant.trace import is_hooked


def join_blocks(traced: fx.GraphModule) -> None:
    """Makes one call, in place, of each BatchNorm layer and what follows it, up to the quantizer that stands for ReLU.

    The modules stay where they are, under their names.
    """
    for norm in list(traced.graph.nodes):
        if not isinstance(_module(traced, norm), FrozenBatchNorm2d):
            continue
        tail = tail_of(traced, norm)
        if tail is not None and _rounds_and_rectifies(traced, tail.last) and _is_undisturbed(norm, tail.last):
            with traced.graph.inserting_before(tail.last):
                parts = [traced.graph.get_attr(str(node.target)) for node in (norm, tail.last)]
                block = traced.graph.call_function(block_output, (*parts, norm.args[0], tail.residual))
            replace_tail(traced, norm, tail, block)
    traced.graph.lint()
    traced.recompile()


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _rounds_and_rectifies(traced: fx.GraphModule, node: fx.Node) -> bool:
    quantizer = _module(traced, node)
    if not isinstance(quantizer, ActivationQuantizer):
        return False
    return quantizer.rectifies and quantizer.operand.rounding == "integral_shift"


def _is_undisturbed(norm: fx.Node, last: fx.Node) -> bool:
    """Whether what the layer takes is read by it alone, and nothing but the addition comes between sum and rounding.

    Computed where the rounding stands, the block then reads what the layer and the addition would have read.
    """
    taken = norm.args[0]
    before = last.args[0]
    return isinstance(taken, fx.Node) and len(taken.users) == 1 and before is last.prev


def block_output(
    layer: FrozenBatchNorm2d, quantizer: ActivationQuantizer, x: Tensor, residual: Tensor | None = None
) -> Tensor:
    """quantizer(layer(x) + residual), by the compiled passes where a gradient is asked for and nobody listens.

    Values are equal up to rounding (a number half-way between two points of the grid may fall to the other one).

    Args:
        layer: takes x.
        quantizer: stands for ReLU, too.
        x: (N, C, H, W).
        residual: as `x`.
    """
    if not _can_join(layer, quantizer, x, residual):
        out = layer(x)
        rounded: Tensor = quantizer(out if residual is None else out + residual)
        return rounded
    codes = torch.empty_like(x, dtype=torch.bfloat16) if quantizer.keep_codes else None
    grid = (quantizer.scale, quantizer.shift, *grid_ends(quantizer.bits))
    found: Tensor = _RoundedBlock.apply(x, residual, layer.weight, layer.bias, _Fixed(*layer.frozen(), grid, codes))
    return on_grid(found, quantizer.scale, codes)


def _can_join(layer: FrozenBatchNorm2d, quantizer: ActivationQuantizer, x: Tensor, residual: Tensor | None) -> bool:
    return (
        torch.is_grad_enabled()
        and quantizer.rule is None
        and x.dtype == torch.float32
        and layer.can_join(x)
        and (residual is None or (residual.shape == x.shape and residual.dtype == x.dtype))
        and not any(is_hooked(module) or "forward" in vars(module) for module in (layer, quantizer))
    )


@dataclass(frozen=True, slots=True)
class _Fixed:
    """What has no gradient: running mean, one over the running deviation, the grid, and room for its integers."""

    mean: Tensor
    inverse: Tensor
    grid: passes.Grid
    codes: Tensor | None


class _RoundedBlock(torch.autograd.Function):
    """Rounds BatchNorm(x) + residual; the gradient is that of ReLU before, whose clamped elements pass too."""

    @staticmethod
    def forward(  # noqa: PLR0917 - apply takes no keywords
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, fixed: _Fixed
    ) -> Tensor:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        scale = weight * fixed.inverse
        shift = torch.addcmul(bias, fixed.mean, scale, value=-1)
        ctx.save_for_backward(x, residual, scale, shift, fixed.mean, fixed.inverse)
        return passes.rounded_block(x, (scale, shift), fixed.grid, residual=residual, codes=fixed.codes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, scale, shift, mean, inverse = ctx.saved_tensors
        to_x, to_residual, of_slope, to_shift = passes.affine_backward(
            x, grads[0], (scale, shift), mean, residual=residual, ceiling=torch.inf
        )
        return to_x, to_residual, of_slope * inverse, to_shift, None
