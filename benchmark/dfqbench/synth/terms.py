"""Weighted loss terms of the generator loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import Context, PluginError
from dfqbench.synth.attention import FeatureMaps, PassMaps, batch_statistics
from dfqbench.synth.generators import Condition
from dfqbench.synth.losses import (
    NORMALISER_EPS,
    bns_loss,
    erf_margin_loss,
    expected_margin_loss,
    logit_discrepancy,
    probability_discrepancy,
    sampled_margin_loss,
)
from dfqbench.synth.params import GeneratorParams, is_large
from dfqbench.synth.running_moments import RunningMoments
from dfqbench.synth.statistics import BatchNormStatistics, PassStatistics
from dfqbench.synth.training_schedule import generator_schedule

T = TypeVar("T")


@dataclass
class GeneratorPass:
    """A pass of generator and teacher, with the generator's graph: the input of the loss terms.

    Attributes:
        images: (N, C, H, W), the input of teacher and student.
        condition: the generator's input.
        logits: the teacher's (N, classes).
        bn_recorder: of the teacher, or None where no term needs statistics.
        map_recorder: of the teacher, or None where no term needs maps.
        teacher: the teacher, in eval mode.
        run_generator: from a condition to images as given to the teacher.
        run_teacher: the teacher's forward pass in the loop's precision; logits in float32.
        student: the student, or None.
        random: for terms that draw.
    """

    images: Tensor
    condition: Condition
    logits: Tensor
    bn_recorder: BatchNormStatistics | None
    map_recorder: FeatureMaps | None
    teacher: nn.Module
    run_generator: Callable[[Condition], Tensor]
    run_teacher: Callable[[Tensor], Tensor]
    student: nn.Module | None
    random: torch.Generator

    def __post_init__(self) -> None:
        # Read now, so that a term's further pass of the teacher does not change the other terms' data.
        self._statistics = None if self.bn_recorder is None else self.bn_recorder.last
        self._maps = None if self.map_recorder is None else self.map_recorder.last

    @property
    def labels(self) -> Tensor:
        """The condition's labels, int64 (N,)."""
        return self.condition.labels

    @property
    def statistics(self) -> PassStatistics:
        """BatchNorm-input statistics of the teacher's pass."""
        return _needed(self._statistics, "BatchNorm statistics", "needs_statistics")

    @property
    def maps(self) -> PassMaps:
        """Feature maps of the teacher's pass."""
        return _needed(self._maps, "feature maps", "needs_maps")

    @cached_property
    def second_pass(self) -> GeneratorPass:
        """Another teacher pass over the images, with the batch's statistics in BatchNorm; run once for all terms."""
        with batch_statistics(self.teacher):
            logits = self.run_teacher(self.images)
        return replace(self, logits=logits)

    @cached_property
    def single_class(self) -> GeneratorPass:
        """A further pass of generator and teacher, over equally many images of one random class."""
        device = self.labels.device
        noise = torch.randn(self.condition.noise.shape, generator=self.random, device=device)
        label = torch.randint(0, self.logits.shape[1], (1,), generator=self.random, device=device)
        condition = replace(self.condition, noise=noise, labels=label.expand(len(noise)))
        images = self.run_generator(condition)
        return replace(self, images=images, condition=condition, logits=self.run_teacher(images))

    @cached_property
    def correct(self) -> Tensor:
        """Whether the teacher's class is the label, bool (N,)."""
        return self.logits.detach().argmax(1) == self.labels

    @cached_property
    def student_logits(self) -> Tensor:
        """The student's logits (N, classes), computed once for all terms."""
        logits: Tensor = _needed(self.student, "a student", "needs_student")(self.images)
        return logits


def _needed(value: T | None, data: str, flag: str) -> T:
    if value is None:
        raise PluginError(f"a loss term reads {data} that it did not ask for", f"set {flag}")
    return value


class LossTerm(ABC):
    """A weighted loss of the generator loop. Derive from it for a loss with state; see also `FunctionTerm`.

    Attributes:
        name: for logs and the state.
        weight: factor; a term of weight 0 is left out.
        start: first step (from 0) in which the term counts.
        needs_statistics: reads `view.statistics`.
        needs_maps: reads `view.maps`.
        needs_student: reads `view.student_logits`; without a student the term is off.
        capturable: whether `loss` and `observe` run the same operations on the device at each step and read no value
            from it, so that a CUDA graph may repeat them. `finish` is called on the host at each step.
    """

    needs_statistics = False
    needs_maps = False
    needs_student = False
    capturable = False

    def __init__(self, name: str, weight: float, start: int = 0) -> None:
        self.name = name
        self.weight = weight
        self.start = start

    @abstractmethod
    def loss(self, view: GeneratorPass) -> Tensor:
        """Return the unweighted loss (0-d) of a pass."""

    def observe(self, view: GeneratorPass, step: int) -> None:  # noqa: B027 - optional
        """Process the pass after the update of step `step` (from 0), also before the term has started."""

    def finish(self, step: int) -> None:  # noqa: B027 - optional
        """Run on the host after step `step` (from 0)."""

    def state_dict(self) -> dict[str, Any]:
        """Return the term's state for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Restore what `state_dict` returned."""


class FunctionTerm(LossTerm):
    """A loss without state: a function of the pass that reads no value from the device."""

    capturable = True

    def __init__(
        self,
        name: str,
        weight: float,
        function: Callable[[GeneratorPass], Tensor],
        *,
        start: int = 0,
        statistics: bool = False,
        maps: bool = False,
        student: bool = False,
    ) -> None:
        super().__init__(name, weight, start)
        self._function = function
        self.needs_statistics = statistics
        self.needs_maps = maps
        self.needs_student = student

    def loss(self, view: GeneratorPass) -> Tensor:
        """Return the function's value."""
        return self._function(view)


def cross_entropy_term(weight: float) -> LossTerm:
    """CE(P(x), y): the teacher P shall classify the image as its label (GDFQ, released code)."""
    return FunctionTerm("ce", weight, lambda view: F.cross_entropy(view.logits, view.labels))


def bns_term(weight: float) -> LossTerm:
    """L_BNS of the batch (methods.md 0.3)."""
    return FunctionTerm("bns", weight, lambda view: bns_loss(view.statistics), statistics=True)


class MarginTerm(LossTerm):
    """L_GM of the discrepancy D of teacher and student (methods.md 6, inferred); only the generator learns from it.

    With `margin_scale=running` margins follow the running mean d and deviation s of D, of the earlier steps in which
    the term counts: N(d + s, s^2), above three quarters of a Gaussian D. In the first of these steps the loss is 0.
    """

    needs_student = True
    capturable = True

    def __init__(self, params: GeneratorParams, start: int, device: torch.device) -> None:
        super().__init__("margin", params.margin_weight, start)
        self._params = params
        self._measure = logit_discrepancy if params.margin_distance == "logits" else probability_discrepancy
        running = params.margin_scale == "running"
        self._running = RunningMoments((), params.margin_decay, device) if running else None

    def loss(self, view: GeneratorPass) -> Tensor:
        """Return the loss of the margin's form."""
        discrepancy = self._measure(view.logits, view.student_logits)
        mean, std = self._margin()
        match self._params.margin_form:
            case "sampled":
                return sampled_margin_loss(discrepancy, mean, std, view.random)
            case "expected":
                return expected_margin_loss(discrepancy, mean, std)
            case "erf":
                return erf_margin_loss(discrepancy, std)

    def _margin(self) -> tuple[float | Tensor, float | Tensor]:
        """Return the margin's mean and standard deviation, or width."""
        if self._running is None:
            return self._params.margin_mean, self._params.margin_std
        d, s = self._running.mean, self._running.std
        if self._params.margin_form == "erf":  # a Gaussian about 0: its width is the deviation of D from 0
            return 0.0, torch.sqrt(d.square() + s.square()) + NORMALISER_EPS
        return d + s, s + NORMALISER_EPS

    def observe(self, view: GeneratorPass, step: int) -> None:  # noqa: ARG002 - the interface
        """Update the running mean and deviation."""
        if self._running is not None:
            self._running.update(self._measure(view.logits, view.student_logits))

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean and deviation, if there are any."""
        return {} if self._running is None else self._running.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self._running is not None:
            self._running.load_state_dict(state)


def base_terms(ctx: Context, params: GeneratorParams) -> list[LossTerm]:
    """Return GDFQ's losses, CE and BNS, and the Gaussian margin, with weights and constants from `params`."""
    start = params.margin_start_large if is_large(ctx.card.input_size) else params.margin_start
    margin = MarginTerm(params, generator_schedule(ctx, params).step_of(start), ctx.device)
    return [cross_entropy_term(params.ce_weight), bns_term(params.bns_weight), margin]
