"""The command `dfqbench`: collects the verbs and turns errors into messages and exit statuses.

Verb modules import only typer and light parts of the host at the top, so that `--help` stays fast; pandas and torch
are imported inside the functions.
"""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from dfqbench import __version__
from dfqbench.api.errors import DfqError, UsageError
from dfqbench.cli.help import Command, Group
from dfqbench.cli.layout import color_wanted, colored
from dfqbench.run.store.files import shortened

VERBS = {
    "Run": ("run", "plan", "submit", "watch", "cancel"),
    "Results": (
        "table",
        "show",
        "compare",
        "report",
        "plot",
        "pictures",
        "diagnose",
        "sensitivity",
        "verify",
        "claims",
    ),
    "What there is": ("methods", "models", "grids", "doctor", "fetch", "decode"),
}
"""Modules of `dfqbench.cli` by group; each has a function of its own name, or a `typer.Typer` with several commands."""
FIRST_STEPS = """First steps:

\b
  dfqbench run --grid first   a table of every method in minutes, no download
  dfqbench doctor             what works on this machine
  dfqbench grids list         what else can be run"""
MOST_CHARACTERS = 4_000
"""Of an error's message; lists of valid names are long."""
STOPPED = 130
"""Exit status after Ctrl-C."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dfqbench {described_version()}")
        raise typer.Exit


def described_version() -> str:
    """Return the version, with the git revision where this is a checkout."""
    import subprocess

    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 - git
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} (git {found.stdout.strip()})"


def build_app() -> typer.Typer:
    """Return the typer application with every verb."""
    app = typer.Typer(
        name="dfqbench",
        help="Fair comparison of data-free quantization methods for image classifiers.",
        cls=Group,
        epilog=FIRST_STEPS,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "color": color_wanted()},
    )
    app.callback()(_options)
    for group, verbs in VERBS.items():
        for verb in verbs:
            command = getattr(importlib.import_module(f"dfqbench.cli.{verb}"), verb)
            if isinstance(command, typer.Typer):
                for info in command.registered_commands:
                    info.cls = Command
                app.add_typer(command, name=verb, cls=Group, rich_help_panel=group)
            else:
                app.command(verb, cls=Command, rich_help_panel=group)(command)
    return app


def _printable(text: str) -> str:
    """Return a message of limited length on one line; what a terminal cannot show is written as an escape."""
    text = shortened(text, MOST_CHARACTERS)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and its revision."),
    ] = False,
) -> None:
    """Take the options of all verbs."""


def main() -> int:
    """Run the command line.

    Returns:
        0 if all went well, 1 if some cells failed, 2 if the request was wrong, 130 on Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal cannot show is printed as an escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        build_app()(prog_name="dfqbench")
        status = 0
    except SystemExit as end:
        # Raised by typer: help, its own usage errors (2), Ctrl-C (130).
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except DfqError as error:
        label = colored("error", "error")
        typer.echo(f"dfqbench: {label}: {_printable(str(error))}", err=True, color=color_wanted())
        status = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        status = STOPPED
    if status == STOPPED:
        typer.echo("dfqbench: stopped; what was finished is kept, and the same command goes on from there", err=True)
    return status
