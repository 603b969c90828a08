"""`dfqbench pictures`: each method's images as a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfqbench.cli.layout import stderr_console
from dfqbench.cli.options import OutOption, RunArgument, checked_out, usable_path
from dfqbench.cli.runs import read_attempts, select
from dfqbench.run.store.run_folder import DEFAULT_OUT


def pictures(
    run: RunArgument = None,
    out: OutOption = DEFAULT_OUT,
    to: Annotated[
        Path | None,
        typer.Option(parser=usable_path, metavar="DIR", help="Folder; by default pictures/ beside the runs."),
    ] = None,
) -> None:
    """Draw each method's images, by class.

    In display space, with the teacher's confidence where `diagnose` has measured it; of sources that learn also over
    their training.
    """
    from dfqbench.report.pictures.draw import draw_pictures
    from dfqbench.report.pictures.grid import encode

    runs = select(out, run)
    attempts, _ = read_attempts(runs)
    with stderr_console().status("drawing"):
        images, problems = draw_pictures(attempts)
    folder = checked_out(to or runs.place / "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in images:
        file = folder / f"{picture.name}.png"
        temporary = file.with_suffix(".png.part")
        temporary.write_bytes(encode(picture.image, "png"))
        temporary.replace(file)
        typer.echo(str(file))
    for problem in problems:
        typer.echo(f"not shown: {problem}", err=True)
