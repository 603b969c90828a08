"""Which layers of a network cost accuracy when they are rounded, on images that a run of one cell makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfqbench.api.budget import budget_named
from dfqbench.api.errors import Unavailable, UsageError
from dfqbench.grid.choice import NO_IMAGES, parse_method
from dfqbench.grid.schema import ANY_TARGET, AUTO, Grid
from dfqbench.run.plan.plan import Plan, build_plan

if TYPE_CHECKING:
    from rich.console import Console

    from dfqbench.plugins import Plugins
    from dfqbench.quantizers.mixed_precision import LayerSensitivity
    from dfqbench.targets.catalogue import Catalogue

RUN = "sensitivity"
"""Name of the run, whose cell keeps the images."""
_LIMIT = 64
"""Evaluation images of the run, whose accuracy is of no interest."""


def plan_images(
    model: str,
    method: str,
    target: str,
    *,
    scheme: str,
    budget: str,
    catalogue: Catalogue,
    plugins: Plugins,
    device: str,
) -> Plan:
    """Return the plan of one cell that makes a method's images for a network; arguments as a grid has them.

    Raises:
        UsageError: one of them is unknown, or the method names a quantizer.
    """
    choice = parse_method(method)
    if choice.quantizer is not None:
        raise UsageError(f"'{method}' names a quantizer, and only images are needed", f"write {choice.method}")
    if choice.method == NO_IMAGES:
        raise UsageError(f"the source '{method}' has no images", "name another one, for example zeroq")
    if budget != AUTO:
        budget_named(budget)
    grid = Grid(
        name=RUN,
        on=(target,),
        models={ANY_TARGET: (model,)},
        methods=(f"{method}+calibrate",),
        schemes=(scheme,),
        budget=budget,
        limit=_LIMIT,
        set={},
    )
    return build_plan(grid, catalogue, plugins, device)


def measure_on_images(
    plan: Plan, plugins: Plugins, bits: Sequence[int], *, out: Path, device: str, console: Console
) -> list[LayerSensitivity]:
    """Make the images of a plan of one cell, or take those of an earlier call, and measure the network's layers.

    Args:
        plan: result of `plan_images`.
        plugins: the loaded plugins.
        bits: widths of the weights.
        out: folder for the run.
        device: torch device.
        console: for messages of the run.

    Raises:
        Unavailable: the cell cannot be run, or kept no images.
    """
    import torch

    from dfqbench.models.build import build_teacher
    from dfqbench.quantizers.mixed_precision import measure_sensitivity
    from dfqbench.report.pictures.images import load_kept_images
    from dfqbench.run.schedule.run import Options, run_plan

    (cell,) = plan.cells
    summary, folder = run_plan(plan, plugins, Options(out, RUN, device), console)
    record = summary.records[0] if summary.records else None
    if cell.model is None or record is None or record.top1 is None:
        reason = cell.problem.message if cell.problem else "stopped"
        if record is not None and record.error is not None:
            reason = record.error.message
        raise Unavailable(f"no images of {cell.choice.method} for {cell.model_name}: {reason}", "name another --source")
    images, _ = load_kept_images(folder.attempt(record.cell_id, record.attempt))
    teacher = build_teacher(cell.model, torch.device(device), plugins.model_families)
    on_device = torch.from_numpy(images).to(device)
    return measure_sensitivity(teacher, on_device, cell.scheme.protocol, cell.model.card, bits=bits)
