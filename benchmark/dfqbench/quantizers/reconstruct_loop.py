"""The loop of `reconstruct` over the units of some students."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api.batch import SampleSource, is_live
from dfqbench.quant import OFF, FakeQuantize, Student
from dfqbench.quantizers.adaround import search_levels, sign_range, weight_levels
from dfqbench.quantizers.calibrate import train_source
from dfqbench.quantizers.reconstruct_unit import (
    Stage,
    UnitTraining,
    activation_quantizers,
    identities,
    quantized_layers,
    replaced_modules,
)
from dfqbench.quantizers.units import split

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quantizers.reconstruct_params import ReconstructParams

TeacherPart = tuple[Hashable, ...]
CHUNK = 64
"""Images of a pass without gradients."""
SEARCHED = 1 << 18
"""Most elements of an activation from which its first scale is searched."""


class Reconstruction:
    """The reconstruction of some students on the same images, unit after unit.

    In each round every student trains one unit. Students whose units are the same parts of the teacher share the cache
    of its outputs.

    Attributes:
        students: one for each context; None where it could not be made.
    """

    def __init__(
        self,
        teacher: nn.Module,
        source: SampleSource,
        contexts: Sequence[Context],
        params: ReconstructParams,
        count: int,
    ) -> None:
        """Prepare the students, train a live source, and draw the images; go on from the last checkpoint.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed or live.
            contexts: the host's side of each student.
            params: hyper-parameters.
            count: images to draw.

        Raises:
            Unavailable: the network uses a layer twice.
        """
        lead = source.training_steps if is_live(source) else 0
        self.students = [ctx.for_student(ReconstructedStudent, teacher, ctx, params, lead) for ctx in contexts]
        states = [student.ctx.for_student(student.restore) for student in self.students if student is not None]
        state = next((state for state in states if state is not None), None)
        if state is not None:
            source.load_state_dict(state["source"])
        else:
            train_source(source, contexts)
        # From this state the same images are drawn after an interruption.
        source_state = source.state_dict()
        images = source.sample(count).images.to(contexts[0].device, memory_format=torch.channels_last)
        for student in self.students:
            if student is not None:
                student.begin(images, source_state)

    def run(self) -> list[Student | None]:
        """Reconstruct all units in all stages; return the students.

        Raises:
            NonFiniteError: the loss of the only student is not finite.
        """
        students = [student for student in self.students if student is not None]
        for index in range(max((student.rounds for student in students), default=0)):
            outputs: dict[TeacherPart, Tensor] = {}
            for student in students:
                if index < student.rounds and student.teacher_part(index) not in outputs:
                    outputs[student.teacher_part(index)] = student.teacher_outputs(index)
            # A student that fails leaves: its caches are incomplete.
            students = [each for each in students if each.ctx.for_student(each.run_round, index, outputs)]
        return [student.student if student in students else None for student in self.students]


class ReconstructedStudent:
    """The reconstruction of one student.

    Attributes:
        ctx: the host's side.
        student: the student; between rounds its state is complete.
        units: its parts.
        stages: weights and activations together, or one after the other.
        errors: of each round: mean squared difference to the teacher with nearest rounding at the first scales, and at
            the end.
    """

    def __init__(self, teacher: nn.Module, ctx: Context, params: ReconstructParams, lead: int) -> None:
        self.ctx = ctx
        self._params = params
        self._lead = lead
        self.student: Student = ctx.prepare(teacher)
        self.units = split(self.student, torch.zeros(1, *ctx.card.input_size, device=ctx.device))
        steps, later = (ctx.budget.reconstruction_steps(n) for n in (params.steps, params.activation_steps))
        # In fewer steps v goes as far as in all: h reaches 0 or 1.
        lr = params.lr_rounding * params.steps / max(1, steps)
        self.stages = [Stage(weights=True, activations=not later, steps=steps, lr_rounding=lr)]
        if later and ctx.scheme.a_bits != OFF:
            self.stages.append(Stage(weights=False, activations=True, steps=later, lr_rounding=0.0))
        self.errors: dict[int, tuple[float, float]] = {}
        self._next = 0
        self._images = self._x = self._x_q = torch.empty(0)
        self._source_state: dict[str, Any] = {}

    @property
    def rounds(self) -> int:
        """Rounds from the first unit of the first stage to the last one of the last."""
        return len(self.stages) * len(self.units)

    def restore(self) -> dict[str, Any] | None:
        """Go on from the last checkpoint's state, if it was made after the training of a live source, and return it."""
        state = self.ctx.restored
        if state is None or "round" not in state:
            return None
        self._next = int(state["round"])
        self.student.load_state_dict(state["student"])
        return state

    def begin(self, images: Tensor, source_state: dict[str, Any]) -> None:
        """Set the images (N, C, H, W), and the state of the source that they were drawn from."""
        self._images, self._source_state = images, source_state
        # The units of a pass make one pass of the student.
        self.student.images_seen = sum(stage.steps * self._params.batch + 2 * len(images) for stage in self.stages)

    def teacher_part(self, index: int) -> TeacherPart:
        """Return what identifies the teacher's part up to the unit of a round: its outputs are the same if this is."""
        position = index % len(self.units)
        return (self.student.scheme.protocol, *(unit.teacher.code for unit in self.units[: position + 1]))

    def teacher_outputs(self, index: int) -> Tensor:
        """Return the cache of the teacher's outputs of the unit of a round, which follows the last round."""
        position = index % len(self.units)
        return self._outputs(self.units[position].teacher, self._x if position else self._images)

    def run_round(self, index: int, teacher_outputs: dict[TeacherPart, Tensor]) -> bool:
        """Train the unit of a round, if this is not done, and fill the caches of the next; return True.

        Args:
            index: of the round.
            teacher_outputs: caches by `teacher_part`.
        """
        if index < self.rounds:
            self._run_unit(index, teacher_outputs[self.teacher_part(index)])
        if index >= self._next:
            self._next = index + 1
            self.ctx.checkpoint(self._state)
        return True

    def _run_unit(self, index: int, y: Tensor) -> None:
        stage, position = divmod(index, len(self.units))
        unit, pending = self.units[position], index >= self._next
        if position == 0:
            self._x = self._x_q = self._images
        with replaced_modules(unit.student, {} if self.stages[stage].activations else identities(unit.student)):
            if pending:
                self._start(unit.student, self.stages[stage], self._x_q)
                before = _error(self._passes(unit.student, self._x_q), y)
                self._train(stage, position, y)
            self._x, self._x_q = y, self._outputs(unit.student, self._x_q)
        if pending:
            self.errors[index] = before, _error(_chunks(self._x_q), y)

    def _state(self) -> dict[str, Any]:
        return {"round": self._next, "student": self.student.state_dict(), "source": self._source_state}

    def _start(self, unit: nn.Module, stage: Stage, x_q: Tensor) -> None:
        """Set the first scales of a unit; weights are rounded to nearest."""
        if stage.weights:
            for layer, quantizer in quantized_layers(unit):
                weight = layer.parametrizations.weight.original
                levels = weight_levels(weight, quantizer.operand, quantizer.bits, self._params.grid_power)
                quantizer.freeze(*levels.qparams(quantizer.operand, quantizer.bits))
        with ExitStack() as hooks, torch.no_grad():
            for activation in activation_quantizers(unit).values():
                hooks.enter_context(activation.register_forward_pre_hook(self._set_range))
            unit(self._batch(x_q, torch.arange(min(self._params.range_images, len(x_q)))))

    def _set_range(self, quantizer: FakeQuantize, args: tuple[Tensor, ...]) -> None:
        """Set the range of an activation from the grid of clip ratios."""
        operand, bits, values = quantizer.operand, quantizer.bits, args[0].flatten()
        low, high = torch.aminmax(values)
        if self._params.zero_point == "sign" and not operand.symmetric:
            low, high = sign_range(low, high, bits)
        if len(values) > SEARCHED:
            seed = self.ctx.seed("reconstruct", "range", quantizer.name)
            chosen = torch.randint(len(values), (SEARCHED,), generator=torch.Generator().manual_seed(seed))
            values = values[chosen.to(values.device)]
        levels = search_levels(values[None], (low[None], high[None]), operand, bits, self._params.grid_power)
        quantizer.set_range(*levels.ends())

    def _train(self, index: int, position: int, y: Tensor) -> None:
        """Learn rounding and scales of a unit.

        Args:
            index: of the stage.
            position: of the unit.
            y: the teacher's outputs (N, ...).
        """
        stage, steps = self.stages[index], self.stages[index].steps
        earlier = sum(before.steps for before in self.stages[:index]) * len(self.units) + position * steps
        total = sum(each.steps for each in self.stages) * len(self.units)
        caches = [self._x, self._x_q, y]
        if self._params.fisher:
            caches.append(self._fisher_weights(position, y))
        order = torch.Generator().manual_seed(self.ctx.seed("reconstruct", index, position, "order"))
        seed = self.ctx.seed("reconstruct", index, position)
        training = UnitTraining(self.units[position].student, stage, self.ctx, self._params, seed)
        with training.replaced():
            for step in range(steps):
                chosen = torch.randperm(len(y), generator=order)[: self._params.batch]
                loss = training.step(step, *(self._batch(cache, chosen) for cache in caches))
                self.ctx.progress(self._lead + earlier + step + 1, self._lead + total, loss=loss)
        training.finish()

    def _fisher_weights(self, position: int, y: Tensor) -> Tensor:
        """Return the cache of squared gradients at a unit's output (N, ...), scaled to mean 1.

        They are those of KL(P || Q) of the teacher and the student whose later units are the teacher's.
        """
        unit = self.units[position].student
        later = nn.Sequential(*(each.teacher for each in self.units[position + 1 :]))

        def squares() -> Iterator[Tensor]:
            for output, target in zip(self._passes(unit, self._x_q), _chunks(y), strict=True):
                with torch.no_grad():
                    teacher = later(self._on_device(target).clone()).log_softmax(1)  # layers may work in place
                with torch.enable_grad():
                    output.requires_grad_()
                    kl = F.kl_div(later(output.clone()).log_softmax(1), teacher, reduction="sum", log_target=True)
                    (gradient,) = torch.autograd.grad(kl, output)
                yield gradient.square()

        weights = self._cached(squares(), len(y))
        mean = float(sum(part.float().sum() for part in _chunks(weights))) / weights.numel()
        return weights.div_(mean) if mean > 0 else torch.ones_like(weights)

    def _batch(self, cache: Tensor, chosen: Tensor) -> Tensor:
        """Return a copy of some rows of a cache, in float32 on the device."""
        return self._on_device(cache[chosen.to(cache.device)])

    def _on_device(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.ctx.device, torch.float32)
        return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows

    @torch.no_grad()
    def _passes(self, module: nn.Module, x: Tensor) -> Iterator[Tensor]:
        """Return a module's outputs for a cache, in chunks."""
        for chosen in _chunks(torch.arange(len(x))):
            yield module(self._batch(x, chosen))

    def _outputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the cache of a module's outputs for a cache `x`."""
        return self._cached(self._passes(module, x), len(x))

    def _cached(self, chunks: Iterable[Tensor], count: int) -> Tensor:
        """Return the cache of chunks with `count` rows: one of a unit's three (or four) that share the memory limit."""
        limit = self._params.cache_gib / (4 if self._params.fisher else 3) * 2**30
        parts: list[Tensor] = []
        for part in chunks:
            fits = part[0].numel() * count * part.element_size() <= limit
            parts.append(part if fits else part.to("cpu", torch.bfloat16))
        return torch.cat(parts)


def _error(outputs: Iterable[Tensor], y: Tensor) -> float:
    """Return the mean squared difference of chunks of outputs to a cache."""
    chunks = zip(outputs, _chunks(y), strict=True)
    return sum(float((part.float() - of_y.float()).square().sum()) for part, of_y in chunks) / y.numel()


def _chunks(x: Tensor) -> Iterator[Tensor]:
    return (x[start : start + CHUNK] for start in range(0, len(x), CHUNK))
