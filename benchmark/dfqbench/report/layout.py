"""Layouts: which of a record's names make rows, which make columns, and which values stand where they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.report.columns import DEFAULT_VALUES, Value, chosen_values

DIMENSIONS = ("scheme", "method", "model", "bits", "protocol", "seed", "target", "budget")
"""What rows and columns can be made of; `bits` and `protocol` are the two halves of `scheme`."""
DEFAULT_ROWS = ("scheme", "method")
DEFAULT_COLUMNS = ("model",)


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of a table.

    Attributes:
        rows: names whose values make a row.
        columns: names whose values make a group of columns.
        values: what stands in each group.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[Value, ...]

    @property
    def pages(self) -> tuple[str, ...]:
        """Names that are neither in rows nor in columns; each of their values has a table of its own."""
        used = {*self.rows, *self.columns}
        halves = {"bits", "protocol"}
        if not used & halves:
            schemes: tuple[str, ...] = ("scheme",)
        else:
            schemes = tuple(sorted(halves))
        needed = ("target", "budget", *schemes, "method", "model")
        return tuple(name for name in needed if name not in used)


def parse_layout(
    rows: Sequence[str] = DEFAULT_ROWS,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    values: Sequence[str] = DEFAULT_VALUES,
) -> Layout:
    """Makes a layout of names.

    Raises:
        UsageError: a name is unknown or used twice, or rows or columns are empty.
    """
    for name in (*rows, *columns):
        if name not in DIMENSIONS:
            raise unknown_name("row or column", name, DIMENSIONS)
    if not rows or not columns:
        raise UsageError("a table needs rows and columns", f"choose from {', '.join(DIMENSIONS)}")
    twice = [name for name in dict.fromkeys((*rows, *columns)) if [*rows, *columns].count(name) > 1]
    if twice:
        raise UsageError(f"'{twice[0]}' stands for rows or columns twice", "name it once")
    if "scheme" in {*rows, *columns} and {"bits", "protocol"} & {*rows, *columns}:
        raise UsageError("'scheme' is bits and protocol together", "name either scheme, or bits and protocol")
    return Layout(tuple(rows), tuple(columns), chosen_values(values))
