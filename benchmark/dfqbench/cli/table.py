"""`dfqbench table`: the records of one run or of all, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dfqbench.cli.completion import completing, fixed
from dfqbench.cli.options import OutOption, PluginOption, RunArgument, checked_choice, split_names
from dfqbench.cli.runs import read_attempts, select
from dfqbench.run.store.run_folder import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.report.literature.publication_index import PublicationIndex


def table(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    fmt: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="text|md|latex|html|csv|json",
            help="What to print.",
            autocompletion=completing(fixed("text", "md", "latex", "html", "csv", "json")),
        ),
    ] = "text",
    rows: Annotated[
        str, typer.Option(metavar="NAMES", help="scheme, method, model, bits, protocol, seed, target, budget.")
    ] = "scheme,method",
    columns: Annotated[str, typer.Option(metavar="NAMES", help="The same names.")] = "model",
    value: Annotated[
        str, typer.Option(metavar="NAMES", help="For example top1,total,coverage; unknown names list all.")
    ] = "top1,drop,synthesis",
    against: Annotated[
        str | None, typer.Option("--vs", metavar="paper", help="Published numbers beside the measured ones.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Print the table of a run, or of all runs.

    Methods × models, with accuracy, drop and synthesis time; rows, columns and values can be chosen.
    """
    from dfqbench.report import FORMATS, Format, parse_layout, render

    checked_choice("format", fmt, FORMATS)
    if against is not None:
        checked_choice("comparison", against, ["paper"])
    layout = parse_layout(split_names(rows), split_names(columns), split_names(value))
    attempts, environments = read_attempts(select(out, run))
    book = claim_book(plugin) if against is not None else None
    records = [record for record, _ in attempts]
    typer.echo(render(records, cast("Format", fmt), environments, layout=layout, publications=book), nl=False)


def claim_book(files: Sequence[Path] | None) -> PublicationIndex:
    """Return the published numbers of host and plugins; warn on standard error of files that cannot be read."""
    from dfqbench.plugins import load_plugins
    from dfqbench.report.literature.publication_index import index_with_plugins

    book, problems = index_with_plugins(load_plugins(files or ()))
    for problem in problems:
        typer.echo(f"dfqbench: warning: {problem}", err=True)
    return book
