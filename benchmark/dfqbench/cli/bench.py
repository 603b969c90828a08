"""`dfqbench bench`: how fast the steps are, as ratios within one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dfqbench.api.precision import Precision
from dfqbench.cli.options import ExactOption

READ = typer.Option("--read", metavar="FILE", help="Print the table of a saved bench instead of measuring.")
OUT = typer.Option("--out", metavar="FILE", help="Also save the rows as JSON.")


def bench(
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="NAMES", help="For example gdfq,zeroq,evaluate; all by default.")
    ] = None,
    shapes: Annotated[str, typer.Option("--shapes", metavar="NAMES", help="cifar, imagenet, or both.")] = "cifar",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; torch's own default.")] = None,
    growth: Annotated[
        bool,
        typer.Option(
            "--growth", help="Instead: how a GDFQ step grows with batch, image size, network, bit-widths and workers."
        ),
    ] = False,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    exact: ExactOption = False,
    read: Annotated[Path | None, READ] = None,
    out: Annotated[Path | None, OUT] = None,
) -> None:
    """Time the steps of all methods as ratios.

    Each stands beside a textbook loop and beside the bare networks. Contestants take turns, and only ratios between
    them count. The textbook is float32 in the default memory format with forward hooks and `.item()` every step; the
    bare networks are forward and backward alone. MiB: the most that tensors hold at once. On a CPU, a minute or more a
    row.
    """
    from dfqbench.testing.bench import table

    if read is not None:
        typer.echo(table.render(table.read(read)))
        return
    rows = _grown(exact=exact) if growth else []
    for shape in _chosen("" if growth else shapes, ["cifar", "imagenet"], "shape"):
        rows += _measured(steps, shape, threads, _checked(device), exact=exact)
    if out is not None:
        temporary = out.with_name(out.name + ".part")
        temporary.write_text(json.dumps({"growth" if growth else "rows": rows}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(out)
    typer.echo(_growth_table(rows) if growth else table.render(rows))


def _grown(*, exact: bool) -> list[dict[str, Any]]:
    from dfqbench.testing.bench.growth import SERIES, growth

    rows = []
    for series in SERIES:
        typer.echo(series, err=True)
        rows += growth(series, _precision("cpu", exact=exact))
    return rows


def _growth_table(rows: list[dict[str, Any]]) -> str:
    from dfqbench.testing.bench.growth import render

    return render(rows)


def _checked(device: str) -> str:
    from dfqbench.api.errors import UsageError

    if device not in {"cpu", "cuda"}:
        raise UsageError(f"the bench does not know the device '{device}'", "write --device cpu or --device cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UsageError("torch sees no CUDA device here", "run with --device cpu")
    return device


def _precision(device: str, *, exact: bool) -> Precision:
    from dfqbench.run.store.environment import resolve_precision

    return Precision.FLOAT32 if exact else resolve_precision("auto", device)


def _measured(steps: str | None, shape: str, threads: int | None, device: str, *, exact: bool) -> list[dict[str, Any]]:
    from dataclasses import replace

    from dfqbench.testing.bench.apart import measured
    from dfqbench.testing.bench.measure import kinds
    from dfqbench.testing.bench.networks import SHAPES

    precision = _precision(device, exact=exact)
    rows = []
    for kind in _chosen(steps or ",".join(kinds()), kinds(), "step"):
        typer.echo(f"{kind}, {shape}", err=True)
        rows.append(measured(kind, replace(SHAPES[shape], device=device), precision, threads))
    return rows


def _chosen(text: str, known: list[str], what: str) -> list[str]:
    from dfqbench.api.errors import unknown_name

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise unknown_name(what, name, known)
    return names


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("bench")(bench)
