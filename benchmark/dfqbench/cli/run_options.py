"""Options that `dfqbench run` alone has, and what their texts mean."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.run.store.status import RETRIES

if TYPE_CHECKING:
    from dfqbench.run.schedule.run import ExecutorName

EXECUTORS: tuple[ExecutorName, ...] = ("local", "inline")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the run; the grid's by default.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Start even if it would take more than a day.")]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", min=1, help="Cells at once; one for each GPU by default, on the CPU one."),
]
RetryOption = Annotated[
    str | None,
    typer.Option("--retry", metavar="failed|timeout|all", help="Run cells again that ended so; `all`: both."),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Run every cell again, without earlier checkpoints and images.")
]
FailFastOption = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")]
MaxFailuresOption = Annotated[
    int, typer.Option("--max-failures", metavar="N", min=0, help="Stop after so many failures.")
]
TimeLimitOption = Annotated[
    str | None,
    typer.Option("--time-limit", metavar="TIME", help="For each cell, evaluation apart; for example 90m or 2h."),
]
EvaluationLimitOption = Annotated[
    str | None,
    typer.Option("--evaluation-limit", metavar="TIME", help="For each evaluation of a network; for example 30m."),
]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint-every", metavar="TIME", help="Between two checkpoints of a cell.")
]
MemoryOption = Annotated[
    float, typer.Option("--memory", metavar="GIB", min=0, help="Most memory of a worker on the CPU; 0: no limit.")
]
ExecutorOption = Annotated[
    str, typer.Option("--executor", metavar="local|inline", help="`inline`: all in this process, for a debugger.")
]
SeparateOption = Annotated[
    bool,
    typer.Option(
        "--separate",
        help="A worker for each cell, even where one source could serve all bit-widths; the numbers are the same.",
    ),
]
AnyEnvironmentOption = Annotated[
    bool, typer.Option("--any-environment", help="Count cells finished with other versions or hardware.")
]
OracleOption = Annotated[
    int,
    typer.Option(
        "--oracle",
        metavar="N",
        min=0,
        help="Evaluate N states of each student's training too, outside the clock, into a column of its own.",
    ),
]


def checked_retry(text: str | None) -> frozenset[str]:
    """Statuses of the cells that `--retry` means.

    Raises:
        UsageError: it is none of the known words.
    """
    from dfqbench.api.errors import unknown_name

    if text is None:
        return frozenset()
    if text not in RETRIES:
        raise unknown_name("argument of --retry", text, RETRIES)
    return RETRIES[text]


def checked_executor(text: str) -> ExecutorName:
    """The executor of that name.

    Raises:
        UsageError: there is none.
    """
    from dfqbench.api.errors import unknown_name

    for executor in EXECUTORS:
        if text == executor:
            return executor
    raise unknown_name("executor", text, EXECUTORS)


def seconds_of(option: str, text: str | None) -> float:
    """Seconds of a time such as `90`, `90s`, `30m`, `2h`, `1.5d`; 0 where none is given.

    Raises:
        UsageError: it has another form.
    """
    from dfqbench.api.errors import UsageError

    if text is None:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None:
        raise UsageError(f"{option}: '{text}' is not a time", "write for example 90s, 30m, 2h or 1d")
    return float(found.group(1)) * _UNITS[found.group(2)]
