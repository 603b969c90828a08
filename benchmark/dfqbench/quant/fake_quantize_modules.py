"""Modules that fake-quantize weights and activations inside a student."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api.errors import PluginError
from dfqbench.quant.fake_quantize import (
    activation_qparams,
    add_residual_terms,
    fake_quantize_activation,
    fake_quantize_bias,
    fake_quantize_weight,
    weight_qparams,
)
from dfqbench.quant.observers import make_observer
from dfqbench.quant.scheme import Operand, Rounding

RULE = "rule:"
"""Prefix of an observer's name in a state: torch refuses names of its own attributes, which a range rule may have.

The name is the rule with `,` for `.`, which torch refuses, too.
"""


class FakeQuantizeWeight(nn.Module):
    """A parametrization: the layer computes with its rounded weight, the optimizer updates the weight in float.

    Attributes:
        operand: how weights are quantized.
        bits: k.
        scale: fixed scale of `weight_qparams`, or None: that of the weight's present range.
        zero_point: the same for the zero point.
        residual_scales: (further terms, out), scales of `add_residual_terms`, with which the weight is a sum of terms;
            or None: it has one term.
    """

    scale: Tensor | None
    zero_point: Tensor | None
    residual_scales: Tensor | None

    def __init__(self, operand: Operand, bits: int) -> None:
        super().__init__()
        self.operand = operand
        self.bits = bits
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)
        self.register_buffer("residual_scales", None)
        self.register_load_state_dict_pre_hook(_freeze_before_load)  # type: ignore[no-untyped-call]

    def freeze(self, scale: Tensor, zero_point: Tensor, residual_scales: Tensor | None = None) -> None:
        """Fix scale and zero point, so that a weight that is set to levels of theirs stays on them; a state holds them.

        Args:
            scale: (out,), or 0-d for one range a tensor, as of `weight_qparams`.
            zero_point: the same.
            residual_scales: (further terms, out), or None: the weight has one term.
        """
        self.scale, self.zero_point = scale.detach().clone(), zero_point.detach().clone()
        self.residual_scales = None if residual_scales is None else residual_scales.detach().clone()

    def rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight (out, ...) rounded to one term, and 1 / step size, 0-d or (out, 1, ...)."""
        frozen = None if self.scale is None or self.zero_point is None else (self.scale, self.zero_point)
        return fake_quantize_weight(weight, self.operand, self.bits, frozen)

    def forward(self, weight: Tensor) -> Tensor:
        """Round the weight (out, ...) to the levels of its present range, or of the fixed one; add further terms."""
        rounded = self.rounded(weight)[0]
        if self.residual_scales is None:
            return rounded
        return add_residual_terms(weight, rounded, self.residual_scales, self.bits)

    def step(self, weight: Tensor) -> Tensor:
        """Return the first term's step size, of the weight's present range or the fixed one, (out,) or 0-d."""
        scale = weight_qparams(weight, self.operand, self.bits)[0] if self.scale is None else self.scale
        return scale.reciprocal() if self.operand.rounding is Rounding.ZEROQ else scale


def _freeze_before_load(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ARG001
    """Give a weight quantizer the fixed scales and zero point of a state."""
    fixed = [state.get(f"{prefix}{name}") for name in ("scale", "zero_point")]
    if isinstance(module, FakeQuantizeWeight) and fixed[0] is not None and fixed[1] is not None:
        module.freeze(fixed[0], fixed[1], state.get(f"{prefix}residual_scales"))


class FakeQuantize(nn.Module):
    """Rounds an activation to the levels of its range; the range follows the batches while `observing` is set.

    Attributes:
        name: dotted name of the place in the network.
        operand: how activations are quantized.
        bits: k.
        observers: at most one, by `RULE` and the name of its range rule.
        observing: whether a forward pass updates the range.
        low: 0-d, lower end of the range.
        high: 0-d, upper end of the range.
        batches: 0-d int64, batches from which the range was learned, or 1 where it was set.
        scale: 0-d, S or the step size (see `fake_quantize`).
        zero_point: 0-d, Z or torch's zero point.
    """

    low: Tensor
    high: Tensor
    batches: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, name: str, operand: Operand, bits: int) -> None:
        super().__init__()
        self.name = name
        self.operand = operand
        self.bits = bits
        self.observers = nn.ModuleDict()
        self.observing = False
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        # Derived from the range; not saved, so that a saved student holds one range.
        scale, zero_point = self._qparams()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("zero_point", zero_point, persistent=False)
        self.register_load_state_dict_pre_hook(_attach_before_load)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_update_after_load)  # type: ignore[no-untyped-call]

    def attach_observer(self, rule: str) -> None:
        """Give the range a new observer of this range rule; keep the present one where it is of the same rule.

        Raises:
            UsageError: unknown rule.
        """
        new = make_observer(rule, self.operand, self.bits)
        key = RULE + rule.replace(".", ",")
        if key not in self.observers:
            new.to(self.low.device).start(self.low, self.high)
            self.observers = nn.ModuleDict({key: new})

    @torch.no_grad()
    def set_range(self, low: Tensor | float, high: Tensor | float) -> None:
        """Set the range, in place of an observer's; an observer that is attached later starts from it.

        Activations have one range a tensor under every protocol. Scale and zero point follow from it; `@deploy` first
        widens it to contain zero. The values are read from the device, so a CUDA graph cannot hold the call.

        Args:
            low: lower end of the range, a number or a tensor with one element.
            high: upper end, the same; equal to `low` for a constant activation.

        Raises:
            PluginError: `low` is above `high`, or one of them is not finite or is no single number.
        """
        ends = [torch.as_tensor(end, dtype=self.low.dtype, device=self.low.device) for end in (low, high)]
        where = f"set_range of activation '{self.name}'"
        if any(end.numel() != 1 for end in ends):
            shapes = " and ".join(str(tuple(end.shape)) for end in ends)
            raise PluginError(f"{where}: shapes {shapes}", "activations have one range a tensor: give two numbers")
        lower, upper = (float(end) for end in ends)
        if not math.isfinite(lower) or not math.isfinite(upper):
            raise PluginError(f"{where}: {lower} to {upper} is not finite", "look for NaN in the images or the network")
        if lower > upper:
            raise PluginError(f"{where}: low {lower} is above high {upper}", "give the lower end first")
        self.observers = nn.ModuleDict()
        self.batches.clamp_(min=1)
        self._set(ends[0].reshape(()), ends[1].reshape(()))

    def _set(self, low: Tensor, high: Tensor) -> None:
        self.low.copy_(low)
        self.high.copy_(high)
        self.update_qparams()

    @torch.no_grad()
    def update_qparams(self) -> None:
        """Compute scale and zero point from the range, in place, where CUDA graphs read them."""
        for buffer, value in zip((self.scale, self.zero_point), self._qparams(), strict=True):
            buffer.copy_(value)

    def _qparams(self) -> tuple[Tensor, Tensor]:
        return activation_qparams(self.low, self.high, self.operand, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """Round `x` (any shape); while observing, update the range first."""
        if self.observing and self.observers:
            with torch.no_grad():
                self.batches += 1
                for observer in self.observers.values():
                    self._set(*observer(x))
        return fake_quantize_activation(x, self.scale, self.zero_point, self.operand, self.bits)

    def step(self) -> Tensor:
        """Return the step size (0-d)."""
        return self.scale.reciprocal() if self.operand.rounding is Rounding.ZEROQ else self.scale

    def inverse_step(self) -> Tensor:
        """Return 1 / step size (0-d), the factor that makes integers of the output."""
        return self.scale if self.operand.rounding is Rounding.ZEROQ else self.scale.reciprocal()

    def extra_repr(self) -> str:
        """Return name and bits, for printing."""
        return f"{self.name}, bits={self.bits}"


class FakeQuantizeBias(nn.Module):
    """A parametrization: the layer adds its bias as an int32, the optimizer updates the bias in float."""

    def __init__(self, layer: nn.Module, quantizer: FakeQuantize) -> None:
        """Take the step sizes from a layer whose weight is quantized, and from the `FakeQuantize` of its input."""
        super().__init__()
        # In tuples, so that the parametrization does not own them.
        self._weight: tuple[Any] = (layer.get_submodule("parametrizations.weight"),)
        self._input = (quantizer,)

    def forward(self, bias: Tensor) -> Tensor:
        """Round the bias (out,) to int32 in steps of the product of both step sizes."""
        weight = self._weight[0]
        return fake_quantize_bias(bias, self._input[0].step(), weight[0].step(weight.original))


def _attach_before_load(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ARG001
    """Give a `FakeQuantize` the observer that a state was saved with, so that a training in progress can go on."""
    start = f"{prefix}observers.{RULE}"
    for name in state:
        if name.startswith(start) and isinstance(module, FakeQuantize):
            module.attach_observer(name[len(start) :].partition(".")[0].replace(",", "."))


def _update_after_load(module: nn.Module, keys: Any) -> None:  # noqa: ARG001 - torch's signature
    if isinstance(module, FakeQuantize):
        module.update_qparams()


class FakeQuantizedActivation(nn.Module):
    """An activation inside a part that cannot be traced, with one `FakeQuantize` for each of its calls in a pass.

    The order of the calls tells which range applies. The student calls `restart` before each pass.
    """

    def __init__(self, activation: nn.Module, quantizers: list[FakeQuantize]) -> None:
        super().__init__()
        self.activation = activation
        self.quantizers = nn.ModuleList(quantizers)
        self._call = 0

    def restart(self) -> None:
        """Mark the beginning of a forward pass."""
        self._call = 0

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation and the `FakeQuantize` of this call."""
        quantizer = self.quantizers[self._call % len(self.quantizers)]
        self._call += 1
        quantized: Tensor = quantizer(self.activation(x))
        return quantized
