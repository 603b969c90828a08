"""What the host lends a plugin while it works. No path, loader or label of a real dataset is among it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from dfqbench.api.batch import SampleSource
    from dfqbench.api.budget import Budget
    from dfqbench.api.card import ModelCard
    from dfqbench.api.graphed import GraphedStep, StepFunction
    from dfqbench.api.precision import Precision
    from dfqbench.quant import Scheme, Student

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Context(Protocol):
    """The host's side of one cell."""

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        ...

    @property
    def card(self) -> ModelCard:
        """Input size, normalisation and classes of the teacher."""
        ...

    @property
    def budget(self) -> Budget:
        """Length of the schedules."""
        ...

    @property
    def scheme(self) -> Scheme:
        """What is quantized and how.

        Raises:
            PluginError: inside `synthesize` of a method with `depends_on_bits = False`.
        """
        ...

    @property
    def precision(self) -> Precision:
        """How the training loops compute; a plugin that only ever computes in float32 need not look at it."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it convolutions run in bfloat16 where `precision` says so; else it does nothing.

        For the forward passes of generator and teacher in training; statistics and losses belong outside, or take
        their inputs as float32. What is computed again in the backward pass (`torch.utils.checkpoint`) must enter it
        there, too.
        """
        ...

    def graphed(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
        """Return a training step in a form that a GPU may repeat as one CUDA graph, which saves most of the launches.

        On CPUs, and with the precision `float32`, the result just runs the step. Otherwise the first calls run it, one
        call captures it, and later ones replay it. Use it for the whole step: forward, backward, `optimizer.step()`.

            run_step = ctx.graphed(step, generators=[rng])
            optimizer = torch.optim.Adam(parameters, fused=True, capturable=run_step.capturable)
            (loss,) = run_step(images, labels, learning_rate)

        The step must run the same operations on the same tensors at each call, read no value from the device
        (`float(loss)`, `if tensor:`), and return a tuple of tensors. Everything else that changes is an argument of
        the call; see `dfqbench.api.graphed.GraphedStep`. A learning rate, for example, is passed as a number and set by
        `optimizer.param_groups[0]["lr"] = learning_rate` inside the step.

        Args:
            step: called with the arguments of each call.
            generators: random generators on the device that the step draws from.
        """
        ...

    @property
    def generator(self) -> torch.Generator:
        """A seeded random generator on `device`, the same for the same cell."""
        ...

    @property
    def restored(self) -> dict[str, Any] | None:
        """The last checkpoint's state when this attempt goes on from one, else None.

        Reading it also sets `generator` and the global random generators of Python, NumPy and torch back to where they
        were at that checkpoint. So build networks and optimizers first, then read it, load, and go on with the loop.
        """
        ...

    @property
    def workdir(self) -> Path:
        """A folder of this attempt's own; the only place to write to."""
        ...

    def seed(self, *scope: str | int) -> int:
        """A seed derived from the cell's identity and `scope`; the same scope, the same seed."""
        ...

    def progress(self, step: int, total: int, **scalars: Any) -> None:
        """Reports that `step` of `total` steps are done.

        Args:
            step: steps done, from 1.
            total: steps of this phase.
            scalars: numbers or 0-d tensors to log; tensors are read only every 50 steps, so that passing them costs
                no synchronisation.

        Raises:
            NonFiniteError: a scalar named `loss` was found NaN or infinite when it was read.
        """
        ...

    def snapshot(self, student: nn.Module, step: int) -> None:
        """Offers the student at a step of its training for evaluation after the run (`--oracle`)."""
        ...

    def checkpoint(self, state: Callable[[], dict[str, Any]]) -> None:
        """Marks a step boundary at which `state()` is all that is needed to go on.

        Called with every step, it costs next to nothing: `state()` is asked for every few minutes, and when the run is
        asked to stop. It holds tensors, numbers, strings, None, and dicts, lists and tuples of these.
        """
        ...

    def for_student(
        self, act: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        """Call a function with the part of a step that belongs to this context's student alone.

        For loops over several students (`Quantizer.quantize_many`): build and train each student, and report its
        progress and state, inside this call, once a step for each context in order; call the source outside. The time
        is then this student's, the global random generators are as if the others did not exist, and an exception ends
        this student only: the result is None, and later calls do nothing. The exception of the last student left is
        raised.
        """
        ...

    def shared_quantize(self, teacher: nn.Module, source: SampleSource) -> Student:
        """Runs the shared quantizer that this cell names; what `Method.quantize` does by default."""
        ...
