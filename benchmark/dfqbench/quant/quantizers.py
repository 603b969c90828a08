"""The modules that put operands on their grids inside a student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.native.passes import Grid
from dfqbench.quant.fake import (
    affine_grid,
    grid_ends,
    integral_shift,
    quantize_affine,
    quantize_in_place,
    quantize_integral_shift,
    quantize_weight,
    quantize_with_codes,
)
from dfqbench.quant.grid_conv import on_grid
from dfqbench.quant.ranges import Range, RangeRule
from dfqbench.quant.scheme import Operand


class WeightQuantizer(nn.Module):
    """A parametrization: the layer's own forward sees its weight on the grid, the optimizer the weight in float."""

    def __init__(self, operand: Operand, bits: int) -> None:
        super().__init__()
        self.operand = operand
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """Rounds the weight (out, ...) to the grid of its live range."""
        return quantize_weight(
            weight,
            self.bits,
            rounding=self.operand.rounding,
            symmetric=self.operand.symmetric,
            per_channel=self.operand.granularity == "channel",
        )

    def extra_repr(self) -> str:
        """Bits, for printing."""
        return f"bits={self.bits}"


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to the grid of a range that is learned while `rule` is set, and frozen otherwise.

    Attributes:
        name: dotted name of the place in the network.
        bits: width of the grid.
        rule: range rule while observing, None while frozen.
        range: the range and its averages.
        keep_codes: whether the grid's integers are kept beside the output, for `GridConvolutions`.
        rectifies: whether it stands for ReLU and its quantizer; its range then has no negative part.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, operand: Operand, bits: int) -> None:
        super().__init__()
        self.name = name
        self.operand = operand
        self.bits = bits
        self.rule: RangeRule | None = None
        self.range = Range()
        self.keep_codes = False
        self.rectifies = False
        # Derived from the range; not saved, so that a saved student has one truth.
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.register_buffer("shift", torch.zeros(()), persistent=False)
        self.refresh()
        self.register_load_state_dict_post_hook(_refresh_after_load)  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """Recomputes the grid from the range."""
        low, high = self.range.low, self.range.high
        if self.operand.zero_in_range:
            low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        if self.rectifies:
            low, high = low.clamp_min(0.0), high.clamp_min(0.0)
        if self.operand.rounding == "integral_shift":
            self.scale, self.shift = integral_shift(low, high, self.bits)
        else:
            self.scale, self.shift = affine_grid(low, high, self.bits, symmetric=self.operand.symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """Rounds `x` (any shape) to the grid; updates the range first while observing."""
        if self.rule is not None:
            self.range.update(x, self.rule, rectified=self.rectifies)
            self.refresh()
        if self.operand.rounding == "integral_shift":
            if self.keep_codes and x.ndim > 1:
                rounded, codes = quantize_with_codes(x, self.scale, self.shift, self.bits, rectify=self.rectifies)
                return on_grid(rounded, self.scale, codes)
            rounded = quantize_integral_shift(x, self.scale, self.shift, self.bits, rectify=self.rectifies)
            return on_grid(rounded, self.scale)
        found = quantize_affine(x, self.scale, self.shift, self.bits, symmetric=self.operand.symmetric)
        return on_grid(found, self.scale.reciprocal())

    def grid(self) -> Grid:
        """Scale, shift and ends of the grid, as the compiled passes take them; of rounding `integral_shift`."""
        return self.scale, self.shift, *grid_ends(self.bits)

    def over(self, x: Tensor) -> Tensor:
        """As `forward`, without a graph and in the memory of `x`, which nobody else reads."""
        if self.rule is not None or self.keep_codes or self.operand.rounding != "integral_shift":
            found: Tensor = self(x)
            return found
        return on_grid(quantize_in_place(x, self.scale, self.shift, self.bits), self.scale)

    def extra_repr(self) -> str:
        """Name and bits, for printing."""
        return f"{self.name}, bits={self.bits}"


def _refresh_after_load(module: nn.Module, keys: Any) -> None:  # noqa: ARG001 - torch's signature
    if isinstance(module, ActivationQuantizer):
        module.refresh()


class QuantizedActivation(nn.Module):
    """An activation inside a part that cannot be traced, with one quantizer for each of its calls in a forward pass.

    One module is often called at several places; their tensors have ranges of their own, told apart by the order of
    the calls. `restart` is called by the student before each pass.
    """

    def __init__(self, activation: nn.Module, quantizers: list[ActivationQuantizer]) -> None:
        super().__init__()
        self.activation = activation
        self.quantizers = nn.ModuleList(quantizers)
        self._call = 0

    def restart(self) -> None:
        """Marks the beginning of a forward pass."""
        self._call = 0

    def forward(self, x: Tensor) -> Tensor:
        """Applies the activation and the quantizer of this call."""
        quantizer = self.quantizers[self._call % len(self.quantizers)]
        self._call += 1
        quantized: Tensor = quantizer(self.activation(x))
        return quantized
