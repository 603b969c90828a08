"""`dfqbench report`: everything about a run on one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dfqbench.api.errors import UsageError
from dfqbench.cli.layout import stderr_console
from dfqbench.cli.options import OutOption, PluginOption, RunArgument, checked_out, usable_path
from dfqbench.cli.runs import read_attempts, select
from dfqbench.cli.table import claim_book
from dfqbench.run.store.files import write_text
from dfqbench.run.store.run_folder import DEFAULT_OUT


def report(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    to: Annotated[
        Path | None,
        typer.Option(parser=usable_path, metavar="FILE", help="The page; report.html beside the runs or in the run."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Write one HTML page about a run, or about all.

    Results with claims, tables, plots, images, diagnostics, and each cell with its parameters, log and error. The page
    needs no network, and reads without JavaScript.
    """
    from dfqbench.report.hardware import environments
    from dfqbench.report.html.head import read_command
    from dfqbench.report.html.page import report_page

    runs = select(out, run)
    attempts, machines = read_attempts(runs)
    details: dict[str, dict[str, Any]] = {}
    commands: dict[str, str] = {}
    for folder in runs.folders:
        details |= environments(folder.path)
        commands[folder.name] = read_command(folder.path)
    file = to or runs.place / "report.html"
    if file.is_dir():
        raise UsageError(f"--to {file} is a folder", "name a file")
    checked_out(file.parent).mkdir(parents=True, exist_ok=True)
    with stderr_console().status("drawing"):
        title = f"dfqbench: {runs.title}"
        page = report_page(attempts, machines, details, title, claim_book(plugin), commands=commands)
    write_text(file, page)
    typer.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    if open_page:
        import webbrowser

        if not webbrowser.open(file.resolve().as_uri()):
            typer.echo("no browser could be started; open the file by hand", err=True)
