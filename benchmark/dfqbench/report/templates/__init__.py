"""Templates: HTML with every value escaped by jinja2."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

if TYPE_CHECKING:
    from dfqbench.report.page import Row


def _blocks(rows: Iterable[Row]) -> list[list[Row]]:
    """Neighbouring rows of the same block, together."""
    return [list(group) for _, group in groupby(rows, key=lambda row: row.block)]


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("dfqbench.report", "templates"),
        # Everything is escaped, whatever a file is called: records are written by strangers.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["groupby_run"] = _blocks
    return made


def template(name: str) -> Template:
    """A template by file name."""
    return _environment().get_template(name)
