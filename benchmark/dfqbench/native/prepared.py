"""What is computed once from tensors that do not change, instead of at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Result = TypeVar("Result")


class Prepared(Generic[Result]):
    """Results by the tensors that they were computed from; kept while the first of these lives."""

    def __init__(self) -> None:
        self._kept: Any = WeakTensorKeyDictionary()

    def get(self, tensors: tuple[Tensor, ...], compute: Callable[[], Result], *settings: object) -> Result:
        """The result for these tensors as they are now.

        Args:
            tensors: what it depends on; changed in place or replaced, they are computed from anew.
            compute: gives the result, which nobody may change.
            settings: what else it depends on.
        """
        if any(one.is_inference() for one in tensors):
            # Nothing tells whether they have changed.
            return compute()
        state = settings, [(id(one), one.data_ptr(), one._version) for one in tensors]
        known = self._kept.get(tensors[0])
        if known is not None and known[0] == state:
            found: Result = known[1]
            return found
        result = compute()
        if not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing()):
            # What is computed while a step is recorded lies in the recording's memory.
            self._kept[tensors[0]] = state, result
        return result
