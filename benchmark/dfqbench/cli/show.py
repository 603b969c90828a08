"""`dfqbench show`: one cell's record, the end of its log, and its error."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import typer

from dfqbench.api.errors import InputError, UsageError
from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.options import OutOption
from dfqbench.cli.runs import Selection, read_attempts, select
from dfqbench.run.store.run_folder import DEFAULT_OUT

LOG = "log.txt"
"""Output of plugin code and the worker, in the attempt's folder; its last lines are shown."""
LOG_LINES = 20
LOG_CHARACTERS = 20_000


def show(
    cell: Annotated[
        str,
        typer.Argument(
            metavar="CELL",
            help="A cell's id or its beginning, a cell's folder, or a run: its cells.",
            autocompletion=completing(completion.cells),
        ),
    ],
    out: OutOption = DEFAULT_OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Show one cell: its record, log and error.

    Those of the latest attempt; of the log only the end. Of a run, the identities of its cells.
    """
    from dfqbench.run.store.files import RECORD, shortened
    from dfqbench.run.store.status import described_flag

    attempt = _attempt(cell, out)
    if isinstance(attempt, Selection):
        _list_cells(attempt, as_json=as_json)
        return
    record = _record(attempt / RECORD)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    typer.echo(f"{attempt}\n")
    error = record.pop("error", None)
    if isinstance(record.get("flags"), list):
        record["flags"] = [described_flag(str(flag)) for flag in record["flags"]]
    typer.echo("\n".join(_lines(record)))
    log = attempt / LOG
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as stream:
            tail = deque(stream, maxlen=LOG_LINES)
        typer.echo(f"\nend of {log.name}:")
        typer.echo(shortened("".join(tail).rstrip(), LOG_CHARACTERS))
    if isinstance(error, dict):
        traceback = error.pop("traceback", None)
        typer.echo("\nerror:")
        typer.echo("\n".join(_lines(error)))
        if traceback:
            typer.echo(f"\n{str(traceback).rstrip()}")


def _attempt(cell: str, out: Path) -> Path | Selection:
    """Return the folder of a cell's latest attempt, or the run that `cell` means."""
    from dfqbench.run.store.run_folder import find_cell

    path = Path(cell).absolute()
    if path.is_dir() and path.parent.parent.name == "cells":
        return path
    if path.is_dir() and path.parent.name == "cells":
        return find_cell(path.parent.parent, path.name)
    with contextlib.suppress(UsageError):
        return select(out, cell)
    return find_cell(out, cell)


def _list_cells(runs: Selection, *, as_json: bool) -> None:
    from tabulate import tabulate

    from dfqbench.report.record_access import scheme_label

    latest = {record.cell_id: record for record, _ in read_attempts(runs)[0]}
    keys = ("cell_id", "label", "target", "model", "scheme", "seed", "status", "top1")
    rows = [
        (r.cell_id, r.label or r.method, r.target, r.model.name, scheme_label(r), r.seed, r.status, r.top1)
        for r in latest.values()
    ]
    if as_json:
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        typer.echo(tabulate(rows, keys, floatfmt=".2f"))


def _record(path: Path) -> dict[str, Any]:
    """Return a record's data, `invalid` where `table` shows it so; one that `table` leaves out is shown as it is."""
    from dfqbench.run.store.files import read_regular
    from dfqbench.run.store.run_folder import MOST_BYTES, read_record

    if not path.exists():
        raise InputError(f"{path.parent} has no record", "the attempt was interrupted; run its grid again")
    with contextlib.suppress(OSError, ValueError, ArithmeticError, RecursionError):
        return read_record(path).as_dict()
    try:
        record = json.loads(read_regular(path, MOST_BYTES))
        json.dumps(record)
    except (OSError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"record {path} cannot be read: {text}", "delete its attempt folder and run again") from error
    if not isinstance(record, dict):
        raise InputError(f"record {path} is not a JSON object", "delete its attempt folder and run again")
    return record


def _lines(data: dict[str, Any], indent: str = "") -> list[str]:
    """Return nested data as indented lines, without empty values."""
    lines = []
    for key, value in data.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key}: {text}")
    return lines
