"""`dfqbench verify`: measure the kept students of a run again and compare with its records."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.api.errors import UsageError
from dfqbench.cli import completion
from dfqbench.cli.completion import completing
from dfqbench.cli.layout import stderr_console
from dfqbench.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    OutOption,
    PluginOption,
    checked_device,
    opened,
)
from dfqbench.cli.runs import select
from dfqbench.run.store.run_folder import DEFAULT_OUT

if TYPE_CHECKING:
    from dfqbench.run.evaluate.verify import Verified

COLUMNS = ("cell", "method", "model", "scheme", "seed", "record", "measured", "equal answers", "verdict")


def verify(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's name, or its folder.", autocompletion=completing(completion.runs)),
    ],
    out: OutOption = DEFAULT_OUT,
    sample: Annotated[int | None, typer.Option(metavar="N", min=1, help="Measure N random students only.")] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Seed of that choice.")] = 0,
    data: DataOption = None,
    plugin: PluginOption = None,
    device: DeviceOption = "auto",
    trust: Annotated[
        bool, typer.Option("--trust", help="Run model code that records name (`py:` references): only your own.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the kept students of a run again.

    Compares the accuracy, image by image, with the records; in the environment of a record every answer must be equal,
    elsewhere 99.8 % of them. Writes nothing into the run's folder. The exit status is 1 where a cell disagrees.
    """
    from dfqbench.run.evaluate.verify import verify_run

    folder = select(out, run).only()
    catalogue, plugins = opened(data, plugin)
    with (
        tempfile.TemporaryDirectory(prefix="dfqbench-verify-") as scratch,
        stderr_console().status("verifying") as status,
    ):
        results = verify_run(
            folder,
            catalogue,
            plugins.model_families,
            Path(scratch),
            checked_device(device),
            sample=sample,
            seed=seed,
            trust=trust,
            say=status.update,
        )
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(result) for result in results], indent=1))
    elif results:
        _print(results)
    counts = Counter[str](result.verdict for result in results)
    typer.echo(_summary(results, counts, sample, seed), err=as_json)
    if counts["disagrees"] or counts["invalid record"]:
        raise typer.Exit(1)
    if not counts["agrees"]:
        raise UsageError(f"no student of run '{folder.name}' could be measured", "the reasons are above")


def _summary(results: Sequence[Verified], counts: Mapping[str, int], sample: int | None, seed: int) -> str:
    parts = [f"cells: {len(results)}", *(f"{verdict}: {number}" for verdict, number in sorted(counts.items()))]
    elsewhere = sum(result.measured_top1 is not None and not result.same_environment for result in results)
    if elsewhere:
        parts.append(f"of records from another environment, where answers may differ: {elsewhere}")
    if sample is not None:
        parts.append(f"at most {sample} measured, chosen with seed {seed}")
    return "; ".join(parts)


def _print(results: Sequence[Verified]) -> None:
    from tabulate import tabulate

    rows = [
        (
            result.cell_id,
            result.label,
            result.model,
            result.scheme,
            result.seed,
            *(
                "-" if number is None else f"{number:.2f}"
                for number in (result.recorded_top1, result.measured_top1, result.equal_answers)
            ),
            result.verdict,
        )
        for result in results
    ]
    typer.echo(tabulate(rows, COLUMNS, disable_numparse=True))
    for result in results:
        if result.reason:
            typer.echo(f"{result.cell_id} {result.label}: {result.verdict}: {result.reason}")
