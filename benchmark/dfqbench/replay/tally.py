"""Counts that a step raises on the host, raised alike by its repetitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """Some counts.

    Attributes:
        read: what they are.
        write: sets them.
    """

    read: Callable[[], dict[str, int]]
    write: Callable[[dict[str, int]], None]


_kept: list[Tally] = []


@contextmanager
def tallied(tally: Tally) -> Iterator[None]:
    """Within it, these counts go on where a step is repeated from a recording."""
    _kept.append(tally)
    try:
        yield
    finally:
        _kept.remove(tally)


def read() -> list[dict[str, int]]:
    """All counts."""
    return [tally.read() for tally in _kept]


def write(counts: list[dict[str, int]]) -> None:
    """Sets all counts."""
    for tally, found in zip(_kept, counts, strict=True):
        tally.write(found)


def risen(before: list[dict[str, int]], after: list[dict[str, int]]) -> list[dict[str, int]]:
    """What was added between two readings."""
    return [
        {name: count - one[name] for name, count in other.items()} for one, other in zip(before, after, strict=True)
    ]


def add(counts: list[dict[str, int]]) -> None:
    """Raises all counts."""
    now = read()
    if len(now) == len(counts):
        write([{name: here[name] + more.get(name, 0) for name in here} for here, more in zip(now, counts, strict=True)])
