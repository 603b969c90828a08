"""Training steps that a GPU can repeat as one CUDA graph."""

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
        """Whether calls may become a CUDA graph; pass it to `torch.optim.Adam` as the argument of the same name."""

    def __call__(self, *inputs: Tensor | float | None, key: Hashable = None, **choices: Hashable) -> tuple[Tensor, ...]:
        """Run the step, or repeat it as a CUDA graph.

        Args:
            inputs: values that differ from call to call: detached tensors, numbers (a learning rate), None. Inside a
                CUDA graph, numbers become 0-d tensors on the device.
            key: host state that the step depends on, for example which tensors a module holds now.
            choices: keyword arguments of the step. Each combination of them is captured separately.

        Returns:
            The tensors that the step returns, detached.

        Raises:
            PluginError: the step cannot be captured, for example because it reads a value from the device.
        """

    def reset(self) -> None:
        """Discard all graphs; call it after `load_state_dict` has replaced tensors that the step uses."""


class MakeGraphed(Protocol):
    """The signature of `Context.graphed`."""

    def __call__(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> GraphedStep:
        """Return the step in a form that can be repeated as a CUDA graph."""


class EagerStep:
    """A step that runs operation by operation.

    Args:
        step: the step.
        generators: unused; CUDA graphs need them.
    """

    capturable = False

    def __init__(self, step: StepFunction, generators: Sequence[torch.Generator] = ()) -> None:
        del generators
        self._step = step

    def __call__(
        self,
        *inputs: Tensor | float | None,
        key: Hashable = None,  # noqa: ARG002 - there is no graph to select
        **choices: Hashable,
    ) -> tuple[Tensor, ...]:
        """Run the step."""
        return tuple(result.detach() for result in self._step(*inputs, **choices))

    def reset(self) -> None:
        """Do nothing: there is no graph."""
