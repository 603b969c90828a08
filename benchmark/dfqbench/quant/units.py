"""A student's units, a convolution with the block that follows, and residual blocks of two: one call of the library.

In a graph each call stays where it is. In training a convolution that the library may take waits for its block, and the
first unit of a residual block for the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from dfqbench.native import fused
from dfqbench.native.autocast import are_compiled
from dfqbench.native.operands import are_plain, unobserved
from dfqbench.quant.blocks import Fixed, are_unheard, block_output, can_round
from dfqbench.quant.frozen import FrozenBatchNorm2d, affine_of
from dfqbench.quant.grid_conv import on_grid
from dfqbench.quant.quantizers import ActivationQuantizer


def conv_output(conv: nn.Module, x: Tensor | _Inner) -> Tensor | _Waiting:
    """conv(x); where the library may compute it together with the block that follows, what that needs.

    Args:
        conv: a convolution.
        x: (N, C, H, W), or what `inner_output` gave.
    """
    if _is_plain(conv) and are_compiled(x.device) and torch.is_grad_enabled():
        return _Waiting(conv, x if isinstance(x, _Inner) else _Kept.of(x))
    out: Tensor = conv(x.output() if isinstance(x, _Inner) else x)
    return out


def inner_output(norm: nn.Module, quantizer: nn.Module, taken: Tensor | _Waiting) -> Tensor | _Inner:
    """As `unit_output` without a residual, for one convolution alone, which may then compute both.

    Args:
        norm: as of `unit_output`.
        quantizer: likewise.
        taken: likewise.
    """
    if isinstance(taken, _Waiting) and isinstance(taken.x, _Kept):
        unit = _unit(taken.conv, norm, quantizer)
        if unit is not None:
            return _Inner(unit, taken.x)
    return unit_output(norm, quantizer, taken)


def unit_output(
    norm: nn.Module,
    quantizer: nn.Module,
    taken: Tensor | _Waiting,
    residual: Tensor | float | None = None,
    *,
    adds_in_place: bool = False,
) -> Tensor:
    """quantizer(norm(taken) + residual), with the convolution before, or a residual block, by one call of the library.

    That is where a gradient is asked for and nobody listens.

    Args:
        norm: takes a convolution's output.
        quantizer: stands for ReLU, too.
        taken: (N, C, H, W), or what `conv_output` gave.
        residual: as of `block_output`.
        adds_in_place: likewise.
    """
    if not isinstance(taken, _Waiting):
        return block_output(norm, quantizer, taken, residual, adds_in_place=adds_in_place)
    unit, before, found = _unit(taken.conv, norm, quantizer), taken.x, None
    if unit is not None and isinstance(before, _Inner) and residual is before.x.tensor:
        found = _by_library([before.unit, unit], before.x.output(), residual)
    if found is None:
        x = before.output()
        found = None if unit is None else _by_library([unit], x, residual)
        if found is None:
            found = block_output(norm, quantizer, taken.conv(x), residual, adds_in_place=adds_in_place)
    return found


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor that is read later, and its version, which changes in place count up."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        return cls(tensor, tensor._version)

    def output(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: it has been changed in place.
        """
        if self.tensor._version != self.version:
            raise RuntimeError("what a convolution takes was changed in place before it was computed")
        return self.tensor


@dataclass(frozen=True, slots=True)
class _Inner:
    """A residual block's first unit, which waits for the second."""

    unit: _Unit
    x: _Kept

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.x.tensor.device

    def output(self) -> Tensor:
        """The unit's output by itself."""
        conv, norm, quantizer = self.unit
        x = self.x.output()
        found = _by_library([self.unit], x, None)
        return block_output(norm, quantizer, conv(x)) if found is None else found


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A convolution that waits for its block."""

    conv: nn.Conv2d
    x: _Kept | _Inner


class _Unit(NamedTuple):
    conv: nn.Conv2d
    norm: FrozenBatchNorm2d
    quantizer: ActivationQuantizer

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weight on its grid, scale and shift."""
        return self.conv.weight, self.norm.weight, self.norm.bias

    def fits(self, x: Tensor, weight: Tensor) -> bool:
        numbers = [self.conv.stride, self.conv.padding, self.conv.dilation, self.conv.groups]
        return fused.fits(x, weight, numbers) and self.norm.weight.dtype == self.norm.bias.dtype == torch.float32


def _by_library(units: Sequence[_Unit], x: Tensor, residual: Tensor | float | None) -> Tensor | None:
    """Units one after another, a residual added to the last one's sum; None where the library does not take them."""
    if not (residual is None or isinstance(residual, Tensor)):
        return None
    # Weights are rounded where they are read: last.
    parameters = [one for unit in units for one in unit.parameters()]
    tensors = [x, *parameters, *(() if residual is None else (residual,))]
    if not are_plain(*tensors):
        return None
    with unobserved(*tensors):
        weights = parameters[::3]
        # Of several, each gives as many channels as it takes: `x` stands for what the next will take.
        keeps_channels = all(weight.shape[0] == weight.shape[1] for weight in weights)
        fit = all(unit.fits(x, weight) for unit, weight in zip(units, weights, strict=True))
        shape = (len(x), len(weights[-1]), *x.shape[2:])
        alike = residual is None or (residual.shape, residual.dtype) == (shape, x.dtype)
        if not fit or not alike or not (keeps_channels or len(units) == 1):
            return None
        adds_input = residual is x and len(units) > 1
        stages = tuple(Fixed(unit.norm.frozen(), unit.quantizer.grid()) for unit in units)
        found: Tensor = _Units.apply(x, None if adds_input else residual, adds_input, stages, *parameters)
    return on_grid(found, units[-1].quantizer.scale)


def _unit(conv: nn.Conv2d, norm: nn.Module, quantizer: nn.Module) -> _Unit | None:
    """A convolution that waits, with what follows; None where that is something else, or somebody listens."""
    if (
        type(norm) is FrozenBatchNorm2d
        and type(quantizer) is ActivationQuantizer
        and norm.is_frozen()
        and can_round(quantizer)
        and are_unheard(norm, quantizer)
    ):
        return _Unit(conv, norm, quantizer)
    return None


def _is_plain(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution with zeros around the map and no bias, and nobody listens."""
    return (
        isinstance(conv, nn.Conv2d)
        and type(conv).forward is nn.Conv2d.forward
        and type(conv)._conv_forward is nn.Conv2d._conv_forward
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and are_unheard(conv)
    )


class _Units(torch.autograd.Function):
    """Units one after another; to the last one's sum a residual is added, or the first one's input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, adds_input: bool, stages: tuple[Fixed, ...], *parameters: Tensor
    ) -> Tensor:
        if adds_input:
            residual = x
        elif residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        kept: list[Tensor | None] = [residual]
        taken = x
        for i, stage in enumerate(stages):
            weight, scale, shift = parameters[3 * i : 3 * i + 3]
            factors = affine_of(scale, shift, stage.statistics)
            layer = fused.Layer(*factors[:2], stage.statistics[0], factors[2])
            is_last = i == len(stages) - 1
            y, out = fused.forward(taken, weight, layer, stage.grid, residual=residual if is_last else None)
            kept += (taken, weight, y, *layer)
            taken = out
        ctx.save_for_backward(*kept)
        ctx.adds_input = adds_input
        return taken

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        residual, *kept = ctx.saved_tensors
        count = len(kept) // 7
        to_parameters: list[Tensor | None] = []
        grad, to_x, to_residual = grads[0], None, None
        for i in reversed(range(count)):
            x, weight, y, *layer = kept[7 * i : 7 * i + 7]
            is_last = i == count - 1
            found = fused.backward(
                grad,
                x,
                weight,
                y,
                fused.Layer(*layer),
                residual=residual if is_last else None,
                wanted=(i > 0 or ctx.needs_input_grad[0], ctx.needs_input_grad[4 + 3 * i]),
                onto=to_residual if ctx.adds_input and i == 0 else None,
            )
            to_parameters[:0] = found.weight, found.scale, found.shift
            to_residual = found.residual if is_last else to_residual
            to_x = found.x
            grad = grad if to_x is None else to_x
        return to_x, None if ctx.adds_input else to_residual, None, None, *to_parameters
