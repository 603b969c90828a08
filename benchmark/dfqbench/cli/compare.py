"""`dfqbench compare`: whether two methods differ by more than chance."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from dfqbench.cli.table import OutOption, read_runs
from dfqbench.run.store.run_folder import DEFAULT_OUT


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("compare")(compare)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A method as the table names it, or a cell's id.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="A run's name; without it, all runs.")] = None,
    out: OutOption = DEFAULT_OUT,
    fmt: Annotated[str, typer.Option("--format", metavar="text|md|json", help="What to print.")] = "text",
) -> None:
    """Test whether two methods differ.

    Image by image on the same evaluation set: McNemar's test, and the bootstrap interval of the difference.
    """
    from dfqbench.api.errors import unknown_name
    from dfqbench.report.comparison.compare import compare as compared
    from dfqbench.report.renderers.comparison import COMPARISON_FORMATS, ComparisonFormat, render_comparison

    if fmt not in COMPARISON_FORMATS:
        raise unknown_name("format", fmt, COMPARISON_FORMATS)
    records, _ = read_runs(out, run)
    found = compared(records, first, second)
    typer.echo(render_comparison(found, first, second, cast("ComparisonFormat", fmt)), nl=False)
