"""The training loop of `reconstruct`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from dfqbench.api.batch import SampleSource, is_live
from dfqbench.quant import OFF, FakeQuantize, Student
from dfqbench.quant.fake_quantize_modules import FakeQuantizeWeight
from dfqbench.quant.trace import WEIGHTED
from dfqbench.quantizers.adaround import AdaRound, LearnedStep, Levels, mix, search_levels, sign_range, weight_levels
from dfqbench.quantizers.calibrate import train_source
from dfqbench.quantizers.units import split

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quantizers.reconstruct_params import ReconstructParams

CHUNK = 64
"""Images of a pass without gradients."""
SEARCHED = 1 << 18
"""Most elements of an activation from which its first scale is searched."""
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


class Reconstruction:
    """The reconstruction of one student, unit after unit.

    Attributes:
        student: the student; between units its state is complete.
        units: its parts.
        stages: weights and activations together, or one after the other.
        errors: of each stage and unit: mean squared difference to the teacher with nearest rounding at the first
            scales, and at the end.
    """

    def __init__(
        self, teacher: nn.Module, source: SampleSource, ctx: Context, params: ReconstructParams, count: int
    ) -> None:
        """Prepare the student, train a live source, and draw the images; go on from the last checkpoint.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed or live.
            ctx: the host's side.
            params: hyper-parameters.
            count: images to draw.

        Raises:
            Unavailable: the network uses a layer twice.
        """
        self._ctx = ctx
        self._params = params
        self.student: Student = ctx.prepare(teacher)
        self.units = split(self.student, torch.zeros(1, *ctx.card.input_size, device=ctx.device))
        steps, later = (ctx.budget.reconstruction_steps(n) for n in (params.steps, params.activation_steps))
        # In fewer steps v goes as far as in all: h reaches 0 or 1.
        lr = params.lr_rounding * params.steps / max(1, steps)
        self.stages = [Stage(weights=True, activations=not later, steps=steps, lr_rounding=lr)]
        if later and ctx.scheme.a_bits != OFF:
            self.stages.append(Stage(weights=False, activations=True, steps=later, lr_rounding=0.0))
        self.errors: dict[tuple[int, int], tuple[float, float]] = {}
        state = ctx.restored
        self._next = (0, 0)
        if state is not None and "unit" in state:
            self._next = (int(state["stage"]), int(state["unit"]))
            self.student.load_state_dict(state["student"])
            source.load_state_dict(state["source"])
        else:
            train_source(source, [ctx])
        self._lead = source.training_steps if is_live(source) else 0
        # From this state the same images are drawn after an interruption.
        self._source_state = source.state_dict()
        self._images = source.sample(count).images.to(ctx.device, memory_format=torch.channels_last)

    def run(self) -> Student:
        """Reconstruct all units in all stages; return the student.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        for index, stage in enumerate(self.stages):
            if index >= self._next[0]:
                self._run_stage(index, stage)
        # The units of a pass make one pass of the student.
        self.student.images_seen = sum(
            stage.steps * self._params.batch + 2 * len(self._images) for stage in self.stages
        )
        return self.student

    def _run_stage(self, index: int, stage: Stage) -> None:
        x = x_q = self._images
        for position, unit in enumerate(self.units):
            pending = (index, position) >= self._next
            y = self._outputs(unit.teacher, x)
            with _replaced(unit.student, {} if stage.activations else _identities(unit.student)):
                if pending:
                    self._start(unit.student, stage, x_q)
                    before = _error(self._passes(unit.student, x_q), y)
                    self._train(index, position, x, x_q, y)
                x_q = self._outputs(unit.student, x_q)
            if pending:
                self.errors[index, position] = before, _error(_chunks(x_q), y)
                self._next = (index, position + 1)
                self._ctx.checkpoint(self._state)
            x = y
        self._next = (index + 1, 0)

    def _state(self) -> dict[str, Any]:
        stage, unit = self._next
        return {"stage": stage, "unit": unit, "student": self.student.state_dict(), "source": self._source_state}

    def _start(self, unit: nn.Module, stage: Stage, x_q: Tensor) -> None:
        """Set the first scales of a unit; weights are rounded to nearest."""
        if stage.weights:
            for layer, quantizer in _quantized_layers(unit):
                weight = layer.parametrizations.weight.original
                levels = weight_levels(weight, quantizer.operand, quantizer.bits, self._params.grid_power)
                quantizer.freeze(*levels.qparams(quantizer.operand, quantizer.bits))
        with ExitStack() as hooks, torch.no_grad():
            for activation in _activations(unit).values():
                hooks.enter_context(activation.register_forward_pre_hook(self._set_range))
            unit(self._batch(x_q, torch.arange(min(self._params.range_images, len(x_q)))))

    def _set_range(self, quantizer: FakeQuantize, args: tuple[Tensor, ...]) -> None:
        """Set the range of an activation from the grid of clip ratios."""
        operand, bits, values = quantizer.operand, quantizer.bits, args[0].flatten()
        low, high = torch.aminmax(values)
        if self._params.zero_point == "sign" and not operand.symmetric:
            low, high = sign_range(low, high, bits)
        if len(values) > SEARCHED:
            seed = self._ctx.seed("reconstruct", "range", quantizer.name)
            chosen = torch.randint(len(values), (SEARCHED,), generator=torch.Generator().manual_seed(seed))
            values = values[chosen.to(values.device)]
        levels = search_levels(values[None], (low[None], high[None]), operand, bits, self._params.grid_power)
        quantizer.set_range(*levels.ends())

    def _train(self, index: int, position: int, x: Tensor, x_q: Tensor, y: Tensor) -> None:
        """Learn rounding and scales of a unit.

        Args:
            index: of the stage.
            position: of the unit.
            x: the teacher's inputs (N, ...).
            x_q: the student's inputs.
            y: the teacher's outputs.
        """
        stage, steps = self.stages[index], self.stages[index].steps
        earlier = sum(before.steps for before in self.stages[:index]) * len(self.units) + position * steps
        total = sum(each.steps for each in self.stages) * len(self.units)
        order = torch.Generator().manual_seed(self._ctx.seed("reconstruct", index, position, "order"))
        seed = self._ctx.seed("reconstruct", index, position)
        training = UnitTraining(self.units[position].student, stage, self._ctx, self._params, seed)
        with training.replaced():
            for step in range(steps):
                chosen = torch.randperm(len(x), generator=order)[: self._params.batch]
                loss = training.step(step, *(self._batch(cache, chosen) for cache in (x, x_q, y)))
                self._ctx.progress(self._lead + earlier + step + 1, self._lead + total, loss=loss)
        training.finish()

    def _batch(self, cache: Tensor, chosen: Tensor) -> Tensor:
        """Return a copy of some rows of a cache, in float32 on the device."""
        rows = cache[chosen.to(cache.device)].to(self._ctx.device, torch.float32)
        return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows

    @torch.no_grad()
    def _passes(self, module: nn.Module, x: Tensor) -> Iterator[Tensor]:
        """Return a module's outputs for a cache, in chunks."""
        for chosen in _chunks(torch.arange(len(x))):
            yield module(self._batch(x, chosen))

    def _outputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the cache of a module's outputs for a cache `x`: one of three that share the memory limit."""
        limit = self._params.cache_gib / 3 * 2**30
        parts: list[Tensor] = []
        for part in self._passes(module, x):
            fits = part[0].numel() * len(x) * part.element_size() <= limit
            parts.append(part if fits else part.to("cpu", torch.bfloat16))
        return torch.cat(parts)


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
        self._layers = _quantized_layers(unit) if stage.weights else []
        self.rounding = [
            AdaRound(layer.parametrizations.weight.original, quantizer, learns_scale=params.learns_weight_scale)
            for layer, quantizer in self._layers
        ]
        self._quantizers = _activations(unit)
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
            with _replaced(self._unit, self._learned):
                yield
        finally:
            for layer, quantizer in self._layers:
                layer.parametrizations.weight[0] = quantizer

    def step(self, step: int, x: Tensor, x_q: Tensor, y: Tensor) -> Tensor:
        """Update everything that learns once; return the loss (0-d).

        Args:
            step: from 0.
            x: the teacher's inputs (batch, ...).
            x_q: the student's inputs.
            y: the teacher's outputs.
        """
        params, warmup = self._params, round(self._params.warmup * self._steps)
        share = max(0, step - warmup) / max(1, self._steps - warmup)
        beta = params.beta_start + (params.beta_end - params.beta_start) * share
        cosine = (1 + math.cos(math.pi * step / self._steps)) / 2
        return self._run_update(x, x_q, y, beta, cosine, penalized=step >= warmup)[0]

    def _update(
        self, x: Tensor, x_q: Tensor, y: Tensor, beta: float | Tensor, cosine: float | Tensor, *, penalized: bool
    ) -> tuple[Tensor]:
        params = self._params
        loss = squared_error(self._unit(mix(x_q, x, params.drop_input, self._random)), y)
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


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return the squared difference, summed over channels (dimension 1) and averaged over the rest (0-d)."""
    return (output - target).square().sum(1).mean()


def _error(outputs: Iterable[Tensor], y: Tensor) -> float:
    """Return the mean squared difference of chunks of outputs to a cache."""
    chunks = zip(outputs, _chunks(y), strict=True)
    return sum(float((part.float() - of_y.float()).square().sum()) for part, of_y in chunks) / y.numel()


def _chunks(x: Tensor) -> Iterator[Tensor]:
    return (x[start : start + CHUNK] for start in range(0, len(x), CHUNK))


def _quantized_layers(unit: nn.Module) -> list[tuple[Any, FakeQuantizeWeight]]:
    """Return the layers of a unit whose weight is quantized, each with its weight quantizer."""
    layers: list[Any] = [module for module in unit.modules() if isinstance(module, WEIGHTED)]
    quantizers = [
        (layer, layer.parametrizations.weight[0]) for layer in layers if parametrize.is_parametrized(layer, "weight")
    ]
    return [pair for pair in quantizers if isinstance(pair[1], FakeQuantizeWeight)]


def _activations(unit: nn.Module) -> dict[str, FakeQuantize]:
    return {name: module for name, module in unit.named_modules() if isinstance(module, FakeQuantize)}


def _levels(quantizer: FakeQuantize) -> Levels:
    return Levels.from_qparams(quantizer.scale, quantizer.zero_point, quantizer.operand, quantizer.bits)


def _identities(unit: nn.Module) -> dict[str, nn.Module]:
    """Return replacements of all fake quantization but that of weights: biases have steps of their layer's input."""
    lists = {name: m for name, m in unit.named_modules() if isinstance(m, parametrize.ParametrizationList)}
    biases = [f"{name}.0" for name, modules in lists.items() if not isinstance(modules[0], FakeQuantizeWeight)]
    return {name: nn.Identity() for name in (*_activations(unit), *biases)}


@contextmanager
def _replaced(unit: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace modules of a unit by name."""
    originals = {name: unit.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            unit.set_submodule(name, module)
        yield
    finally:
        for name, module in originals.items():
            unit.set_submodule(name, module)
