"""Operators of the package: defined in plain torch, open to faster kernels that are registered from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

NAMESPACE = "dfqbench"
_LIBRARY: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]

P = ParamSpec("P")
R = TypeVar("R")


def operator(definition: Callable[P, R]) -> Callable[P, R]:
    """Make a function the definition of the operator `torch.ops.dfqbench.<its name>`.

    The definition computes the operator on every device, and autograd differentiates it. A package may register a
    faster kernel for one device with `torch.library` (`dfqbench.accel` does so for CUDA); callers do not change.

    Args:
        definition: a function of tensors and numbers, with annotations that `torch.library.infer_schema` reads.

    Returns:
        A function that calls the operator; its attribute `__wrapped__` is the definition.
    """
    name = definition.__name__
    _LIBRARY.define(name + torch.library.infer_schema(definition, mutates_args=()))
    _LIBRARY.impl(name, definition, "CompositeImplicitAutograd")
    call: Any = getattr(getattr(torch.ops, NAMESPACE), name).default

    @wraps(definition)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = call(*args, **kwargs)
        return result

    return run
