"""Loss terms of the generator loop: what each looks at, and how much it weighs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import PluginError
from dfqbench.synth.attention import FeatureMaps, PassMaps, batch_statistics
from dfqbench.synth.generators import Condition
from dfqbench.synth.losses import (
    bns_loss,
    expected_margin_loss,
    logit_discrepancy,
    probability_discrepancy,
    sampled_margin_loss,
)
from dfqbench.synth.statistics import BatchNormStatistics, PassStatistics


@dataclass
class GeneratorPass:
    """One pass of generator and teacher, as the loss terms see it. Everything carries the generator's graph.

    Attributes:
        images: (N, C, H, W), as teacher and student see them.
        condition: what the generator was asked for.
        logits: the teacher's (N, classes).
        watch: watcher of BatchNorm inputs, or None where no term asked for it.
        recorder: recorder of feature maps, or None where no term asked for it.
        teacher: the teacher, in eval mode.
        answer: the teacher's forward pass as the loop runs it (precision); logits in float32.
        student: the student, or None.
        random: for terms that draw.
    """

    images: Tensor
    condition: Condition
    logits: Tensor
    watch: BatchNormStatistics | None
    recorder: FeatureMaps | None
    teacher: nn.Module
    answer: Callable[[Tensor], Tensor]
    student: nn.Module | None
    random: torch.Generator

    def __post_init__(self) -> None:
        # Taken now: a term that runs another pass of the teacher must not change what the others see.
        self._statistics = None if self.watch is None else self.watch.last
        self._maps = None if self.recorder is None else self.recorder.last

    @property
    def labels(self) -> Tensor:
        """The condition's labels, int64 (N,)."""
        return self.condition.labels

    @property
    def statistics(self) -> PassStatistics:
        """BatchNorm-input statistics of the teacher's pass."""
        if self._statistics is None:
            raise PluginError("a loss term reads BatchNorm statistics that it did not ask for", "set needs_statistics")
        return self._statistics

    @property
    def maps(self) -> PassMaps:
        """Feature maps of the teacher's pass."""
        if self._maps is None:
            raise PluginError("a loss term reads feature maps that it did not ask for", "set needs_maps")
        return self._maps

    def second_pass(self) -> PassMaps:
        """Feature maps of another teacher pass over the same images, in which BatchNorm uses the batch's statistics."""
        if self.recorder is None:
            raise PluginError("a loss term reads feature maps that it did not ask for", "set needs_maps")
        with batch_statistics(self.teacher), self.watch.paused() if self.watch is not None else nullcontext():
            self.answer(self.images)
        return self.recorder.last

    @cached_property
    def correct(self) -> Tensor:
        """Whether the teacher's class is the label, bool (N,)."""
        return self.logits.detach().argmax(1) == self.labels

    @cached_property
    def student_logits(self) -> Tensor:
        """The student's logits (N, classes), once for all terms."""
        if self.student is None:
            raise PluginError("a loss term reads a student that it did not ask for", "set needs_student")
        logits: Tensor = self.student(self.images)
        return logits


class LossTerm(ABC):
    """One weighted loss of the generator loop. Derive to add a loss with state; see also `function_term`.

    Attributes:
        name: for logs and the state.
        weight: factor; a term of weight 0 is left out.
        start: step (from 0) from which the term counts.
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
        """The unweighted loss (0-d) of one pass."""

    def observe(self, view: GeneratorPass, step: int) -> None:  # noqa: B027 - most losses only look at one pass
        """Looks at the pass after the update of step `step` (from 0), whether or not the term has started."""

    def finish(self, step: int) -> None:  # noqa: B027
        """Is told on the host that step `step` (from 0) has been done."""

    def state_dict(self) -> dict[str, Any]:
        """What the term must remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most losses have no state
        """Restores what `state_dict` returned."""


class FunctionTerm(LossTerm):
    """A loss without state, from a function of the pass.

    The function reads no value from the device; derive from `LossTerm` for one that does.
    """

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
        """The function's value."""
        return self._function(view)


def cross_entropy_term(weight: float) -> LossTerm:
    """CE(P(x), y): images shall look like their class to the teacher (GDFQ, released code)."""
    return FunctionTerm("ce", weight, lambda view: F.cross_entropy(view.logits, view.labels))


def bns_term(weight: float) -> LossTerm:
    """L_BNS of the batch (methods.md 0.3)."""
    return FunctionTerm("bns", weight, lambda view: bns_loss(view.statistics), statistics=True)


def margin_term(
    weight: float,
    start: int,
    *,
    mean: float,
    std: float,
    form: Literal["sampled", "expected"],
    distance: Literal["logits", "probabilities"],
) -> LossTerm:
    """Gaussian-margin adversarial loss through the student (methods.md 6, inferred).

    The student does not learn from it: the loop differentiates in the generator's parameters alone; gradients pass
    the student's quantizers straight through.
    """
    measure = logit_discrepancy if distance == "logits" else probability_discrepancy

    def loss(view: GeneratorPass) -> Tensor:
        discrepancy = measure(view.logits, view.student_logits)
        if form == "expected":
            return expected_margin_loss(discrepancy, mean, std)
        return sampled_margin_loss(discrepancy, mean, std, view.random)

    return FunctionTerm("margin", weight, loss, start=start, student=True)
