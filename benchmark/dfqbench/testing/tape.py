"""A tape for the CPU: records a step's operations and repeats them, as a CUDA graph would.

What a recording misses, it misses alike: numbers that the host has put into an operation, choices that the host made,
tensors that were replaced afterwards. Reading a value from a tensor fails as it does while a graph is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")

_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.nonzero.default}

_Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class CpuTape:
    """Implements `dfqbench.replay.Tape` in memory; the compiled passes must not be in use.

    Attributes:
        warmed: steps that ran as ever.
        recorded: steps that were recorded.
        launched: repetitions.
    """

    def __init__(self) -> None:
        self.warmed = self.recorded = self.launched = 0

    def warm(self, act: Callable[[], Result]) -> Result:
        """Runs a step as ever."""
        self.warmed += 1
        return act()

    def record(self, act: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Records a step while it computes, and then sets back what it has changed.

        Raises:
            RuntimeError: the step reads a value from a tensor.
        """
        recorder = _Recorder()
        try:
            with recorder:
                result = act()
        finally:
            recorder.undo()
        self.recorded += 1

        def launch() -> None:
            self.launched += 1
            recorder.repeat()

        return result, launch


class _Recorder(TorchDispatchMode):
    """Keeps every operation with the tensors it took and gave, and what the tensors of others held before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[_Call] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._random: dict[int, tuple[torch.Generator, Tensor]] = {}
        self._default = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READS:
            raise RuntimeError(f"{func} reads a value from the device")
        for leaf in tree_leaves((args, kwargs)):
            self._note(leaf)
        out = func(*args, **kwargs)
        made = {_storage(leaf).data_ptr() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        self._own |= made - self._before.keys()
        self._calls.append((func, args, kwargs, out))
        return out

    def _note(self, taken: Any) -> None:
        """What an operation takes may be changed, by it or through a view that it gives."""
        if isinstance(taken, torch.Generator):
            self._random.setdefault(id(taken), (taken, taken.get_state()))
        elif isinstance(taken, Tensor):
            storage = _storage(taken)
            if storage.data_ptr() not in self._own and storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = (storage, storage.clone())  # type: ignore[no-untyped-call]

    def undo(self) -> None:
        """Sets back what the step has changed: recording computes nothing."""
        for storage, value in self._before.values():
            storage.copy_(value)
        for generator, state in self._random.values():
            generator.set_state(state)
        torch.set_rng_state(self._default)

    def repeat(self) -> None:
        """Does every operation again, on the same tensors."""
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, out in self._calls:
                again = func(*args, **kwargs)
                for place, value in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
