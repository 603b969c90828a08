"""The cost of an attempt: seconds, counts, peak memory and flags, over all processes that worked on its cell."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from dfqbench.run.execute.events import Phase
from dfqbench.run.worker.clock import Clock, Timers
from dfqbench.run.worker.confinement import LANDLOCK, Confinement
from dfqbench.run.worker.device_setup import peak_mib
from dfqbench.run.worker.instrumented_source import Counts
from dfqbench.run.worker.plugin_checks import DataGuard

FOREIGN_CALLS = "foreign_calls"
"""Flag of records whose plugin code has started processes or loaded foreign libraries."""
GENERATOR_ALONE = "generator_alone"
"""Flag of records whose quantizer trains no student: a generator is trained alone before it is drawn from."""


class Accounting:
    """Seconds, counts, memory and flags of one attempt, those of earlier processes of its cell included.

    Attributes:
        peaks: peak memory of finished phases, MiB.
        source_kind: `live` or `fixed`, once the source exists.
        source_images: number of images of a fixed source.
        reused: what a source that was made elsewhere would have cost here.
        resumed: how often the cell continued from a checkpoint.
        planning: counts of what was drawn to plan mixed precision; the others hold it, too.

    Args:
        device: where the attempt computes.
        guard: records what plugin code has opened.
        confinement: of plugin code, and None for none.
        started: when the attempt began, on the monotonic clock.
        shared_flag: a key of `SHARED` where other jobs compute on the same GPU or CPU, or empty.
    """

    def __init__(
        self,
        device: torch.device,
        guard: DataGuard,
        confinement: Confinement | None = None,
        *,
        started: float,
        shared_flag: str,
    ) -> None:
        timers = None
        if device.type == "cuda":
            make_event = partial(torch.cuda.Event, enable_timing=True)
            timers = Timers(partial(torch.cuda.synchronize, device), make_event)
        self.clock = Clock(timers)
        self.guard = guard
        self._confinement = confinement or Confinement()
        self._protection_before = ""
        self.counts = Counts()
        self.flags: list[str] = [shared_flag] if shared_flag else []
        self.peaks: dict[str, float] = {}
        self.source_kind: str | None = None
        self.source_images: int | None = None
        self.reused: dict[str, Any] | None = None
        self.resumed = 0
        self.planning = Counts()
        self._device = device
        self._started = started
        self._saving = 0.0
        self._members: Sequence[Accounting] = ()
        # At the checkpoint that the attempt continues from: wall time, seconds of phases, synthesis of other members.
        self._wall_before = self._seconds_before = 0.0
        self._others_before = {"seconds": 0.0, "cpu_seconds": 0.0}

    def flag(self, name: str) -> None:
        """Flag the record, once."""
        if name not in self.flags:
            self.flags.append(name)

    @property
    def protection(self) -> str:
        """How plugin code was kept from data; of several processes the weakest."""
        return self._protection_before or self._confinement.protection

    def source_cost(self) -> dict[str, Any]:
        """Return what the source has cost, and what restricts it, for the cells that reuse it."""
        cpu = self.clock.cpu_seconds
        return {
            "seconds": self.clock.seconds["synthesis"],
            "cpu_seconds": None if cpu is None else cpu["synthesis"],
            "counts": self.counts.as_dict(),
            "peak_mib": self.peaks["synthesis"],
            "flags": self.flags,
            "protection": self.protection,
            "foreign_calls": self.guard.foreign,
        }

    def reuse(self, cost: Mapping[str, Any]) -> None:
        """Take over what a saved source has cost, and what restricts it."""
        self.reused = dict(cost)
        for name in cost["flags"]:
            self.flag(name)
        self._continue_under(cost.get("protection", ""), cost.get("foreign_calls", ()))

    def _continue_under(self, protection: str, foreign_calls: Iterable[str]) -> None:
        if protection != LANDLOCK:
            self._protection_before = protection
        self.guard.foreign[:] = dict.fromkeys([*foreign_calls, *self.guard.foreign])

    def peak(self, phase: Phase) -> float:
        """Return the current phase's peak memory in MiB, that of earlier processes included."""
        return max(peak_mib(self._device), self.peaks.get(phase, 0.0))

    def share(self, source_id: str, members: Sequence[Accounting]) -> None:
        """Share a source and a worker with `members`, this one included; the first has made the source."""
        self._members, first = members, members[0]
        if first is not self:
            self.source_kind = first.source_kind
            self.counts.set(first.counts.as_dict())
            self.reused = {"id": source_id, "seconds": 0.0, "counts": {}, "peak_mib": first.peaks.get("synthesis")}
            self.reused["cpu_seconds"] = None if first.clock.cpu_seconds is None else 0.0

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Pause the clock and the data guard while the host does its own work."""
        with self.clock.paused(), self.guard.watching(on=False):
            yield

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Add the time of a block to the wall time alone; it belongs to no phase."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._saving += time.monotonic() - begin

    def used_images(self) -> int:
        """Return how many different images the quantizer has drawn, at most.

        A fixed source repeats its images. The batches with which a generator is trained alone serve no student.
        """
        if self.source_kind == "live" and GENERATOR_ALONE not in self.flags:
            return self.counts.images - self.planning.images
        drawn = self.counts.sampled_images - self.planning.sampled_images
        return drawn if self.source_images is None else min(drawn, self.source_images)

    def wall(self) -> float:
        """Return the seconds of this process for the attempt; of a shared process the first member has the rest."""
        if self._members and self._members[0] is not self:
            return sum(self.clock.elapsed().values()) - self._seconds_before + self._saving
        return time.monotonic() - self._started - sum(member.wall() for member in self._members[1:])

    def so_far(self) -> dict[str, Any]:
        """Return everything until now as plain data for the record."""
        return {
            "seconds": self.clock.seconds,
            "cpu_seconds": self.clock.cpu_seconds,
            "counts": self.counts.as_dict(),
            "peak_mib": self.peaks,
            "flags": [*self.flags, *([FOREIGN_CALLS] if self.guard.foreign else [])],
            "source_kind": self.source_kind,
            "source_images": self.source_images or self.counts.images,
            "used_images": self.used_images(),
            "reused": self._reused_now(),
            "real_data_opened": list(self.guard.hits),
            "wrote_outside": list(self.guard.writes),
            "foreign_calls": list(self.guard.foreign),
            "protection": self.protection,
            "resumed": self.resumed,
            "wall_before": self._wall_before,
            "wall": self.wall(),
        }

    def checkpoint(self, phase: Phase) -> dict[str, Any]:
        """Return everything until now as plain data for a checkpoint inside a phase."""
        state = self.so_far() | {"seconds": self.clock.elapsed(), "cpu_seconds": self.clock.cpu_elapsed()}
        state["peak_mib"] = self.peaks | {str(phase): self.peak(phase)}
        state["wall_before"] = self._wall_before + state["wall"]
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `checkpoint` returned in an earlier process of this cell."""
        self.clock.restore(state["seconds"], state.get("cpu_seconds"))
        self._seconds_before = sum(state["seconds"].values())
        self.counts.set(state["counts"])
        self.peaks = dict(state["peak_mib"])
        self.flags = [flag for flag in dict.fromkeys([*state["flags"], *self.flags]) if flag != FOREIGN_CALLS]
        self._continue_under(state["protection"], state["foreign_calls"])
        self.source_kind = state["source_kind"]
        self.reused = state["reused"]
        self._others_before = self._synthesis_of_others()
        self.guard.hits[:] = dict.fromkeys([*state["real_data_opened"], *self.guard.hits])
        self.guard.writes[:] = dict.fromkeys([*state["wrote_outside"], *self.guard.writes])
        self.resumed = state["resumed"] + 1
        self._wall_before = state["wall_before"]

    def _reused_now(self) -> dict[str, Any] | None:
        """What the source would have cost this attempt alone, beyond what is charged to it."""
        if self.reused is None or not self._members:
            return self.reused
        known = {key: cost for key, cost in self._synthesis_of_others().items() if self.reused.get(key) is not None}
        return self.reused | {key: self.reused[key] + cost - self._others_before[key] for key, cost in known.items()}

    def _synthesis_of_others(self) -> dict[str, float]:
        clocks = [member.clock for member in self._members if member is not self]
        return {
            "seconds": sum(clock.elapsed().get("synthesis", 0.0) for clock in clocks),
            "cpu_seconds": sum((clock.cpu_elapsed() or {}).get("synthesis", 0.0) for clock in clocks),
        }
