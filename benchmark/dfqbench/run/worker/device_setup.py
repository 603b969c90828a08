"""State of a process that computes: its device, the meaning of float32, random generators, and peak memory."""

from __future__ import annotations

import contextlib
import random
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def compute_on(device: torch.device) -> None:
    """Make a GPU the current device of this thread, and switch TensorFloat-32 off.

    Kernels that are not torch's are launched on the thread's current device. By default torch computes float32
    convolutions in TensorFloat-32, which keeps ten bits of each number: sums of quantized values would not be exact.
    """
    if device.type == "cuda" and device.index is not None and torch.cuda.is_available():
        torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch in the block, and restore them afterwards.

    Args:
        seed: up to 63 bits.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def get_rng_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch as plain data and tensors."""
    numpy: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to what `get_rng_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])


def equal_rng_states(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Compare two results of `get_rng_state`."""

    def parts(state: Mapping[str, Any]) -> list[Any]:
        return [state["python"], *state["numpy"], state["torch"], *state["cuda"]]

    pairs = zip(parts(first), parts(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of peak memory; on the CPU only where the kernel can reset a process's peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        # No such file outside Linux: the peak is then that of the process so far.
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: torch.device) -> float:
    """Return the peak since the last reset in MiB: allocated on a CUDA device, resident on the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)
