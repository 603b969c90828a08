"""Estimates: how long a run will take, from what earlier cells took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dfqbench.run.plan.cell import Cell
from dfqbench.run.plan.identity import identity
from dfqbench.run.store.record import Record
from dfqbench.run.store.status import MEASURED

LONG_HOURS = 24.0
"""A run that is expected to take longer needs `--yes`."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected time of some cells."""

    seconds: float  # of the cells with a basis
    known: int  # cells with a basis
    unknown: int  # cells without one

    def at_once(self, jobs: int) -> Estimate:
        """Return the time with several jobs at once."""
        return Estimate(self.seconds / jobs, self.known, self.unknown)

    def __str__(self) -> str:
        if not self.known and not self.unknown:
            return "nothing to run"
        if not self.known:
            return "time not known yet"
        rest = f", and {self.unknown} cells of unknown time" if self.unknown else ""
        return f"about {format_seconds(self.seconds)} for {self.known} cells{rest}"


class History:
    """Seconds of the finished cells of any runs, by `cost_key`."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._cells: dict[tuple[Any, ...], dict[str, float]] = {}
        for record in sorted(records, key=lambda record: record.finished_at or ""):
            self.add(record)

    def seconds(self, cell: Cell, device: str) -> dict[str, float] | None:
        """Return the seconds of the newest cell of the same cost, or None."""
        return self._cells.get(cost_key(cell, device))

    def add(self, record: Record) -> None:
        """Add a record, if it is of a cell that ran to its end."""
        seconds = record.seconds
        if record.status not in MEASURED | {"invalid"} or seconds.wall is None:
            return
        # A live source serves several cells in one loop only: elsewhere every cell pays its full cost.
        shared = record.source_kind == "fixed" or bool(record.together_with)
        speed = (record.budget, record.precision, record.device, record.threads)
        params = identity(record.params), record.scheme.mixed is not None
        self._cells[record.label, record.target, record.model.name, *params, *speed] = {
            "wall": seconds.wall,
            "synthesis": (seconds.synthesis or 0.0) if shared else 0.0,
            "paid_synthesis": (seconds.paid_synthesis or 0.0) if shared else 0.0,
        }

    def estimate(
        self,
        cells: Iterable[Cell],
        device: str,
        probed: Mapping[tuple[Any, ...], dict[str, float]],
        saved: Iterable[str] = (),
    ) -> Estimate:
        """Return the expected time of cells; a shared source is counted once.

        Args:
            cells: cells that can run and are not finished.
            device: torch device.
            saved: identities of sources that are saved already.
            probed: `wall`, `synthesis` and `paid_synthesis` from timed steps, by :func:`cost_key`.
        """
        total, known, unknown = 0.0, 0, 0
        sources = set(saved)
        for cell in cells:
            seconds = self.seconds(cell, device) or probed.get(cost_key(cell, device))
            if seconds is None:
                unknown += 1
            else:
                known += 1
                total += seconds["wall"] - seconds["paid_synthesis"]
                total += 0.0 if cell.source_id in sources else seconds["synthesis"]
            sources.add(cell.source_id)
        return Estimate(total, known, unknown)


def cost_key(cell: Cell, device: str) -> tuple[Any, ...]:
    """Return what decides a cell's cost: method, quantizer, network, budget, precision, device; not bits and seed.

    Mixed precision does: a generator is trained twice.
    """
    speed = (cell.budget.name, cell.precision, device, cell.threads)
    mixed = cell.scheme.mixed is not None
    return (cell.choice.label, cell.dataset.name, cell.model_name, cell.params_id, mixed, *speed)


def format_seconds(seconds: float) -> str:
    """Return seconds as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
