"""`dfqbench report`: everything about a run on one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqbench.cli.options import PluginOption
from dfqbench.cli.table import OutOption, RunArgument, claim_book, read_attempts
from dfqbench.run.store.run_folder import DEFAULT_OUT


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("report")(report)


def report(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="The page; report.html beside the runs or in the run.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write one HTML page about a run, or about all.

    Results with claims, tables, plots, images, diagnostics, and each cell with its parameters, log and error. The page
    needs no network, and reads without JavaScript.
    """
    from dfqbench.api.errors import UsageError
    from dfqbench.cli.options import checked_out
    from dfqbench.report.hardware import environments
    from dfqbench.report.html.page import report_page
    from dfqbench.run.store.run_folder import run_folders

    attempts, machines = read_attempts(out, run)
    found: dict[str, dict[str, Any]] = {}
    for folder in run_folders(out):
        if run in {None, folder.name}:
            found |= environments(folder.path)
    file = to or out / (run or ".") / "report.html"
    if file.is_dir():
        raise UsageError(f"--to {file} is a folder", "name a file")
    checked_out(file.parent).mkdir(parents=True, exist_ok=True)
    page = report_page(attempts, machines, found, f"dfqbench: {run or 'all runs'}", claim_book(plugin))
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(file)
    typer.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
