"""The training loop of `distill`."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api.batch import Batch, SampleSource, is_live
from dfqbench.api.numerics import widened
from dfqbench.quant import check_range_rule, prepare
from dfqbench.quantizers.distill_losses import hard_or_soft, interpolate, kd_loss, logit_mse_loss
from dfqbench.synth.augment import crop_and_flip
from dfqbench.synth.plan import FEW_CLASSES, TrainingPlan, is_large

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quant import Student
    from dfqbench.quantizers.distill import DistillParams


class Distillation:
    """One student in training.

    Three phases (see `TrainingPlan`): activation ranges follow the batches; a live source learns alone; the student's
    parameters move.

    Attributes:
        student: the student.
        plan: lengths of the phases.
    """

    def __init__(self, teacher: nn.Module, source: SampleSource, ctx: Context, params: DistillParams) -> None:
        """Prepares student and optimizer.

        Args:
            teacher: full-precision network, left as it is.
            source: fixed or live.
            ctx: the host's side of the cell.
            params: hyper-parameters.

        Raises:
            UsageError: the range phase is too short for the range rule.
        """
        large = is_large(ctx.card.input_size)
        self._teacher = teacher
        self._source = source
        self._ctx = ctx
        self._params = params
        self._live = is_live(source)
        warmup = params.warmup_epochs_large if large else params.warmup_epochs
        self.plan = TrainingPlan(ctx.budget, params.epochs, params.iterations, params.range_epochs, warmup)
        check_range_rule(params.range_rule, self.plan.range_steps)
        self.student: Student = prepare(teacher, ctx.scheme, ctx.card)
        self.student.use_integer_convolutions(ctx.precision.bfloat16)
        self.student.attach_observers(params.range_rule)
        self._size = self._batch_size(large)
        self._lr = params.lr_large if large else params.lr
        self._lr_steps = params.lr_steps_large if large else params.lr_steps
        self._random = torch.Generator(ctx.device).manual_seed(ctx.seed("distill"))
        self._run_observe = ctx.graphed(self._observe)
        self._run_update = ctx.graphed(self._update, generators=[self._random])
        self._optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=self._lr,
            momentum=params.momentum,
            nesterov=params.momentum > 0,
            weight_decay=params.weight_decay,
            fused=True,
        )
        # Whether a step is augmented or interpolated is decided on the host, so that no step waits for the device.
        self._coin = torch.Generator().manual_seed(ctx.seed("distill", "coin"))

    def _batch_size(self, large: bool) -> int:
        params = self._params
        size = params.batch_large if large else params.batch
        if not large and self._ctx.card.classes <= FEW_CLASSES:
            size = params.batch_few_classes
        # More images than a fixed source has would only be repetitions: the same gradient for more work.
        return min(size, len(self._source)) if isinstance(self._source, Sized) else size

    def run(self) -> Student:
        """Runs all phases, from the last checkpoint where there is one.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        first = 0
        if self._ctx.restored is not None:
            self._load(self._ctx.restored)
            first = int(self._ctx.restored["step"])
        for step in range(first, self.plan.total):
            scalars = self._step(step)
            self._ctx.progress(step + 1, self.plan.total, **scalars)
            trained = step + 1 - self.plan.student_start
            if trained > 0 and (trained % self.plan.epoch_steps == 0 or step + 1 == self.plan.total):
                self._ctx.snapshot(self.student, step + 1)
            self._ctx.checkpoint(lambda step=step: self._state(step + 1))  # type: ignore[misc]
        return self.student

    def _step(self, step: int) -> dict[str, Any]:
        if step < self.plan.range_steps:
            # Drawn before: what the generator sees of the student must not count for the ranges.
            self._run_observe(self._draw().images)
            return {}
        if step < self.plan.student_start:
            if self._live:
                self._draw()
            return {}
        return {"loss": self._train(self._draw(), step)}

    @torch.no_grad()
    def _observe(self, images: Tensor) -> tuple[Tensor, ...]:
        with self.student.observing(self._params.range_rule):
            self.student(images)
        return ()

    def _draw(self) -> Batch:
        if is_live(self._source):
            return self._source.train_step(self._size, self.student)
        return self._source.sample(self._size)

    def _train(self, batch: Batch, step: int) -> Tensor:
        """One update of the student's parameters; returns its loss (0-d)."""
        params = self._params
        augments, mixes = self._happens(params.augment_share), self._happens(params.interpolation)
        return self._run_update(
            batch.images,
            batch.labels,
            batch.teacher_logits,
            self._lr * params.lr_factor ** self.plan.decays(self._lr_steps, step),
            augments=augments,
            mixes=mixes,
        )[0]

    def _update(
        self,
        images: Tensor,
        labels: Tensor | None,
        logits: Tensor | None,
        lr: float | Tensor,
        *,
        augments: bool,
        mixes: bool,
    ) -> tuple[Tensor]:
        self._optimizer.param_groups[0]["lr"] = lr
        batch = self._varied(Batch(images, labels, logits), augments=augments, mixes=mixes)
        wanted = batch.teacher_logits
        if wanted is None:
            with torch.no_grad(), self._ctx.autocast():
                wanted = self._teacher(batch.images)
            wanted = widened(wanted)
        loss = self._loss(wanted, self.student(batch.images), batch.labels)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return (loss,)

    def _loss(self, wanted: Tensor, found: Tensor, labels: Tensor | None) -> Tensor:
        """CE(Q(x), y) + alpha T^2 KL(P || Q) + weight MSE of logits, those that are switched on."""
        params = self._params
        terms = []
        if params.ce_weight > 0:
            terms.append(params.ce_weight * F.cross_entropy(found, hard_or_soft(labels, wanted)))
        if params.alpha > 0:
            terms.append(params.alpha * kd_loss(wanted, found, params.temperature, params.reduction))
        if params.mse_weight > 0:
            terms.append(params.mse_weight * logit_mse_loss(wanted, found))
        return torch.stack(terms).sum()

    def _varied(self, batch: Batch, *, augments: bool, mixes: bool) -> Batch:
        if augments:
            batch = Batch(crop_and_flip(batch.images, self._params.augment_scale, self._random), batch.labels)
        return interpolate(batch, self._ctx.card.classes, self._random) if mixes else batch

    def _happens(self, share: float) -> bool:
        return share > 0 and float(torch.rand((), generator=self._coin)) < share

    def _state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "student": self.student.state_dict(),
            "images_seen": self.student.images_seen,
            "optimizer": self._optimizer.state_dict()["state"],
            "source": self._source.state_dict(),
            "random": self._random.get_state(),
            "coin": self._coin.get_state(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.student.images_seen = int(state["images_seen"])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self._run_observe.reset()
        self._run_update.reset()
        self._source.load_state_dict(state["source"])
        self._random.set_state(state["random"].cpu())
        self._coin.set_state(state["coin"].cpu())
