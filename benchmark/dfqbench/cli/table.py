"""`dfqbench table`: the records of one run or of all, as a table."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dfqbench.api.errors import unknown_name
from dfqbench.cli.options import OutOption, PluginOption, RunArgument, checked_choice, split_names
from dfqbench.run.store.run_folder import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.report.literature.publication_index import PublicationIndex
    from dfqbench.run.store.record import Record
    from dfqbench.run.store.run_folder import RunFolder


def table(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    fmt: Annotated[
        str, typer.Option("--format", metavar="text|md|latex|html|csv|json", help="What to print.")
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
    attempts, environments = read_attempts(out, run)
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


def selected_runs(out: Path, run: str | None) -> list[RunFolder]:
    """Return the folder of one run, or of all."""
    from dfqbench.run.store.run_folder import run_folders

    folders = {folder.name: folder for folder in run_folders(out)}
    if run is not None and run not in folders:
        raise unknown_name("run", run, folders)
    return list(folders.values()) if run is None else [folders[run]]


def read_attempts(out: Path, run: str | None) -> tuple[list[tuple[Record, Path]], dict[str, str]]:
    """Read the records of one run or of all; warn on standard error of unreadable ones.

    Returns:
        Each record with the folder of its attempt, and the description of each environment by its id.
    """
    from dfqbench.report import describe_hardware
    from dfqbench.run.store.run_folder import collection_paused, unreadable

    attempts: list[tuple[Record, Path]] = []
    environments: dict[str, str] = {}
    with collection_paused():
        for folder in selected_runs(out, run):
            for record, file in folder.records():
                if record is None:
                    typer.echo(f"dfqbench: warning: {unreadable(file)}", err=True)
                else:
                    attempts.append((record, file.parent))
            environments |= describe_hardware(folder.path)
        # Records live as long as this process: the collector need not visit them.
        gc.freeze()
    return attempts, environments
