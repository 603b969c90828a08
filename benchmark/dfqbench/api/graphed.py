"""Training steps that a GPU may repeat as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

StepFunction = Callable[..., "tuple[Tensor, ...]"]


class GraphedStep(Protocol):
    """A step made by `Context.graphed`."""

    @property
    def capturable(self) -> bool:
        """Whether calls may become a CUDA graph; `torch.optim.Adam` needs it as its argument of the same name."""
        ...

    def __call__(self, *inputs: Tensor | float | None, key: Hashable = None, **choices: Hashable) -> tuple[Tensor, ...]:
        """Run the step, or repeat it as a CUDA graph.

        Args:
            inputs: what differs from call to call: tensors without a graph, numbers (a learning rate), None. Inside a
                CUDA graph, numbers arrive as 0-d tensors on the device.
            key: further facts of the host that the step depends on, for example which tensors a module holds now.
            choices: keyword arguments of the step. Each combination of them is captured for itself.

        Returns:
            What the step returns, detached.

        Raises:
            PluginError: the step cannot be captured, for example because it reads a value from the device.
        """
        ...

    def reset(self) -> None:
        """Forget all graphs; to be called after `load_state_dict` has replaced tensors that the step uses."""
        ...


class MakeGraphed(Protocol):
    """The signature of `Context.graphed`."""

    def __call__(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
        """Return the step in a form that may be repeated as a CUDA graph."""
        ...


class EagerStep:
    """A step that runs operation by operation.

    Args:
        step: the step.
        generators: those that it draws from; not needed here.
    """

    capturable = False

    def __init__(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> None:
        del generators
        self._step = step

    def __call__(
        self,
        *inputs: Tensor | float | None,
        key: Hashable = None,  # noqa: ARG002 - nothing is kept
        **choices: Hashable,
    ) -> tuple[Tensor, ...]:
        """Run the step."""
        return tuple(result.detach() for result in self._step(*inputs, **choices))

    def reset(self) -> None:
        """Do nothing: no graph is kept."""
