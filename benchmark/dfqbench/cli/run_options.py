"""Options of `dfqbench run` alone, and the parsing of their values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.api.errors import UsageError

if TYPE_CHECKING:
    from dfqbench.run.schedule.run import ExecutorName

EXECUTORS: tuple[ExecutorName, ...] = ("local", "inline")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """How to run a grid."""

    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the run; the grid's by default.")
    ] = None
    yes: Annotated[bool, typer.Option("--yes", help="Start even if it would take more than a day.")] = False
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Cells at once; default: one a GPU, or one.")
    ] = None
    retry: Annotated[
        str | None, typer.Option("--retry", metavar="failed|timeout|all", help="Run cells again that ended so.")
    ] = None
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run every cell again, without earlier checkpoints and images.")
    ] = False
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False
    max_failures: Annotated[
        int, typer.Option("--max-failures", metavar="N", min=0, help="Stop after so many failures.")
    ] = 0
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", metavar="TIME", help="For each cell, without evaluation; e.g. 2h.")
    ] = None
    evaluation_limit: Annotated[
        str | None, typer.Option("--evaluation-limit", metavar="TIME", help="For each evaluation; for example 30m.")
    ] = None
    checkpoint_every: Annotated[
        str, typer.Option("--checkpoint-every", metavar="TIME", help="Between two checkpoints of a cell.")
    ] = "5m"
    memory: Annotated[
        float, typer.Option("--memory", metavar="GIB", min=0, help="Most memory of a worker on the CPU; 0: no limit.")
    ] = 0
    executor: Annotated[
        str, typer.Option("--executor", metavar="local|inline", help="`inline`: all in this process, for a debugger.")
    ] = "local"
    separate: Annotated[
        bool, typer.Option("--separate", help="A worker for each cell, where one could serve several; same numbers.")
    ] = False
    any_environment: Annotated[
        bool, typer.Option("--any-environment", help="Count cells finished with other versions or hardware.")
    ] = False
    oracle: Annotated[
        int, typer.Option("--oracle", metavar="N", min=0, help="Evaluate N earlier states too, untimed, in a column.")
    ] = 0


def checked_name(text: str | None) -> str | None:
    """Return a run's name if it can be the name of a folder."""
    if text is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise UsageError(
            f"'{text}' is not the name of a run", "use letters, digits, '_', '.' and '-'; --out names the folder"
        )
    return text


def seconds_of(option: str, text: str | None) -> float:
    """Return the seconds of a time such as `90`, `90s`, `30m`, `2h`, `1.5d`; 0 for None."""
    if text is None:
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise UsageError(f"{option}: '{text}' is not a time", "write for example 90s, 30m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]
