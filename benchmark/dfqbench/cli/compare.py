"""`dfqbench compare`: test whether two methods differ by more than chance."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from dfqbench.api.errors import UsageError
from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.options import OutOption, checked_choice
from dfqbench.cli.runs import read_attempts, select
from dfqbench.run.store.run_folder import DEFAULT_OUT


def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A method as the table names it, or a cell's id.",
            autocompletion=completing(completion.methods_and_cells),
        ),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Another one.", autocompletion=completing(completion.methods_and_cells))
    ],
    run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="A run's name or folder; all without it.", autocompletion=completing(completion.runs)
        ),
    ] = None,
    out: OutOption = DEFAULT_OUT,
    fmt: Annotated[str, typer.Option("--format", metavar="text|md|json", help="What to print.")] = "text",
) -> None:
    """Test whether two methods differ.

    Image by image on the same evaluation set: McNemar's test, and the bootstrap interval of the difference.
    """
    from dfqbench.report.comparison.compare import compare as compared
    from dfqbench.report.renderers.comparison import COMPARISON_FORMATS, ComparisonFormat, render_comparison

    checked_choice("format", fmt, COMPARISON_FORMATS)
    if first == second:
        raise UsageError(f"'{first}' is compared with itself", "name two methods, or two cells")
    attempts, _ = read_attempts(select(out, run))
    comparison = compared([record for record, _ in attempts], first, second)
    typer.echo(render_comparison(comparison, first, second, cast("ComparisonFormat", fmt)), nl=False)
