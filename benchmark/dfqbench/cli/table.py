"""`dfqbench table`: the records of one run or of all, as a table."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dfqbench.cli.options import PluginOption
from dfqbench.run.store.run_folder import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.report.literature.publication_index import PublicationIndex
    from dfqbench.run.store.record import Record

OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that holds the runs.")]
RunArgument = Annotated[str | None, typer.Argument(metavar="RUN", help="A run's name; without it, all runs.")]
PAPER = "paper"


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("table")(table)


def table(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    fmt: Annotated[
        str, typer.Option("--format", metavar="text|md|latex|html|csv|json", help="What to print.")
    ] = "text",
    rows: Annotated[
        str,
        typer.Option("--rows", metavar="NAMES", help="scheme, method, model, bits, protocol, seed, target, budget."),
    ] = "scheme,method",
    columns: Annotated[str, typer.Option("--columns", metavar="NAMES", help="The same names.")] = "model",
    value: Annotated[
        str,
        typer.Option(
            "--value",
            metavar="NAMES",
            help="For example top1,drop,synthesis,total,agreement,coverage,peak,teacher,oracle; an unknown name "
            "lists all.",
        ),
    ] = "top1,drop,synthesis",
    against: Annotated[
        str | None, typer.Option("--vs", metavar="paper", help="Published numbers beside the measured ones.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Print the table of a run, or of all runs.

    Methods × models, with accuracy, drop and synthesis time; rows, columns and values can be chosen.
    """
    from dfqbench.api.errors import unknown_name
    from dfqbench.report import FORMATS, Format, parse_layout, render

    if fmt not in FORMATS:
        raise unknown_name("format", fmt, FORMATS)
    if against not in {None, PAPER}:
        raise unknown_name("comparison", str(against), [PAPER])
    layout = parse_layout(names(rows), names(columns), names(value))
    records, machines = read_runs(out, run)
    form = cast("Format", fmt)
    book = claim_book(plugin) if against == PAPER else None
    typer.echo(render(records, form, machines, layout=layout, publications=book), nl=False)


def claim_book(files: Sequence[Path] | None) -> PublicationIndex:
    """Published numbers, those of plugins among them; files of plugins that cannot be read are told on standard error.

    Args:
        files: local plugin files.
    """
    from dfqbench.plugins import load_plugins
    from dfqbench.report.literature.publication_index import index_with_plugins

    book, problems = index_with_plugins(load_plugins(files or ()))
    for problem in problems:
        typer.echo(f"dfqbench: warning: {problem}", err=True)
    return book


def names(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def read_runs(out: Path, run: str | None) -> tuple[list[Record], dict[str, str]]:
    """Records of one run or of all, and words for their environments; unreadable records are told on standard error.

    Raises:
        UsageError: the run is unknown, or there is none.
    """
    attempts, machines = read_attempts(out, run)
    return [record for record, _ in attempts], machines


def read_attempts(out: Path, run: str | None) -> tuple[list[tuple[Record, Path]], dict[str, str]]:
    """As `read_runs`, each record with the folder of its attempt.

    Raises:
        UsageError: the run is unknown, or there is none.
    """
    from dfqbench.api.errors import unknown_name
    from dfqbench.report import describe_hardware
    from dfqbench.run.store.run_folder import collection_paused, run_folders, unreadable

    folders = {folder.name: folder for folder in run_folders(out)}
    if run is not None and run not in folders:
        raise unknown_name("run", run, folders)
    attempts: list[tuple[Record, Path]] = []
    machines: dict[str, str] = {}
    with collection_paused():
        for name, folder in folders.items():
            if run not in {None, name}:
                continue
            for record, file in folder.records():
                if record is None:
                    typer.echo(f"dfqbench: warning: {unreadable(file)}", err=True)
                else:
                    attempts.append((record, file.parent))
            machines |= describe_hardware(folder.path)
        # Records live as long as this process: the collector need not walk through them.
        gc.freeze()
    return attempts, machines
