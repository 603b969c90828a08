"""Counts that a step raises on the host, raised alike by its repetitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Some counts.

    Attributes:
        read: what they are.
        write: sets them.
    """

    read: Callable[[], dict[str, int]]
    write: Callable[[dict[str, int]], None]


Counted = dict[Tally, dict[str, int]]
"""Counts of tallies, each by itself: some come and go, as members of a lockstep do."""

_kept: list[Tally] = []


@contextmanager
def tallied(tally: Tally) -> Iterator[None]:
    """Within it, these counts go on where a step is repeated from a recording."""
    _kept.append(tally)
    try:
        yield
    finally:
        _kept.remove(tally)


def read() -> Counted:
    """All counts."""
    return {tally: tally.read() for tally in _kept}


def risen(before: Counted) -> Counted:
    """What was added since an earlier reading."""
    return {
        tally: {name: count - before[tally][name] for name, count in now.items()}
        for tally, now in read().items()
        if tally in before
    }


def add(counted: Counted) -> None:
    """Raises the counts, those of tallies that are still kept."""
    for tally, more in counted.items():
        if tally in _kept and any(more.values()):
            tally.write({name: count + more.get(name, 0) for name, count in tally.read().items()})
