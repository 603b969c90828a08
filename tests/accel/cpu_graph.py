"""A recorder for the CPU: captures a step's operations and replays them, as a CUDA graph would.

What a CUDA graph misses, it misses, too: numbers that the host has put into an operation, choices that the host made,
tensors that were replaced afterwards. Reading a value from a tensor fails as it does while a CUDA graph is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfqbench.accel.cuda_graph import Results, Run

_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.nonzero.default}


class CpuRecorder:
    """Implements `dfqbench.accel.cuda_graph.Recorder` in memory, and counts the calls."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.warmed = self.captured = self.replayed = 0

    def warm(self, run: Run) -> Results:
        self.warmed += 1
        return run()

    def capture(self, run: Run) -> tuple[Results, Callable[[], None]]:
        """Note a step's operations while it computes, and then undo what it has changed."""
        operations = _Operations()
        try:
            with operations:
                results = run()
        finally:
            operations.undo()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            operations.repeat()

        return results, replay


class _Operations(TorchDispatchMode):
    """Keeps every operation with the tensors it took and gave, and what the tensors of others held before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
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
        made = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        self._own |= made - self._before.keys()
        self._calls.append((func, args, kwargs, out))
        return out

    def _note(self, taken: Any) -> None:
        """What an operation takes may be changed, by it or through a view that it gives."""
        if isinstance(taken, torch.Generator):
            self._random.setdefault(id(taken), (taken, taken.get_state()))
        elif isinstance(taken, Tensor):
            storage = taken.untyped_storage()
            if storage.data_ptr() not in self._own and storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = (storage, storage.clone())  # type: ignore[no-untyped-call]

    def undo(self) -> None:
        """Undo what the step has changed: a capture computes nothing."""
        for storage, value in self._before.values():
            storage.copy_(value)
        for generator, state in self._random.values():
            generator.set_state(state)
        torch.set_rng_state(self._default)

    def repeat(self) -> None:
        """Run every operation again, on the same tensors."""
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, out in self._calls:
                again = func(*args, **kwargs)
                for place, value in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)
