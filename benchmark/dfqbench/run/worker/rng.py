"""Global random generators, seeded around plugin calls and put back afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's global generators within, and restores them afterwards.

    Plugin authors may then use default initialisation; the caller's random numbers are unchanged.

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


def capture() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, as plain data and tensors."""
    numpy: Any = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore(state: Mapping[str, Any]) -> None:
    """Sets the global generators to what `capture` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results of `capture` are equal."""
    (name, keys, *rest), (other_name, other_keys, *other_rest) = one["numpy"], other["numpy"]
    return (
        one["python"] == other["python"]
        and (name, rest) == (other_name, other_rest)
        and torch.equal(keys, other_keys)
        and torch.equal(one["torch"], other["torch"])
        and all(map(torch.equal, one["cuda"], other["cuda"]))
    )
