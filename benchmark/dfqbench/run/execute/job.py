"""What a worker is handed, and the lines that it sends back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

JOB = "job.json"
CHECKPOINT_EVERY = 300.0
"""Seconds between checkpoints unless asked otherwise."""


@dataclass(frozen=True, slots=True)
class Partner:
    """What a job says of another cell that differs from its own in the scheme only.

    Attributes:
        scheme: `Scheme.as_dict()`.
        attempt: the attempt's folder.
        checkpoints: folder of the cell's checkpoints, or empty: none are kept.
    """

    scheme: dict[str, Any]
    attempt: str
    checkpoints: str


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt, as JSON for another process.

    Attributes:
        method: the method's name; `real` has its images made by the host.
        method_params: its parameters.
        quantizer: the shared quantizer's name.
        quantizer_params: its parameters.
        own_quantize: whether the method's own `quantize` runs (it may call the shared one).
        model: `ModelSpec.as_dict()`.
        scheme: `Scheme.as_dict()`.
        budget: the budget's name.
        seed_key: what seeds derive from.
        precision: how the training loops compute.
        threads: CPU threads.
        device: torch device.
        attempt: the attempt's folder.
        source: folder of the shared source.
        dataset: `DatasetSpec.as_dict()`, for a student that only the worker can run.
        limit: evaluation images, or None.
        guarded: real data that plugin code must not open.
        environment: identity of the environment.
        accepted_environment: environment that a saved source must come from, or None: any.
        plugin_files: local plugin files.
        started: the parent's monotonic clock when the attempt began.
        run: the run's folder, in which plugin code may write to its attempt's only.
        checkpoints: folder of the cell's checkpoints, or empty: none are kept.
        checkpoint_every: seconds between two.
        memory_mib: most private memory of the process in MiB, or 0: no limit.
        time_limit: seconds for the worker, or 0: no limit; kept by the executor.
        snapshots: states of the student to keep during its training, for the oracle.
        probe_seconds: stop after so many seconds of steps, for an estimate; 0: run to the end.
        shares_gpu: whether other jobs have the same GPU.
        partners: further cells of the same source that the same worker may take along (`Partner`).
    """

    method: str
    method_params: dict[str, Any]
    quantizer: str
    quantizer_params: dict[str, Any]
    own_quantize: bool
    model: dict[str, Any]
    scheme: dict[str, Any]
    budget: str
    seed_key: str
    precision: str
    threads: int
    device: str
    attempt: str
    source: str
    dataset: dict[str, Any]
    limit: int | None
    guarded: list[str]
    environment: str
    accepted_environment: str | None
    plugin_files: list[str]
    started: float
    run: str = ""
    checkpoints: str = ""
    checkpoint_every: float = CHECKPOINT_EVERY
    memory_mib: int = 0
    time_limit: float = 0.0
    snapshots: int = 0
    probe_seconds: float = 0.0
    shares_gpu: bool = False
    partners: list[Partner] = field(default_factory=list)

    def partner(self, number: int) -> Job:
        """The job of a partner: this one with another scheme and other folders."""
        other = self.partners[number]
        return replace(self, scheme=other.scheme, attempt=other.attempt, checkpoints=other.checkpoints, partners=[])

    def write(self, path: Path) -> None:
        """Writes the job as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Reads what `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**found | {"partners": [Partner(**partner) for partner in found["partners"]]})


@dataclass(slots=True)
class Outcome:
    """What became of an attempt in the worker.

    Attributes:
        status: as in the record, but for what is found out in the evaluation.
        result: what the worker reported at the end; empty if it did not.
        error: type, message, phase, step, plugin and traceback, or None.
        died: whether the worker ended without a word about it.
        partners: the same of each partner that the worker took along; None: it shall run by itself.
    """

    status: str
    result: Mapping[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    died: bool = False
    partners: Sequence[Outcome | None] = ()
