"""The training of one unit in `reconstruct`: learned rounding and learned step sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from dfqbench.quant import FakeQuantize
from dfqbench.quant.fake_quantize_modules import FakeQuantizeWeight
from dfqbench.quant.trace import WEIGHTED
from dfqbench.quantizers.adaround import AdaRound, LearnedStep, Levels, mix

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quantizers.reconstruct_params import ReconstructParams

SMALLEST_STEP = 1e-8
"""Learned step sizes stay above it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A pass over all units.

    Attributes:
        weights: whether the rounding of weights is learned.
        activations: whether activations are quantized and their scales learned.
        steps: steps on each unit.
        lr_rounding: learning rate of the rounding.
    """

    weights: bool
    activations: bool
    steps: int
    lr_rounding: float


class UnitTraining:
    """The learned rounding and step sizes of one unit, and their optimizer.

    Attributes:
        rounding: of the unit's layers.
    """

    def __init__(self, unit: fx.GraphModule, stage: Stage, ctx: Context, params: ReconstructParams, seed: int) -> None:
        """Make modules that learn, in place of those that quantize.

        Args:
            unit: the student's unit, with first scales.
            stage: what is learned.
            ctx: the host's side.
            params: hyper-parameters.
            seed: of the random numbers of dropping.
        """
        self._unit = unit
        self._steps = stage.steps
        self._params = params
        self._random = torch.Generator(ctx.device).manual_seed(seed)
        self._layers = quantized_layers(unit) if stage.weights else []
        self.rounding = [
            AdaRound(layer.parametrizations.weight.original, quantizer, learns_scale=params.learns_weight_scale)
            for layer, quantizer in self._layers
        ]
        self._quantizers = activation_quantizers(unit)
        self._learned = {
            name: LearnedStep(_levels(quantizer), params.drop_activation, self._random)
            for name, quantizer in self._quantizers.items()
        }
        weight_steps = [rounding.s for rounding in self.rounding if params.learns_weight_scale]
        activation_steps = [learned.step for learned in self._learned.values()]
        self._scales = weight_steps + activation_steps
        self._parameters = [rounding.v for rounding in self.rounding] + self._scales
        self._run_update = ctx.graphed(self._update, generators=[self._random])
        self._optimizer = torch.optim.Adam(
            [
                {"params": [rounding.v for rounding in self.rounding], "lr": stage.lr_rounding},
                {"params": weight_steps, "lr": params.lr_weight_scale},
                {"params": activation_steps, "lr": params.lr_activation_scale},
            ],
            fused=True,
            capturable=self._run_update.capturable,
        )

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Put the modules that learn into the unit."""
        for (layer, _), rounding in zip(self._layers, self.rounding, strict=True):
            layer.parametrizations.weight[0] = rounding
        try:
            with replaced_modules(self._unit, self._learned):
                yield
        finally:
            for layer, quantizer in self._layers:
                layer.parametrizations.weight[0] = quantizer

    def step(self, step: int, x: Tensor, x_q: Tensor, *target: Tensor) -> Tensor:
        """Update everything that learns once; return the loss (0-d).

        Args:
            step: from 0.
            x: the teacher's inputs (batch, ...).
            x_q: the student's inputs.
            target: the teacher's outputs, and weights of the squared differences to them (default: 1).
        """
        params, warmup = self._params, round(self._params.warmup * self._steps)
        share = max(0, step - warmup) / max(1, self._steps - warmup)
        beta = params.beta_start + (params.beta_end - params.beta_start) * share
        cosine = (1 + math.cos(math.pi * step / self._steps)) / 2
        return self._run_update(beta, cosine, x, x_q, *target, penalized=step >= warmup)[0]

    def _update(
        self, beta: float | Tensor, cosine: float | Tensor, x: Tensor, x_q: Tensor, *target: Tensor, penalized: bool
    ) -> tuple[Tensor]:
        params = self._params
        loss = squared_error(self._unit(mix(x_q, x, params.drop_input, self._random)), *target)
        if penalized:
            for rounding in self.rounding:
                loss = loss + params.rounding_weight * rounding.penalty(beta)
        if self._parameters:
            self._optimizer.param_groups[1]["lr"] = params.lr_weight_scale * cosine
            self._optimizer.param_groups[2]["lr"] = params.lr_activation_scale * cosine
            self._optimizer.zero_grad()
            loss.backward(inputs=self._parameters)  # type: ignore[no-untyped-call]
            self._optimizer.step()
            with torch.no_grad():
                for scale in self._scales:
                    scale.clamp_(min=SMALLEST_STEP)
        return (loss,)

    def finish(self) -> None:
        """Round every h to 0 or 1 and give weights and scales to the student."""
        if self._steps == 0:
            return
        for (layer, quantizer), rounding in zip(self._layers, self.rounding, strict=True):
            rounding.finish(layer.parametrizations.weight.original, quantizer)
        for name, learned in self._learned.items():
            self._quantizers[name].set_range(*learned.levels().ends())


def squared_error(output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the (weighted) squared difference, summed over channels (dimension 1) and averaged over the rest (0-d)."""
    error = (output - target).square()
    return (error if weights is None else weights * error).sum(1).mean()


def quantized_layers(unit: nn.Module) -> list[tuple[Any, FakeQuantizeWeight]]:
    """Return the layers of a unit whose weight is quantized, each with its weight quantizer."""
    layers: list[Any] = [module for module in unit.modules() if isinstance(module, WEIGHTED)]
    quantizers = [
        (layer, layer.parametrizations.weight[0]) for layer in layers if parametrize.is_parametrized(layer, "weight")
    ]
    return [pair for pair in quantizers if isinstance(pair[1], FakeQuantizeWeight)]


def activation_quantizers(unit: nn.Module) -> dict[str, FakeQuantize]:
    """Return the quantizers of a unit's activations by name."""
    return {name: module for name, module in unit.named_modules() if isinstance(module, FakeQuantize)}


def _levels(quantizer: FakeQuantize) -> Levels:
    return Levels.from_qparams(quantizer.scale, quantizer.zero_point, quantizer.operand, quantizer.bits)


def identities(unit: nn.Module) -> dict[str, nn.Module]:
    """Return replacements of all fake quantization but that of weights: biases have steps of their layer's input."""
    lists = {name: m for name, m in unit.named_modules() if isinstance(m, parametrize.ParametrizationList)}
    biases = [f"{name}.0" for name, modules in lists.items() if not isinstance(modules[0], FakeQuantizeWeight)]
    return {name: nn.Identity() for name in (*activation_quantizers(unit), *biases)}


@contextmanager
def replaced_modules(unit: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace modules of a unit by name."""
    originals = {name: unit.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            unit.set_submodule(name, module)
        yield
    finally:
        for name, module in originals.items():
            unit.set_submodule(name, module)
