"""What an attempt has cost and shown until now: what its record keeps, and what a checkpoint goes on from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dfqbench.run.execute.events import Phase
from dfqbench.run.worker.clock import Clock, Timers
from dfqbench.run.worker.data_guard import DataGuard
from dfqbench.run.worker.instrumented_source import Counts
from dfqbench.run.worker.memory import peak_mib

SHARED = "gpu_shared"
"""Marks records of jobs that had a GPU together with others: their times are longer than alone."""


class Costs:
    """Seconds, passes, memory and marks of one attempt, those of earlier processes of its cell included.

    Attributes:
        clock: seconds by phase.
        counts: passes of networks and steps.
        flags: what is to be known of the record.
        peaks: peak memory of finished phases, MiB.
        source_kind: `live` or `fixed`, once the source is there.
        source_images: images of a source that has a number of them.
        reused: where the source was not made here, what it would have cost.
        resumed: how often the cell went on from a checkpoint.

    Args:
        device: where the attempt computes.
        guard: knows what plugin code has opened.
        started: when the attempt began, on the monotonic clock.
        shares_gpu: whether others compute on the same GPU.
    """

    def __init__(self, device: torch.device, guard: DataGuard, *, started: float, shares_gpu: bool) -> None:
        self.clock = _device_clock(device)
        self.counts = Counts()
        self.flags: list[str] = [SHARED] if shares_gpu else []
        self.peaks: dict[str, float] = {}
        self.source_kind: str | None = None
        self.source_images: int | None = None
        self.reused: dict[str, Any] | None = None
        self.resumed = 0
        self._device = device
        self._guard = guard
        self._started = started
        self._wall_before = 0.0
        self._seconds_before = 0.0
        self._saving = 0.0
        self._group: Sequence[Costs] = ()
        self._others_before = 0.0

    def flag(self, name: str) -> None:
        """Marks the record, once."""
        if name not in self.flags:
            self.flags.append(name)

    def peak(self, phase: Phase) -> float:
        """Peak memory of the phase under way, that of earlier processes included."""
        return max(peak_mib(self._device), self.peaks.get(phase, 0.0))

    def share(self, name: str, group: Sequence[Costs]) -> None:
        """Shares a source and a worker.

        Args:
            name: of the source.
            group: all that share them, this one included; the first has made the source.
        """
        self._group, maker = group, group[0]
        if maker is not self:
            self.source_kind = maker.source_kind
            self.counts.take(maker.counts.as_dict())
            self.reused = {"id": name, "seconds": 0.0, "counts": {}, "peak_mib": maker.peaks.get("synthesis")}

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Notes the time of a block that belongs to no phase."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._saving += time.monotonic() - begin

    def wall(self) -> float:
        """Seconds of this process for the attempt; of those that share a worker, the first has the rest."""
        if self._group and self._group[0] is not self:
            return sum(self.clock.so_far().values()) - self._seconds_before + self._saving
        return time.monotonic() - self._started - sum(other.wall() for other in self._group[1:])

    def so_far(self) -> dict[str, Any]:
        """As plain data for the record."""
        return {
            "seconds": self.clock.seconds,
            "counts": self.counts.as_dict(),
            "peak_mib": self.peaks,
            "flags": self.flags,
            "source_kind": self.source_kind,
            "source_images": self.source_images or self.counts.images,
            "reused": self._reused_now(),
            "real_data_opened": list(self._guard.hits),
            "wrote_outside": list(self._guard.writes),
            "resumed": self.resumed,
            "wall_before": self._wall_before,
            "wall": self.wall(),
        }

    def account(self, phase: Phase) -> dict[str, Any]:
        """As plain data for a checkpoint in the midst of a phase."""
        found = self.so_far() | {"seconds": self.clock.so_far()}
        found["peak_mib"] = self.peaks | {str(phase): self.peak(phase)}
        found["wall_before"] = self._wall_before + found["wall"]
        return found

    def go_on_from(self, account: Mapping[str, Any]) -> None:
        """Takes over what an earlier process of this cell had spent when it kept its state."""
        self.clock.go_on_from(account["seconds"])
        self._seconds_before = sum(account["seconds"].values())
        self.counts.take(account["counts"])
        self.peaks = dict(account["peak_mib"])
        self.flags = list(dict.fromkeys([*account["flags"], *self.flags]))
        self.source_kind = account["source_kind"]
        self.reused = account["reused"]
        self._others_before = self._paid_by_others()
        self._guard.hits[:] = dict.fromkeys([*account["real_data_opened"], *self._guard.hits])
        self._guard.writes[:] = dict.fromkeys([*account["wrote_outside"], *self._guard.writes])
        self.resumed = account["resumed"] + 1
        self._wall_before = account["wall_before"]

    def _reused_now(self) -> dict[str, Any] | None:
        """What the source would have cost this attempt alone, beyond what it paid."""
        if self.reused is None or not self._group:
            return self.reused
        more = self._paid_by_others() - self._others_before
        return self.reused | {"seconds": self.reused["seconds"] + more}

    def _paid_by_others(self) -> float:
        return sum(other.clock.so_far().get("synthesis", 0.0) for other in self._group if other is not self)


def _device_clock(device: torch.device) -> Clock:
    if device.type != "cuda":
        return Clock()
    timers = Timers(
        synchronize=lambda: torch.cuda.synchronize(device),
        make_event=lambda: torch.cuda.Event(enable_timing=True),  # type: ignore[no-untyped-call, arg-type, return-value]
    )
    return Clock(timers)
