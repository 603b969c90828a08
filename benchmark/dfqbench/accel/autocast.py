"""Autocast of training loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from dfqbench.accel import backend


@contextmanager
def autocast(device: torch.device, *, enabled: bool) -> Iterator[None]:
    """Compute convolutions and products inside in bfloat16, those that fit by the Triton kernels.

    Args:
        device: torch device.
        enabled: False changes nothing.
    """
    kernels: AbstractContextManager[object] = nullcontext()
    if enabled and device.type == "cuda" and backend.enabled():
        from dfqbench.accel.triton.conv import NarrowConvolutions

        kernels = NarrowConvolutions()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), kernels:
        yield
