"""Fast forms for GPUs: Triton kernels for the operators of `quant` and `synth`, and CUDA graphs.

Only the processes of a run import this package; `quant`, `synth`, `quantizers` and the methods do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dfqbench.accel import backend


def set_kernels(device: str, *, fast: bool) -> None:
    """Use the kernels of `kernels_for(device)` in this process from now on, or with `fast=False` plain torch."""
    backend.set_enabled(fast and backend.kernels_for(device) != "torch")
    if backend.enabled():
        import dfqbench.accel.triton  # noqa: F401 - registers the kernels


@contextmanager
def using_kernels(device: str, *, fast: bool = True) -> Iterator[None]:
    """Set the kernels as `set_kernels` does, for the block only."""
    before = backend.enabled()
    set_kernels(device, fast=fast)
    try:
        yield
    finally:
        backend.set_enabled(before)
