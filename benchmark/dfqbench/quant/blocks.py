"""A student's BatchNorm with the residual, the ReLU and the rounding that follow it: one pass over the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfqbench.native import passes
from dfqbench.native.operands import unobserved
from dfqbench.quant.frozen import FrozenBatchNorm2d, affine_of
from dfqbench.quant.grid_conv import on_grid
from dfqbench.quant.quantizers import ActivationQuantizer
from dfqbench.quant.tail import Tail, in_place, replace_tail, tail_of
from dfqbench.quant.trace import WEIGHTED, called_module, is_hooked


def join_blocks(traced: fx.GraphModule) -> None:
    """Makes one call, in place, of each BatchNorm layer and what follows it, up to the quantizer that stands for ReLU.

    The modules stay where they are, under their names.
    """
    for norm in list(traced.graph.nodes):
        tail = tail_of(traced, norm) if isinstance(called_module(traced, norm), FrozenBatchNorm2d) else None
        if tail is None or not _is_fresh(traced, norm.args[0]) or not _takes_at_once(tail):
            continue
        quantizer = called_module(traced, tail.last)
        if isinstance(quantizer, ActivationQuantizer) and _clips_at_zero(quantizer):
            adds_in_place = tail.addition is not None and in_place(traced, tail.addition)
            with traced.graph.inserting_before(tail.last):
                parts = [traced.graph.get_attr(str(node.target)) for node in (norm, tail.last)]
                block = traced.graph.call_function(
                    block_output, (*parts, norm.args[0], tail.residual), {"adds_in_place": adds_in_place}
                )
            block.meta["is_wrapped"] = True  # one call, too, where the student is traced again
            replace_tail(traced, norm, tail, block)
    traced.graph.lint()
    traced.recompile()


def _is_fresh(traced: fx.GraphModule, taken: Any) -> bool:
    """Whether BatchNorm takes a tensor that nobody else can read or change, so that it may be read later."""
    is_call = isinstance(taken, fx.Node) and taken.op == "call_module" and len(taken.users) == 1
    return is_call and isinstance(traced.get_submodule(str(taken.target)), WEIGHTED)


def _takes_at_once(tail: Tail) -> bool:
    """Whether nothing comes between addition and rounding, where it could change the residual."""
    return tail.addition is None or tail.addition is tail.last.prev


def _clips_at_zero(quantizer: ActivationQuantizer) -> bool:
    return quantizer.rectifies and quantizer.operand.rounding == "integral_shift"


def block_output(
    layer: nn.Module,
    quantizer: nn.Module,
    x: Tensor,
    residual: Tensor | float | None = None,
    *,
    adds_in_place: bool = False,
) -> Tensor:
    """quantizer(layer(x) + residual), by the compiled passes where a gradient is asked for and nobody listens.

    Values are equal up to rounding (a number half-way between two points of the grid may fall to the other one).

    Args:
        layer: takes x.
        quantizer: stands for ReLU, too.
        x: (N, C, H, W).
        residual: as `x`; what it is else is added as torch does it.
        adds_in_place: whether the layer's output becomes the sum.
    """
    if (
        type(layer) is FrozenBatchNorm2d
        and type(quantizer) is ActivationQuantizer
        and _can_join(layer, quantizer, x)
        and _is_unseen(layer, quantizer, x, residual)
    ):
        with unobserved(x, layer.weight, *((residual,) if isinstance(residual, Tensor) else ())):
            codes = torch.empty_like(x, dtype=torch.bfloat16) if quantizer.keep_codes else None
            fixed = Fixed(layer.frozen(), quantizer.grid(), codes)
            found: Tensor = _RoundedBlock.apply(x, residual, layer.weight, layer.bias, fixed)
        return on_grid(found, quantizer.scale, codes)
    overwrites = _overwrites(layer, quantizer, x, residual)
    out: Tensor = layer(x)
    if residual is not None:
        out = out.add_(residual) if adds_in_place or overwrites else out + residual
    rounded: Tensor = quantizer.over(out) if overwrites else quantizer(out)  # type: ignore[operator]
    return rounded


def _overwrites(layer: nn.Module, quantizer: nn.Module, x: Tensor, residual: Tensor | float | None) -> bool:
    """Whether nobody can see the layer's output: BatchNorm's is new memory, and no graph keeps it."""
    return (
        not torch.is_grad_enabled()
        and type(layer) is FrozenBatchNorm2d
        and type(quantizer) is ActivationQuantizer
        and _is_unseen(layer, quantizer, x, residual)
    )


def _is_unseen(layer: nn.Module, quantizer: nn.Module, x: Tensor, residual: Tensor | float | None) -> bool:
    """Whether the sum has the shape and type of x, and nobody listens to what lies before or after it."""
    alike = residual is None or (
        isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype
    )
    return alike and are_unheard(layer, quantizer)


def are_unheard(*modules: nn.Module) -> bool:
    """Whether nobody listens to these modules, nor has put another function in the place of their own."""
    return not any(is_hooked(module) or "forward" in vars(module) for module in modules)


def _can_join(layer: FrozenBatchNorm2d, quantizer: ActivationQuantizer, x: Tensor) -> bool:
    return can_round(quantizer) and x.dtype == torch.float32 and layer.can_join(x)


def can_round(quantizer: ActivationQuantizer) -> bool:
    """Whether the compiled passes compute what it does, ReLU included: a gradient is asked for, its range is frozen."""
    return torch.is_grad_enabled() and quantizer.rule is None and _clips_at_zero(quantizer)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What has no gradient: the layer's running statistics, the grid, and room for its integers."""

    statistics: tuple[Tensor, Tensor, float]
    grid: passes.Grid
    codes: Tensor | None = None


class _RoundedBlock(torch.autograd.Function):
    """Rounds BatchNorm(x) + residual; the gradient is that of ReLU before, whose clamped elements pass too."""

    @staticmethod
    def forward(  # noqa: PLR0917 - apply takes no keywords
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, fixed: Fixed
    ) -> Tensor:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        scale, shift, inverse = affine_of(weight, bias, fixed.statistics)
        ctx.save_for_backward(x, residual, scale, shift, fixed.statistics[0], inverse)
        return passes.rounded_block(x, (scale, shift), fixed.grid, residual=residual, codes=fixed.codes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, scale, shift, mean, inverse = ctx.saved_tensors
        to_x, to_residual, to_scale, to_shift = passes.affine_backward(
            x, grads[0], (scale, shift), mean, inverse=inverse, residual=residual, ceiling=torch.inf
        )
        return to_x, to_residual, to_scale, to_shift, None
