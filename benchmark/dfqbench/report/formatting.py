"""Numbers as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

ABSENT = "-"  # shown where there is no value


def decimals(digits: int) -> Callable[[float], str]:
    """Return a function that prints a number with this many decimal places, and zero without a sign."""
    return lambda number: f"{number:z.{digits}f}"


def duration(seconds: float | None) -> str:
    """Return a time as `0.52 s`, `12.3 s`, `4.2 min` or `1.3 h`."""
    if seconds is None:
        return ABSENT
    if seconds < 1:
        return f"{seconds:.2f} s"
    # The bounds lie half a printed digit below the round number, so that nothing reads `60.0 min`.
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 99.95 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    """Return a count as `950`, `12.8 k` or `1.6 M`."""
    for smallest, scale, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= smallest:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f}"


def counted(number: int, noun: str) -> str:
    """Return a number of things in words, for example `1 method` or `2 methods`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def value_range(numbers: Iterable[float | None], digits: int = 2) -> str:
    """Return one number, or `low to high` where several differ when printed; `-` for none."""
    known = sorted(number for number in numbers if number is not None)
    if not known:
        return ABSENT
    low, high = (f"{number:.{digits}f}" for number in (known[0], known[-1]))
    return low if low == high else f"{low} to {high}"


def optional(number: float | None) -> str:
    """Return the number with two decimal places, `-` for None."""
    return ABSENT if number is None else f"{number:.2f}"
