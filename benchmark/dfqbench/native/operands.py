"""Whether tensors are what the compiled passes may be given in torch's place: numbers in memory, nobody looking on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_PLAIN = frozenset({Tensor, nn.Parameter})


def are_plain(*tensors: Tensor) -> bool:
    """Whether these are plain tensors on one device, and no transformation, tracer or dispatch mode is at work.

    Those put something else in a tensor's place, or want to see each of torch's operations.
    """
    return (
        all(type(one) in _PLAIN and _has_memory(one) for one in tensors)
        and len({one.device for one in tensors}) == 1
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
    )


def unobserved(*tensors: Tensor) -> AbstractContextManager[None]:
    """Within it nobody who overrides torch's functions is asked: each question costs, and there are many.

    For calls of the compiled passes, which ask tensors much and have no function that a mode of ours replaces. Where
    one of the tensors is of a class of its own, everybody is asked as ever.
    """
    plain = all(type(one) in _PLAIN for one in tensors)
    return torch._C.DisableTorchFunction() if plain else nullcontext()


def _has_memory(tensor: Tensor) -> bool:
    return not tensor.is_neg() and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
