"""The generator loop: a live source whose generator learns from a teacher, and optionally from a student."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api import Batch, Context
from dfqbench.api.graphed import EagerStep
from dfqbench.api.precision import to_float32
from dfqbench.synth.attention import FeatureMaps
from dfqbench.synth.augment import crop_and_flip
from dfqbench.synth.generators import Condition, Draw, Generator
from dfqbench.synth.nan_check import NonFiniteCheck
from dfqbench.synth.params import GeneratorParams, TrainingPlan
from dfqbench.synth.statistics import BatchNormStatistics
from dfqbench.synth.terms import GeneratorPass, LossTerm


class GeneratorSource:
    """A conditional generator as a live source.

    One `train_step`: draw a condition, make images, pass them through the teacher once, add up the loss terms, update
    the generator, and hand on the images of before the update with the labels and the teacher's logits.

    Attributes:
        generator: the network that makes the images.
        terms: the losses that are switched on.
        steps: updates so far.
    """

    def __init__(
        self,
        teacher: nn.Module,
        generator: Generator,
        ctx: Context,
        params: GeneratorParams,
        *,
        draw: Draw,
        terms: Sequence[LossTerm],
        plan: TrainingPlan,
        what: str,
    ) -> None:
        """Build optimizer and random streams.

        Args:
            teacher: in eval mode, parameters frozen; hooked only inside `train_step`.
            generator: on the context's device.
            ctx: the host's side of the cell.
            params: learning rate, augmentation and the like.
            draw: makes the conditions.
            terms: the losses; those of weight 0 are left out.
            plan: places the learning rate's decays.
            what: name of the method, for errors and seeds.
        """
        self.generator = generator
        self.terms = [term for term in terms if term.weight != 0]
        self.steps = 0
        self._teacher = teacher
        self._autocast = ctx.autocast
        self._draw = draw
        self._params = params
        self._plan = plan
        self._parameters = list(generator.parameters())
        seed = ctx.seed(what, "conditions")
        # Drawing has a stream of its own: how often images are drawn does not change what is learned.
        self._random = torch.Generator(ctx.device).manual_seed(seed)
        self._drawing = torch.Generator(ctx.device).manual_seed(seed + 1)
        # Whether to augment is decided on the host, so that no step waits for the device.
        self._coin = torch.Generator().manual_seed(seed + 2)
        make = ctx.graphed if all(term.capturable for term in self.terms) else EagerStep
        self._run_step = make(self._step, generators=[self._random])
        betas, capturable = (params.beta1, params.beta2), self._run_step.capturable
        self._optimizer = torch.optim.Adam(
            self._parameters, lr=params.lr, betas=betas, fused=True, capturable=capturable
        )
        self._nan_check = NonFiniteCheck(f"{what} generator loss", ctx.device)
        self._watch = BatchNormStatistics(teacher)
        self._recorder = FeatureMaps(teacher)

    @property
    def needs_student(self) -> bool:
        """Whether a loss looks at the student, so that students of other bits need generators of their own."""
        return any(term.needs_student for term in self.terms)

    def _images(self, condition: Condition) -> Tensor:
        with self._autocast():
            images: Tensor = self.generator(condition.noise, condition.labels, condition.extra)
        return images

    def _answer(self, images: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self._teacher(images)
        return to_float32(logits)

    def _augments(self) -> bool:
        share = self._params.augment_share
        return share > 0 and float(torch.rand((), generator=self._coin)) < share

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        """Updates the generator once.

        Args:
            size: images in the batch.
            student: the student, where a loss looks at it; None switches such losses off.

        Returns:
            The images of before the update, as the teacher saw them, with labels and the teacher's logits.

        Raises:
            NonFiniteError: every 50 steps, where a loss was not finite since.
        """
        if not any(term.needs_student and self.steps >= term.start for term in self.terms):
            student = None
        active = [t for t in self.terms if self.steps >= t.start and (student is not None or not t.needs_student)]
        watched = [*active, *(t for t in self.terms if t not in active and not t.needs_student)]
        condition = self._draw(size, self._random)
        decays = self._plan.decays(self._params.lr_steps, self.steps)
        images, logits, *loss = self._run_step(
            condition.noise,
            condition.labels,
            condition.extra,
            self._params.lr * self._params.lr_factor**decays,
            key=id(student),
            active=tuple(active),
            watched=tuple(watched),
            student=student,
            augments=self._augments(),
        )
        if loss:
            self._nan_check.step(loss[0], self.steps + 1)
        for term in watched:
            term.finish(self.steps)
        self.steps += 1
        return Batch(images, condition.labels, logits)

    def _step(
        self,
        noise: Tensor,
        labels: Tensor,
        extra: Tensor | None,
        lr: float | Tensor,
        *,
        active: Sequence[LossTerm],
        watched: Sequence[LossTerm],
        student: nn.Module | None,
        augments: bool,
    ) -> tuple[Tensor, ...]:
        """Run one step on the device; return images, the teacher's logits and, where a term is active, the loss."""
        condition = Condition(noise, labels, extra)
        self._optimizer.param_groups[0]["lr"] = lr
        with ExitStack() as stack:
            watch = stack.enter_context(self._watch) if any(t.needs_statistics for t in watched) else None
            recorder = stack.enter_context(self._recorder) if any(t.needs_maps for t in watched) else None
            images = self._images(condition)
            if augments:
                images = crop_and_flip(images, self._params.augment_scale, self._random)
            logits = self._answer(images)
            view = GeneratorPass(
                images=images,
                condition=condition,
                logits=logits,
                watch=watch,
                recorder=recorder,
                teacher=self._teacher,
                answer=self._answer,
                student=student,
                random=self._random,
            )
            losses = [term.weight * term.loss(view) for term in active]
            results = [images, logits]
            if losses:
                results.append(torch.stack(losses).sum())
                self._update(results[-1])
            for term in watched:
                term.observe(view, self.steps)
        return tuple(results)

    def _update(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        # Only the generator: a loss that passes through the student must leave no gradient there.
        loss.backward(inputs=self._parameters)  # type: ignore[no-untyped-call]
        self._optimizer.step()

    @torch.no_grad()
    def sample(self, size: int) -> Batch:
        """Draws images without learning, without augmentation and without touching the training's random stream."""
        condition = self._draw(size, self._drawing)
        return Batch(self._images(condition), condition.labels)

    def state_dict(self) -> dict[str, Any]:
        """Generator, optimizer, random streams, the watch for bad losses, and the terms' own states."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self._optimizer.state_dict()["state"],
            "random": self._random.get_state(),
            "drawing": self._drawing.get_state(),
            "coin": self._coin.get_state(),
            "steps": self.steps,
            "finite": self._nan_check.state_dict(),
            "terms": {term.name: term.state_dict() for term in self.terms},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.generator.load_state_dict(state["generator"])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        for stream, name in ((self._random, "random"), (self._drawing, "drawing"), (self._coin, "coin")):
            stream.set_state(state[name].cpu())
        self.steps = int(state["steps"])
        self._run_step.reset()
        self._nan_check.load_state_dict(state["finite"])
        for term in self.terms:
            term.load_state_dict(state["terms"][term.name])
