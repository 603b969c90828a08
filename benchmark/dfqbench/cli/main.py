"""The command `dfqbench`: collects the verbs and turns errors into messages and exit statuses.

Verb modules import only typer and light parts of the host at the top, so that `--help` stays fast; what needs pandas
or torch is imported inside the functions.
"""

from __future__ import annotations

import importlib

import typer

from dfqbench.api.errors import DfqError, UsageError

VERBS = (
    *("run", "plan", "table", "show", "claims", "compare", "diagnose", "plot", "pictures", "report"),
    *("methods", "models", "grids", "fetch", "doctor", "decode"),
)
"""One module each in `dfqbench.cli`; each has `register(app)`."""
STOPPED = 130
"""Exit status after Ctrl-C."""


def build_app() -> typer.Typer:
    """Builds the typer application with every verb."""
    app = typer.Typer(
        name="dfqbench",
        help="Fair comparison of data-free quantization methods for image classifiers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in VERBS:
        importlib.import_module(f"dfqbench.cli.{verb}").register(app)
    return app


def main() -> int:
    """Runs the command line.

    Returns:
        0 if all went well, 1 if some cells failed, 2 if the request was wrong, 130 on Ctrl-C.
    """
    try:
        build_app()()
    except SystemExit as end:
        # Where typer itself ends the process: help, its own usage errors (2), Ctrl-C (130).
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status == STOPPED:
            _say_stopped()
        return status
    except UsageError as error:
        typer.echo(f"dfqbench: error: {error}", err=True)
        return 2
    except DfqError as error:
        typer.echo(f"dfqbench: error: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        _say_stopped()
        return STOPPED
    return 0


def _say_stopped() -> None:
    typer.echo("dfqbench: stopped; what was finished is kept, and the same command goes on from there", err=True)
