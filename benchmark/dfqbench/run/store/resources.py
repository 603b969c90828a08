"""Memory and cores that this process may still take: of the machine, of its control groups and of its batch job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

UNKNOWN_MIB = float(1 << 20)
"""Free memory where nothing says how much there is."""
GROUPS = Path("sys/fs/cgroup")
_VERSIONS = {
    # Folder of the memory controller, limit, use, and what of the use is cache that the kernel gives up.
    "": ("memory.max", "memory.current", "inactive_file"),
    "unified": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Files of control groups: version 2, version 2 beside version 1, and version 1."""


def usable_cores() -> int:
    """Return the CPU cores that this process may use, by its affinity and its container's quota."""
    import joblib  # it loads much

    return int(joblib.cpu_count())


def free_memory_mib(root: Path = Path("/"), variables: Mapping[str, str] | None = None) -> float:
    """Return the memory that new processes may take.

    Args:
        root: folder of `proc` and `sys`.
        variables: environment variables; None: this process's.
    """
    job = _job_mib(os.environ if variables is None else variables)
    return max(0.0, min((*_available(root), *_left_in_groups(root), *job), default=UNKNOWN_MIB))


def _available(root: Path) -> Iterator[float]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) / 1024


def _left_in_groups(root: Path) -> Iterator[float]:
    """Yield what the limits of this process's control group and its parents leave."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2 has one hierarchy for all
            folders: tuple[str, ...] = ("", "unified")
        else:
            folders = ("memory",) if "memory" in controllers.split(",") else ()
        for folder in folders:
            top = root / GROUPS / folder
            group = top / path.lstrip("/")
            # In a container the path may be that of the host, and not be there.
            for level in (group, *group.parents):
                if level.is_relative_to(top):
                    yield from _left(level, *_VERSIONS[folder])


def _left(group: Path, limit: str, used: str, cache: str) -> Iterator[float]:
    most, now = (next(_lines(group / name), "") for name in (limit, used))
    if most.isdigit() and now.isdigit():
        reclaimable = (line.split()[1] for line in _lines(group / "memory.stat") if line.startswith(f"{cache} "))
        yield (int(most) - int(now) + int(next(reclaimable, 0))) / 2**20


def _job_mib(variables: Mapping[str, str]) -> Iterator[float]:
    """Yield the memory of a SLURM job on this node; 0 means all of it."""
    for name, count in (("SLURM_MEM_PER_NODE", "1"), ("SLURM_MEM_PER_CPU", variables.get("SLURM_CPUS_ON_NODE", ""))):
        if (size := variables.get(name, "")).isdigit() and count.isdigit() and int(size):
            yield float(size) * int(count)


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return
