"""The training loop of `distill`."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api.batch import Batch, SampleSource, is_live
from dfqbench.api.errors import PluginError
from dfqbench.quant import check_range_rule
from dfqbench.quantizers.distill_losses import interpolate
from dfqbench.quantizers.distill_terms import StudentLoss
from dfqbench.quantizers.low_pass import LowPass
from dfqbench.synth.augment import crop_and_flip
from dfqbench.synth.training_schedule import TrainingSchedule

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quant import Student
    from dfqbench.quantizers.distill_params import DistillParams


class Distillation:
    """The training of some students on the batches of one source.

    Three phases (see `TrainingSchedule`): activation ranges follow the batches; a live source learns alone; the
    students' parameters train. Before them a live source makes the steps that it has more than these phases; after its
    last step it is drawn from.

    Attributes:
        schedule: lengths of the phases.
        lead: steps of a live source before the phases.
        size: images of a batch of the students.
        students: one for each context; None where it could not be made.
    """

    def __init__(
        self, teacher: nn.Module, source: SampleSource, contexts: Sequence[Context], params: DistillParams
    ) -> None:
        """Prepare students and optimizers, and resume from the last checkpoint.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed or live; one that reads the student has one context only.
            contexts: the host's side of each student.
            params: hyper-parameters.

        Raises:
            UsageError: the range phase is too short for the range rule.
        """
        card = contexts[0].card
        params = params.for_card(card)
        self.schedule = TrainingSchedule(
            contexts[0].budget, params.epochs, params.iterations, params.range_epochs, params.warmup_epochs
        )
        check_range_rule(params.range, self.schedule.range_steps)
        size = params.batch
        if is_live(source):
            size = min(size, source.batch_size)
        elif isinstance(source, Sized):  # more images than a fixed source has would be repetitions
            size = min(size, len(source))
        self.size = size
        self.lead = max(0, source.training_steps - self.schedule.total) if is_live(source) else 0
        self._source = source
        self._student_steps = params.student_steps
        self._classes = card.classes
        self._soft: bool | None = None
        self._first = -self.lead
        self.students = [
            ctx.for_student(TrainedStudent, teacher, ctx, params, self.schedule, self.lead) for ctx in contexts
        ]
        states = [student.ctx.for_student(student.restore) for student in self.students if student is not None]
        state = next((state for state in states if state is not None), None)
        if state is not None:
            self._first = int(state["step"])
            source.load_state_dict(state["source"])

    def run(self) -> list[Student | None]:
        """Run all phases; return the students.

        Raises:
            NonFiniteError: the loss of the only student is not finite.
        """
        for step in range(self._first, self.schedule.total):
            self.step(step)
        return [None if student is None else student.student for student in self.students]

    def step(self, step: int) -> None:
        """Run one step (from 0; below it, a live source learns alone): batches, from which each student learns."""
        students = [student for student in self.students if student is not None]
        source, batches = self._source, list[Batch]()
        if is_live(source) and step + self.lead < source.training_steps:
            only = students[0].student if len(self.students) == 1 and step >= 0 else None
            batches.append(source.train_step(source.batch_size, only).first(self.size))
        elif not self.schedule.range_steps <= step < self.schedule.student_start:
            batches.append(source.sample(self.size))
        if step >= self.schedule.student_start:
            batches += [source.sample(self.size) for _ in range(1, self._student_steps)]
        for batch in batches:
            self._check_labels(batch)
        for student in students:
            student.ctx.for_student(student.step, step, batches, source)

    def _check_labels(self, batch: Batch) -> None:
        """Check that labels fit the network, and are of one kind in all batches.

        Raises:
            PluginError: they do not.
        """
        labels, count, classes = batch.labels, len(batch.images), self._classes
        if labels is None:
            return
        soft = labels.ndim > 1
        fits = tuple(labels.shape) == ((count, classes) if soft else (count,)) and labels.is_floating_point() == soft
        # Values are read once: reading them waits for the device.
        if fits and not soft and self._soft is None:
            fits = bool((labels >= 0).all()) and bool((labels < classes).all())
        if not fits:
            message = f"the source's labels do not fit {count} images and {classes} classes"
            raise PluginError(message, f"return int64 ({count},) below {classes}, or float ({count}, {classes})")
        if self._soft not in {None, soft}:
            raise PluginError("the source gave soft and hard labels", "give one kind in all batches")
        self._soft = soft


class TrainedStudent:
    """A student in training, with its optimizer and random streams.

    Attributes:
        ctx: the host's side.
        student: the student.
    """

    def __init__(
        self, teacher: nn.Module, ctx: Context, params: DistillParams, schedule: TrainingSchedule, lead: int
    ) -> None:
        self.ctx = ctx
        self._params = params
        self._schedule = schedule
        self._lead = lead
        self.student: Student = ctx.prepare(teacher)
        self.student.use_integer_convolutions(ctx.precision.bfloat16)
        self.student.attach_observers(params.range)
        self._loss = StudentLoss(teacher, self.student, params, ctx)
        side = ctx.card.input_size[1:]
        self._low_pass = LowPass(side, params.low_pass * max(side), ctx.device) if params.low_pass > 0 else None
        self._random = torch.Generator(ctx.device).manual_seed(ctx.seed("distill"))
        # On the host, so that no step waits for the device.
        self._coin = torch.Generator().manual_seed(ctx.seed("distill", "coin"))
        self._run_observe = ctx.graphed(self._observe)
        self._run_update = ctx.graphed(self._update, generators=[self._random])
        self._trained = list(self.student.parameters())
        self._optimizer = torch.optim.SGD(
            self._trained,
            lr=params.lr,
            momentum=params.momentum,
            nesterov=params.momentum > 0,
            weight_decay=params.weight_decay,
            fused=True,
        )

    def step(self, step: int, batches: Sequence[Batch], source: SampleSource) -> None:
        """Learn from the batches of a step (below 0: not yet), with progress, snapshot and checkpoint."""
        schedule, scalars = self._schedule, {}
        for batch in batches:
            if 0 <= step < schedule.range_steps:
                self._run_observe(batch.images)
            elif step >= schedule.student_start:
                scalars["loss"] = self._train(batch, step)
        self.ctx.progress(self._lead + step + 1, self._lead + schedule.total, **scalars)
        trained = step + 1 - schedule.student_start
        if trained > 0 and (trained % schedule.epoch_steps == 0 or step + 1 == schedule.total):
            self.ctx.snapshot(self.student, step + 1)
        self.ctx.checkpoint(lambda: self._state(step + 1) | {"source": source.state_dict()})

    @torch.no_grad()
    def _observe(self, images: Tensor) -> tuple[Tensor, ...]:
        with self.student.observing(self._params.range):
            self.student(images)
        return ()

    def _train(self, batch: Batch, step: int) -> Tensor:
        """Update the student's parameters once; return the loss (0-d)."""
        params = self._params
        return self._run_update(
            batch.images,
            batch.labels,
            batch.teacher_logits,
            self._rate(step),
            augments=self._happens(params.augment_share),
            mixes=self._happens(params.interpolation),
        )[0]

    def _update(
        self,
        images: Tensor,
        labels: Tensor | None,
        teacher_logits: Tensor | None,
        lr: float | Tensor,
        *,
        augments: bool,
        mixes: bool,
    ) -> tuple[Tensor]:
        batch = Batch(images, labels, teacher_logits)
        if augments:
            batch = Batch(crop_and_flip(images, self._params.augment_scale, self._random), labels)
        if mixes:
            batch = interpolate(batch, self.ctx.card.classes, self._random)
        if self._low_pass is not None:
            batch = Batch(self._low_pass(batch.images), batch.labels)
        loss = self._loss(batch)
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.zero_grad()
        # Only in the student: the images of some losses would have a gradient, too.
        loss.backward(inputs=self._trained)  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return (loss,)

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        params, schedule = self._params, self._schedule
        if params.lr_schedule == "steps":
            return params.lr * params.lr_factor ** schedule.decays(params.lr_steps, step)
        done = (step - schedule.student_start) / (schedule.total - schedule.student_start)
        return params.lr * (1 + math.cos(math.pi * done)) / 2

    def _happens(self, share: float) -> bool:
        return share > 0 and float(torch.rand((), generator=self._coin)) < share

    def _state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "student": self.student.state_dict(),
            "images_seen": self.student.images_seen,
            "optimizer": self._optimizer.state_dict()["state"],
            "random": self._random.get_state(),
            "coin": self._coin.get_state(),
        }

    def restore(self) -> dict[str, Any] | None:
        """Resume from the last checkpoint's state, if there is one, and return it."""
        state = self.ctx.restored
        if state is None:
            return None
        self.student.load_state_dict(state["student"])
        self.student.images_seen = int(state["images_seen"])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self._run_observe.reset()
        self._run_update.reset()
        self._random.set_state(state["random"].cpu())
        self._coin.set_state(state["coin"].cpu())
        return state
