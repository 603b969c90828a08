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
from dfqbench.synth.generators import Condition, Draw, Generator, class_condition
from dfqbench.synth.nan_check import NonFiniteCheck
from dfqbench.synth.params import GeneratorParams, batch_size, is_large
from dfqbench.synth.statistics import BatchNormStatistics
from dfqbench.synth.terms import GeneratorPass, LossTerm
from dfqbench.synth.training_schedule import generator_schedule


class GeneratorSource:
    """A conditional generator as a live source.

    The generator is GDFQ's. One `train_step`: draw a condition, make images, pass them through the teacher, add up the
    loss terms, update the generator, and return the images of before the update.

    Attributes:
        generator: the network that makes the images.
        terms: the losses with a weight.
        steps: updates so far.
        batch_size: images of a published step.
        training_steps: steps of the published schedule under the cell's budget.
    """

    def __init__(
        self,
        teacher: nn.Module,
        ctx: Context,
        params: GeneratorParams,
        *,
        what: str,
        losses: Sequence[LossTerm],
        draw: Draw | None = None,
        latent: int | None = None,
        extra: int = 0,
    ) -> None:
        """Build the generator, initialised from the cell's seed, its optimizer and random streams.

        Args:
            teacher: in eval mode, parameters frozen; it has hooks only during `train_step`.
            ctx: the host's side of the cell.
            params: architecture, statistics of the output, and training.
            what: name of the method, for errors and seeds.
            losses: all losses of the generator, for example those of `base_terms`; those of weight 0 are left out.
            draw: makes the conditions; None: noise and label.
            latent: size of the noise; None: as in `params`.
            extra: size of a further condition that `draw` makes.
        """
        latent = params.latent if latent is None else latent
        self.generator = _build_generator(ctx, params, latent, extra)
        self.terms = [term for term in losses if term.weight != 0]
        self.steps = 0
        self._teacher = teacher
        self._autocast = ctx.autocast
        self._draw = draw or class_condition(latent, ctx.card.classes)
        self._params = params
        self._schedule = generator_schedule(ctx, params)
        self.batch_size = batch_size(params, ctx.card)
        self.training_steps = self._schedule.total
        self._parameters = list(self.generator.parameters())
        seed = ctx.seed(what, "conditions")
        # A separate stream, so that drawing images does not change the training.
        self._random = torch.Generator(ctx.device).manual_seed(seed)
        self._drawing = torch.Generator(ctx.device).manual_seed(seed + 1)
        # On the host, so that no step waits for the device.
        self._coin = torch.Generator().manual_seed(seed + 2)
        make = ctx.graphed if all(term.capturable for term in self.terms) else EagerStep
        self._run_step = make(self._step, generators=[self._random])
        betas, capturable = (params.beta1, params.beta2), self._run_step.capturable
        self._optimizer = torch.optim.Adam(
            self._parameters, lr=params.lr, betas=betas, fused=True, capturable=capturable
        )
        self._nan_check = NonFiniteCheck(f"{what} generator loss", ctx.device)
        self._bn_recorder = BatchNormStatistics(teacher)
        self._map_recorder = FeatureMaps(teacher)

    @property
    def needs_student(self) -> bool:
        """Whether a loss reads the student, so that students of other bits need other generators."""
        return any(term.needs_student for term in self.terms)

    def _images(self, condition: Condition) -> Tensor:
        with self._autocast():
            images: Tensor = self.generator(condition.noise, condition.labels, condition.extra)
        return images

    def _run_teacher(self, images: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self._teacher(images)
        return to_float32(logits)

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        """Update the generator once.

        Args:
            size: images in the batch.
            student: for losses that read it; None switches them off.

        Returns:
            The images of before the update, as given to the teacher, with labels and the teacher's logits.

        Raises:
            NonFiniteError: in every 50th step, if one of these losses was not finite.
        """
        if not any(term.needs_student and self.steps >= term.start for term in self.terms):
            student = None
        active = [t for t in self.terms if self.steps >= t.start and (student is not None or not t.needs_student)]
        observing = [*active, *(t for t in self.terms if t not in active and not t.needs_student)]
        condition = self._draw(size, self._random)
        decays = self._schedule.decays(self._params.lr_steps, self.steps)
        share = self._params.augment_share
        images, logits, *loss = self._run_step(
            condition.noise,
            condition.labels,
            condition.extra,
            self._params.lr * self._params.lr_factor**decays,
            key=id(student),
            active=tuple(active),
            observing=tuple(observing),
            student=student,
            augments=share > 0 and float(torch.rand((), generator=self._coin)) < share,
        )
        if loss:
            self._nan_check.step(loss[0], self.steps + 1)
        for term in observing:
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
        observing: Sequence[LossTerm],
        student: nn.Module | None,
        augments: bool,
    ) -> tuple[Tensor, ...]:
        """Run one step on the device; return images, the teacher's logits and, where a term is active, the loss."""
        condition = Condition(noise, labels, extra)

        def run_generator(condition: Condition) -> Tensor:
            images = self._images(condition)
            return crop_and_flip(images, self._params.augment_scale, self._random) if augments else images

        self._optimizer.param_groups[0]["lr"] = lr
        with ExitStack() as stack:
            needs_statistics = any(term.needs_statistics for term in observing)
            needs_maps = any(term.needs_maps for term in observing)
            bn_recorder = stack.enter_context(self._bn_recorder) if needs_statistics else None
            map_recorder = stack.enter_context(self._map_recorder) if needs_maps else None
            images = run_generator(condition)
            logits = self._run_teacher(images)
            view = GeneratorPass(
                images=images,
                condition=condition,
                logits=logits,
                bn_recorder=bn_recorder,
                map_recorder=map_recorder,
                teacher=self._teacher,
                run_generator=run_generator,
                run_teacher=self._run_teacher,
                student=student,
                random=self._random,
            )
            losses = [term.weight * term.loss(view) for term in active]
            results = [images, logits]
            if losses:
                loss = torch.stack(losses).sum()
                results.append(loss)
                self._optimizer.zero_grad()
                # Only in the generator: the student keeps no gradient.
                loss.backward(inputs=self._parameters)  # type: ignore[no-untyped-call]
                self._optimizer.step()
            for term in observing:
                term.observe(view, self.steps)
        return tuple(results)

    @torch.no_grad()
    def sample(self, size: int) -> Batch:
        """Draw images without learning or augmentation, from a random stream that training does not use."""
        condition = self._draw(size, self._drawing)
        return Batch(self._images(condition), condition.labels)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of generator, optimizer, random streams, the check for bad losses, and the terms."""
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
        """Restore what `state_dict` returned."""
        self.generator.load_state_dict(state["generator"])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        for name, stream in (("random", self._random), ("drawing", self._drawing), ("coin", self._coin)):
            stream.set_state(state[name].cpu())
        self.steps = int(state["steps"])
        self._run_step.reset()
        self._nan_check.load_state_dict(state["finite"])
        for term in self.terms:
            term.load_state_dict(state["terms"][term.name])


def _build_generator(ctx: Context, params: GeneratorParams, latent: int, extra: int) -> Generator:
    card = ctx.card
    embedding = not is_large(card.input_size) if params.architecture == "auto" else params.architecture == "cifar"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(ctx.seed("generator weights"))
        generator = Generator(
            card.input_size,
            card.classes,
            latent=latent,
            embedding=embedding,
            extra=extra,
            stats=card.target_stats(params.input_target),
            sub_pixel=ctx.precision.rearranges,
        )
    return generator.to(ctx.device)
