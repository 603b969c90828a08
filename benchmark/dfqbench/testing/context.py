"""A context without a host, for tests that call `synthesize` and `quantize`."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import nn

from dfqbench.api import Budget, ModelCard, NonFiniteError, PluginError, Precision, SampleSource, budget_named
from dfqbench.api.graphed import EagerStep, GraphedStep, MakeGraphed, StepFunction
from dfqbench.quant.scheme import Scheme
from dfqbench.quant.student import Student, prepare
from dfqbench.testing.toys import toy_card

if TYPE_CHECKING:
    from dfqbench.quant import Student

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass
class ToyContext:
    """An implementation of `dfqbench.api.Context` in memory that keeps every report.

    Attributes:
        card: the teacher's card.
        budget: length of the schedules.
        root_seed: everything random derives from it.
        bits: the scheme, or None: reading it is an error, as inside a `synthesize` that must not look at bits.
        restored: state to go on from, or None.
        shared: the shared quantizer, or None.
        device: where to compute.
        precision: how the training loops compute.
        make_graphed: makes the results of `graphed` where the precision lets operations be rearranged.
        keep_states: whether the states given at step boundaries are kept.
        fixed_workdir: the work folder; None: a temporary one.
        steps: (step, total) of every report.
        scalars: scalars of every report; a `loss` is checked at every step.
        saved: the states given at step boundaries, where `keep_states` is set.
        snapshots: steps of the calls of `snapshot`.
    """

    card: ModelCard = field(default_factory=toy_card)
    budget: Budget = field(default_factory=lambda: budget_named("smoke"))
    root_seed: int = 0
    bits: Scheme | None = None
    restored: dict[str, Any] | None = None
    shared: Callable[[nn.Module, SampleSource, ToyContext], Student] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = Precision.FLOAT32
    make_graphed: MakeGraphed = EagerStep
    keep_states: bool = False
    fixed_workdir: Path | None = None
    steps: list[tuple[int, int]] = field(default_factory=list)
    scalars: list[dict[str, Any]] = field(default_factory=list)
    saved: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)

    @property
    def scheme(self) -> Scheme:
        """The scheme given to the constructor.

        Raises:
            PluginError: none was given.
        """
        if self.bits is None:
            raise PluginError("the scheme is not for this method to look at", "set depends_on_bits = True")
        return self.bits

    @cached_property
    def generator(self) -> torch.Generator:
        """A generator, seeded from `root_seed`."""
        return torch.Generator(self.device).manual_seed(self.seed("generator"))

    @cached_property
    def _temporary(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="dfqbench-toy-")

    @property
    def workdir(self) -> Path:
        """The folder given to the constructor, or a temporary one, removed with the context."""
        return self.fixed_workdir or Path(self._temporary.name)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return autocast to bfloat16, enabled where the precision has it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision.bfloat16)

    def graphed(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
        """Return the step; it runs eagerly unless the test gave `make_graphed`."""
        return (self.make_graphed if self.precision.rearranges else EagerStep)(step, generators)

    def seed(self, *scope: str | int) -> int:
        """Return a seed that depends on `root_seed` and the scope."""
        digest = hashlib.sha256(repr((self.root_seed, scope)).encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def progress(self, step: int, total: int, **scalars: Any) -> None:
        """Keep the report.

        Raises:
            NonFiniteError: the scalar named `loss` is NaN or infinite.
        """
        values = {name: float(value) for name, value in scalars.items()}
        self.steps.append((step, total))
        self.scalars.append(values)
        if not torch.isfinite(torch.tensor(values.get("loss", 0.0))):
            raise NonFiniteError("loss", step)

    def snapshot(self, student: nn.Module, step: int) -> None:  # noqa: ARG002 - the contract's signature
        """Keep the step."""
        self.snapshots.append(step)

    def checkpoint(self, state: Callable[[], dict[str, Any]]) -> None:
        """Keep a copy of the state, where `keep_states` is set."""
        if self.keep_states:
            self.saved.append(_copied(state()))

    def for_student(
        self, act: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        """Call the function and return its result."""
        return act(*args, **kwargs)

    def prepare(self, teacher: nn.Module) -> Student:
        """Return a student of the teacher under `bits`."""
        return prepare(teacher, self.scheme, self.card)

    def shared_quantize(self, teacher: nn.Module, source: SampleSource) -> Student:
        """Run `shared`.

        Raises:
            PluginError: the test gave none.
        """
        if self.shared is None:
            raise PluginError("this context has no shared quantizer", "pass shared= to ToyContext")
        return self.shared(teacher, source, self)


def _copied(state: Any) -> Any:
    """Return a deep copy that detaches tensors, as writing to disk would."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_copied(value) for value in state)
    return state
