"""Tables as HTML, and the templates with every value escaped by jinja2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined

from dfqbench.report.tables.table import RANK_RULE, Row, Table


def to_html(tables: Sequence[Table]) -> str:
    """Return a document with every table: best in bold, second underlined, controls set apart; no script."""
    return environment().get_template("tables.html").render(tables=tables)


@cache
def environment() -> Environment:
    """Return the environment of the templates."""
    made = Environment(
        loader=PackageLoader("dfqbench.report.html", "templates"),
        # Everything is escaped, whatever a file is called: records are written by strangers.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["by_block"] = _by_block
    made.globals |= {"rank_rule": RANK_RULE}
    return made


def _by_block(rows: Iterable[Row]) -> list[list[Row]]:
    """Return neighbouring rows of the same block together."""
    return [list(group) for _, group in groupby(rows, key=lambda row: row.block)]
