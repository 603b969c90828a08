"""Slots: how many jobs may run at once on this machine, and on which device each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqbench.run.execute.executor import Slot
from dfqbench.run.store.environment import free_gpu_mib, gpu_names
from dfqbench.run.store.record import Record

VISIBLE = "CUDA_VISIBLE_DEVICES"
UNKNOWN_MIB = 1500.0
"""Memory of a job of which nothing is known: torch with a small network, worker and evaluator together."""
HOST_MIB = 600.0
"""Memory of an evaluator beside the worker that is known."""
UNKNOWN_GPU_MIB = 4000.0
"""A GPU's memory for a job of which nothing is known: a CIFAR network's recorded steps, worker and evaluator."""
CONTEXTS_MIB, RESERVED = 2000.0, 4.0
"""What worker and evaluator take of a GPU before any tensor, and how many times its tensors' peak a worker reserves."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to share.

    Attributes:
        cores: CPU cores that this process may use.
        memory_mib: memory that is free now.
        gpus: names for CUDA_VISIBLE_DEVICES, and of the cards.
        gpu_mib: memory that is free now on each of them.
    """

    cores: int
    memory_mib: float
    gpus: tuple[tuple[str, str], ...]
    gpu_mib: tuple[float, ...] = ()

    @classmethod
    def here(cls) -> Machine:
        """This machine, now."""
        gpus, free = visible_gpus(), free_gpu_mib()
        least = min(free, default=0.0)
        of_each = (free[int(name)] if name.isdigit() and int(name) < len(free) else least for name, _ in gpus)
        return cls(usable_cores(), free_memory_mib(), gpus, tuple(of_each))


@dataclass(frozen=True, slots=True)
class Need:
    """Memory of a job in MiB.

    Attributes:
        host_mib: of the machine.
        gpu_mib: of a GPU.
    """

    host_mib: float = UNKNOWN_MIB
    gpu_mib: float = UNKNOWN_GPU_MIB

    @classmethod
    def of(cls, records: Sequence[Record], device: str) -> Need:
        """What jobs on this device needed before; a guess where there were none."""
        return cls(_host_mib(records, device), _gpu_mib(records, device))


def plan_slots(device: str, jobs: int | None, threads: int, need: Need, machine: Machine) -> tuple[list[Slot], str]:
    """Slots for a run.

    Args:
        device: torch device; `cuda` takes every card of the first one's kind, `cuda:N` that one.
        jobs: jobs at once that were asked for, several on a GPU where they fit; None: one for each GPU, on the CPU one.
        threads: CPU threads of a job.
        need: memory of a job.
        machine: what there is.

    Returns:
        The slots, and a line that says what kept them fewer than asked; empty where nothing did.
    """
    cards = _cards(machine) if device == "cuda" else []
    places = max(1, len(cards))
    wanted = jobs or places
    free = _free_mib(device, machine)
    each = max(1, int(free // need.gpu_mib)) if device.startswith("cuda") else wanted
    limits = {
        f"{places} GPU{'s' if places > 1 else ''} with {free / 1024:.1f} GiB of free memory for about "
        f"{need.gpu_mib / 1024:.1f} each": each * places,
        f"{machine.cores} cores for {threads} threads each": machine.cores // threads,
        f"{machine.memory_mib / 1024:.1f} GiB of free memory for about {need.host_mib / 1024:.1f} each": int(
            machine.memory_mib // need.host_mib
        ),
    }
    count = max(1, min(wanted, *limits.values()))
    on_gpu = device.startswith("cuda")
    slots = [
        Slot(
            number,
            {VISIBLE: cards[number % places]} if len(cards) > 1 else {},
            shares_gpu=on_gpu and (number >= places or number + places < count),
        )
        for number in range(count)
    ]
    if count == wanted:
        return slots, ""
    why = min(limits, key=lambda name: limits[name])
    return slots, f"{count} job{'s' if count > 1 else ''} at once instead of {wanted}: {why}"


def _host_mib(records: Sequence[Record], device: str) -> float:
    if device.startswith("cuda"):
        return UNKNOWN_MIB
    return max(UNKNOWN_MIB, _largest_peak(records, device) + HOST_MIB)


def _gpu_mib(records: Sequence[Record], device: str) -> float:
    return max(UNKNOWN_GPU_MIB, CONTEXTS_MIB + RESERVED * _largest_peak(records, device))


def _largest_peak(records: Sequence[Record], device: str) -> float:
    return max((record.peak_mib.largest for record in records if record.device == device), default=0.0)


def _free_mib(device: str, machine: Machine) -> float:
    """Memory that is free on the fullest of the GPUs that a run would use."""
    _, _, index = device.partition(":")
    if index:
        return machine.gpu_mib[int(index)] if int(index) < len(machine.gpu_mib) else 0.0
    kind = machine.gpus[0][1] if machine.gpus else ""
    return min(
        (mib for mib, (_, name) in zip(machine.gpu_mib, machine.gpus, strict=False) if name == kind), default=0.0
    )


def _cards(machine: Machine) -> list[str]:
    """Cards of the first one's kind: another kind would be another environment."""
    return [index for index, name in machine.gpus if name == machine.gpus[0][1]]


def visible_gpus(variables: Mapping[str, str] | None = None) -> tuple[tuple[str, str], ...]:
    """Name for CUDA_VISIBLE_DEVICES and kind of every GPU that this process may use."""
    names = gpu_names()
    listed = (os.environ if variables is None else variables).get(VISIBLE)
    if listed is None:
        return tuple((str(index), name) for index, name in enumerate(names))
    found = []
    for entry in listed.split(","):
        place = entry.strip()
        if not place or place.startswith("-"):
            break
        known = place.isdigit() and int(place) < len(names)
        # Cards named by their identity (batch systems do that) are taken to be of one kind.
        found.append((place, names[int(place)] if known else "GPU"))
    return tuple(found)


def usable_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # no such call outside Linux
        return os.cpu_count() or 1


def free_memory_mib() -> float:
    """Memory that new processes may take, by the system's and the control group's account."""
    found: list[float] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            found.append((int(limit) - int(used)) / 2**20)
    except (OSError, ValueError):
        pass
    return min(found, default=float(1 << 20))
