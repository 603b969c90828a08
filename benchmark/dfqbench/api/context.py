"""The context of one cell: what a plugin gets from the host. It contains no path, loader or label of real data."""

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
    """The context of one cell, given to every call of a plugin."""

    @property
    def device(self) -> torch.device:
        """Device to compute on."""

    @property
    def card(self) -> ModelCard:
        """Input size, normalisation and classes of the teacher."""

    @property
    def budget(self) -> Budget:
        """Length of the training schedules."""

    @property
    def scheme(self) -> Scheme:
        """Quantization scheme: bit-widths and placement.

        Raises:
            PluginError: inside `synthesize` of a method with `depends_on_bits = False`.
        """

    @property
    def precision(self) -> Precision:
        """Precision of the training loops; a plugin that computes everything in float32 can ignore it."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context manager that runs convolutions in bfloat16 if `precision` says so, else does nothing.

        Use it for the forward passes of generator and teacher in training. Compute statistics and losses outside it,
        or convert their inputs to float32. A forward pass that is recomputed in the backward pass
        (`torch.utils.checkpoint`) must enter it there, too.
        """

    def graphed(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
        """Return a training step that a GPU can repeat as one CUDA graph, which saves most kernel launches.

        On CPUs, and with the precision `float32`, the result just runs the step. Otherwise the first calls run it, one
        call captures it, and later calls launch the graph. Use it for the whole step: forward, backward,
        `optimizer.step()`.

            run_step = ctx.graphed(step, generators=[rng])
            optimizer = torch.optim.Adam(parameters, fused=True, capturable=run_step.capturable)
            (loss,) = run_step(images, labels, learning_rate)

        The step must run the same operations on the same tensors at each call, read no value from the device
        (`float(loss)`, `if tensor:`), and return a tuple of tensors. Pass everything else that changes as an argument
        of the call; see `dfqbench.api.graphed.GraphedStep`. For example, pass the learning rate as a number and set
        `optimizer.param_groups[0]["lr"] = learning_rate` inside the step.

        Args:
            step: called with the arguments of each call.
            generators: random generators on the device that the step draws from.
        """

    @property
    def generator(self) -> torch.Generator:
        """Random generator on `device`, seeded from the identity of the cell."""

    @property
    def restored(self) -> dict[str, Any] | None:
        """State of the last checkpoint if this attempt resumes from one, else None.

        Reading it also restores `generator` and the global random generators of Python, NumPy and torch. So build
        networks and optimizers first, then read it, load the state, and continue the loop.
        """

    @property
    def workdir(self) -> Path:
        """Folder of this attempt, the only place to write to."""

    def seed(self, *scope: str | int) -> int:
        """Return a seed derived from the identity of the cell and `scope`; the same for the same scope."""

    def progress(self, step: int, total: int, **scalars: Any) -> None:
        """Report that `step` of `total` steps are done.

        Args:
            step: steps done, from 1.
            total: steps of this phase.
            scalars: numbers or 0-d tensors to log. Tensors are read only every 50 steps, so that the GPU is not
                synchronized at each step.

        Raises:
            NonFiniteError: a scalar named `loss` is NaN or infinite when it is read.
        """

    def snapshot(self, student: nn.Module, step: int) -> None:
        """Save the student at a step of its training, to be evaluated after the run (`--oracle`)."""

    def checkpoint(self, state: Callable[[], dict[str, Any]]) -> None:
        """Mark the end of a step, where `state()` returns all that is needed to continue.

        Call it after every step; it costs almost nothing. `state` itself is called every few minutes, and before the
        attempt ends on a signal or a time limit. It returns tensors, numbers, strings, None, and dicts, lists and
        tuples of these.
        """

    def for_student(
        self, act: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        """Call a function with the part of a step that belongs to this context's student alone.

        For loops over several students (`Quantizer.quantize_many`): build and train each student, and report its
        progress and state, inside this call, once a step for each context in order; call the source outside. The time
        is then this student's, and the global random generators are as if it were the only student. An exception ends
        this student only: the result is None, and later calls do nothing. The exception of the last remaining student
        is raised.
        """

    def prepare(self, teacher: nn.Module) -> Student:
        """Return a student of the teacher under this cell's scheme, on `device`; its activation ranges are not set yet.

        The teacher is copied. Use it in `quantize`; a student under another scheme makes the record invalid.

        Raises:
            Unavailable: the network does not fit the scheme's protocol.
        """

    def shared_quantize(self, teacher: nn.Module, source: SampleSource) -> Student:
        """Run the shared quantizer that this cell names, as `Method.quantize` does by default."""
