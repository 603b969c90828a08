"""Jobs that run in the test's own process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfqbench.api import Batch, budget_named
from dfqbench.grid import apply, load_grid, parse_selection
from dfqbench.plugins import Plugins
from dfqbench.run.execute.cancellation import StopFlag
from dfqbench.run.execute.events import Event, Finished, Interrupted, Warned
from dfqbench.run.execute.job import Job
from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.plan import build_plan
from dfqbench.run.schedule.scheduler import Summary
from dfqbench.run.worker.context import HostContext
from dfqbench.run.worker.shared_job import run_job
from dfqbench.targets.catalogue import Catalogue
from dfqbench.testing.toys import toy_card

PLUGINS = Path(__file__).parent.parent / "plugins"
FILES = ("student.safetensors", "images.safetensors")
SMALL = ("distill.batch_few_classes=16", "calibrate.images=32", "reconstruct.images=64")


def data_of(summary: Summary) -> list[dict[str, Any]]:
    """The records of a run as JSON data."""
    return [record.as_dict() for record in summary.records]


def host_context(workdir: Path, **changes: Any) -> HostContext:
    values: dict[str, Any] = {
        "phase": "synthesis",
        "device": torch.device("cpu"),
        "card": toy_card(),
        "budget": budget_named("short"),
        "known_scheme": None,
        "seed_key": "key",
        "workdir": workdir,
        "report": lambda *_: None,
    }
    return HostContext(**(values | changes))


class Endless:
    """A source without a length."""

    def sample(self, size: int) -> Batch:
        return Batch(torch.zeros(size, 1, 8, 8))

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        pass


class Live(Endless):
    """A source that learns; its batches are filled with their number."""

    batch_size = 16
    training_steps = 30

    steps = 0

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        self.steps += 1
        return Batch(torch.full((size, 1, 8, 8), float(self.steps)), torch.arange(size))


class Events:
    """Keep the events of an attempt."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def send(self, event: Event) -> None:
        self.seen.append(event)

    @property
    def last(self) -> Event:
        return self.seen[-1]

    @property
    def result(self) -> dict[str, Any]:
        return result_of(self.last)

    @property
    def interrupted(self) -> Interrupted:
        assert isinstance(self.last, Interrupted), self.last
        return self.last

    def warnings(self) -> list[str]:
        return [event.message for event in self.seen if isinstance(event, Warned)]


def result_of(event: Event | None) -> dict[str, Any]:
    assert isinstance(event, Finished), event
    return event.result


class StopsAt(StopFlag):
    """Request a stop at the n-th time that the flag is read."""

    def __init__(self, reads: int) -> None:
        self._left = reads

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self._left -= 1
        return self._left < 0


def cell_of(method: str, plugins: Plugins, bits: str = "w3a3", *settings: str) -> Cell:
    selection = parse_selection(methods=method, bits=bits, settings=list(settings))
    (cell,) = build_plan(apply(load_grid("smoke", plugins), selection), Catalogue.discover([]), plugins).cells
    return cell


def job_of(cell: Cell, folder: Path, attempt: str, plugins: Plugins, **changes: Any) -> Job:
    assert cell.model is not None
    (folder / attempt).mkdir(parents=True)
    values: dict[str, Any] = {
        "method": cell.method.name,
        "method_params": cell.method.params,
        "quantizer": cell.quantizer.name,
        "quantizer_params": cell.quantizer.params,
        "own_quantize": cell.choice.quantizer is None,
        "model": cell.model.as_dict(),
        "scheme": cell.scheme.as_dict(),
        "budget": cell.budget.name,
        "precision": cell.precision,
        "seed_key": cell.seed_key,
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "attempt": str(folder / attempt),
        "source": str(folder / "source"),
        "dataset": cell.dataset.as_dict(),
        "limit": None,
        "guarded": [],
        "environment": "here",
        "accepted_environment": "here",
        "plugin_files": [str(path) for path in plugins.files],
        "started": time.monotonic(),
        "checkpoints": str(folder / "checkpoints"),
        "checkpoint_every": 1e9,
    }
    return Job(**(values | changes))


def attempt(job: Job, flag: StopFlag | None = None) -> Events:
    events = Events()
    run_job(job, events, flag)
    return events


def content(folder: Path, name: str) -> list[bytes]:
    return [(folder / name / file).read_bytes() for file in FILES]


def measured(result: dict[str, Any]) -> dict[str, Any]:
    """Results that must not depend on interruptions, besides the files."""
    shared = (result["reused"] or {}).get("counts", {})
    counts = {name: count + shared.get(name, 0) for name, count in result["counts"].items()}
    return {key: result[key] for key in ("flags", "source_kind", "real_data_opened")} | {"counts": counts}
