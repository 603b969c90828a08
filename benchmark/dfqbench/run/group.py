"""A job and its partners in one worker: cells that differ in the bits only, from one source."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from dfqbench.api.batch import is_live
from dfqbench.run.arithmetic import compute_on
from dfqbench.run.attempt import Attempt
from dfqbench.run.ending import die, told
from dfqbench.run.lockstep import CommonFlag, CommonSource, MemberSource, OutOfStepError, Turns, can_be_common
from dfqbench.run.meter import counting

if TYPE_CHECKING:
    from dfqbench.run.channel import Sink
    from dfqbench.run.flag import StopFlag
    from dfqbench.run.job import Job

How = Literal["alone", "in turn", "in lockstep"]
"""`in turn`: one after the other, each from the saved source. `in lockstep`: step by step, from one live source."""
FOR_ALL = frozenset({"result", "error", "stopped", "warning"})
"""Events of a partner that concern the parent; progress and phases are those of the first."""


class PartnerSink:
    """A partner's line to the parent.

    Args:
        channel: the worker's.
        number: of the partner.
    """

    def __init__(self, channel: Sink, number: int) -> None:
        self._channel = channel
        self._number = number

    def send(self, event: str, **data: Any) -> None:
        """Sends one event, wrapped."""
        if event in FOR_ALL:
            self._channel.send("partner", number=self._number, line={"event": event, **data})


def run_group(leader: Attempt, job: Job, channel: Sink, flag: StopFlag) -> None:
    """Brings an attempt that has its source to its end, and its partners with it where that is possible.

    Args:
        leader: an attempt that has begun.
        job: its job, which names the partners.
        channel: the line to the parent.
        flag: whether to stop.
    """
    how = _how(leader, job)
    channel.send("together", how=how, partners=len(job.partners))
    if how == "in lockstep":
        _in_lockstep(leader, job, channel, flag)
        return
    channel.send("result", **leader.finish())
    for number in range(len(job.partners) if how == "in turn" else 0):
        sink = PartnerSink(channel, number)
        partner = Attempt(_begun(job, number), sink, flag, leader)
        with told(partner, sink):
            partner.begin()
            sink.send("result", **partner.finish())


def _begun(job: Job, number: int) -> Job:
    return replace(job.partner(number), started=time.monotonic())


def _how(leader: Attempt, job: Job) -> How:
    if not job.partners or job.probe_seconds or not leader.shares_its_quantizer:
        return "alone"
    if is_live(leader.source):
        return "in lockstep" if can_be_common(leader.source) else "alone"
    # A training of its own is worth a process of its own: others need not wait for it, and cannot lose it.
    return "alone" if leader.trains or not leader.has_saved_source else "in turn"


def _in_lockstep(leader: Attempt, job: Job, channel: Sink, flag: StopFlag) -> None:
    if not is_live(leader.source):
        raise TypeError("the source does not learn")
    sinks: Sequence[Sink] = [channel, *(PartnerSink(channel, number) for number in range(len(job.partners)))]
    jobs = [_begun(job, number) for number in range(len(job.partners))]
    attempts = [leader]
    attempts += [Attempt(own, sink, flag, leader) for own, sink in zip(jobs, sinks[1:], strict=True)]
    turns = Turns(len(attempts))
    common = CommonSource(leader.source, turns, [one.costs.counts for one in attempts], [one.aside for one in attempts])
    seen: dict[str, Any] = {}
    for number, attempt in enumerate(attempts):
        if attempt is not leader:
            attempt.join(MemberSource(common, number), attempts)
        attempt.follow(CommonFlag(flag, turns, number, seen), partial(turns.waited.__getitem__, number), leader)
    leader.source = MemberSource(common, 0)

    with counting(leader.surroundings.teacher, lambda: attempts[turns.holder].costs.counts):
        turns.run(
            [
                partial(_member, torch.device(job.device), attempt, sink)
                for attempt, sink in zip(attempts, sinks, strict=True)
            ]
        )


def _member(device: torch.device, attempt: Attempt, sink: Sink) -> None:
    try:
        compute_on(device)  # each thread has a current device of its own
        with told(attempt, sink):
            sink.send("result", **attempt.finish())
    except OutOfStepError:
        sink.send("warning", message="its steps differ from those of the other cells; it runs by itself")
    except BaseException as error:
        die(error)
