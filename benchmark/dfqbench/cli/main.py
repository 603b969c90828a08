"""The command `dfqbench`: collects the verbs and turns errors into messages and exit statuses.

Verb modules import only typer and light parts of the host at the top, so that `--help` stays fast; pandas and torch
are imported inside the functions.
"""

from __future__ import annotations

import importlib
import io
import sys

import typer

from dfqbench.api.errors import DfqError, UsageError
from dfqbench.run.store.files import shortened

VERBS = (
    *("run", "plan", "table", "show", "claims", "compare", "verify", "diagnose", "plot", "pictures", "report"),
    *("methods", "models", "grids", "fetch", "doctor", "decode"),
)
"""Modules of `dfqbench.cli`; each has a function of its own name, or a `typer.Typer` with several commands."""
MOST_CHARACTERS = 4_000
"""Of an error's message; lists of valid names are long."""
STOPPED = 130
"""Exit status after Ctrl-C."""


def build_app() -> typer.Typer:
    """Return the typer application with every verb."""
    app = typer.Typer(
        name="dfqbench",
        help="Fair comparison of data-free quantization methods for image classifiers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in VERBS:
        command = getattr(importlib.import_module(f"dfqbench.cli.{verb}"), verb)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=verb)
        else:
            app.command(verb)(command)
    return app


def _printable(text: str) -> str:
    """Return a message of limited length on one line; what a terminal cannot show is written as an escape."""
    text = shortened(text, MOST_CHARACTERS)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def main() -> int:
    """Run the command line.

    Returns:
        0 if all went well, 1 if some cells failed, 2 if the request was wrong, 130 on Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal cannot show is printed as an escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        build_app()()
        status = 0
    except SystemExit as end:
        # Raised by typer: help, its own usage errors (2), Ctrl-C (130).
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except DfqError as error:
        typer.echo(f"dfqbench: error: {_printable(str(error))}", err=True)
        status = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        status = STOPPED
    if status == STOPPED:
        typer.echo("dfqbench: stopped; what was finished is kept, and the same command goes on from there", err=True)
    return status
