"""`dfqbench show`: one cell's record, the end of its log, and its error."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import typer

from dfqbench.cli.table import OutOption
from dfqbench.run.store.run_folder import DEFAULT_OUT

LOG = "log.txt"
"""What plugin code and the worker printed, in the attempt's folder."""
LOG_LINES = 20
"""Lines of the log that are shown."""


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("show")(show)


def show(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="A cell id, or a unique beginning of one.")],
    out: OutOption = DEFAULT_OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Show one cell: its record, log and error.

    Those of the latest attempt; of the log only the end.
    """
    from dfqbench.run.store.files import RECORD
    from dfqbench.run.store.run_folder import find_cell

    attempt = find_cell(out, cell)
    record = _record(attempt / RECORD)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    typer.echo(f"{attempt}\n")
    typer.echo("\n".join(_lines({key: entry for key, entry in record.items() if key != "error"})))
    log = attempt / LOG
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as stream:
            tail = deque(stream, maxlen=LOG_LINES)
        typer.echo(f"\nend of {log.name}:")
        typer.echo("".join(tail).rstrip())
    error = record.get("error")
    if isinstance(error, dict):
        typer.echo("\nerror:")
        typer.echo("\n".join(_lines({key: entry for key, entry in error.items() if key != "traceback"})))
        if error.get("traceback"):
            typer.echo(f"\n{str(error['traceback']).rstrip()}")


def _record(path: Path) -> dict[str, Any]:
    from dfqbench.api.errors import InputError

    if not path.is_file():
        raise InputError(f"{path.parent} has no record", "the attempt was interrupted; run its grid again")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"record {path} cannot be read: {text}", "delete its attempt folder and run again") from error
    if not isinstance(record, dict):
        raise InputError(f"record {path} is not a JSON object", "delete its attempt folder and run again")
    return record


def _lines(data: dict[str, Any], indent: str = "") -> list[str]:
    """Nested data as indented lines; what is empty is left out."""
    lines = []
    for key, entry in data.items():
        if entry in (None, "", [], {}):
            continue
        if isinstance(entry, dict):
            lines += [f"{indent}{key}:", *_lines(entry, f"{indent}  ")]
        elif isinstance(entry, list):
            lines.append(f"{indent}{key}: {', '.join(map(str, entry))}")
        else:
            lines.append(f"{indent}{key}: {entry}")
    return lines
