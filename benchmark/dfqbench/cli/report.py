"""`dfqbench report`: everything about a run on one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqbench.api.errors import UsageError
from dfqbench.cli.options import OutOption, PluginOption, RunArgument, checked_out, usable_path
from dfqbench.cli.table import claim_book, read_attempts, selected_runs
from dfqbench.run.store.files import write_text
from dfqbench.run.store.run_folder import DEFAULT_OUT


def report(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    to: Annotated[
        Path | None,
        typer.Option(parser=usable_path, metavar="FILE", help="The page; report.html beside the runs or in the run."),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write one HTML page about a run, or about all.

    Results with claims, tables, plots, images, diagnostics, and each cell with its parameters, log and error. The page
    needs no network, and reads without JavaScript.
    """
    from dfqbench.report.hardware import environments
    from dfqbench.report.html.head import read_command
    from dfqbench.report.html.page import report_page

    attempts, machines = read_attempts(out, run)
    details: dict[str, dict[str, Any]] = {}
    commands: dict[str, str] = {}
    for folder in selected_runs(out, run):
        details |= environments(folder.path)
        commands[folder.name] = read_command(folder.path)
    file = to or out / (run or ".") / "report.html"
    if file.is_dir():
        raise UsageError(f"--to {file} is a folder", "name a file")
    checked_out(file.parent).mkdir(parents=True, exist_ok=True)
    page = report_page(
        attempts, machines, details, f"dfqbench: {run or 'all runs'}", claim_book(plugin), commands=commands
    )
    write_text(file, page)
    typer.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
