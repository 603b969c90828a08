"""Modules that fake-quantize weights and activations inside a student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.quant.fake_quantize import (
    affine_qparams,
    fake_quantize,
    fake_quantize_affine,
    fake_quantize_weight,
    shifted_qparams,
)
from dfqbench.quant.observers import observer_class
from dfqbench.quant.scheme import Operand, Rounding

RULE = "rule:"
"""Begins an observer's name in a state; the name of a range rule alone might be that of one of torch's methods."""


class FakeQuantizeWeight(nn.Module):
    """A parametrization: the layer's forward sees its weight rounded, the optimizer sees the weight in float."""

    def __init__(self, operand: Operand, bits: int) -> None:
        super().__init__()
        self.operand = operand
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """Round the weight (out, ...) to the levels of its present range."""
        return fake_quantize_weight(weight, self.operand, self.bits)[0]


class FakeQuantize(nn.Module):
    """Rounds an activation to the levels of its range; the range follows the batches while `observing` is set.

    Attributes:
        name: dotted name of the place in the network.
        operand: how activations are quantized.
        bits: k.
        observers: the observer, by `RULE` and the name of its range rule; empty before one was chosen.
        observing: whether a forward pass updates the range.
        low: 0-d, lower end of the range.
        high: 0-d, upper end of the range.
        batches: 0-d int64, batches from which the range was learned, or 1 where it was set.
        scale: 0-d, S or the step size (see `fake_quantize`).
        shift: 0-d, Z or the zero point.
    """

    low: Tensor
    high: Tensor
    batches: Tensor
    scale: Tensor
    shift: Tensor

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
        scale, shift = self._qparams()
        # Derived from the range; not saved, so that a saved student holds one range.
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.register_load_state_dict_pre_hook(_attach_before_load)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_update_after_load)  # type: ignore[no-untyped-call]

    def attach_observer(self, rule: str) -> None:
        """Give the range a new observer of this range rule; keep the present one where it is of the same rule.

        Raises:
            UsageError: unknown rule.
        """
        observer = observer_class(rule)
        if RULE + rule not in self.observers:
            new = observer().to(self.low.device)
            new.start(self.low, self.high)
            self.observers = nn.ModuleDict({RULE + rule: new})

    @torch.no_grad()
    def set_range(self, low: Tensor | float, high: Tensor | float) -> None:
        """Set the range, as a quantizer with its own way to choose ranges does.

        Args:
            low: lower end, 0-d.
            high: upper end, 0-d.
        """
        self.batches.clamp_(min=1)
        self._set(torch.as_tensor(low), torch.as_tensor(high))

    def _set(self, low: Tensor, high: Tensor) -> None:
        self.low.copy_(low)
        self.high.copy_(high)
        self.update_qparams()

    @torch.no_grad()
    def update_qparams(self) -> None:
        """Compute scale and shift from the range, in place: a recorded CUDA graph reads them where they are."""
        for buffer, value in zip((self.scale, self.shift), self._qparams(), strict=True):
            buffer.copy_(value)

    def _qparams(self) -> tuple[Tensor, Tensor]:
        low, high = self.low, self.high
        if self.operand.zero_in_range:
            low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        if self.operand.rounding is Rounding.SHIFTED:
            return shifted_qparams(low, high, self.bits)
        return affine_qparams(low, high, self.bits, symmetric=self.operand.symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """Round `x` (any shape); while observing, update the range first."""
        if self.observing and self.observers:
            with torch.no_grad():
                self.batches += 1
                for observer in self.observers.values():
                    self._set(*observer(x))
        if self.operand.rounding is Rounding.SHIFTED:
            return fake_quantize(x, self.scale, self.shift, self.bits)
        return fake_quantize_affine(x, self.scale, self.shift, self.bits, symmetric=self.operand.symmetric)

    def integer_factor(self) -> Tensor:
        """Return the factor (0-d) that makes integers of the output."""
        return self.scale if self.operand.rounding is Rounding.SHIFTED else self.scale.reciprocal()

    def extra_repr(self) -> str:
        """Name and bits, for printing."""
        return f"{self.name}, bits={self.bits}"


def _attach_before_load(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ARG001
    """Give a `FakeQuantize` the observer that a state was saved with, so that a training in progress can go on."""
    start = f"{prefix}observers.{RULE}"
    for name in state:
        if name.startswith(start) and isinstance(module, FakeQuantize):
            module.attach_observer(name[len(start) :].partition(".")[0])


def _update_after_load(module: nn.Module, keys: Any) -> None:  # noqa: ARG001 - torch's signature
    if isinstance(module, FakeQuantize):
        module.update_qparams()


class FakeQuantizedActivation(nn.Module):
    """An activation inside a part that cannot be traced, with one `FakeQuantize` for each of its calls in a pass.

    One module is often called at several places; their tensors have ranges of their own, told apart by the order of
    the calls. The student calls `restart` before each pass.
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
